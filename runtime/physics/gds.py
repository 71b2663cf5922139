"""GDSII of patterns: what a lithography tool reads.

One layer, ``(1, 0)``, holds the pillars (pattern 1, the silicon that stays); there is nothing else in the file. Rank k has a
unit cell ``UNIT_k`` whose lower left corner is the origin, and a top cell ``DESIGN_k`` that repeats it by one array reference.
x points right and y up, seen from the air. User unit 1 µm, database unit 1 nm.
"""

from __future__ import annotations

import datetime
import os
from typing import Any

import numpy as np

from ..errors import BackendError, DataError
from ..files import atomic_file
from ..geometry import Geometry

LAYER, DATATYPE = 1, 0
SPAN_NM = 100_000.0  # the repeated array is as close to this as whole unit cells come: 25 x 25 cells of 4 µm
_EPOCH = datetime.datetime(2000, 1, 1)  # GDSII stores a time; a fixed one makes equal designs equal files


def write_gds(patterns: Any, geometry: Geometry, path: str | os.PathLike[str], repeat: tuple[int, int] | None = None) -> None:
    """Write one pattern, or several in order of rank, atomically.

    Args:
        patterns: (n, n) or (K, n, n) of 0 and 1; ``pattern[i, j]`` fills x in [i, i+1] pixels and y in [j, j+1] pixels.
        geometry: gives the periods; the pixel is a period / n.
        path: the file, by custom ``.gds``.
        repeat: unit cells along x and y; None spans about 100 µm.

    Raises:
        DataError: patterns that are not binary squares, a repeat under 1, or a place that cannot be written.
        BackendError: gdstk is not installed.
    """
    stack = np.asarray(patterns)
    stack = stack[None] if stack.ndim == 2 else stack
    if stack.ndim != 3 or 0 in stack.shape or stack.shape[1] != stack.shape[2] or not np.isin(stack, (0, 1)).all():
        raise DataError(f"the patterns for {path} have shape {np.shape(patterns)}; expected (n, n) or (K, n, n) of 0 and 1")
    columns, rows = default_repeat(geometry) if repeat is None else repeat
    if not (1 <= columns <= 32767 and 1 <= rows <= 32767):  # GDSII counts an array in signed 16-bit numbers
        raise DataError(f"the repeat is {columns} x {rows}; each must be from 1 to 32767 unit cells")
    library = _library(stack, geometry, columns, rows)
    with atomic_file(path) as temporary:
        library.write_gds(temporary, timestamp=_EPOCH)


def default_repeat(geometry: Geometry) -> tuple[int, int]:
    """Unit cells along x and y whose array comes closest to 100 µm a side, at least one."""
    x, y = (min(max(1, round(SPAN_NM / period)), 32767) for period in geometry.period_nm)
    return x, y


def rectangles(pattern: np.ndarray) -> list[tuple[int, int, int, int]]:
    """The pillars of (n, n) as disjoint rectangles (i0, j0, i1, j1) in pixels, upper ends excluded.

    Runs along x, joined along y while the next row has the very same run. Rectangles may share an edge; pixels that touch only at a
    corner stay apart, for writers over-expose the knot a merged outline makes there, and no outline is traced that could lose an island.
    """
    done: list[tuple[int, int, int, int]] = []
    growing: dict[tuple[int, int], int] = {}  # run along x -> the row it began in
    for j in range(pattern.shape[1] + 1):
        runs = _runs(pattern[:, j]) if j < pattern.shape[1] else []
        done += [(i0, growing.pop((i0, i1)), i1, j) for i0, i1 in sorted(set(growing) - set(runs))]
        growing = {run: growing.get(run, j) for run in runs}
    return done


def _runs(row: np.ndarray) -> list[tuple[int, int]]:
    """Starts and ends (excluded) of the stretches of ones in (n,)."""
    steps = np.diff(np.concatenate([[0], row.astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))


def _library(stack: np.ndarray, geometry: Geometry, columns: int, rows: int) -> Any:
    try:
        import gdstk
    except ImportError as error:
        raise BackendError(f"GDSII needs gdstk, which cannot be imported ({error}); pip install 'metascatter[lab]'") from None
    period = [length / 1000 for length in geometry.period_nm]
    pixel = [length / stack.shape[1] for length in period]
    library = gdstk.Library("METASCATTER", unit=1e-6, precision=1e-9)
    for rank, pattern in enumerate(stack, start=1):
        unit, top = library.new_cell(f"UNIT_{rank}"), library.new_cell(f"DESIGN_{rank}")
        for i0, j0, i1, j1 in rectangles(pattern):
            unit.add(gdstk.rectangle((i0 * pixel[0], j0 * pixel[1]), (i1 * pixel[0], j1 * pixel[1]), layer=LAYER, datatype=DATATYPE))
        top.add(gdstk.Reference(unit, columns=columns, rows=rows, spacing=tuple(period)))
    return library
