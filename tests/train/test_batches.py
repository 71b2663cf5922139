"""What the network is shown: the split, the symmetries, the masks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from runtime.condition import Condition
from runtime.data import load
from runtime.errors import DataError
from runtime.geometry import Geometry
from runtime.physics.rcwa import Solver
from runtime.search import canonical
from train import order, tasks
from train.batches import Batches, random_masks, split
from train.recipes import RECIPES, Recipe
from train.symmetry import mirror, nearest_shift, shift

GEOMETRY = Geometry(period_nm=(2000.0, 2300.0), harmonics=3, dtype="complex128")


@pytest.mark.parametrize(("flip_x", "flip_y"), [(True, False), (False, True), (True, True)])
def test_mirrors_against_the_solver(flip_x, flip_y):
    pattern = np.random.default_rng(1).integers(0, 2, (1, 5, 5))
    solver = Solver(GEOMETRY, 4)
    flips = np.array([flip_x]), np.array([flip_y])
    for maps, mirrored in zip(solver.solve(pattern[0], 300.0), solver.solve(mirror(pattern, *flips)[0], 300.0), strict=True):
        assert np.abs(mirror(maps[None], *flips)[0] - mirrored).max() < 1e-9
        assert np.abs(maps - mirrored).max() > 1e-4  # the test would see a mirror that does nothing


def test_shifts_against_the_solver():
    pattern = np.random.default_rng(2).integers(0, 2, (1, 5, 5))
    shifted = shift(pattern, np.array([2]), np.array([4]))
    assert np.array_equal(shifted[0], np.roll(pattern[0], (2, 4), axis=(0, 1)))
    solver = Solver(GEOMETRY, 4)
    for maps, same in zip(solver.solve(pattern[0], 300.0), solver.solve(shifted[0], 300.0), strict=True):
        assert np.abs(maps - same).max() < 1e-9


def test_the_nearest_shift_is_the_nearest_of_all():
    rng = np.random.default_rng(3)
    patterns, noise = rng.integers(0, 2, (20, 5, 5)), rng.standard_normal((20, 5, 5))
    found = shift(patterns, *nearest_shift(patterns, noise))
    for pattern, moved, own in zip(patterns, found, noise, strict=True):
        every = [np.roll(pattern, (i, j), axis=(0, 1)) for i in range(5) for j in range(5)]
        assert any(np.array_equal(moved, other) for other in every)
        assert np.linalg.norm(2 * moved - 1 - own) == pytest.approx(min(np.linalg.norm(2 * other - 1 - own) for other in every))


def test_split_belongs_to_the_sample_not_its_place(small_data):
    data = load(small_data)
    training, validation = split(data, 0.3)
    assert len(training) + len(validation) == len(data)
    assert 0.15 < len(validation) / len(data) < 0.45
    turned = data.take(np.arange(len(data))[::-1])
    again = split(turned, 0.3)[1]
    assert set(len(data) - 1 - again) == set(validation)
    shifted = dataclasses.replace(data, xx=np.roll(data.xx, (1, 3), axis=(1, 2)))
    assert np.array_equal(split(shifted, 0.3)[1], validation)


def test_fewer_training_samples_are_among_the_more_and_leave_the_validation_part_alone(small_data):
    data = load(small_data)
    training, validation = split(data, 0.3)
    few, some = split(data, 0.3, 4), split(data, 0.3, 9)
    assert len(few[0]) == 4
    assert set(few[0]) < set(some[0]) < set(training)
    assert np.array_equal(few[1], validation)
    assert np.array_equal(some[1], validation)


def test_too_few_samples_to_split(small_data):
    with pytest.raises(DataError, match="too few"):
        split(load(small_data).take(slice(3)), 0.01)
    with pytest.raises(DataError, match="'training_samples' is 1000 and the training part has"):
        split(load(small_data), 0.3, 1000)


def test_statistics_come_from_the_training_part(small_data, small_run):
    data = load(small_data)
    training, _ = split(data, 0.2)
    import json

    condition = Condition.from_dict(json.loads((small_run / "condition.json").read_text()))
    part = data.take(training)
    assert np.array_equal(condition.mean_R, Condition.measure("orders", part.Rm, part.Tm, part.h).mean_R)
    assert not np.array_equal(condition.mean_R, Condition.measure("orders", data.Rm, data.Tm, data.h).mean_R)


def batches(small_data, recipe):
    data = load(small_data)
    return data, Batches(data, Condition.measure(recipe.layout, data.Rm, data.Tm, data.h, recipe.canvas), recipe)


def test_batches_depend_on_seed_and_step_alone(small_data, small_recipe):
    _, first = batches(small_data, small_recipe)
    _, second = batches(small_data, small_recipe)
    for key, value in first.training(7).items():
        assert np.array_equal(value, second.training(7)[key]), key
    assert not np.array_equal(first.training(7)["noise"], first.training(8)["noise"])
    _, other = batches(small_data, dataclasses.replace(small_recipe, seed=1))
    assert not np.array_equal(first.training(7)["noise"], other.training(7)["noise"])


def test_an_epoch_shows_every_sample(small_data):
    """160 samples in batches of 32: five batches, each sample once, without augmentation to hide who is who."""
    recipe = dataclasses.replace(RECIPES["lab2023"], batch_size=32)
    data, source = batches(small_data, recipe)
    assert source.per_epoch == 5
    seen = np.concatenate([source.training(step)["sample"] for step in range(5, 10)])
    window = slice((32 - 5) // 2, (32 - 5) // 2 + 5)
    rows = {row.tobytes() for row in (seen[:, 0, window, window] > 0).astype(np.uint8)}
    assert rows == {row.tobytes() for row in data.xx}
    assert set(np.unique(seen)) == {-1.0, 0.0, 1.0}  # the pattern is mapped to [-1, 1], the canvas is 0


def test_the_last_timestep_is_trained(small_data, small_recipe):
    _, source = batches(small_data, dataclasses.replace(small_recipe, batch_size=4096))
    steps = source.training(0)["timestep"]
    assert steps.min() == 0
    assert steps.max() == 999


def test_mirrors_are_left_out_at_oblique_incidence(small_data, small_recipe):
    data = load(small_data)
    oblique = dataclasses.replace(data, geometry=dataclasses.replace(data.geometry, theta_deg=10.0))
    condition = Condition.measure("orders", data.Rm, data.Tm, data.h)
    assert Batches(data, condition, small_recipe).mirrors
    assert not Batches(oblique, condition, small_recipe).mirrors


def test_random_masks_have_the_shares_asked_for():
    rng = np.random.default_rng(0)
    maps = rng.random((4000, 5, 5)) * (rng.random((4000, 5, 5)) < 0.5)
    mask_R, mask_T = random_masks(rng, maps, maps, 0.4, 0.1)
    counts = mask_R.sum((1, 2)) + mask_T.sum((1, 2))
    assert (counts == 0).mean() == pytest.approx(0.1, abs=0.02)
    assert (counts == 50).mean() == pytest.approx(0.5, abs=0.03)
    assert (counts == 25).mean() == pytest.approx(0.2, abs=0.03)
    few = (counts > 0) & (counts <= 16)
    assert few.mean() == pytest.approx(0.2, abs=0.03)
    assert maps[few][mask_R[few]].mean() > maps[few].mean()  # strong orders are asked for more often


def test_height_power_shows_tall_pillars_more_often(small_data, small_run):
    data = load(small_data)
    condition = Condition.measure("orders", data.Rm, data.Tm, data.h, 0)
    recipe = dataclasses.replace(RECIPES["surrogate"], batch_size=len(data), network_arguments={})
    plain, tall = (Batches(data, condition, dataclasses.replace(recipe, height_power=power)) for power in (0.0, 8.0))
    assert sorted(plain.training(0)["height_nm"][:, 0]) == sorted(data.h)  # an epoch shows every sample once
    drawn = np.concatenate([tall.training(step)["height_nm"][:, 0] for step in range(20)])
    expected = np.average(data.h, weights=data.h.astype(np.float64) ** 8)
    assert abs(drawn.mean() - expected) < 0.05 * expected
    assert drawn.mean() > data.h.mean() * 1.2
    again = tall.training(3)
    assert all(np.array_equal(again[key], value) for key, value in tall.training(3).items())


def test_coupling_moves_the_patterns_alone(small_data, small_recipe):
    _, independent = batches(small_data, dataclasses.replace(small_recipe, coupling="independent"))
    _, coupled = batches(small_data, dataclasses.replace(small_recipe, coupling="shift"))
    for before, after in ((independent.training(3), coupled.training(3)), (independent.validation(), coupled.validation())):
        for key in before.keys() - {"sample"}:
            assert np.array_equal(before[key], after[key]), key
        assert np.array_equal(canonical(before["sample"][:, 0] > 0), canonical(after["sample"][:, 0] > 0))
        closer = (before["sample"] * before["noise"]).sum((1, 2, 3)), (after["sample"] * after["noise"]).sum((1, 2, 3))
        assert (closer[1] >= closer[0]).all()
        assert closer[1].mean() > 5 > closer[0].mean(), (
            "of 25 shifts the nearest lies some 1.9 standard deviations, of 5 each, off the mean"
        )


def test_noise_on_targets_is_multiplicative_and_leaves_the_other_draws_alone(small_data, small_recipe):
    """The sample, its noise and timestep are those of a recipe without it, and validation is as it was."""
    plain = dataclasses.replace(small_recipe, masks=0.0, condition_dropout=0.0, batch_size=512)
    _, quiet = batches(small_data, plain)
    _, noisy = batches(small_data, dataclasses.replace(plain, target_noise=0.2))
    before, after = quiet.training(5), noisy.training(5)
    for key in ("sample", "noise", "timestep", "height"):
        assert np.array_equal(before[key], after[key]), key
    # The network sees sqrt(efficiency / mean).
    seen = before["light"][:, :2] > 1e-3
    ratio = (after["light"][:, :2][seen] / before["light"][:, :2][seen]) ** 2
    assert ratio.mean() == pytest.approx(1.0, abs=0.01)
    assert ratio.std() == pytest.approx(0.2, abs=0.01)
    assert np.array_equal(before["light"][:, 2:], after["light"][:, 2:]), "the masks are as they were"
    for key, value in quiet.validation().items():
        assert np.array_equal(value, noisy.validation()[key]), key
    assert noisy.training(5)["light"].tobytes() == after["light"].tobytes()


def test_much_noise_makes_no_negative_efficiency(small_data, small_recipe):
    _, noisy = batches(small_data, dataclasses.replace(small_recipe, target_noise=3.0))
    light = noisy.training(0)["light"]
    assert np.isfinite(light).all()
    assert light.min() >= 0


@pytest.mark.parametrize(("share", "size", "mixed"), [(0.5, 32, 16), (0.25, 30, 8), (0.001, 8, 1), (0.999, 8, 7)])
def test_every_batch_holds_both_kinds(share, size, mixed, small_data, small_run):
    """Told apart by their heights; all of both come up, in a new order each time."""
    data = load(small_data)
    condition = Condition.measure("orders", data.Rm, data.Tm, data.h)
    own = dataclasses.replace(data.take(np.arange(40)), h=np.arange(100, 140, dtype=np.float32))
    other = dataclasses.replace(data, h=np.arange(200, 360, dtype=np.float32))
    recipe = dataclasses.replace(RECIPES["surrogate"], network_arguments={}, batch_size=size, mix_share=share)
    source = Batches(own, condition, recipe, other)
    assert source.per_epoch == -(-40 // (size - mixed))
    seen = [source.training(step)["height_nm"][:, 0] for step in range(200)]
    assert all((heights >= 200).sum() == mixed for heights in seen)
    epoch = np.concatenate(seen[: source.per_epoch])
    assert set(epoch[epoch < 200]) == set(own.h), "an epoch is a pass over the samples one came for"
    drawn = np.concatenate(seen)
    others = drawn[drawn >= 200]
    assert len(set(others)) == min(160, len(others)), "none comes again before all have come"
    assert not np.array_equal(seen[0], seen[source.per_epoch])


def test_a_batch_of_one_cannot_hold_both_kinds(small_data):
    data = load(small_data)
    recipe = dataclasses.replace(RECIPES["surrogate"], batch_size=1)
    with pytest.raises(DataError, match="a batch of 1 cannot hold two kinds"):
        Batches(data, Condition.measure("orders", data.Rm, data.Tm, data.h), recipe, data)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_part_of_a_large_batch_is_those_rows_of_it_and_costs_no_more(
    small_data: Path, small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, mixed: bool
) -> None:
    monkeypatch.setattr(order, "PIECE", 8)
    recipe = dataclasses.replace(small_recipe, batch_size=30, masks=0.3, condition_dropout=0.1, mix_share=0.4)
    data = load(small_data)
    condition = tasks.measure(recipe, data)
    assert isinstance(condition, Condition)
    source = Batches(data, condition, recipe, data if mixed else None)
    whole = source.training(3)
    assert all(len(value) == 30 for value in whole.values())
    taken = []
    assemble = Batches._assemble

    def counted(self, part, *rest):
        taken.append(len(part))
        return assemble(self, part, *rest)

    monkeypatch.setattr(Batches, "_assemble", counted)
    for start, end in ((0, 30), (0, 7), (7, 19), (29, 30)):
        taken.clear()
        part = source.training(3, start, end)
        assert all(np.array_equal(part[key], value[start:end]) for key, value in whole.items())
        assert sum(taken) < end - start + 16
    assert not np.array_equal(whole["noise"][:8], whole["noise"][8:16])
