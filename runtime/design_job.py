"""What is done for each of many targets, and for a shard of them: in this process, or wherever it is called."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from . import design
from .bundle import Bundle
from .making import Making
from .sampler import Sampler, load
from .target import Target

BATCH = 64  # candidates of one network call, whatever memory and engine a computer has


@dataclasses.dataclass(frozen=True)
class Job:
    """What is done for every target; the fields are those of ``Sampler.design`` and of ``infer``.

    ``settings`` are of sampling, ``search`` of refinement, ``engine`` the words for backend, device and precision.
    """

    n: int
    top: int
    seed: int
    settings: Mapping[str, Any]
    search: Mapping[str, Any]
    time_limit: float | None
    verify: bool
    making: Making
    engine: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON values of everything that decides what comes out."""
        search = {name: value for name, value in self.search.items() if name != "limits"}
        if search.get("fixed") is not None:
            search["fixed"] = np.asarray(search["fixed"]).tolist()
        flat = {name: getattr(self, name) for name in ("n", "top", "seed", "time_limit", "verify")}
        every = {**flat, **self.settings, **search, **dataclasses.asdict(self.making), **self.engine}
        return dict(json.loads(json.dumps(every)))  # as it will be read again: tuples are lists

    def design(self, sampler: Sampler, target: Target, workers: int | None = None) -> list[design.Design]:
        """The designs of one target, best first. Raises what ``Sampler.design`` does."""
        found = sampler.design(
            target,
            n=self.n,
            top=self.making.pool(self.top),
            seed=self.seed,
            **{**self.settings, "batch_size": self.settings.get("batch_size") or BATCH},
            **self.search,
            deadline_s=self.time_limit,
            verify=self.verify,
            workers=workers,
        )
        return self.making.arrange(found, target, self.top, workers)


class Shard(NamedTuple):
    """The targets of one shard: its number and its first target's, a hash of all that is asked, where each was read, and the targets."""

    number: int
    first: int
    digest: str
    places: list[tuple[str, int]]
    targets: list[Target]


class Solved(NamedTuple):
    """A shard's number, how many targets it has, and the arrays of its file."""

    number: int
    targets: int
    arrays: dict[str, np.ndarray]


# work(shards, on_target) yields the shards solved, in any order, and calls on_target(count) as targets are done.
Work = Callable[[Iterator[Shard], Callable[[int], object]], Iterator[Solved]]


def solve(sampler: Sampler, job: Job, shard: Shard, workers: int | None = None, on_target: Callable[[int], object] | None = None) -> Solved:
    """All designs of a shard, ranked target by target. workers: threads of the solver. on_target: called with 1 after each."""
    designs, places = [], []
    for k, (target, place) in enumerate(zip(shard.targets, shard.places, strict=True)):
        found = job.design(sampler, target, workers)
        designs += found
        places += [(shard.first + k, *place, rank) for rank in range(1, len(found) + 1)]
        if on_target is not None:
            on_target(1)
    numbers, files, rows, ranks = zip(*places, strict=True)
    arrays = design.to_arrays(designs, shard.targets[0])
    arrays |= {"target": np.array(numbers), "source": np.array(files), "row": np.array(rows), "rank": np.array(ranks)}
    if all(one.tolerance is not None for one in designs):
        arrays["worst"] = np.array([one.tolerance.worst.score for one in designs if one.tolerance is not None])
    arrays |= {"input": np.array(shard.digest), "engine": np.array(str(sampler.choice))}
    return Solved(shard.number, len(shard.targets), arrays)


def in_process(job: Job, bundle: Bundle, workers: int | None = None) -> Work:
    """The work done here, one shard after the other; the engine is loaded when there is a first one."""

    def work(shards: Iterator[Shard], on_target: Callable[[int], object]) -> Iterator[Solved]:
        for first in shards:
            with load(bundle.path, **job.engine) as sampler:
                for shard in itertools.chain([first], shards):
                    yield solve(sampler, job, shard, workers, on_target)

    return work
