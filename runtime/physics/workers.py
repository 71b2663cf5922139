"""Shards solved by a pool of processes, one BLAS thread each, that end with their parent."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from ..environment import environment
from ..errors import MetascatterError
from ..files import write_npz
from ..geometry import Geometry
from .rcwa import Solver
from .shards import Parts, Take
from .verify import default_workers

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def solve_by_workers(
    parts: Parts,
    missing: list[int],
    take: Take,
    geometry: Geometry,
    orders: int,
    workers: int | None,
    on_done: Callable[[int], object],
) -> None:
    """Solve the shards that start with the samples ``missing``, which each child writes to its place in ``parts``.

    take: take(first, count) gives the patterns and heights of those samples. workers: processes; None is one per core.
    on_done: called with the number of samples whenever a shard is there.

    Raises:
        MetascatterError: a worker process died.
    """
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool

    # Windows waits for at most 61 processes at once.
    workers = max(1, min(workers or default_workers(), len(missing), 61))
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with _single_threaded_children(), ProcessPoolExecutor(workers, context, _begin, (stop,)) as pool:
        running: dict[Any, int] = {}
        try:
            for first in missing:
                while len(running) > workers:  # one in reserve, so that no worker waits
                    on_done(_collect(running, wait(running, None, FIRST_COMPLETED).done))
                xx, h = take(first, parts.shard)
                running[pool.submit(_solve_shard, parts.path(first), xx, h, geometry, orders)] = len(xx)
            while running:
                on_done(_collect(running, wait(running, None, FIRST_COMPLETED).done))
        except BrokenProcessPool:
            raise MetascatterError(
                "a worker process died, for lack of memory or in a script without if __name__ == '__main__'; "
                "mend that and give the same command again to go on"
            ) from None
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _collect(running: dict[Any, int], done: set[Any]) -> int:
    """Samples in the futures that are done; what one raised is raised here."""
    for future in done:
        future.result()
    return sum(running.pop(future) for future in done)


def _single_threaded_children() -> AbstractContextManager[None]:
    """BLAS reads its thread count when NumPy is first imported, in a child before any code of ours runs: so by inheritance."""
    return environment(dict.fromkeys(_THREADS, "1"))


_stopped: Any = None


def _begin(stop: Any) -> None:
    """Set a child up: Ctrl-C is the parent's business, and a parent that was killed takes its children with it."""
    import multiprocessing
    import signal
    import threading

    global _stopped
    _stopped = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


@functools.lru_cache(maxsize=1)
def _solver(geometry: Geometry, orders: int) -> Solver:
    return Solver(geometry, orders)


def _solve_shard(path: Path, xx: np.ndarray, h: np.ndarray, geometry: Geometry, orders: int) -> None:
    """In a child: solve one shard and put it in its place, unless asked to stop."""
    maps = []
    for pattern, height in zip(xx, h, strict=True):
        if _stopped is not None and _stopped.is_set():
            return
        maps.append(_solver(geometry, orders).solve(pattern, float(height)))
    write_npz(path, xx=xx, h=h, Rm=np.array([m[0] for m in maps], np.float32), Tm=np.array([m[1] for m in maps], np.float32))
