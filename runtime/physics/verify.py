"""Many patterns solved at once, and designs checked against their target: always by RCWA, never by a network.

    R, T = solve_many(patterns, height_nm, geometry, orders)
    designs = verify(designs, target)

The work runs in threads, since metascatter is embedded in instrument software that wants no child processes. One solve is
some forty products of matrices too small to gain from several BLAS threads, which moreover spin while they wait (measured
on two busy cores: 0.107 s a solve with one BLAS thread, 0.62 s with two). So for as long as solves run, the OpenBLAS of NumPy
and SciPy is held at one thread and every core gets a solve of its own. That also makes the numbers independent of the
machine's number of cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Cancelled, DataError
from ..geometry import Geometry
from .rcwa import Solver

if TYPE_CHECKING:
    from ..design import Design
    from ..target import Target

__all__ = ["solve_many", "solve_until", "verify"]

_POLL_S = 0.05
# (set, get) of the number of threads, as the builds of OpenBLAS name them.
_SYMBOLS = tuple(
    (f"{prefix}openblas_set_num_threads{suffix}", f"{prefix}openblas_get_num_threads{suffix}")
    for prefix in ("scipy_", "")
    for suffix in ("64_", "_64_", "")
)

Cancel = threading.Event | Callable[[], bool] | None


def solve_many(
    patterns: np.ndarray,
    height_nm: np.ndarray | float,
    geometry: Geometry,
    orders: int,
    workers: int | None = None,
    cancel: Cancel = None,
    on_done: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scattering of N patterns by RCWA with ``geometry``'s solver settings, the same numbers for any number of workers.

    Args:
        patterns: (N, n, n) of 0 and 1.
        height_nm: (N,) heights in nm, or one for all.
        geometry: arrangement and solver settings.
        orders: M, the half-width of the maps.
        workers: threads; None is one per core this process may use (where BLAS cannot be held at one thread, such as
            with MKL, half of them).
        cancel: a ``threading.Event``, or a callable that says True, to stop. Solves under way are finished first, so it
            takes effect within the time of one solve.
        on_done: called after every solve as on_done(solved so far, N); what it raises stops the work and reaches the caller.
            Both are called in the caller's thread alone.

    Returns:
        R, T: (N, 2M+1, 2M+1) float64, order (m, n) at ``[m + M, n + M]``.

    Raises:
        Cancelled: ``cancel`` said so.
        DataError: patterns that are not (N, n, n) of 0 and 1, or heights that are not N finite numbers from 0 up.
    """
    patterns = np.asarray(patterns)
    if patterns.ndim != 3:
        raise DataError(f"the patterns have shape {patterns.shape}; expected (N, n, n)")
    count = len(patterns)
    try:
        heights = np.broadcast_to(np.asarray(height_nm, np.float64), (count,))
    except ValueError:
        raise DataError(f"the heights have shape {np.shape(height_nm)}; expected ({count},), one per pattern, or one number") from None
    R = np.zeros((count, 2 * orders + 1, 2 * orders + 1))
    T = np.zeros_like(R)
    solver = Solver(geometry, orders)

    def solve(i: int) -> None:
        R[i], T[i] = solver.solve(patterns[i], float(heights[i]))

    in_threads(solve, count, workers, cancel, on_done)
    return R, T


def in_threads(
    work: Callable[[int], None],
    count: int,
    workers: int | None = None,
    cancel: Cancel = None,
    on_done: Callable[[int, int], None] | None = None,
) -> None:
    """``work(0)`` to ``work(count - 1)``, one solve each, in threads of one BLAS thread; the rest as for :func:`solve_many`."""
    from concurrent.futures import ThreadPoolExecutor

    stop = _stop(cancel)
    todo = iter(range(count))
    taking, abandoned = threading.Lock(), threading.Event()
    outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def take() -> None:
        while not abandoned.is_set():
            with taking:
                i = next(todo, None)
            if i is None:
                return
            try:
                work(i)
                outcomes.put(None)
            except BaseException as error:
                outcomes.put(error)

    # The caller's functions run in the caller's thread alone: they may belong to an instrument's user interface.
    with one_blas_thread() as limited:
        workers = max(1, min(count, workers or default_workers(limited)))
        with ThreadPoolExecutor(workers, "metascatter-solve") as pool:
            for _ in range(workers):
                pool.submit(take)
            try:
                solved = 0
                while solved < count:
                    if stop():
                        raise Cancelled("solving was cancelled")
                    try:
                        error = outcomes.get(timeout=_POLL_S)  # never for good: Windows hears no Ctrl-C meanwhile
                    except queue.Empty:
                        continue
                    if error is not None:
                        raise error
                    solved += 1
                    if on_done is not None:
                        on_done(solved, count)
            finally:
                abandoned.set()


def solve_until(
    end: float | None,
    patterns: np.ndarray,
    height_nm: np.ndarray | float,
    geometry: Geometry,
    orders: int,
    workers: int | None = None,
    cancel: Cancel = None,
    on_done: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`solve_many` of as many of the first patterns as will be done when ``time.monotonic()`` is ``end``, at least one a worker.

    ``end`` None solves them all. Solves are taken to last as long as the longest so far; each is exactly what it is without a limit.
    """
    group = len(patterns) if end is None else max(1, workers or default_workers())
    heights = np.broadcast_to(np.asarray(height_nm, np.float64), len(patterns))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    longest, started = 0.0, time.monotonic()
    for first in range(0, len(patterns), group):
        if parts:
            longest, started = max(longest, time.monotonic() - started), time.monotonic()
            if end is not None and started + longest > end:
                break

        def counted(done: int, _: int, before: int = first) -> None:
            if on_done is not None:
                on_done(before + done, len(patterns))

        part = slice(first, first + group)
        parts.append(solve_many(patterns[part], heights[part], geometry, orders, workers, cancel, counted))
    return np.concatenate([R for R, _ in parts]), np.concatenate([T for _, T in parts])


def verify(
    designs: Sequence[Design],
    target: Target,
    workers: int | None = None,
    cancel: Cancel = None,
    on_done: Callable[[int, int], None] | None = None,
) -> list[Design]:
    """The same designs, solved again at their height with the settings their ``Geometry`` states, and scored against ``target``.

    Args:
        designs: in any order, of any geometries; what they claim about their scattering is not looked at.
        target: what they were made for; resized to the orders of a design's own maps, if it has any.
        workers, cancel, on_done: as for :func:`solve_many`.

    Returns:
        New designs in the order given, with ``R``, ``T`` and ``score`` (misrouted power) of this solve and ``verified`` True; likewise
        their ``pairs``, as far as the target asks for them.

    Raises:
        TargetError: the target was made for another geometry than a design, or asks for orders beyond a design's maps.
        Cancelled: ``cancel`` said so.
    """
    from ..pairs import known, scored
    from ..score import misrouted_power
    from ..target import check_geometry

    groups: dict[tuple[Geometry, int, tuple[int, ...]], list[int]] = {}
    for i, design in enumerate(designs):
        check_geometry(target, design.geometry, "design's", "verify against the target it was made for")
        orders = target.orders if design.R is None else len(design.R) // 2
        groups.setdefault((design.geometry, orders, design.pattern.shape), []).append(i)
    done: dict[int, Design] = {}
    for (geometry, orders, _), members in groups.items():
        wanted = target.resized(orders)
        heights = np.array([designs[i].height_nm for i in members], np.float64)
        report = None if on_done is None else _shifted(on_done, len(done), len(designs))
        R, T = solve_many(np.stack([designs[i].pattern for i in members]), heights, geometry, orders, workers, cancel, report)
        scores = np.asarray(misrouted_power(R, T, wanted))
        solved = [
            dataclasses.replace(designs[i], R=R[row], T=T[row], score=float(scores[row]), verified=True) for row, i in enumerate(members)
        ]
        done |= zip(members, scored(solved, wanted, known(solved), workers=workers, cancel=_stop(cancel)), strict=True)
    return [done[i] for i in range(len(designs))]


def default_workers(limited: bool = True) -> int:
    """Cores this process may use; half of them where each worker's BLAS may take several."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Windows and macOS
        cores = os.cpu_count() or 1
    return cores if limited else max(1, cores // 2)


_blas_lock = threading.Lock()
_blas_users = 0
_blas_before: list[tuple[Callable[[int], Any], int]] = []


@contextlib.contextmanager
def one_blas_thread() -> Iterator[bool]:
    """NumPy's and SciPy's OpenBLAS at one thread inside the block, as it was after the last of nested or concurrent blocks.

    Yields True where that worked; False leaves BLAS as it is (another BLAS, or a NumPy not from a wheel or conda). The number
    of threads belongs to the whole process, so other threads' BLAS calls run on one thread too meanwhile.
    """
    global _blas_users
    with _blas_lock:
        if _blas_users == 0:
            _blas_before[:] = [(put, get()) for put, get in _blas_threads()]
            for put, _ in _blas_before:
                put(1)
        _blas_users += 1
        limited = bool(_blas_before)
    try:
        yield limited
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                for put, before in _blas_before:
                    put(before)


_blas_known: list[tuple[Callable[[int], Any], Callable[[], int]]] | None = None


def _blas_threads() -> list[tuple[Callable[[int], Any], Callable[[], int]]]:
    """(set, get) of the number of threads of each OpenBLAS inside the NumPy and SciPy wheels; looked up once."""
    global _blas_known
    if _blas_known is None:
        import ctypes
        from pathlib import Path

        _blas_known = []
        site = Path(np.__file__).parent.parent
        for file in sorted(
            path for folder in ("numpy.libs", "numpy/.dylibs", "scipy.libs", "scipy/.dylibs") for path in (site / folder).glob("*openblas*")
        ):
            with contextlib.suppress(OSError):
                library = ctypes.CDLL(str(file))  # already loaded, or about to be by SciPy
                found = next((pair for pair in _SYMBOLS if all(hasattr(library, name) for name in pair)), None)
                if found:
                    put, get = (getattr(library, name) for name in found)
                    put.argtypes, put.restype, get.argtypes, get.restype = [ctypes.c_int], None, [], ctypes.c_int
                    _blas_known.append((put, get))
    return _blas_known


def _stop(cancel: Cancel) -> Callable[[], bool]:
    if cancel is None:
        return lambda: False
    return cancel if callable(cancel) else cancel.is_set


def _shifted(on_done: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    """``on_done`` for one group of several."""
    return lambda done, _: on_done(before + done, total)
