"""The values of a target, checked one by one: maps, masks, heights and what of them a cell can give."""

from __future__ import annotations

import math
import reprlib
import warnings
from typing import Any

import numpy as np

from .channels import LARGEST, Channel
from .errors import TargetError

# Beyond these an efficiency is a mistake; within them it is measurement noise and is clipped, with a warning.
LOWEST, HIGHEST_TOTAL = -0.01, 1.05
# ... by more than float32 values and their sum are off: 1.05 in a file may add up to 1.0500001.
_SLACK = 1e-6
# Within this of 1 a total is the round-off of a complex64 solver (3e-4 on the reference data), mended without a word.
ROUND_OFF = 5e-4


def channel(where: str, key: str, value: Any, shape: tuple[int, ...]) -> Channel:
    """A checked further map."""
    wanted, mask, geometry = value if isinstance(value, Channel) else Channel(value, None)  # type: ignore[arg-type]
    wanted, asked = square(where, key, wanted), mask_of(where, f"mask_{key}", mask, shape)
    if wanted.shape != shape:
        raise TargetError(f"{where}: '{key}' has shape {wanted.shape}; it must be {shape}, like the other maps")
    wanted = np.where(asked, wanted, 0.0)
    if wanted.min() < 0 or wanted.max() > LARGEST:
        raise TargetError(f"{where}: '{key}' asks for {wanted.min():g} to {wanted.max():g}; a further map runs from 0 to {LARGEST:g}")
    return Channel(frozen(wanted), frozen(asked), geometry)


def square(where: str, field: str, value: Any) -> np.ndarray:
    """(2M+1, 2M+1) float64 of finite numbers."""
    array = numeric(where, field, value)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.shape[0] % 2 == 0:
        raise TargetError(f"{where}: '{field}' has shape {array.shape}; it must be (2M+1, 2M+1), a square with an odd side such as 23")
    if not np.isfinite(array).all():
        i, j = np.argwhere(~np.isfinite(array))[0]
        raise TargetError(
            f"{where}: '{field}' holds {array[i, j]} at [{i}, {j}]; every efficiency must be a finite number, "
            "write 0 and use a mask where an order is not asked for"
        )
    return array.astype(np.float64)


def numeric(where: str, field: str, value: Any) -> np.ndarray:
    """``value`` as an array of real numbers. Raises TargetError if it is none."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise TargetError(f"{where}: '{field}' is not an array of real numbers; write it as float64")
    return array


def mask_of(where: str, field: str, mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    if mask is None:
        return np.ones(shape, bool)
    array = numeric(where, field, mask)
    if array.shape != shape:
        raise TargetError(f"{where}: '{field}' has shape {array.shape}; it must be {shape}, like the efficiencies")
    if not np.isin(array, (0, 1)).all():
        raise TargetError(f"{where}: '{field}' holds values other than 0 and 1; write 1 where an order is asked for and 0 elsewhere")
    return array.astype(bool)


def height_of(where: str, field: str, value: Any) -> float:
    array = numeric(where, field, value)
    if array.size != 1:
        raise TargetError(f"{where}: '{field}' has {array.size} values; it must be one height in nm")
    height = float(array.item())
    if not math.isfinite(height) or height <= 0:
        raise TargetError(f"{where}: '{field}' is {reprlib.repr(height)}; it must be a height in nm above 0")
    return height


def admissible(where: str, fields: tuple[str, str, str], maps: list[np.ndarray], what: str = "the efficiencies") -> list[np.ndarray]:
    """R and T (2M+1, 2M+1), ``what`` of a target, with small excursions clipped. Raises TargetError for large ones."""
    for kind, field, values in zip("RT", fields, maps, strict=False):
        if values.min() < LOWEST - _SLACK:
            m, n = (int(i) - len(values) // 2 for i in np.unravel_index(values.argmin(), values.shape))
            raise TargetError(
                f"{where}: '{field}' asks for {values.min():g} in order {kind}({m},{n}); an efficiency runs from 0 to 1, correct the value"
            )
    if min(values.min() for values in maps) < 0:
        _warn(f"{where}: efficiencies down to {min(values.min() for values in maps):g} are taken as 0")
        maps = [np.maximum(values, 0.0) for values in maps]
    total = float(sum(values.sum() for values in maps))
    if total > HIGHEST_TOTAL + _SLACK:
        both = " and ".join(f"'{field}'" for field in dict.fromkeys(fields[:2]))
        raise TargetError(f"{where}: {what} in {both} add up to {total:g}; no cell gives out more than the 1 it receives, scale them down")
    if total > 1:
        if total > 1 + ROUND_OFF:
            _warn(f"{where}: {what} add up to {total:g} and are scaled to 1")
        maps = [values / total for values in maps]
    return maps


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=2)


def frozen(array: np.ndarray) -> np.ndarray:
    array = np.array(array)
    array.setflags(write=False)
    return array
