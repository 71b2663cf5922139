"""What the network of a bundle of images or points sees: a class, or nothing.

The layout ``labels``: ``label`` (B, K) float32 holds 1 at the class asked for, and zeros where none is, which is the null condition of
classifier-free guidance. Without classes (K = 0) a network sees the sample and the timestep alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors import BundleError, TargetError

LAYOUT = "labels"


@dataclasses.dataclass(frozen=True)
class Labels:
    """The classes of a bundle, and the units of its samples.

    Args:
        classes: their names, in the order of the network's input; none for an unconditional network.
        offset, scale: a number x of the data is (x - offset) / scale to the network; for images of 8 bits both are 127.5.
    """

    classes: tuple[str, ...] = ()
    offset: float = 0.0
    scale: float = 1.0
    layout: str = LAYOUT

    def arrays(self, label: np.ndarray) -> dict[str, np.ndarray]:
        """Network inputs of a batch of classes (B,) int64, float32; -1 asks for none."""
        if not self.classes:
            return {}
        return {"label": (np.asarray(label)[:, None] == np.arange(len(self.classes))).astype(np.float32)}

    def nothing(self) -> dict[str, np.ndarray]:
        """Network inputs (batch of 1) that ask for nothing."""
        return self.arrays(np.array([-1]))

    def unconditional(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same inputs with no class asked for.

        Raises:
            BundleError: there are no classes, so there is nothing to be guided by.
        """
        if not self.classes:
            raise BundleError("this bundle knows no classes, so there is nothing to guide it by; guidance_scale must be 1")
        return {"label": np.zeros_like(arrays["label"])}

    def number(self, label: str | int | None) -> int:
        """The place of a class given by name or number; -1 for None.

        Raises:
            TargetError: there is no such class.
        """
        if label is None:
            return -1
        if str(label) in self.classes:
            return self.classes.index(str(label))
        if str(label).isdecimal() and int(label) < len(self.classes):
            return int(label)
        known = f"it knows {', '.join(self.classes)}" if self.classes else "it was trained without classes: leave the label out"
        raise TargetError(f"this bundle has no class '{label}'; {known}")

    def to_network(self, values: np.ndarray) -> np.ndarray:
        """Numbers of the data in the network's units, float32."""
        return ((np.asarray(values, np.float32) - np.float32(self.offset)) / np.float32(self.scale)).astype(np.float32)

    def to_data(self, samples: np.ndarray) -> np.ndarray:
        """Samples of the network in the units of the data, float32."""
        return (samples * np.float32(self.scale) + np.float32(self.offset)).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, kept in the manifest and beside checkpoints."""
        return {"layout": LAYOUT, "classes": list(self.classes), "offset": self.offset, "scale": self.scale}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Labels:
        """Read :meth:`to_dict`'s form.

        Raises:
            BundleError: naming what is missing or malformed.
        """
        try:
            classes, offset, scale = fields["classes"], float(fields["offset"]), float(fields["scale"])
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the condition constants are incomplete or malformed ({error!r}); export the bundle again") from None
        sound = isinstance(classes, Sequence) and not isinstance(classes, str) and all(isinstance(name, str) and name for name in classes)
        if not sound or len(set(classes)) != len(classes):
            raise BundleError(f"the condition's classes are {str(classes)[:100]}; expected names, each once, export the bundle again")
        if not (math.isfinite(offset) and math.isfinite(scale) and scale > 0):
            raise BundleError(f"the condition has offset {offset} and scale {scale}; expected finite numbers, scale above 0, export again")
        return cls(tuple(classes), offset, scale)
