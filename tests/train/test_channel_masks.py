"""Further maps in training: mirrored with the pattern, masked as targets will be, and none where the recipe names none."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from runtime.condition import Condition
from runtime.data import DataSet
from runtime.errors import DataError
from runtime.geometry import Geometry
from runtime.physics.rcwa import Solver
from train.batches import Batches, random_masks
from train.channels import channel_masks
from train.networks.spectral import LightEncoder, SpectralDenoiser
from train.recipes import RECIPES, from_dict, load_recipe

MAIN = Geometry(period_nm=(2000.0, 2300.0), harmonics=2, dtype="complex128")
OTHER = dataclasses.replace(MAIN, wavelength_nm=1480.0, polarisation="y")
SIZE, M = 4, 3


@pytest.fixture(scope="module")
def two() -> DataSet:
    rng = np.random.default_rng(3)
    xx, h = rng.integers(0, 2, (12, SIZE, SIZE)).astype(np.uint8), np.full(12, 300, np.float32)
    solvers = [Solver(geometry, M) for geometry in (MAIN, OTHER)]
    (R, T), (R_2, T_2) = (np.array([solver.solve(x, 300.0) for x in xx], np.float32).swapaxes(0, 1) for solver in solvers)
    return DataSet(xx, h, R, T, MAIN, {"Rm_y": R_2, "Tm_y": T_2}, {"y": OTHER})


def recipe(**fields: Any) -> Any:
    return dataclasses.replace(
        RECIPES["default"], batch_size=12, channels=["Rm_y", "Tm_y"], **{"masks": 0.0, "condition_dropout": 0.0, **fields}
    )


def measured(data: DataSet) -> Condition:
    return Condition.measure("orders", data.Rm, data.Tm, data.h, 0, extra=data.extra)


def test_mirrored_and_shifted_patterns_have_the_mirrored_maps_of_the_solver(two: DataSet) -> None:
    condition = measured(two)
    batch = Batches(two, condition, recipe()).training(0)
    patterns = (batch["sample"][:, 0] > 0).astype(np.uint8)
    turned = [i for i, pattern in enumerate(patterns) if not any(np.array_equal(pattern, x) for x in two.xx)]
    assert len(turned) > 6  # the augmentation is at work
    solver = Solver(OTHER, M)
    for pattern, light in zip(patterns[:6], batch["light"][:6], strict=True):
        for maps, mean, plane in zip(solver.solve(pattern, 300.0), condition.mean_channels, light[2:4], strict=True):
            known = mean > 1e-12
            np.testing.assert_allclose(plane[known] ** 2 * mean[known], maps[known], atol=1e-6)
    assert batch["light"][:, 4:].all()


def test_mirrors_are_left_out_where_they_do_not_hold_for_a_channel(two: DataSet) -> None:
    oblique = dataclasses.replace(two, geometries={"y": dataclasses.replace(OTHER, theta_deg=10.0)})
    assert Batches(two, measured(two), recipe()).mirrors
    assert not Batches(oblique, measured(two), recipe()).mirrors


def test_channels_are_left_out_as_often_as_not_and_dropped_with_the_rest() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((4000, 7, 7)) * (rng.random((4000, 7, 7)) < 0.3)
    mask_R, mask_T = random_masks(rng, maps, maps, 0.4, 0.1)
    extra = {"Rm_y": maps, "Tm_y": maps, "heat": 1e4 * maps}
    masks = channel_masks(rng, extra, mask_R, mask_T, 0.4)
    dropped = ~(mask_R.any((1, 2)) | mask_T.any((1, 2)))
    assert 0.08 < dropped.mean() < 0.12
    counts = {name: mask.sum((1, 2)) for name, mask in masks.items()}
    for count in counts.values():
        assert not count[dropped].any()
        asked = count[~dropped] > 0
        assert asked.mean() == pytest.approx(0.5, abs=0.03)
        assert ((count[~dropped][asked] <= 16).mean()) == pytest.approx(0.4, abs=0.04)
    assert np.array_equal(counts["Rm_y"] > 0, counts["Tm_y"] > 0)  # one wavelength, asked for or not
    assert not np.array_equal(counts["Rm_y"] > 0, counts["heat"] > 0)
    few = (counts["heat"] > 0) & (counts["heat"] < 49)
    assert extra["heat"][few][masks["heat"][few]].mean() > 1.5 * extra["heat"][few].mean()  # strong ones, in whatever unit


def test_without_partial_targets_every_channel_is_asked_unless_dropped(two: DataSet) -> None:
    light = Batches(two, measured(two), recipe(condition_dropout=0.5)).training(1)["light"]
    asked = light[:, 4:].reshape(12, -1).mean(axis=1)
    assert set(asked) == {0.0, 1.0}
    assert not light[asked == 0].any()


def test_noise_on_targets_is_on_every_channel(two: DataSet) -> None:
    clean, noisy = (Batches(two, measured(two), recipe(target_noise=noise)).training(0) for noise in (0.0, 0.2))
    assert np.array_equal(clean["noise"], noisy["noise"])
    for plane in range(4):
        seen = clean["light"][:, plane] > 1e-3
        spread = (noisy["light"][:, plane][seen] / clean["light"][:, plane][seen]) ** 2 - 1
        assert spread.std() == pytest.approx(0.2, rel=0.2), plane
    assert np.array_equal(clean["light"][:, 4:], noisy["light"][:, 4:])


def test_validation_asks_for_everything(two: DataSet) -> None:
    assert Batches(two, measured(two), recipe(masks=0.5)).validation()["light"][:, 4:].all()


def test_batches_without_channels_are_what_they_were(two: DataSet) -> None:
    """The draws for channels come after all others of the masks, so a recipe without them draws as before there were any."""
    plain = dataclasses.replace(two, extra={}, geometries={})
    batch = Batches(plain, measured(plain), dataclasses.replace(recipe(masks=0.3, condition_dropout=0.1), channels=[])).training(2)
    rng = np.random.Generator(np.random.Philox(key=[0, 2]))
    rng.integers(0, 2, (2, 12)), rng.integers(0, SIZE, (2, 12))
    rng.random(12), rng.integers(1, 17, 12), rng.gumbel(size=(12, 2 * (2 * M + 1) ** 2)), rng.integers(0, 2, 12)
    assert np.array_equal(batch["noise"], rng.standard_normal((12, 1, SIZE, SIZE), dtype=np.float32))
    assert batch["light"].shape == (12, 4, 2 * M + 1, 2 * M + 1)


def test_weights_without_channels_keep_their_shapes() -> None:
    small: dict[str, Any] = {"size": 4, "orders": 3, "channels": 8, "components": 4, "hidden": 8, "blocks": 1, "tokens": 4, "embedding": 8}
    plain, more = SpectralDenoiser(**small), SpectralDenoiser(**small, maps=4)
    assert plain.state_dict()["encoder.fold_in.weight"].shape[1] == 8 * plain.encoder.blocks**2
    differing = [name for name, value in more.state_dict().items() if value.shape != plain.state_dict()[name].shape]
    assert differing == ["encoder.fold_in.weight"]
    assert more.state_dict()[differing[0]].shape[1] == 16 * more.encoder.blocks**2
    sample, time, height = torch.randn(2, 1, 4, 4), torch.tensor([3, 900]), torch.zeros(2, 1)
    light = torch.rand(2, 8, 7, 7)
    with torch.no_grad():
        assert not torch.equal(more.encode(light, height)[0], more.encode(torch.cat([light[:, :2], 0 * light[:, 2:]], 1), height)[0])
        assert more(sample, time, light, height).shape == (2, 1, 4, 4)


@pytest.mark.parametrize("plane", range(6))
def test_fold_takes_an_order_of_every_map_to_its_component(plane: int) -> None:
    encoder = LightEncoder(4, 3, 2, 8, maps=3)
    light = torch.zeros(1, 6, 7, 7)
    light[0, plane, -1 + 3, 2 + 3] = 1
    folded = encoder.fold(light).reshape(1, 6, -1, 16)
    assert [index.tolist() for index in folded[0].sum(1).nonzero()] == [[plane, 3 * 4 + 2]]


class TestRecipe:
    def test_a_file_names_channels(self, tmp_path: Any) -> None:
        (tmp_path / "two.toml").write_text('base = "default"\nchannels = ["Rm_1480", "heat"]\n')
        assert load_recipe(str(tmp_path / "two.toml")).channels == ["Rm_1480", "heat"]

    def test_a_recipe_from_before_there_were_channels_opens(self) -> None:
        fields = RECIPES["default"].to_dict()
        del fields["channels"]
        assert from_dict(fields, "recipe.json") == RECIPES["default"]

    @pytest.mark.parametrize(
        ("base", "channels", "words"),
        [
            ("lab2023", ["Rm_1480"], r"'channels' names 'Rm_1480' and the layout 'planes' \(lab2023\) has no place"),
            ("surrogate", ["Rm_1480"], "'channels' names 'Rm_1480' and the objective 'scattering' has no place"),
            ("default", "Rm_1480", "'channels' is 'Rm_1480'; expected a list of names"),
            ("default", ["Rm"], "'channels' names 'Rm', which means something else"),
            ("default", ["mask_heat"], "which means something else"),
            ("default", ["heat map"], "'channels' names 'heat map'; a name has"),
            ("default", ["heat", "heat"], "'channels' names 'heat' twice"),
        ],
    )
    def test_what_cannot_be_a_channel(self, base: str, channels: Any, words: str) -> None:
        with pytest.raises(DataError, match=words):
            load_recipe(base, {"channels": channels})
