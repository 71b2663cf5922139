"""Batches of images and points: a pure function of (data, recipe, step), as those of metasurfaces are."""

from __future__ import annotations

import math

import numpy as np

from runtime import pixels
from runtime.condition import Condition
from runtime.data import DataSet
from runtime.labels import Labels
from runtime.samples import SampleSet

from .batches import ORDER, VALIDATION, Batches
from .order import Order, in_pieces
from .recipes import Recipe
from .tasks import Conditioning, Data


class SampleBatches:
    """Batches of one part of a data set.

    Args:
        data: the part.
        condition: classes and units, measured on the training part.
        recipe: batch size, augmentation, dropout of the class, and seed.
    """

    def __init__(self, data: SampleSet, condition: Labels, recipe: Recipe) -> None:
        self.data, self.condition, self.recipe = data, condition, recipe
        self.per_epoch = math.ceil(len(data) / recipe.batch_size)
        self._order = Order(len(data), recipe.seed, ORDER)
        self.timesteps = int(recipe.scheduler.get("num_train_timesteps", 1000))

    def training(self, step: int, start: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """The batch of a step: ``sample``, ``noise`` (B, C, H, W), ``timestep`` (B,) int64 and, with classes, ``label`` (B, K).

        Of its rows, ``start`` to ``end``; of a network without a noise schedule ``sample`` and ``noise`` alone.
        """
        chosen = self._order.rows(step, self.recipe.batch_size)

        def make(rows: slice, random: np.random.Generator) -> dict[str, np.ndarray]:
            return self._assemble(self.data.take(chosen[rows]), random, True)

        return in_pieces(make, self.recipe.batch_size, self.recipe.seed, step, start, end)

    def validation(self, limit: int = 2048) -> dict[str, np.ndarray]:
        """One fixed batch of the first ``limit`` samples: the same noise and timesteps whenever it is asked for."""
        return self._assemble(self.data.take(slice(limit)), np.random.Generator(np.random.Philox(key=[0, VALIDATION])), False)

    def _assemble(self, part: SampleSet, rng: np.random.Generator, augment: bool) -> dict[str, np.ndarray]:
        count, label, recipe = len(part), part.label, self.recipe
        if augment:
            x = pixels.varied(part.x, rng, recipe.canvas, recipe.crop, recipe.mirrors, recipe.flips)
        else:
            x = pixels.scaled(part.x, recipe.canvas) if recipe.crop else part.x
        sample = self.condition.to_network(x)
        if augment and recipe.condition_dropout:
            label = np.where(rng.random(count) < recipe.condition_dropout, -1, label)
        noise = rng.standard_normal(sample.shape, dtype=np.float32)
        batch = {"sample": np.ascontiguousarray(sample), "noise": noise}
        if self.recipe.scheduled:
            batch["timestep"] = rng.integers(0, self.timesteps, count)
        return {**batch, **self.condition.arrays(label)}


def batches(part: Data, condition: Conditioning, recipe: Recipe, mix: DataSet | None = None) -> Batches | SampleBatches:
    """The batches of a part of a data set, whatever it holds."""
    if isinstance(part, SampleSet):
        assert isinstance(condition, Labels)
        return SampleBatches(part, condition, recipe)
    assert isinstance(condition, Condition)
    return Batches(part, condition, recipe, mix)
