"""The solver's own uncertainty: designs solved once more at a higher truncation."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .verify import Cancel, solve_until

if TYPE_CHECKING:
    from ..design import Design

MORE = 2  # harmonics added
_MOST = 60  # harmonics that a Geometry may have


def with_uncertainty(
    designs: Sequence[Design], workers: int | None = None, cancel: Cancel = None, end: float | None = None
) -> list[Design]:
    """The same designs, of one geometry and size, each with the misrouted power between its R and T and those at ``MORE`` harmonics.

    That is half the L1 distance of the two pairs of maps. It says how far the score may be off for want of harmonics, not what a real cell
    would add. ``end`` is on the clock of ``time.monotonic``: designs that are not solved by then, those without R and T, and those
    at the most harmonics there are, keep None. workers, cancel: as for ``solve_many``; a solve takes about three of the usual.

    Raises:
        Cancelled: ``cancel`` said so.
    """
    chosen = [i for i, design in enumerate(designs) if design.R is not None and design.geometry.harmonics + MORE <= _MOST]
    if not chosen or (end is not None and time.monotonic() >= end):
        return list(designs)
    first = designs[chosen[0]]
    assert first.R is not None
    finer = dataclasses.replace(first.geometry, harmonics=first.geometry.harmonics + MORE)
    patterns, heights = np.stack([designs[i].pattern for i in chosen]), np.array([designs[i].height_nm for i in chosen])
    R, T = solve_until(end, patterns, heights, finer, len(first.R) // 2, workers, cancel)
    result = list(designs)
    for i, r, t in zip(chosen, R, T, strict=False):
        apart = float(np.abs(r - designs[i].R).sum() + np.abs(t - designs[i].T).sum()) / 2
        result[i] = dataclasses.replace(designs[i], uncertainty=apart)
    return result
