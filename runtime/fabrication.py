"""Whether a pattern can be made: the narrowest pillar and gap, corners that touch, single pixels, and limits on these.

The minimum width is imageruler's definition (morphological opening, Chen et al., J. Opt. Soc. Am. B 41, A161 (2024)): the largest
brush with which everything solid, or everything void, can be painted without leaving its outline. The brush here is a square along x
and y, which paints a pixel's corners as they are; a disc would call every corner of every pixel a violation and needs a scheme to
forgive it. The cell repeats, so nothing ends at its border.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError
from .geometry import Geometry

if TYPE_CHECKING:
    from .design import Design

# Misrouted power that a search takes a violation for: dearer than most single flips gain, so that it leaves those that it can.
FINE = 0.02


@dataclasses.dataclass(frozen=True)
class Fabrication:
    """What a mask shop asks of one pattern. The fields are the JSON on disk.

    Args:
        min_solid_nm, min_void_nm: side of the largest square that paints all pillars, all gaps; None where there are none, or nothing else.
        corner_contacts: places in the cell where two pillar pixels meet at a corner and the two gaps between them do, too. Neither is
            defined there: resist and dose decide whether the pillars or the gaps are joined.
        single_pillars, single_holes: pixels without a neighbour of their kind across an edge; they stand or open alone.
        fill_factor: the pillars' share of the area, 0 to 1.
    """

    min_solid_nm: float | None
    min_void_nm: float | None
    corner_contacts: int
    single_pillars: int
    single_holes: int
    fill_factor: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What can be made.

    Args:
        min_width_nm: the least width of pillars and of gaps, nm; 0 leaves it open.
        corners: whether corners may touch.

    Raises:
        DataError: a width that is not a finite number from 0 up.
    """

    min_width_nm: float = 0.0
    corners: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min_width_nm) and self.min_width_nm >= 0):
            raise DataError(f"the least width is {self.min_width_nm} nm; it must be a finite number from 0 up")


def measure(pattern: Any, geometry: Geometry) -> Fabrication:
    """The :class:`Fabrication` of a pattern (n1, n2) of 0 and 1, one cell of ``geometry``'s periods.

    Raises:
        DataError: a pattern that is not 2-D and binary.
    """
    solid = _solid(pattern)
    return Fabrication(
        _least_width(solid, geometry),
        _least_width(~solid, geometry),
        int(_contacts(solid).sum()),
        int(_alone(solid).sum()),
        int(_alone(~solid).sum()),
        float(solid.mean()),
    )


def violations(pattern: Any, geometry: Geometry, limits: Limits) -> int:
    """How far a pattern (n1, n2) of 0 and 1 is from ``limits``: 0 where it keeps them.

    Counts the pixels of pillars and of gaps that a brush of the least width cannot paint and, where corners may not touch, the corner
    contacts of the cell.

    Raises:
        DataError: a pattern that is not 2-D and binary.
    """
    solid = _solid(pattern)
    found = 0 if limits.corners else int(_contacts(solid).sum())
    brush = _brush(limits.min_width_nm, solid.shape, geometry)
    if max(brush) > 1:
        found += sum(int((phase & ~_opened(phase, brush)).sum()) for phase in (solid, ~solid))
    return found


def fines(patterns: np.ndarray, geometry: Geometry, limits: Limits | None) -> np.ndarray:
    """What a search adds to the misrouted power of patterns (N, n, n), (N,) float64: ``FINE`` a violation, 0 without limits."""
    if limits is None:
        return np.zeros(len(patterns))
    return FINE * np.array([violations(pattern, geometry, limits) for pattern in patterns], np.float64)


def table(designs: Sequence[Design]) -> str:
    """What :func:`measure` says of designs, best first, for people."""
    rows = [["rank", "narrowest pillar", "narrowest gap", "corner contacts", "single pillars", "single holes", "fill"]]
    for rank, design in enumerate(designs, 1):
        made = measure(design.pattern, design.geometry)
        widths = ["none" if width is None else f"{width:g} nm" for width in (made.min_solid_nm, made.min_void_nm)]
        counts = [str(count) for count in (made.corner_contacts, made.single_pillars, made.single_holes)]
        rows.append([str(rank), *widths, *counts, f"{made.fill_factor:.2f}"])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, every column as wide as it needs to be, right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _solid(pattern: Any) -> np.ndarray:
    """(n1, n2) bool, True where a pillar is."""
    array = np.asarray(pattern)
    if array.ndim != 2 or not array.size or not np.isin(array, (0, 1)).all():
        raise DataError(f"the pattern has shape {array.shape} and type {array.dtype}; it must be a 2-D array of 0 and 1")
    return array.astype(bool)


def _least_width(phase: np.ndarray, geometry: Geometry) -> float | None:
    """Side in nm of the largest square brush that paints ``phase`` (n1, n2) bool; None where nothing or everything is."""
    if not phase.any() or phase.all():
        return None
    # Painting with a brush is painting with every smaller one; a square that ends within pixels fits wherever it does rounded up.
    pixels = [length / count for length, count in zip(geometry.period_nm, phase.shape, strict=True)]
    sides = sorted({count * pixel for pixel, most in zip(pixels, phase.shape, strict=True) for count in range(1, most + 1)})
    least = sides[0]
    for side in sides[1:]:
        brush = _brush(side, phase.shape, geometry)
        if not (_opened(phase, brush) == phase).all():
            break
        least = side
    return float(least)


def _brush(width_nm: float, shape: tuple[int, ...], geometry: Geometry) -> tuple[int, int]:
    """Whole pixels along x and y that a square of this side covers at least in part, wherever it stands."""
    x, y = (max(1, math.ceil(width_nm * count / period - 1e-9)) for count, period in zip(shape, geometry.period_nm, strict=True))
    return x, y


def _opened(phase: np.ndarray, brush: tuple[int, int]) -> np.ndarray:
    """Morphological opening of a periodic (n1, n2) bool by a rectangle of ``brush`` pixels: all it can paint inside ``phase``."""
    for merge, direction in ((np.logical_and, -1), (np.logical_or, 1)):
        for axis, size in enumerate(brush):
            # Beyond one period the brush meets its own start.
            phase = merge.reduce([np.roll(phase, direction * step, axis) for step in range(min(size, phase.shape[axis]))])
    return phase


def _contacts(solid: np.ndarray) -> np.ndarray:
    """(n1, n2) bool: pillars at [i, j] and [i + 1, j + 1] and gaps at the other two, or the reverse."""
    right, up = np.roll(solid, -1, 0), np.roll(solid, -1, 1)
    across = np.roll(right, -1, 1)
    return (solid == across) & (right == up) & (solid != right)


def _alone(phase: np.ndarray) -> np.ndarray:
    """(n1, n2) bool: pixels of ``phase`` without one beside them along x or y."""
    neighbours = np.logical_or.reduce([np.roll(phase, step, axis) for step in (1, -1) for axis in (0, 1)])
    return phase & ~neighbours
