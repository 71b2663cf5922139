"""What the network is shown at each step, as a pure function of (data, recipe, step).

Every draw comes from a counter-based generator keyed by seed and step, so a resumed run, or one over several
processes, sees exactly what an unbroken one would.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from runtime.condition import Condition
from runtime.data import DataSet
from runtime.errors import DataError
from runtime.samples import set_aside

from . import tasks
from .channels import channel_masks, every_mirror_holds, strong_orders
from .order import Order, in_pieces
from .recipes import Recipe
from .symmetry import mirror, nearest_shift, shift

# Numbers of the draws beside those of the steps, out of their reach: of validation, and of the orders of an epoch.
VALIDATION, ORDER, _MIX_ORDER = 2**62, 2**63, 2**63 + 2**62


def split(data: tasks.Data, validation_fraction: float, training_samples: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and validation part, decided by a hash of each sample alone.

    The hash is of ``tasks.identities``, so that neither order nor company nor a shifted copy moves a sample to the other side. With
    ``training_samples`` the training part is so many drawn from it, the same ones every time.

    Raises:
        DataError: one of the parts would be empty, or has fewer than ``training_samples``.
    """
    chosen = set_aside(tasks.identities(data), validation_fraction)
    training, validation = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    if not len(training) or not len(validation):
        raise DataError(
            f"{len(data)} samples are too few to set {validation_fraction:.0%} aside for validation; "
            "simulate or gather more, or raise validation_fraction"
        )
    if training_samples > len(training):
        raise DataError(f"'training_samples' is {training_samples} and the training part has {len(training)}; ask for fewer, or 0 for all")
    if training_samples:
        training = np.sort(np.random.Generator(np.random.Philox(0)).permutation(training)[:training_samples])
    return training, validation


class Batches:
    """Batches of one part of a data set, or of two mixed.

    Args:
        data: the part.
        condition: constants measured on the training part.
        recipe: batch size, augmentation, masks, noise on targets and seed.
        mix: another part of the same cells, of which every training batch takes the recipe's ``mix_share``; an epoch is one of ``data``.
    """

    def __init__(self, data: DataSet, condition: Condition, recipe: Recipe, mix: DataSet | None = None) -> None:
        self.data, self.condition, self.recipe, self.mix = data, condition, recipe, mix
        # Both kinds are in every batch, however small the share.
        self.mixed = 0 if mix is None else min(max(1, round(recipe.mix_share * recipe.batch_size)), recipe.batch_size - 1)
        if mix is not None and self.mixed < 1:
            raise DataError(f"a batch of {recipe.batch_size} cannot hold two kinds of samples; raise --batch-size")
        self.own = recipe.batch_size - self.mixed
        self.per_epoch = math.ceil(len(data) / self.own)
        self.mirrors = recipe.mirrors and every_mirror_holds(data.geometry, data.geometries.values())
        self.timesteps = int(recipe.scheduler.get("num_train_timesteps", 1000)) if recipe.objective != "scattering" else 0
        self._order = self._ordered(data, ORDER)
        self._mix_order = None if mix is None else self._ordered(mix, _MIX_ORDER)
        size = data.xx.shape[-1]
        self.side = recipe.canvas or size
        self.start = (self.side - size) // 2

    def _ordered(self, data: DataSet, stream: int) -> Order:
        power = self.recipe.height_power
        return Order(len(data), self.recipe.seed, stream, data.h.astype(np.float64) ** power if power else None)

    def training(self, step: int, start: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """The batch of a step: ``sample``, ``noise`` (B, 1, S, S), ``timestep`` (B,) int64 and the condition's arrays; for the objective
        ``scattering`` ``pattern`` (B, 1, N, N), ``height_nm`` (B, 1) and ``R``, ``T`` (B, 2M+1, 2M+1). Of its rows, ``start`` to ``end``.

        The last batch of an epoch is filled up from its beginning, so that every batch has the same size. With the recipe's
        ``height_power`` an epoch is as many draws with replacement as there are samples.
        """
        own = self._order.rows(step, self.own)
        more = None if self._mix_order is None else self._mix_order.rows(step, self.mixed)

        def make(rows: slice, random: np.random.Generator) -> dict[str, np.ndarray]:
            return self._assemble(self._take(own, more, rows), random, True)

        return in_pieces(make, self.recipe.batch_size, self.recipe.seed, step, start, end)

    def _take(self, own: np.ndarray, more: np.ndarray | None, rows: slice) -> DataSet:
        """Some rows of a batch, which is of the data's own samples first and mixed-in ones after them."""
        part = self.data.take(own[rows])
        if self.mix is None or more is None:
            return part
        other = self.mix.take(more[max(rows.start - self.own, 0) : max(rows.stop - self.own, 0)])
        xx, h, Rm, Tm = (np.concatenate([getattr(part, key), getattr(other, key)]) for key in ("xx", "h", "Rm", "Tm"))
        extra = {name: np.concatenate([maps, other.extra[name]]) for name, maps in part.extra.items()}
        return dataclasses.replace(part, xx=xx, h=h, Rm=Rm, Tm=Tm, extra=extra)

    def validation(self, limit: int = 2048) -> dict[str, np.ndarray]:
        """One fixed batch of the first ``limit`` samples: the same noise and timesteps whenever it is asked for."""
        return self._assemble(self.data.take(slice(limit)), np.random.Generator(np.random.Philox(key=[0, VALIDATION])), False)

    def _assemble(self, part: DataSet, rng: np.random.Generator, augment: bool) -> dict[str, np.ndarray]:
        count = len(part)
        patterns, R, T = part.xx, part.Rm, part.Tm
        extra, masks = part.extra, None
        mask_R = mask_T = None
        if augment and self.mirrors:
            flip_x, flip_y = rng.integers(0, 2, (2, count)).astype(bool)
            patterns, R, T = (mirror(maps, flip_x, flip_y) for maps in (patterns, R, T))
            extra = {name: mirror(maps, flip_x, flip_y) for name, maps in extra.items()}
            rows, columns = rng.integers(0, patterns.shape[-1], (2, count))
            patterns = shift(patterns, rows, columns)
        if self.recipe.objective == "scattering":
            pattern, height_nm = patterns[:, None].astype(np.float32), part.h[:, None].astype(np.float32)
            return {"pattern": pattern, "height_nm": height_nm, "R": R.astype(np.float32), "T": T.astype(np.float32)}
        if augment and self.recipe.masks + self.recipe.condition_dropout > 0:
            mask_R, mask_T = random_masks(rng, R, T, self.recipe.masks, self.recipe.condition_dropout)
            masks = channel_masks(rng, extra, mask_R, mask_T, self.recipe.masks)
        sample = np.zeros((count, 1, self.side, self.side), np.float32)
        window = slice(self.start, self.start + patterns.shape[-1])
        # The pattern is mapped to [-1, 1]; a canvas around it stays at 0.
        sample[:, 0, window, window] = 2.0 * patterns - 1.0
        noise = rng.standard_normal(sample.shape, dtype=np.float32)
        if self.recipe.coupling == "shift":
            rows, columns = nearest_shift(patterns, noise[:, 0, window, window])
            sample[:, 0, window, window] = 2.0 * shift(patterns, rows, columns) - 1.0
        timestep = rng.integers(0, self.timesteps, count)
        if augment and self.recipe.target_noise:
            # Drawn last: a recipe without it sees what it always saw. An efficiency stays at 0 or above.
            spread = self.recipe.target_noise * rng.standard_normal((2, *R.shape), dtype=np.float32)
            R, T = R * np.maximum(1 + spread[0], 0), T * np.maximum(1 + spread[1], 0)
            further = {name: self.recipe.target_noise * rng.standard_normal(R.shape, dtype=np.float32) for name in extra}
            extra = {name: maps * np.maximum(1 + further[name], 0) for name, maps in extra.items()}
        return {
            "sample": sample,
            "noise": noise,
            "timestep": timestep,
            **self.condition.arrays(R, T, part.h, mask_R, mask_T, extra, masks),
        }


def random_masks(rng: np.random.Generator, R: np.ndarray, T: np.ndarray, partial: float, dropped: float) -> tuple[np.ndarray, np.ndarray]:
    """Masks (B, 2M+1, 2M+1) of the orders asked for: of a share ``partial`` only some, of a share ``dropped`` none.

    Half of the partial targets ask for all of R or all of T, half for 1 to 16 single orders drawn with a preference for
    strong ones, as people write them.
    """
    count, side = len(R), R.shape[-1]
    both = np.stack([R, T], axis=1).reshape(count, -1)
    kind = rng.random(count)
    wanted = rng.integers(1, 17, count)
    few = strong_orders(rng, both, wanted)
    sides = np.repeat(rng.integers(0, 2, count)[:, None] == np.arange(2)[None], side * side, axis=1)
    mask = np.ones(both.shape, bool)
    for chosen, value in (
        (kind < dropped, np.zeros_like(mask)),
        ((kind >= dropped) & (kind < dropped + partial / 2), few),
        ((kind >= dropped + partial / 2) & (kind < dropped + partial), sides),
    ):
        mask[chosen] = value[chosen]
    maps = mask.reshape(count, 2, side, side)
    return maps[:, 0], maps[:, 1]
