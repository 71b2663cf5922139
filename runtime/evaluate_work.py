"""What the stages of ``evaluate`` share, and where their work on a target is done: here, or by a cluster."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .data import DataSet
from .errors import Cancelled, DataError
from .score import misrouted_power
from .target import Target

_Item = TypeVar("_Item")
Samplers = Mapping[str, Any]  # "bundle", the one under evaluation, and where there is one "baseline"
# elsewhere((k, function, work, item), ...) gives (k, function(work, samplers, *item), seconds by clock) of each, in any order.
Elsewhere = Callable[[Iterator[tuple[int, Callable[..., Any], "Work", tuple[Any, ...]]]], Iterator[tuple[int, Any, Mapping[str, float]]]]


class Call(NamedTuple):
    """Work on one target: ``function(work, samplers, *item)``."""

    function: Callable[..., Any]
    item: tuple[Any, ...]


class Work:
    """What the stages of one evaluation share: how to sample and solve, when to stop, progress, and the time spent by name."""

    def __init__(
        self,
        data: DataSet,
        n: int,
        seed: int,
        workers: int | None,
        stop: Callable[[], bool] | None,
        progress: bool,
        samplers: Samplers | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.data, self.n, self.seed, self.workers, self.stop, self.progress = data, n, seed, workers, stop, progress
        self.samplers, self.elsewhere = samplers or {}, elsewhere
        self.seconds: dict[str, float] = {}

    def done(self, calls: Mapping[str, Sequence[Call]]) -> dict[str, list[Any]]:
        """The results of the calls of every stage, by its name: ``function(work, samplers, *item)`` each.

        Here one after the other under a bar a stage; on a cluster all together, so that its workers open their bundles once.

        Raises:
            Cancelled: the evaluation was to stop.
        """
        if self.elsewhere is None:
            return {
                name: [function(self, self.samplers, *item) for function, item in self.through(name, stage)]
                for name, stage in calls.items()
            }
        # Whoever solves needs to know the geometry and the size of a pattern, not the data.
        away = Work(self.data.take(slice(0, 1)), self.n, self.seed, None, None, False)
        every = [(name, k, call) for name, stage in calls.items() for k, call in enumerate(stage)]
        found: dict[str, dict[int, Any]] = {name: {} for name in calls}
        sent = ((place, call.function, away, call.item) for place, (_, _, call) in enumerate(every))
        for place, result, seconds in self.through("on the cluster", self.elsewhere(sent), len(every)):
            name, k, _ = every[place]
            found[name][k] = result
            for clock, spent in seconds.items():
                self.seconds[clock] = self.seconds.get(clock, 0.0) + spent
        return {name: [results[k] for k in range(len(results))] for name, results in found.items()}

    def through(self, name: str, items: Iterable[_Item], count: int | None = None) -> Iterator[_Item]:
        """The items of a stage under a bar of its own: a target costs more in one stage than in another.

        ``count`` says how many there are where they cannot be counted.

        Raises:
            Cancelled: the evaluation was to stop.
        """
        from tqdm import tqdm

        count = len(items) if count is None else count  # type: ignore[arg-type]
        hidden = None if self.progress and count else True  # None: shown on a terminal
        for item in tqdm(items, desc=name, total=count, unit="target", disable=hidden, leave=False, file=sys.stderr):
            if self.stop is not None and self.stop():
                raise Cancelled("the evaluation was cancelled")
            yield item

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """A block whose time counts for ``name``."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def propose(self, sampler: Any, target: Target, index: int, settings: Mapping[str, Any], name: str = "sampling") -> np.ndarray:
        """The n candidates (n, N, N) uint8 of target number ``index``.

        Raises:
            DataError: the sampler gave something else.
        """
        with self.clock(name):
            patterns = np.asarray(sampler.propose(target, self.n, seed=self.seed + index, **settings, **self.stopping()), np.uint8)
        if patterns.ndim != 3 or len(patterns) != self.n:
            raise DataError(
                f"the sampler proposed an array of shape {patterns.shape}; expected ({self.n}, N, N), a pattern for each candidate"
            )
        return patterns

    def stopping(self) -> dict[str, Callable[[], bool]]:
        """``stop`` as a sampler takes it."""
        return {} if self.stop is None else {"stop": self.stop}

    def solve(self, patterns: np.ndarray, target: Target, name: str = "solving") -> np.ndarray:
        """Misrouted power (K,) of patterns (K, N, N), solved at the target's height."""
        return np.asarray(misrouted_power(*self.scatter(patterns, target, name), target))

    def scatter(self, patterns: np.ndarray, target: Target, name: str = "solving") -> tuple[np.ndarray, np.ndarray]:
        """R and T (K, 2M+1, 2M+1) of patterns (K, N, N), solved at the target's height."""
        from .physics.verify import solve_many

        with self.clock(name):
            return solve_many(patterns, target.height_nm, self.data.geometry, target.orders, self.workers, self.stop)
