"""What a search for designs may change, and how much it may cost: a budget of solves, pixels held fixed, a range of heights."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import DataError, TargetError
from .fabrication import Limits
from .inpaint import RESAMPLE
from .target import Target

if TYPE_CHECKING:
    from .bundle import Bundle

HEIGHTS = 4  # heights that candidates are sampled for where it is free


class Freedom(NamedTuple):
    """The limits of a search. Build one with :meth:`of`, which checks.

    ``budget``: RCWA solves in all, of which those left over from ranking refine; None does not refine. ``fixed``: (n, n) int8 of -1 (free),
    0 and 1 (held), None holds nothing. ``heights``: lowest and highest in nm where the height is free, None keeps the target's.
    ``limits``: of what can be made; what breaks them is fined in ranking and refining (``fabrication.fines``). ``resample``: how often each
    step is taken where pixels are held (``inpaint``).
    """

    budget: int | None = None
    fixed: np.ndarray | None = None
    heights: tuple[float, float] | None = None
    limits: Limits | None = None
    resample: int = RESAMPLE

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        refine: bool,
        budget: int,
        fixed: Any,
        height: Any,
        limits: Limits | None = None,
        resample: int = RESAMPLE,
    ) -> Freedom:
        """Checked against a bundle; the arguments are those of ``Sampler.design``.

        Raises:
            DataError: a budget or ``resample`` below 1, a mask that is not (n, n) of -1, 0 and 1.
            TargetError: a height range that is none, or not within the bundle's.
        """
        if budget < 1:
            raise DataError(f"the budget is {budget} solves; it must be at least 1")
        if resample < 1:
            raise DataError(f"resample is {resample}; each step is taken at least once")
        mask = None if fixed is None else _mask(fixed, int(bundle.manifest["pattern_size"]))
        heights = None if height is None else _range(height, bundle.condition.height_range_nm)
        return cls(budget if refine else None, mask, heights, limits, resample)

    def targets(self, target: Target) -> list[Target]:
        """The target at each height that candidates are sampled for."""
        if self.heights is None:
            return [target]
        return [dataclasses.replace(target, height_nm=float(height)) for height in np.unique(np.linspace(*self.heights, HEIGHTS).round())]


def read_fixed(path: Path) -> np.ndarray:
    """The mask in a file: key ``fixed`` of an ``.npz``, or of a ``.json`` as rows of numbers or of the characters 0, 1 and ``.`` (free).

    Raises:
        DataError: the file is missing or malformed.
    """
    from .data import open_npz

    if path.suffix == ".npz":
        arrays = open_npz(path)
        if "fixed" not in arrays:
            raise DataError(f"{path} lacks the key 'fixed'; it is an (n, n) array of -1 (free), 0 (gap) and 1 (pillar)")
        return arrays["fixed"]
    if path.suffix != ".json":
        raise DataError(f"{path}: fixed pixels come in a .npz or .json file; save them as one of these")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the name") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); write rows of 0, 1 and '.' under the key 'fixed'") from None
    rows = found.get("fixed") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path} lacks the key 'fixed' with a list of rows; a row is a text of 0, 1 and '.' (free), or a list of numbers")
    try:
        return np.array([[{".": -1, "0": 0, "1": 1}[c] for c in row] if isinstance(row, str) else [float(v) for v in row] for row in rows])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{path}: 'fixed' is no table of pixels; give n rows of n, each a text of 0, 1 and '.' (free) or numbers of -1, 0 and 1"
        ) from None


def _mask(fixed: Any, size: int) -> np.ndarray:
    try:
        mask = np.asarray(fixed, np.float64)
    except (TypeError, ValueError):
        raise DataError("the mask of fixed pixels is not an array of numbers; it has -1 for free pixels, 0 and 1 for those held") from None
    if mask.shape != (size, size) or not np.isin(mask, (-1, 0, 1)).all():
        raise DataError(f"the mask of fixed pixels has shape {mask.shape}; expected ({size}, {size}) of -1 (free), 0 (gap) and 1 (pillar)")
    return mask.astype(np.int8)


def _range(height: Any, known: tuple[float, float]) -> tuple[float, float]:
    """``height``, "free" or (lowest, highest), as two heights within the ``known`` ones."""
    if height == "free":
        return float(known[0]), float(known[1])
    try:
        low, high = (float(value) for value in height)
    except (TypeError, ValueError):
        raise TargetError(f"the height is {height!r}; it may be 'free' or the lowest and highest height in nm") from None
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise TargetError(f"the height is free from {low:g} to {high:g} nm; the lowest has to come first")
    if low < known[0] or high > known[1]:
        raise TargetError(
            f"the height is free from {low:g} to {high:g} nm, outside the {known[0]:g} to {known[1]:g} nm this bundle was trained on; "
            "search within that range"
        )
    return low, high
