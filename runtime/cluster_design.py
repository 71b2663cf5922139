"""``infer`` of many targets and ``simulate`` on a cluster: what :mod:`.design_shards` and :mod:`.physics.simulate` do, elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import cluster as rays
from .bundle import Bundle
from .cluster import Cluster, Wish, connect
from .errors import BackendError
from .geometry import Geometry

if TYPE_CHECKING:
    from .design_job import Job, Shard, Solved, Work
    from .physics.shards import Parts, Take


def engine_of(cluster: Cluster, engine: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """The engine's words for a worker, and its GPUs: without one, ``auto`` is the CPU, of which it has a share.

    Raises:
        BackendError: a GPU is asked for by name and none for the workers.
    """
    gpus = cluster.gpus(engine["device"])
    if not gpus and engine["device"] == "cuda":
        raise BackendError("the device is cuda and the workers get no GPU; ask for one with --gpus-per-worker 1")
    return {**engine, "device": "cpu" if not gpus and engine["device"] == "auto" else engine["device"]}, gpus


def on_cluster(cluster: Cluster, job: Job, bundle: Bundle) -> Work:
    """The work of :func:`.design_shards.run` done by actors, one denoiser for each GPU or share of CPUs."""

    def work(shards: Iterator[Shard], on_target: Callable[[int], object]) -> Iterator[Solved]:
        engine, gpus = engine_of(cluster, job.engine)
        arguments = (rays.carried(bundle), engine, job, cluster.wish.threads)
        for solved in cluster.actors(_designer, arguments, shards, gpus):
            on_target(solved.targets)
            yield solved

    return work


def when_needed(wish: Wish, job: Job, bundle: Bundle) -> Work:
    """:func:`on_cluster`, on a cluster that is connected to when there is a first shard."""

    def work(shards: Iterator[Shard], on_target: Callable[[int], object]) -> Iterator[Solved]:
        for first in shards:
            with connect(wish) as cluster:
                yield from on_cluster(cluster, job, bundle)(itertools.chain([first], shards), on_target)

    return work


def _designer(files: Mapping[str, bytes], engine: Mapping[str, Any], job: Job, threads: int) -> Callable[[Shard], Solved]:
    """In a worker: what turns a shard's targets into its designs."""
    from .design_job import solve

    sampler = rays.open_sampler(files, engine, threads)
    return lambda shard: solve(sampler, job, shard, threads)


def solve_by_cluster(
    cluster: Cluster, parts: Parts, missing: list[int], take: Take, geometry: Geometry, orders: int, on_done: Callable[[int], object]
) -> None:
    """Solve the shards of a simulation that start with the samples ``missing``; as :func:`.physics.workers.solve_by_workers`.

    Raises:
        MetascatterError: a worker died again and again.
    """
    from .files import write_npz

    items = ((first, *take(first, parts.shard), geometry, orders, cluster.wish.threads) for first in missing)
    for first, arrays in cluster.tasks(_solve, items):
        write_npz(parts.path(first), **arrays)
        on_done(len(arrays["h"]))


def _solve(first: int, xx: np.ndarray, h: np.ndarray, geometry: Geometry, orders: int, threads: int) -> tuple[int, dict[str, Any]]:
    """In a worker: one shard of a simulation."""
    from .physics.verify import solve_many

    R, T = solve_many(xx, h, geometry, orders, workers=threads)
    return first, {"xx": xx, "h": h, "Rm": R.astype(np.float32), "Tm": T.astype(np.float32)}
