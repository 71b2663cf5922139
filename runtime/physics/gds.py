"""GDSII and OASIS of patterns: what a lithography tool reads.

One layer and datatype, ``(1, 0)`` unless told otherwise, holds the pillars (pattern 1, the silicon that stays). Rank k has a unit cell
``UNIT_k`` whose lower left corner is the origin, and a top cell ``DESIGN_k`` that repeats it by one array reference and may carry a
text label, which no tool exposes. x points right and y up, seen from the air. User unit 1 µm, database unit 1 nm where the period is a
whole number of them, else the coarsest that fits.
"""

from __future__ import annotations

import datetime
import errno
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError, DataError
from ..files import atomic_file
from ..geometry import Geometry

LAYER, DATATYPE = 1, 0
SPAN_NM = 100_000.0  # the repeated array is as close to this as whole unit cells come: 25 x 25 cells of 4 µm
UNITS_NM = (1.0, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001)  # database units to choose from
_COUNTED, _FARTHEST = 32767, 2**31 - 1  # GDSII counts an array in signed 16 bits, and database units in signed 32
_END = b"\0\4\4\0"  # GDSII's last record, ENDLIB
_EPOCH = datetime.datetime(2000, 1, 1)  # GDSII stores a time; a fixed one makes equal designs equal files


def write_gds(
    patterns: Any,
    geometry: Geometry,
    path: str | os.PathLike[str],
    repeat: tuple[int, int] | None = None,
    *,
    labels: Sequence[str] = (),
    ranks: Sequence[int] = (),
    layer: int = LAYER,
    datatype: int = DATATYPE,
    unit_nm: float | None = None,
) -> None:
    """Write one pattern, or several in order of rank, atomically: OASIS where ``path`` ends in ``.oas``, else GDSII.

    Args:
        patterns: (n, n) or (K, n, n) of 0 and 1; ``pattern[i, j]`` fills x in [i, i+1] pixels and y in [j, j+1] pixels.
        geometry: gives the periods; the pixel is a period / n.
        path: the file.
        repeat: unit cells along x and y; None spans about 100 µm.
        labels: a text for each pattern, put at the origin of its top cell; none where empty.
        ranks: the numbers k of the cells' names; 1, 2 ... where empty.
        layer, datatype: of the pillars; the labels lie on that layer with this number as their text type.
        unit_nm: the database unit, to which every edge is rounded; None takes the first of ``UNITS_NM`` that divides both periods, or
            the last, with which the error of a whole array stays under an atom's size.

    Raises:
        DataError: patterns that are not binary squares, fewer or more labels than these or one with a null character, a layer beyond what
            GDSII counts, a repeat under 1 or too large to count, a database unit that does not divide the periods, or a place that cannot
            be written.
        BackendError: gdstk is not installed.
    """
    stack = np.asarray(patterns)
    stack = stack[None] if stack.ndim == 2 else stack
    if stack.ndim != 3 or 0 in stack.shape or stack.shape[1] != stack.shape[2] or not np.isin(stack, (0, 1)).all():
        raise DataError(f"the patterns for {path} have shape {np.shape(patterns)}; expected (n, n) or (K, n, n) of 0 and 1")
    if len(labels) not in (0, len(stack)):
        raise DataError(f"there are {len(labels)} labels for {len(stack)} patterns; give each its own, or none")
    if any("\0" in label for label in labels):
        raise DataError(f"the labels {list(labels)} hold a null character, at which texts in layout files end; leave it out")
    if not all(0 <= number <= _COUNTED for number in (layer, datatype)):
        raise DataError(f"layer and datatype are {layer} and {datatype}; each must be from 0 to {_COUNTED}")
    columns, rows = default_repeat(geometry) if repeat is None else repeat
    if not (1 <= columns <= _COUNTED and 1 <= rows <= _COUNTED):
        raise DataError(f"the repeat is {columns} x {rows}; each must be from 1 to {_COUNTED} unit cells")
    unit_nm = database_unit(geometry, unit_nm)
    if max(columns * geometry.period_nm[0], rows * geometry.period_nm[1]) / unit_nm > _FARTHEST:
        raise DataError(f"{columns} x {rows} unit cells reach further than GDSII counts in units of {unit_nm:g} nm; choose a coarser one")
    library = _library(stack, geometry, columns, rows, labels, ranks or range(1, len(stack) + 1), (layer, datatype), unit_nm)
    with atomic_file(path) as temporary:
        if Path(path).suffix.lower() == ".oas":
            library.write_oas(temporary, validation="crc32")
        else:
            library.write_gds(temporary, timestamp=_EPOCH)
        _check_whole(temporary)


def _check_whole(path: Path) -> None:
    """gdstk does not notice a full disk: see that the file ends as it must. Raises OSError."""
    import gdstk

    whole = gdstk.oas_validate(path)[0] if path.suffix.lower() == ".oas" else path.read_bytes()[-4:] == _END
    if not whole:
        raise OSError(errno.EIO, "not all of it could be written; make room there if the disk is full, or choose another place", str(path))


def database_unit(geometry: Geometry, unit_nm: float | None = None) -> float:
    """The database unit in nm: the one asked for, else the coarsest that fits; see :func:`write_gds`.

    Raises:
        DataError: a unit that is no length, or that does not divide the periods, so that the cells of an array would drift apart.
    """
    if unit_nm is None:
        return next((unit for unit in UNITS_NM if _divides(unit, geometry)), UNITS_NM[-1])
    if not (math.isfinite(unit_nm) and unit_nm > 0):
        raise DataError(f"the database unit is {unit_nm} nm; it must be a length above 0")
    if not _divides(unit_nm, geometry):
        x, y = geometry.period_nm
        raise DataError(
            f"the period, {x:g} x {y:g} nm, is no whole number of database units of {unit_nm:g} nm, so the cells of the array would drift; "
            f"choose a unit that divides it, such as {database_unit(geometry):g} nm"
        )
    return unit_nm


def repeat_within(geometry: Geometry, area_um: tuple[float, float]) -> tuple[int, int]:
    """Whole unit cells along x and y that fit into an area in µm.

    Raises:
        DataError: the area is smaller than one cell, or holds more than GDSII counts.
    """
    if not all(map(math.isfinite, area_um)):
        raise DataError(f"the area is {area_um[0]} x {area_um[1]} µm; both must be lengths")
    counts = [math.floor(1000 * side / period + 1e-9) for side, period in zip(area_um, geometry.period_nm, strict=True)]
    x, y = (period / 1000 for period in geometry.period_nm)
    if not all(1 <= count <= _COUNTED for count in counts):
        raise DataError(
            f"an area of {area_um[0]:g} x {area_um[1]:g} µm is {counts[0]} x {counts[1]} unit cells of {x:g} x {y:g} µm; "
            f"each must be from 1 to {_COUNTED}"
        )
    return counts[0], counts[1]


def _divides(unit_nm: float, geometry: Geometry) -> bool:
    """Whether both periods are whole numbers of units, to a millionth of one."""
    counts = [period / unit_nm for period in geometry.period_nm]
    return all(round(count) >= 1 and abs(count - round(count)) < 1e-6 for count in counts)


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


def _library(
    stack: np.ndarray,
    geometry: Geometry,
    columns: int,
    rows: int,
    labels: Sequence[str],
    ranks: Sequence[int],
    purpose: tuple[int, int],
    unit_nm: float,
) -> Any:
    """gdstk's Library; ``purpose`` is layer and datatype."""
    try:
        import gdstk
    except ImportError as error:
        raise BackendError(f"GDSII needs gdstk, which cannot be imported ({error}); pip install 'metascatter[lab]'") from None
    layer, datatype = purpose
    period = [length / 1000 for length in geometry.period_nm]
    pixel = [length / stack.shape[1] for length in period]
    library = gdstk.Library("METASCATTER", unit=1e-6, precision=unit_nm * 1e-9)
    for k, (rank, pattern) in enumerate(zip(ranks, stack, strict=True)):
        unit, top = library.new_cell(f"UNIT_{rank}"), library.new_cell(f"DESIGN_{rank}")
        for i0, j0, i1, j1 in rectangles(pattern):
            unit.add(gdstk.rectangle((i0 * pixel[0], j0 * pixel[1]), (i1 * pixel[0], j1 * pixel[1]), layer=layer, datatype=datatype))
        top.add(gdstk.Reference(unit, columns=columns, rows=rows, spacing=tuple(period)))
        if labels:
            top.add(gdstk.Label(labels[k], (0.0, 0.0), anchor="sw", layer=layer, texttype=datatype))
    return library
