"""Data sets made by RCWA: random patterns, or given ones, solved by a pool of processes that may be killed and started again.

    simulate("data.npz", count=20_000, seed=1, geometry=Geometry())

Work goes, in shards, to the folder ``data.npz.parts`` with a ``settings.json`` that says what it is; when all are there they become
``data.npz`` in one step and the folder goes. Sample i depends on (seed, i) alone and each child solves with one BLAS thread, so the
data are the same for any number of workers, however often the run was interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..data import load, open_npz
from ..errors import DataError, MetascatterError
from ..files import write_npz
from ..geometry import Geometry
from ..version import __version__
from .rcwa import Solver
from .shards import Parts
from .verify import default_workers

__all__ = ["draw", "simulate"]

_FORMAT = 1
_SHARD = 64  # samples a shard at most: what a kill loses per worker
_STREAM = 0x73616D706C65  # second word of the Philox key, so that no other use of the same seed sees these bits
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def simulate(
    out: str | os.PathLike[str],
    count: int | None,
    seed: int,
    geometry: Geometry,
    height_nm: tuple[float, float] = (50, 600),
    size: int = 10,
    orders: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    patterns: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a data set (keys ``xx``, ``h``, ``Rm``, ``Tm``, ``geometry``) of solved patterns.

    The same call goes on where a killed one stopped. Where ``out`` already holds exactly these samples it is left as it is.
    Starts child processes: a script that calls this needs the usual ``if __name__ == "__main__":``.

    Args:
        out: the ``.npz`` to write; ``OUT.parts/`` beside it holds the work until it is whole.
        count, seed: how many samples, and their seed from 0 to 2^64 - 1. With ``patterns``, count may be None and seed is not used.
        geometry: arrangement and solver settings.
        height_nm: lowest and highest height, whole nm, drawn uniformly, both included.
        size: n of the n x n patterns, whose pixels are fair coin flips.
        orders: M, the half-width of the maps; None is 11, or as many as carry power.
        workers: processes; None is one per core.
        progress: a bar, and messages, on stderr; the bar only where stderr is a terminal.
        patterns: an ``.npz`` with ``xx`` (N, n, n) and ``h`` (N,) nm to solve instead of random ones.

    Returns:
        ``out``.

    Raises:
        DataError: an argument or the patterns file is wrong, ``out`` or its parts belong to other settings, or cannot be written.
        MetascatterError: a worker process died.
    """
    out = Path(out)
    if out.suffix != ".npz" or out.is_dir():
        raise DataError(f"{out} cannot be a data file; name a file that ends in .npz")
    orders = _orders(geometry) if orders is None else orders
    given = None if patterns is None else _given(Path(patterns), count)
    if given is None:
        _check(count, seed, height_nm, size)
        assert count is not None
    else:
        count, size = len(given[0]), given[0].shape[1]
    settings = {
        "format": _FORMAT,
        "metascatter": __version__,
        "count": int(count),
        "shard": min(_SHARD, -(-count // _SHARD)),
        "size": int(size),
        "orders": int(orders),
        "seed": None if given else int(seed),
        "height_nm": None if given else [int(h) for h in height_nm],
        "patterns": hashlib.sha256(given[0].tobytes() + given[1].tobytes()).hexdigest() if given else None,
        "geometry": geometry.to_dict(),
    }
    samples = _Samples(count, seed, size, height_nm, given)
    parts = Parts(out.with_name(out.name + ".parts"), settings, samples.take)
    if out.exists():
        if not _holds(out, samples, geometry, orders):
            raise DataError(f"{out} exists and holds other data than asked for; choose another name or move it away")
        if parts.begun():
            parts.clear()
        if progress:
            print(f"{out} already holds these {count} samples; nothing to do", file=sys.stderr)
        return out
    parts.begin()
    try:
        _solve_missing(parts, samples, geometry, orders, workers, progress)
        parts.finish(out, geometry)
    except OSError as error:
        raise DataError(
            f"cannot write {error.filename or parts.folder}: {error.strerror}; give the same command again once that is mended"
        ) from None
    return out


def draw(
    seed: int, first: int, count: int, size: int, height_nm: tuple[float, float], stream: int = _STREAM
) -> tuple[np.ndarray, np.ndarray]:
    """Random samples ``first`` to ``first + count - 1``: patterns (count, n, n) uint8 of fair coin flips and heights (count,) float32 nm.

    Sample i takes the raw bits of Philox 4x64 (Salmon et al., SC 2011) with key (seed, stream) and counter word i, and nothing else.
    Raw bits, unlike NumPy's distributions, are promised never to change.
    """
    xx = np.empty((count, size, size), np.uint8)
    heights = np.empty(count, np.float32)
    low, high = (int(height) for height in height_nm)
    for row in range(count):
        generator = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=np.array([0, 0, first + row, 0], np.uint64))
        words = np.asarray(generator.random_raw(1 + -(-size * size // 64)), np.uint64)
        heights[row] = low + ((int(words[0]) * (high - low + 1)) >> 64)
        xx[row] = np.unpackbits(words[1:].astype("<u8").view(np.uint8), count=size * size).reshape(size, size)
    return xx, heights


class _Samples:
    """The patterns and heights of a run, given or drawn when asked for."""

    def __init__(
        self, count: int, seed: int, size: int, height_nm: tuple[float, float], given: tuple[np.ndarray, np.ndarray] | None
    ) -> None:
        self.count = count
        self._seed, self._size, self._height_nm, self._given = seed, size, height_nm, given

    def take(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(count, n, n) uint8 and (count,) float32 from ``first`` on, fewer at the end."""
        count = min(count, self.count - first)
        if self._given is not None:
            return self._given[0][first : first + count], self._given[1][first : first + count]
        return draw(self._seed, first, count, self._size, self._height_nm)


def _check(count: Any, seed: Any, height_nm: Any, size: Any) -> None:
    whole = (int, np.integer)
    for name, value, low, high in (("count", count, 1, 2**62), ("seed", seed, 0, 2**64 - 1), ("size", size, 1, 1000)):
        if isinstance(value, bool) or not isinstance(value, whole) or not low <= value <= high:
            raise DataError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
    if len(height_nm) != 2 or not 1 <= height_nm[0] <= height_nm[1] < 2**24 or any(value != int(value) for value in height_nm):
        raise DataError(f"the height range is {list(height_nm)}; it must be two whole numbers of nm, the lower first, from 1 up")


def _given(path: Path, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(N, n, n) uint8 and (N,) float32 of a patterns file."""
    arrays = open_npz(path)
    for key in ("xx", "h"):
        if key not in arrays:
            raise DataError(f"{path} lacks the key '{key}'; patterns to solve need xx (N, n, n) and h (N,)")
    xx, h = arrays["xx"], arrays["h"]
    if xx.ndim != 3 or xx.shape[1] != xx.shape[2] or not xx.size or xx.dtype.kind not in "biuf" or not np.isin(xx, (0, 1)).all():
        raise DataError(f"{path}: 'xx' has shape {xx.shape} and type {xx.dtype}; expected (N, n, n) of 0 and 1 with N above 0")
    if h.shape != (len(xx),) or h.dtype.kind not in "iuf" or not (np.isfinite(h) & (h > 0)).all():
        raise DataError(f"{path}: 'h' has shape {h.shape}; expected ({len(xx)},), one height in nm above 0 for each pattern")
    if count not in (None, len(xx)):
        raise DataError(f"{path} holds {len(xx)} patterns, not the {count} asked for; leave the count out")
    return xx.astype(np.uint8), h.astype(np.float32)


def _orders(geometry: Geometry) -> int:
    """11, the lab's, or as many as both carry power and are kept by the truncation."""
    sine = geometry.index_incident  # an upper bound on the incident transverse wavevector, needed only off normal incidence
    longest = max(geometry.index_substrate, geometry.index_cover) + (sine if geometry.theta_deg else 0)
    return max(11, min(geometry.harmonics, int(longest * max(geometry.period_nm) / geometry.wavelength_nm)))


def _holds(out: Path, samples: _Samples, geometry: Geometry, orders: int) -> bool:
    """Whether a finished file has exactly these samples: they follow from the settings without solving."""
    data = load(out)
    xx, h = samples.take(0, samples.count) if len(data) == samples.count else (np.empty(0), np.empty(0))
    return data.geometry == geometry and len(data.Rm[0]) == 2 * orders + 1 and np.array_equal(data.xx, xx) and np.array_equal(data.h, h)


def _solve_missing(parts: Parts, samples: _Samples, geometry: Geometry, orders: int, workers: int | None, progress: bool) -> None:
    """Solve every shard that is not yet there."""
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool

    from tqdm import tqdm

    missing = parts.missing()
    if not missing:
        return
    todo = sum(min(parts.shard, samples.count - first) for first in missing)
    # Windows waits for at most 61 processes at once.
    workers = max(1, min(workers or default_workers(), len(missing), 61))
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    bar = tqdm(total=samples.count, initial=samples.count - todo, unit="sample", disable=None if progress else True, file=sys.stderr)
    with bar, _single_threaded_children(), ProcessPoolExecutor(workers, context, _begin, (stop,)) as pool:
        running: dict[Any, int] = {}
        try:
            for first in missing:
                while len(running) > workers:  # one in reserve, so that no worker waits
                    bar.update(_collect(running, wait(running, None, FIRST_COMPLETED).done))
                xx, h = samples.take(first, parts.shard)
                running[pool.submit(_solve_shard, parts.path(first), xx, h, geometry, orders)] = len(xx)
            while running:
                bar.update(_collect(running, wait(running, None, FIRST_COMPLETED).done))
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


@contextlib.contextmanager
def _single_threaded_children() -> Iterator[None]:
    """BLAS reads its thread count when NumPy is first imported, in a child before any code of ours runs: so by inheritance."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
