"""What the light should do: the efficiency wanted in each diffraction order, and the height the pattern will be etched to.

    target = Target.load("split.json")

A target may be partial: orders that its masks leave out are nobody's concern, and their power counts as one bin in the
score (:mod:`.score`). An order may be asked to lie within a range (:mod:`.target_ranges`). Files are read by :mod:`.target_files`, whose
docstring has the forms.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .channels import Channel
from .errors import TargetError
from .geometry import Geometry, propagating
from .target_ranges import Ranges, fitted, sigma_of, widened
from .target_values import channel, frozen, height_of, mask_of, square

# A full target whose total is at least this leaves no light for orders beyond its maps.
_COMPLETE = 0.95
# Power wanted in evanescent orders up to this, each and together, is noise of a measured target.
_NOISE, _NOISE_TOTAL = 1e-3, 1e-2


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """Wanted efficiencies. Build one with :meth:`from_arrays` or :meth:`load`, which check; the constructor does not.

    Args:
        R, T: (2M+1, 2M+1) float64 efficiencies wanted in reflection and transmission, order (m, n) at ``[m + M, n + M]``;
            0 where not asked for. Of an order with a range this is the value within it that networks are shown.
        mask_R, mask_T: (2M+1, 2M+1) bool, True where asked for.
        height_nm: pillar height.
        name: the file's stem, or "target"; errors and output folders carry it.
        geometry: the arrangement the target was made for, None where the file does not say.
        extra: what is wanted of further maps, by the name of the channel; see :mod:`.channels`. Of those left out nothing is asked.
        ranges: the ends of what counts as reached; None where that is R and T alone.
    """

    R: np.ndarray = dataclasses.field(repr=False)
    T: np.ndarray = dataclasses.field(repr=False)
    mask_R: np.ndarray = dataclasses.field(repr=False)
    mask_T: np.ndarray = dataclasses.field(repr=False)
    height_nm: float
    name: str = "target"
    geometry: Geometry | None = None
    extra: Mapping[str, Channel] = dataclasses.field(default_factory=dict, repr=False)
    ranges: Ranges | None = dataclasses.field(default=None, repr=False)

    @property
    def orders(self) -> int:
        """M: the maps are (2M+1, 2M+1)."""
        return self.R.shape[0] // 2

    @property
    def partial(self) -> bool:
        """True where some order is not asked for in R or T."""
        return not (self.mask_R.all() and self.mask_T.all())

    @property
    def limits(self) -> Ranges:
        """Both ends of what counts as reached; R and T themselves where no range is wider."""
        return self.ranges or Ranges(self.R, self.T, self.R, self.T)

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
        sigma_R: Any = None,
        sigma_T: Any = None,
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
            sigma_R, sigma_T: standard deviations of measured efficiencies, (2M+1, 2M+1) or one number for all; an achieved efficiency
                within two of them counts as reached.

        Negative efficiencies down to -0.01 become 0 and totals up to 1.05 are scaled to 1, with a UserWarning.

        Raises:
            TargetError: a wrong shape, a value that is no finite number, an efficiency under -0.01, a total over 1.05,
                a height that is not positive, or nothing asked for in R and T.
        """
        names = ("R", "T", "height_nm")
        return checked(name, names, R, T, height_nm, mask_R, mask_T, name, geometry, extra, sigmas=(sigma_R, sigma_T))

    @classmethod
    def load(cls, path: str | os.PathLike[str], convention: str | None = None, channels: Collection[str] = ()) -> Target:
        """Read a ``.json``, ``.toml``, ``.mat``, ``.npz`` or ``.csv`` target, or make a preset; :mod:`.target_files` describes the forms.

        Args:
            path: the file, or a preset such as ``deflector:height_nm=250`` (:mod:`.presets`).
            convention: index convention of the arrays in the file, ``lab`` (``data[i, j]`` is order ``(-(j - M), -(i - M))``)
                or ``metascatter`` (``data[m + M, n + M]``). None takes the file's own ``convention`` key, and without one
                ``lab`` for ``.mat`` and ``metascatter`` for ``.npz`` and ``.csv``. The others name their orders and need none.
            channels: further maps to look for in a ``.mat`` or ``.npz``, beside those called ``Rm_...`` and ``Tm_...``; these are of
                other keys, such as a thermal map's.

        Raises:
            TargetError: naming the file, the field, what was found and what was expected.
        """
        from .target_files import read

        return read(Path(path), convention, channels)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], name: str = "target") -> Target:
        """A target from the fields of a ``.json`` one: ``{"height_nm": 300, "orders": {"T(1,0)": 0.4, "R(0,0)": {"max": 0.05}}}``.

        Raises:
            TargetError: naming the field, what was found and what was expected.
        """
        from .target_fields import from_fields

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
        arrays = [self.R, self.T, self.mask_R, self.mask_T, *(self.ranges or ())]
        if step < 0:
            for kind, m, n in self.strongest(2 * self.R.size):
                low = self.range_of(kind, m, n)[0]
                if max(abs(m), abs(n)) > orders and low > 0:
                    raise TargetError(
                        f"{self.name}: order {kind}({m},{n}) is asked {low:g}, but the maps here end at "
                        f"order {orders}; ask only for orders from -{orders} to {orders}"
                    )
            for name, channel in self.extra.items():
                if channel.wanted.sum() > channel.wanted[-step:step, -step:step].sum():
                    raise TargetError(f"{self.name}: '{name}' asks for orders beyond {orders}, where the maps here end; leave these out")
            arrays = [array[-step:step, -step:step] for array in arrays]
        else:
            complete = not self.partial and self.R.sum() + self.T.sum() >= _COMPLETE
            fills = [0, 0, complete, complete, 0, 0, 0, 0]
            arrays = [np.pad(array, step, constant_values=fill) for array, fill in zip(arrays, fills, strict=False)]
        if not (arrays[2].any() or arrays[3].any()):
            raise TargetError(f"{self.name}: no order it asks for lies within -{orders} to {orders}; ask for at least one that does")
        extra = {}
        for name, channel in self.extra.items():
            both = [frozen(a[-step:step, -step:step] if step < 0 else np.pad(a, step)) for a in (channel.wanted, channel.mask)]
            extra[name] = Channel(both[0], both[1], channel.geometry)
        R, T, mask_R, mask_T, *ends = map(frozen, arrays)
        ranges = Ranges(*ends) if ends else None
        return dataclasses.replace(self, R=R, T=T, mask_R=mask_R, mask_T=mask_T, extra=extra, ranges=ranges)

    def wanted(self, kind: str, m: int, n: int) -> float:
        """The efficiency wanted in order (m, n) of ``kind`` "R" or "T", that of a range which networks are shown; 0 where not asked for."""
        return float((self.R if kind == "R" else self.T)[m + self.orders, n + self.orders])

    def range_of(self, kind: str, m: int, n: int) -> tuple[float, float]:
        """The least and the most that counts as reached in order (m, n) of ``kind`` "R" or "T"."""
        low_R, low_T, high_R, high_T = (float(ends[m + self.orders, n + self.orders]) for ends in self.limits)
        return (low_R, high_R) if kind == "R" else (low_T, high_T)

    def strongest(self, count: int) -> list[tuple[str, int, int]]:
        """Up to ``count`` asked orders as ("R" or "T", m, n), the strongest wanted first; ties by distance from order (0, 0)."""
        asked = [
            (str(kind), int(m) - self.orders, int(n) - self.orders)
            for kind, mask in (("T", self.mask_T), ("R", self.mask_R))
            for m, n in np.argwhere(mask)
        ]
        return sorted(asked, key=lambda order: (-self.wanted(*order), order[1] ** 2 + order[2] ** 2))[:count]


def check_geometry(target: Target, geometry: Geometry, whose: str, remedy: str) -> None:
    """Refuse a target that was made for another geometry; one that names none fits any.

    Raises:
        TargetError: naming whose geometry it is not, the difference and the remedy.
    """
    difference = None if target.geometry is None else target.geometry.difference(geometry)
    if difference:
        raise TargetError(f"{target.name}: the target's geometry is not the {whose}: {difference}; {remedy}")


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

    What is wanted there is let pass as noise up to 0.001 in each order and 0.01 in all of them. Of a range its lower end counts.

    Raises:
        TargetError: naming the strongest evanescent order asked for.
    """
    free_R, free_T = propagating(geometry, target.orders)
    lost = [
        (float(power), kind, int(m), int(n))
        for kind, low, free in (("R", target.limits.low_R, free_R), ("T", target.limits.low_T, free_T))
        for (m, n), power in np.ndenumerate(np.where(free, 0, low))
        if power > 0
    ]
    if not lost or (max(lost)[0] <= _NOISE and sum(power for power, *_ in lost) <= _NOISE_TOTAL):
        return
    power, kind, m, n = max(lost)
    m, n = m - target.orders, n - target.orders
    least = "at least " if target.range_of(kind, m, n)[1] > power else ""
    index = geometry.index_incident if kind == "R" else geometry.index_exit
    x, y = geometry.period_nm
    reach = [np.flatnonzero((free_R if kind == "R" else free_T).any(axis=axis)) - target.orders for axis in (1, 0)]
    nearer = ", ".join(f"{name} from {line[0]} to {line[-1]}" for name, line in zip("mn", reach, strict=True) if line.size)
    raise TargetError(
        f"{target.name}: order {kind}({m},{n}) is asked {least}{power:g}, but it is evanescent at {geometry.wavelength_nm:g} nm "
        f"with a period of {x:g} x {y:g} nm and index {index:g} and carries no power; ask for an order nearer to (0,0)"
        + (f", in {kind} at most {nearer}" if nearer else "")
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
    ranges: Ranges | None = None,
    sigmas: tuple[Any, Any] = (None, None),
) -> Target:
    """:meth:`Target.from_arrays` with the file and the names its fields have there, for the sentences of the errors.

    ``ranges`` states the ends of what counts as reached, of orders that are asked for; ``sigmas`` makes them, of R and of T.
    """
    maps = [square(where, field, value) for field, value in zip(fields, (R, T), strict=False)]
    if maps[0].shape != maps[1].shape:
        raise TargetError(f"{where}: '{fields[0]}' has shape {maps[0].shape} and '{fields[1]}' {maps[1].shape}; give both the same shape")
    masks = [mask_of(where, field, mask, maps[0].shape) for field, mask in (("mask_R", mask_R), ("mask_T", mask_T))]
    height = height_of(where, fields[2], height_nm)
    if not (masks[0].any() or masks[1].any()):
        raise TargetError(f"{where}: no order is asked for; ask for the efficiency of at least one")
    wanted = [np.where(mask, values, 0.0) for values, mask in zip(maps, masks, strict=True)]
    if any(sigma is not None for sigma in sigmas):
        named = zip(("sigma_R", "sigma_T"), sigmas, masks, strict=True)
        noise = [np.where(mask, sigma_of(where, field, sigma, mask.shape), 0.0) for field, sigma, mask in named]
        ends = [widened(values, sigma) for values, sigma in zip(wanted, noise, strict=True)]
        ranges = Ranges(ends[0][0], ends[1][0], ends[0][1], ends[1][1])
    (R, T), ranges = fitted(where, fields, wanted, ranges)
    further = {key: channel(where, key, value, maps[0].shape) for key, value in (extra or {}).items()}
    return Target(frozen(R), frozen(T), frozen(masks[0]), frozen(masks[1]), height, name, geometry, further, ranges)
