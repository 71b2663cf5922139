"""What the network sees of a target. Training and sampling call this same code, so they cannot disagree.

Two layouts exist, named in a recipe and in the bundle's manifest:

- ``orders``: ``light`` (B, 2 (2+k), 2M+1, 2M+1) holds, for R, T and k further maps (:mod:`.channels`), the amplitude
  sqrt(value / mean value of that order), and behind them in the same order the masks of orders asked for; ``height`` (B, 1) runs
  from -1 to 1 over the training range. Partial targets are masked, and a further map that nobody asked for is masked whole.
- ``planes``: the seed's layout, ``planes`` (B, 3, S, S): R and T standardised and laid in the middle of the canvas, and a
  constant plane of height. It has no place for a mask and refuses partial targets. The height runs over a range of its own, from
  -1 to 1, or (``shared_range``) over that of the standardised R and T of the training part.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import channels as names
from .errors import BundleError, DataError, TargetError

if TYPE_CHECKING:
    from .target import Target

LAYOUTS = ("orders", "planes")
CONDITIONINGS = ("concatenated", "class", "shared_range")  # of the layout planes
OWN_RANGE = (-1.0, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
    """Constants, measured on the training part alone, that turn efficiencies into network inputs.

    Args:
        layout: ``orders`` or ``planes``.
        height_range_nm: lowest and highest training height.
        mean_R, mean_T: (2M+1, 2M+1) float32 mean efficiency per order, 0 where no training sample has power.
        scale: for ``planes`` the means and standard deviations (mean R, std R, mean T, std T) over all orders.
        canvas: side of the canvas of ``planes``; 0 for ``orders``.
        height_plane: for ``planes`` what the plane of height holds at the lowest and at the highest training height.
        channels: names of the further maps that the network sees, in its order; none for ``planes``.
        mean_channels: for each of them the mean map, like ``mean_R``.
    """

    layout: str
    height_range_nm: tuple[float, float]
    mean_R: np.ndarray
    mean_T: np.ndarray
    scale: tuple[float, float, float, float]
    canvas: int
    height_plane: tuple[float, float] = OWN_RANGE
    channels: tuple[str, ...] = ()
    mean_channels: tuple[np.ndarray, ...] = ()

    @property
    def orders(self) -> int:
        """M: order maps are (2M+1, 2M+1)."""
        return self.mean_R.shape[0] // 2

    @classmethod
    def measure(
        cls,
        layout: str,
        R: np.ndarray,
        T: np.ndarray,
        height_nm: np.ndarray,
        canvas: int = 0,
        conditioning: str = "concatenated",
        extra: Mapping[str, np.ndarray] | None = None,
    ) -> Condition:
        """The constants of a training part: R, T and further maps by name (N, 2M+1, 2M+1), height_nm (N,).

        ``conditioning`` ``shared_range``, for ``planes``, lets the plane of height run from the smallest to the largest value that the
        standardised R and T have in the training part.

        Raises:
            DataError: no such conditioning.
        """
        if conditioning not in CONDITIONINGS:
            raise DataError(f"there is no conditioning {conditioning!r}; choose {', '.join(CONDITIONINGS)}")
        extra, means = extra or {}, []
        for maps in (R, T, *extra.values()):
            mean = maps.mean(axis=0, dtype=np.float64)
            # Mirrored samples are training data too, so the constants share the mirrors' symmetry.
            means.append(((mean + mean[::-1] + mean[:, ::-1] + mean[::-1, ::-1]) / 4).astype(np.float32))
        scale = tuple(float(f(maps, dtype=np.float64)) for maps in (R, T) for f in (np.mean, np.std))
        plane = OWN_RANGE
        if layout == "planes" and conditioning == "shared_range":
            planes = [(maps - mean) / std for maps, (mean, std) in ((R, scale[:2]), (T, scale[2:]))]
            plane = (float(min(maps.min() for maps in planes)), float(max(maps.max() for maps in planes)))
        heights = float(height_nm.min()), float(height_nm.max())
        return cls(layout, heights, means[0], means[1], scale, canvas, plane, tuple(extra), tuple(means[2:]))  # type: ignore[arg-type]

    def for_target(self, target: Target) -> dict[str, np.ndarray]:
        """:meth:`arrays` for one target in this number of orders, as a batch of 1."""
        return self.arrays(
            target.R[None],
            target.T[None],
            np.array([target.height_nm]),
            target.mask_R[None],
            target.mask_T[None],
            {name: channel.wanted[None] for name, channel in target.extra.items()},
            {name: channel.mask[None] for name, channel in target.extra.items()},
        )

    def arrays(
        self,
        R: np.ndarray,
        T: np.ndarray,
        height_nm: np.ndarray,
        mask_R: np.ndarray | None = None,
        mask_T: np.ndarray | None = None,
        extra: Mapping[str, np.ndarray] | None = None,
        masks: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Network inputs for a batch, float32.

        Args:
            R, T: (B, 2M+1, 2M+1) efficiencies; values at orders not asked for are ignored.
            height_nm: (B,).
            mask_R, mask_T: (B, 2M+1, 2M+1) bool, True where asked for; None asks for every order.
            extra: further maps by name, (B, 2M+1, 2M+1); of a channel that is not among them nothing is asked.
            masks: their masks; a map without one is asked for at every order.

        Raises:
            TargetError: a partial target for the layout ``planes``, which has no mask, or a channel that is not in ``channels``.
        """
        extra, masks = extra or {}, masks or {}
        names.require("the target", extra, self.channels)
        height_nm = np.asarray(height_nm, np.float32)
        low, high = self.height_range_nm
        height = (2 * (height_nm - low) / max(high - low, 1e-6) - 1).astype(np.float32)
        if self.layout == "planes":
            if not all(mask is None or np.all(mask) for mask in (mask_R, mask_T)):
                raise TargetError(
                    "this bundle's network (lab2023) has no mask input: name the efficiency of every order, or use the default bundle"
                )
            return {"planes": self._planes(R, T, height)}
        count = 2 + len(self.channels)
        light = np.zeros((len(height), 2 * count, *self.mean_R.shape), np.float32)
        planes = [(R, self.mean_R, mask_R), (T, self.mean_T, mask_T)]
        further = zip(self.channels, self.mean_channels, strict=True)
        nobody = np.zeros_like(light[:, 0]), np.zeros_like(light[:, 0], bool)
        planes += [(extra[name], mean, masks.get(name)) if name in extra else (nobody[0], mean, nobody[1]) for name, mean in further]
        for channel, (maps, mean, mask) in enumerate(planes):
            asked = np.ones(maps.shape, bool) if mask is None else mask
            amplitude = np.sqrt(np.maximum(maps, 0) / np.where(mean > 0, mean, 1))
            light[:, channel] = np.where(asked & (mean > 0), amplitude, 0)
            light[:, count + channel] = asked
        return {"light": light, "height": height[:, None]}

    def nothing(self) -> dict[str, np.ndarray]:
        """Network inputs (batch of 1) that ask every order for no light, at the lowest height."""
        dark = np.zeros((1, *self.mean_R.shape))
        return self.arrays(dark, dark, np.array([self.height_range_nm[0]]))

    def unconditional(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same inputs with nothing asked of the light: the null condition of classifier-free guidance; height stays."""
        if self.layout == "planes":
            raise BundleError("this bundle's network (lab2023) was not trained without condition; guidance_scale must be 1")
        return {"light": np.zeros_like(arrays["light"]), "height": arrays["height"]}

    def _planes(self, R: np.ndarray, T: np.ndarray, height: np.ndarray) -> np.ndarray:
        mean_R, std_R, mean_T, std_T = self.scale
        side = self.mean_R.shape[0]
        start = (self.canvas - side) // 2
        window = slice(start, start + side)
        planes = np.zeros((len(height), 3, self.canvas, self.canvas), np.float32)
        planes[:, 0, window, window] = (R - mean_R) / std_R
        planes[:, 1, window, window] = (T - mean_T) / std_T
        lowest, highest = self.height_plane
        planes[:, 2, window, window] = ((lowest + highest) / 2 + (highest - lowest) / 2 * height)[:, None, None]
        return planes

    def to_dict(self) -> dict[str, Any]:
        """JSON form, kept in the manifest and beside checkpoints; without channels it does not speak of any."""
        fields = dataclasses.asdict(self)
        further = {"channels": list(self.channels), "mean_channels": [mean.tolist() for mean in self.mean_channels]}
        for name in further:
            del fields[name]
        return {
            **fields,
            **(further if self.channels else {}),
            "mean_R": self.mean_R.tolist(),
            "mean_T": self.mean_T.tolist(),
            "height_range_nm": list(self.height_range_nm),
            "scale": list(self.scale),
            "height_plane": list(self.height_plane),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Condition:
        """Read :meth:`to_dict`'s form.

        Raises:
            BundleError: naming what is missing or malformed.
        """
        try:
            mean_R, mean_T = (np.array(fields[name], np.float32) for name in ("mean_R", "mean_T"))
            low, high = (float(value) for value in fields["height_range_nm"])
            a, b, c, d = (float(value) for value in fields["scale"])
            lowest, highest = (float(value) for value in fields.get("height_plane", OWN_RANGE))
            further = tuple(np.array(mean, np.float32) for mean in fields.get("mean_channels", ()))
            channels = tuple(fields.get("channels", ()))
            constants = mean_R, mean_T, (a, b, c, d), int(fields["canvas"]), (lowest, highest)
            condition = cls(str(fields["layout"]), (low, high), *constants, channels, further)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"the condition constants are incomplete or malformed ({error!r}); export the bundle again") from None
        if condition.layout not in LAYOUTS:
            raise BundleError(f"the condition layout is {reprlib.repr(condition.layout)}; this version knows {' and '.join(LAYOUTS)}")
        if mean_R.ndim != 2 or mean_R.shape != mean_T.shape or mean_R.shape[0] != mean_R.shape[1] or mean_R.shape[0] % 2 == 0:
            raise BundleError(f"the condition means have shapes {mean_R.shape} and {mean_T.shape}; expected two equal odd squares")
        wrong = names.fault(condition.channels)
        if wrong or len(further) != len(condition.channels) or any(mean.shape != mean_R.shape for mean in further):
            raise BundleError(
                f"the condition has {len(further)} means of channels for {reprlib.repr(condition.channels)}; "
                f"expected a name and a map of shape {mean_R.shape} for each, export the bundle again"
            )
        if condition.channels and condition.layout == "planes":
            raise BundleError("the condition has channels and the layout 'planes', which has no place for them; export the bundle again")
        means = np.concatenate([mean.ravel() for mean in (mean_R, mean_T, *further)])
        numbers = np.concatenate([means, condition.height_range_nm, condition.scale, condition.height_plane])
        if not np.isfinite(numbers).all() or (means < 0).any() or not 0 < low <= high:
            raise BundleError(
                "the condition constants hold values that are not finite, negative means or an empty height range; export the bundle again"
            )
        if condition.layout == "planes" and (condition.canvas < mean_R.shape[0] or min(b, d) <= 0):
            raise BundleError(
                f"the condition has canvas {condition.canvas} and deviations {b} and {d}; layout 'planes' needs a canvas "
                f"of at least {mean_R.shape[0]} and deviations above 0, export the bundle again"
            )
        return condition
