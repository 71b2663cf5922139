"""Ranges: efficiencies of which any within two ends counts as reached, from the target itself or from the noise of a measurement.

A range does not tell a network what to aim at. It is shown one value within it: the middle of a range with two ends; of ``at least`` the
lower end, the least that has to be asked of a cell; of ``at most`` half of it, for it cannot be below 0; of a measured value that value.
Where these add up to more than the light there is, all move towards their lower ends by the same share of their way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .errors import TargetError
from .target_values import admissible, frozen, numeric

# A measured value counts as reached within this many standard deviations: 95 % of a normal distribution.
SIGMAS = 2.0


class Ranges(NamedTuple):
    """The ends of what counts as reached, (2M+1, 2M+1) float64 each, from 0 to 1; 0 where not asked for."""

    low_R: np.ndarray
    low_T: np.ndarray
    high_R: np.ndarray
    high_T: np.ndarray


def widened(values: np.ndarray, sigma: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of measured values, within ``SIGMAS`` standard deviations of each and from 0 to 1.

    A value so negative that its whole range is keeps the upper end of that: how far the measurement is off.
    """
    low = np.maximum(values - SIGMAS * sigma, np.minimum(values + SIGMAS * sigma, 0.0))
    # Without noise a value stays what it is, even one above 1, which is refused with its total.
    return low, np.maximum(np.minimum(values + SIGMAS * sigma, 1.0), low)


def sigma_of(where: str, field: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Standard deviations (2M+1, 2M+1), each 0 or more, from an array of that shape or one number for all; None is 0.

    Raises:
        TargetError: neither, or values that are negative or not finite.
    """
    array = numeric(where, field, 0.0 if value is None else value)
    if array.shape != shape and array.size != 1:
        raise TargetError(f"{where}: '{field}' has shape {array.shape}; it must be {shape}, like the efficiencies, or one number for all")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise TargetError(f"{where}: '{field}' holds {array.min():g}; a standard deviation is a finite number from 0 up")
    return np.full(shape, array.item()) if array.size == 1 else array.astype(np.float64)


def fitted(
    where: str, fields: tuple[str, str, str], maps: list[np.ndarray], ranges: Ranges | None
) -> tuple[list[np.ndarray], Ranges | None]:
    """What a network is shown, R and T, and the ranges around it, each (2M+1, 2M+1); no ranges where none has any width.

    Args:
        maps: R and T as asked for; with ranges, values within them.
        ranges: their ends as the target states them, low not above high.

    Raises:
        TargetError: the lower ends are negative, or add up to more light than there is.
    """
    if ranges is None or all(np.array_equal(*ends) for ends in zip(ranges[:2], ranges[2:], strict=True)):
        return admissible(where, fields, maps), None
    low = admissible(where, fields, list(ranges[:2]), "the lower ends of the efficiencies")
    # Where exact values among them were scaled down, their upper ends are.
    high = [np.where(end == start, new, end) for start, end, new in zip(ranges[:2], ranges[2:], low, strict=True)]
    middle = [np.clip(values, *ends) for values, *ends in zip(maps, low, high, strict=True)]
    room = sum(float((values - start).sum()) for values, start in zip(middle, low, strict=True))
    spare = 1.0 - sum(float(start.sum()) for start in low)
    share = 1.0 if room <= spare else max(spare, 0.0) / room
    shown = [start + share * (values - start) for values, start in zip(middle, low, strict=True)]
    return shown, Ranges(*(frozen(array) for array in (*low, *high)))


def words(low: float, high: float, digits: int = 3) -> str:
    """A range as tables show it: ``0.300``, ``0.300-0.500``, ``>=0.300``, ``<=0.050``."""
    if low == high:
        return f"{low:.{digits}f}"
    if high >= 1.0:
        return f">={low:.{digits}f}" if low > 0 else "any"
    return f"{low:.{digits}f}-{high:.{digits}f}" if low > 0 else f"<={high:.{digits}f}"
