"""Data sets made by RCWA: random patterns, or given ones, solved by a pool of processes that may be killed and started again.

    simulate("data.npz", count=20_000, seed=1, geometry=Geometry())

Work goes, in shards, to the folder ``data.npz.parts`` with a ``settings.json`` that says what it is; when all are there they become
``data.npz`` in one step and the folder goes. Sample i depends on (seed, i) alone and each child solves with one BLAS thread, so the
data are the same for any number of workers, however often the run was interrupted. Another solver may take the children's place.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import load, open_npz
from ..errors import DataError, MetascatterError
from ..files import write_npz
from ..geometry import Geometry
from ..version import __version__
from .shards import Parts, Take
from .workers import solve_by_workers

if TYPE_CHECKING:
    from ..cluster import Wish

__all__ = ["draw", "simulate"]

# solve(patterns (N, n, n) uint8, heights (N,) float32 nm) gives R and T, each (N, 2M+1, 2M+1); made from a geometry and M.
Solve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

_log = logging.getLogger(__name__)
_FORMAT = 1
_SHARD = 64  # samples a shard at most: what a kill loses per worker
_STREAM = 0x73616D706C65  # second word of the Philox key, so that no other use of the same seed sees these bits


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
    solver: Callable[[Geometry, int], Solve] | None = None,
    cluster: Wish | None = None,
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
        solver: solver(geometry, M) returns what solves many cells at once, in this process, in place of the workers; None is the
            solver of this package. It must be at least as precise as the geometry's dtype, so that a run may change solvers
            half-way: samples are the same, efficiencies to within that rounding.
        cluster: solve on a Ray cluster in place of worker processes; the file is the same.

    Returns:
        ``out``.

    Raises:
        DataError: an argument or the patterns file is wrong, ``out`` or its parts belong to other settings, or cannot be begun.
        MetascatterError: a worker process died, or what was solved cannot be written; the same call goes on.
        BackendError: there is no such cluster.
    """
    out = Path(out)
    if out.suffix != ".npz" or out.is_dir():
        raise DataError(f"{out} cannot be a data file; name a file that ends in .npz")
    if solver is not None and workers is not None:
        raise DataError(f"workers is {workers}, but only the solver on the CPU has worker processes; leave one of the two out")
    if solver is not None and cluster is not None:
        raise DataError("only the solver on the CPU works on a cluster; leave out the cluster or the other solver")
    if cluster is not None:
        from ..cluster import check

        check(cluster)
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
            _log.info("%s already holds these %d samples; nothing to do", out, count)
        return out
    parts.begin()
    try:
        _solve_missing(parts, samples, geometry, orders, workers, progress, solver, cluster)
        parts.finish(out, geometry)
    except OSError as error:
        raise MetascatterError(
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


def _solve_missing(
    parts: Parts,
    samples: _Samples,
    geometry: Geometry,
    orders: int,
    workers: int | None,
    progress: bool,
    solver: Any,
    cluster: Wish | None,
) -> None:
    """Solve every shard that is not yet there, by worker processes, a cluster or ``solver``; see :func:`simulate`."""
    from tqdm import tqdm

    missing = parts.missing()
    if not missing:
        return
    todo = sum(min(parts.shard, samples.count - first) for first in missing)
    with tqdm(total=samples.count, initial=samples.count - todo, unit="sample", disable=None if progress else True, file=sys.stderr) as bar:
        if cluster is not None:
            from ..cluster import connect
            from ..cluster_design import solve_by_cluster

            with connect(cluster) as connected:
                solve_by_cluster(connected, parts, missing, samples.take, geometry, orders, bar.update)
        elif solver is None:
            solve_by_workers(parts, missing, samples.take, geometry, orders, workers, bar.update)
        else:
            _solve_here(parts, missing, samples.take, solver(geometry, orders), bar.update)


def _solve_here(parts: Parts, missing: list[int], take: Take, solve: Solve, on_done: Callable[[int], object]) -> None:
    """Solve the shards that start with the samples ``missing`` in this process, several small ones at once."""
    at_once = max(1, _SHARD // parts.shard)
    for group in (missing[start : start + at_once] for start in range(0, len(missing), at_once)):
        taken = [take(first, parts.shard) for first in group]
        R, T = solve(np.concatenate([xx for xx, _ in taken]), np.concatenate([h for _, h in taken]))
        done = 0
        for first, (xx, h) in zip(group, taken, strict=True):
            part = slice(done, done + len(h))
            write_npz(parts.path(first), xx=xx, h=h, Rm=R[part].astype(np.float32), Tm=T[part].astype(np.float32))
            done += len(h)
        on_done(done)
