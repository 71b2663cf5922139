"""What the light should do: the efficiency wanted in each diffraction order, and the height the pattern will be etched to.

    target = Target.load("split.json")

A target may be partial: orders that its masks leave out are nobody's concern, and their power counts as one bin in the
score (:mod:`.score`). Files are read by :mod:`.target_files`, whose docstring has the three forms.
"""

from __future__ import annotations

import dataclasses
import math
import os
import reprlib
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .channels import LARGEST, Channel
from .errors import TargetError
from .geometry import Geometry, propagating

# Beyond these an efficiency is a mistake; within them it is measurement noise and is clipped, with a warning.
LOWEST, HIGHEST_TOTAL = -0.01, 1.05
# ... by more than float32 values and their sum are off: 1.05 in a file may add up to 1.0500001.
_SLACK = 1e-6
# Within this of 1 a total is the round-off of a complex64 solver (3e-4 on the reference data), mended without a word.
ROUND_OFF = 5e-4
# A full target whose total is at least this leaves no light for orders beyond its maps.
_COMPLETE = 0.95
# Power wanted in evanescent orders up to this, each and together, is noise of a measured target.
_NOISE, _NOISE_TOTAL = 1e-3, 1e-2


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """Wanted efficiencies. Build one with :meth:`from_arrays` or :meth:`load`, which check; the constructor does not.

    Args:
        R, T: (2M+1, 2M+1) float64 efficiencies wanted in reflection and transmission, order (m, n) at ``[m + M, n + M]``;
            0 where not asked for.
        mask_R, mask_T: (2M+1, 2M+1) bool, True where asked for.
        height_nm: pillar height.
        name: the file's stem, or "target"; errors and output folders carry it.
        geometry: the arrangement the target was made for, None where the file does not say.
        extra: what is wanted of further maps, by the name of the channel; see :mod:`.channels`. Of those left out nothing is asked.
    """

    R: np.ndarray = dataclasses.field(repr=False)
    T: np.ndarray = dataclasses.field(repr=False)
    mask_R: np.ndarray = dataclasses.field(repr=False)
    mask_T: np.ndarray = dataclasses.field(repr=False)
    height_nm: float
    name: str = "target"
    geometry: Geometry | None = None
    extra: Mapping[str, Channel] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def orders(self) -> int:
        """M: the maps are (2M+1, 2M+1)."""
        return self.R.shape[0] // 2

    @property
    def partial(self) -> bool:
        """True where some order is not asked for in R or T."""
        return not (self.mask_R.all() and self.mask_T.all())

    @classmethod
    def from_arrays(
        cls,
        R: Any,
        T: Any,
        height_nm: float,
        mask_R: Any = None,
        mask_T: Any = None,
        name: str = "target",
        geometry: Geometry | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Target:
        """A checked target.

        Args:
            R, T: (2M+1, 2M+1) efficiencies.
            height_nm: above 0.
            mask_R, mask_T: (2M+1, 2M+1) bool or 0 and 1, True where asked for; None asks for every order of that map.
            name: what errors call the target.
            geometry: the arrangement the target was made for.
            extra: further maps (2M+1, 2M+1), or :class:`.channels.Channel` (map, mask, geometry), by the name of the channel; a map
                alone asks for every order of it. Their values run from 0 up.

        Negative efficiencies down to -0.01 become 0 and totals up to 1.05 are scaled to 1, with a UserWarning.

        Raises:
            TargetError: a wrong shape, a value that is no finite number, an efficiency under -0.01, a total over 1.05,
                a height that is not positive, or nothing asked for in R and T.
        """
        return checked(name, ("R", "T", "height_nm"), R, T, height_nm, mask_R, mask_T, name, geometry, extra)

    @classmethod
    def load(cls, path: str | os.PathLike[str], convention: str | None = None, channels: Collection[str] = ()) -> Target:
        """Read a ``.mat``, ``.npz`` or ``.json`` target; :mod:`.target_files` describes the three forms.

        Args:
            path: the file.
            convention: index convention of the arrays in the file, ``lab`` (``data[i, j]`` is order ``(-(j - M), -(i - M))``)
                or ``metascatter`` (``data[m + M, n + M]``). None takes the file's own ``convention`` key, and without one
                ``lab`` for ``.mat`` and ``metascatter`` for ``.npz``. A ``.json`` names its orders and needs none.
            channels: further maps to look for in a ``.mat`` or ``.npz``, beside those called ``Rm_...`` and ``Tm_...``; these are of
                other keys, such as a thermal map's.

        Raises:
            TargetError: naming the file, the field, what was found and what was expected.
        """
        from .target_files import read

        return read(Path(path), convention, channels)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], name: str = "target") -> Target:
        """A target from the fields of a ``.json`` one: ``{"height_nm": 300, "orders": {"T(1,0)": 0.4, "R(0,0)": 0.05}}``.

        Raises:
            TargetError: naming the field, what was found and what was expected.
        """
        from .target_files import from_fields

        return from_fields(fields, name, name)

    def resized(self, orders: int) -> Target:
        """The same target with maps of half-width M = ``orders``.

        Orders added are not asked for, unless the target is full and its total is within 5 % of 1: then no light is
        left for them and they are asked to be 0, so that a full target stays full. In further maps they are not asked for.

        Raises:
            TargetError: the smaller maps would cut off an order that is asked to carry power.
        """
        step = orders - self.orders
        if step == 0:
            return self
        arrays = [self.R, self.T, self.mask_R, self.mask_T]
        if step < 0:
            for kind, m, n in self.strongest(2 * self.R.size):
                if max(abs(m), abs(n)) > orders and self.wanted(kind, m, n) > 0:
                    raise TargetError(
                        f"{self.name}: order {kind}({m},{n}) is asked {self.wanted(kind, m, n):g}, but the maps here end at "
                        f"order {orders}; ask only for orders from -{orders} to {orders}"
                    )
            for name, channel in self.extra.items():
                if channel.wanted.sum() > channel.wanted[-step:step, -step:step].sum():
                    raise TargetError(f"{self.name}: '{name}' asks for orders beyond {orders}, where the maps here end; leave these out")
            arrays = [array[-step:step, -step:step] for array in arrays]
        else:
            complete = not self.partial and self.R.sum() + self.T.sum() >= _COMPLETE
            arrays = [np.pad(array, step, constant_values=fill) for array, fill in zip(arrays, (0, 0, complete, complete), strict=True)]
        if not (arrays[2].any() or arrays[3].any()):
            raise TargetError(f"{self.name}: no order it asks for lies within -{orders} to {orders}; ask for at least one that does")
        extra = {}
        for name, channel in self.extra.items():
            both = [_frozen(a[-step:step, -step:step] if step < 0 else np.pad(a, step)) for a in (channel.wanted, channel.mask)]
            extra[name] = Channel(both[0], both[1], channel.geometry)
        R, T, mask_R, mask_T = map(_frozen, arrays)
        return dataclasses.replace(self, R=R, T=T, mask_R=mask_R, mask_T=mask_T, extra=extra)

    def wanted(self, kind: str, m: int, n: int) -> float:
        """The efficiency wanted in order (m, n) of ``kind`` "R" or "T"; 0 where not asked for."""
        return float((self.R if kind == "R" else self.T)[m + self.orders, n + self.orders])

    def strongest(self, count: int) -> list[tuple[str, int, int]]:
        """Up to ``count`` asked orders as ("R" or "T", m, n), the strongest wanted first; ties by distance from order (0, 0)."""
        asked = [
            (str(kind), int(m) - self.orders, int(n) - self.orders)
            for kind, mask in (("T", self.mask_T), ("R", self.mask_R))
            for m, n in np.argwhere(mask)
        ]
        return sorted(asked, key=lambda order: (-self.wanted(*order), order[1] ** 2 + order[2] ** 2))[:count]


def check_height(target: Target, range_nm: tuple[float, float]) -> None:
    """Refuse a height outside the range (low, high) in nm that a network was trained on.

    Raises:
        TargetError: naming the height and the range.
    """
    low, high = range_nm
    if not low <= target.height_nm <= high:
        raise TargetError(
            f"{target.name}: the height is {target.height_nm:g} nm, outside the {low:g} to {high:g} nm this bundle was "
            "trained on; ask for a height within that range or use another bundle"
        )


def check_orders(target: Target, geometry: Geometry) -> None:
    """Refuse a target that wants power in orders that cannot carry any in ``geometry``.

    What is wanted there is let pass as noise up to 0.001 in each order and 0.01 in all of them.

    Raises:
        TargetError: naming the strongest evanescent order asked for.
    """
    free_R, free_T = propagating(geometry, target.orders)
    lost = [
        (float(power), kind, int(m), int(n))
        for kind, wanted, free in (("R", target.R, free_R), ("T", target.T, free_T))
        for (m, n), power in np.ndenumerate(np.where(free, 0, wanted))
        if power > 0
    ]
    if not lost or (max(lost)[0] <= _NOISE and sum(power for power, *_ in lost) <= _NOISE_TOTAL):
        return
    power, kind, m, n = max(lost)
    m, n = m - target.orders, n - target.orders
    index = geometry.index_incident if kind == "R" else geometry.index_exit
    x, y = geometry.period_nm
    raise TargetError(
        f"{target.name}: order {kind}({m},{n}) is asked {power:g}, but it is evanescent at {geometry.wavelength_nm:g} nm "
        f"with a period of {x:g} x {y:g} nm and index {index:g} and carries no power; ask for an order nearer to (0,0)"
    )


def checked(
    where: str,
    fields: tuple[str, str, str],
    R: Any,
    T: Any,
    height_nm: Any,
    mask_R: Any,
    mask_T: Any,
    name: str,
    geometry: Geometry | None,
    extra: Mapping[str, Any] | None = None,
) -> Target:
    """:meth:`Target.from_arrays` with the file and the names its fields have there, for the sentences of the errors."""
    maps = [_square(where, field, value) for field, value in zip(fields, (R, T), strict=False)]
    if maps[0].shape != maps[1].shape:
        raise TargetError(f"{where}: '{fields[0]}' has shape {maps[0].shape} and '{fields[1]}' {maps[1].shape}; give both the same shape")
    masks = [_mask(where, field, mask, maps[0].shape) for field, mask in (("mask_R", mask_R), ("mask_T", mask_T))]
    height = _height(where, fields[2], height_nm)
    if not (masks[0].any() or masks[1].any()):
        raise TargetError(f"{where}: no order is asked for; ask for the efficiency of at least one")
    R, T = _admissible(where, fields, [np.where(mask, values, 0.0) for values, mask in zip(maps, masks, strict=True)])
    further = {key: _channel(where, key, value, maps[0].shape) for key, value in (extra or {}).items()}
    return Target(_frozen(R), _frozen(T), _frozen(masks[0]), _frozen(masks[1]), height, name, geometry, further)


def _channel(where: str, key: str, value: Any, shape: tuple[int, ...]) -> Channel:
    """A checked further map."""
    wanted, mask, geometry = value if isinstance(value, Channel) else Channel(value, None)  # type: ignore[arg-type]
    wanted, asked = _square(where, key, wanted), _mask(where, f"mask_{key}", mask, shape)
    if wanted.shape != shape:
        raise TargetError(f"{where}: '{key}' has shape {wanted.shape}; it must be {shape}, like the other maps")
    wanted = np.where(asked, wanted, 0.0)
    if wanted.min() < 0 or wanted.max() > LARGEST:
        raise TargetError(f"{where}: '{key}' asks for {wanted.min():g} to {wanted.max():g}; a further map runs from 0 to {LARGEST:g}")
    return Channel(_frozen(wanted), _frozen(asked), geometry)


def _square(where: str, field: str, value: Any) -> np.ndarray:
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


def _mask(where: str, field: str, mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    if mask is None:
        return np.ones(shape, bool)
    array = numeric(where, field, mask)
    if array.shape != shape:
        raise TargetError(f"{where}: '{field}' has shape {array.shape}; it must be {shape}, like the efficiencies")
    if not np.isin(array, (0, 1)).all():
        raise TargetError(f"{where}: '{field}' holds values other than 0 and 1; write 1 where an order is asked for and 0 elsewhere")
    return array.astype(bool)


def _height(where: str, field: str, value: Any) -> float:
    array = numeric(where, field, value)
    if array.size != 1:
        raise TargetError(f"{where}: '{field}' has {array.size} values; it must be one height in nm")
    height = float(array.item())
    if not math.isfinite(height) or height <= 0:
        raise TargetError(f"{where}: '{field}' is {reprlib.repr(height)}; it must be a height in nm above 0")
    return height


def _admissible(where: str, fields: tuple[str, str, str], maps: list[np.ndarray]) -> list[np.ndarray]:
    """R and T (2M+1, 2M+1) with small excursions clipped. Raises TargetError for large ones."""
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
        raise TargetError(
            f"{where}: the efficiencies in {both} add up to {total:g}; no cell gives out more than the 1 it receives, scale them down"
        )
    if total > 1:
        if total > 1 + ROUND_OFF:
            _warn(f"{where}: the efficiencies add up to {total:g} and are scaled to 1")
        maps = [values / total for values in maps]
    return maps


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=2)


def _frozen(array: np.ndarray) -> np.ndarray:
    array = np.array(array)
    array.setflags(write=False)
    return array
