"""Which further maps a training target asks for, so that a network learns to do with any of them, and without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from runtime.channels import label
from runtime.data import DataSet
from runtime.geometry import Geometry

from .symmetry import mirrors_hold


def every_mirror_holds(geometry: Geometry, others: Iterable[Geometry]) -> bool:
    """:func:`.symmetry.mirrors_hold` for the geometry of R and T and for those of further maps."""
    return all(map(mirrors_hold, (geometry, *others)))


def geometry_difference(data: DataSet, geometry: Geometry, others: Mapping[str, Geometry]) -> str | None:
    """In what ``data`` was made for another geometry than this, or its further maps than ``others`` by NAME; None where in nothing.

    A NAME that one of the two does not state is let pass: measured data state none.
    """
    pairs = [
        ("", data.geometry, geometry),
        *((f" at {name}", own, others[name]) for name, own in data.geometries.items() if name in others),
    ]
    found = ((where, mine.difference(theirs)) for where, mine, theirs in pairs)
    return next((f"{words}{where}" for where, words in found if words), None)


def strong_orders(rng: np.random.Generator, power: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which ``wanted`` (B,) of the orders with ``power`` (B, K) are asked for, (B, K) bool, with a preference for strong ones.

    Gumbel top-k: drawing without replacement with weights (power + floor).
    """
    keys = np.log(power + 1e-3) + rng.gumbel(size=power.shape)
    ranked = np.sort(keys, axis=1)[:, ::-1]
    return np.asarray(keys >= np.take_along_axis(ranked, np.minimum(wanted, power.shape[1])[:, None] - 1, axis=1))


def channel_masks(
    rng: np.random.Generator, extra: Mapping[str, np.ndarray], mask_R: np.ndarray, mask_T: np.ndarray, partial: float
) -> dict[str, np.ndarray]:
    """Masks (B, 2M+1, 2M+1) of the orders asked for in further maps.

    Where ``partial`` targets are trained at all, half of the targets leave a channel unasked, ``Rm_NAME`` and ``Tm_NAME`` together;
    of what is asked, a share ``partial`` asks for 1 to 16 single orders drawn with a preference for strong ones. Where nothing is asked
    of R and T, which is classifier-free guidance's null condition, nothing is asked of any.

    Args:
        rng: what it draws follows what else was drawn for the step.
        extra: the maps (B, 2M+1, 2M+1) by name.
        mask_R, mask_T: (B, 2M+1, 2M+1) bool.
        partial: share from 0 to 1.
    """
    count = len(mask_R)
    asked = np.concatenate([mask_R, mask_T], axis=1).any(axis=(1, 2))
    kept: dict[str, np.ndarray] = {}
    masks = {}
    for name, maps in extra.items():
        group = label(name) or f"{name} alone"
        if group not in kept:
            kept[group] = asked & (rng.random(count) < (0.5 if partial > 0 else 1.0))
        few, wanted = rng.random(count) < partial, rng.integers(1, 17, count)
        flat = maps.reshape(count, -1)
        # Relative to the brightest, since a map may be in any unit.
        single = strong_orders(rng, flat / np.maximum(flat.max(axis=1, keepdims=True), 1e-30), wanted)
        masks[name] = (np.where(few[:, None], single, True) & kept[group][:, None]).reshape(maps.shape)
    return masks
