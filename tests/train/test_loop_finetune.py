"""Fine-tuning on measured samples: what has to agree with the first run, and that mixing keeps it from forgetting."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.condition import Condition
from runtime.data import DataSet, load
from runtime.errors import DataError
from runtime.files import write_npz
from train import checkpoint, networks
from train.batches import Batches, split
from train.finetune import recipe_for
from train.loop import _validate, train
from train.objective import objective
from train.processes import to_device
from train.recipes import RECIPES, Recipe


@pytest.fixture(scope="module")
def first(small_data: Path, small_surrogate: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A surrogate trained long enough to have something to forget: on heights and light it predicts clearly."""
    recipe = dataclasses.replace(small_surrogate, epochs=25, lr=1e-2)
    run = tmp_path_factory.mktemp("first") / "run"
    train(small_data, run, recipe, progress=False, pictures_every=0)
    return run


@pytest.fixture
def measured(small_data: Path, tmp_path: Path) -> Callable[..., Path]:
    """40 samples as an instrument might give them: stray light in every order, and no solver settings of ours."""

    def measured(**changes: object) -> Path:
        data = load(small_data)
        part = data.take(np.arange(40))
        both = np.stack([part.Rm, part.Tm], axis=1)
        lit = both.mean(axis=0) > 0
        stray = 0.4 * both + 0.6 * lit / lit.sum()
        fields = {"Rm": stray[:, 0], "Tm": stray[:, 1], "geometry": dataclasses.replace(data.geometry, harmonics=5, rule="laurent")}
        altered = dataclasses.replace(part, **{**fields, **changes})
        write_npz(tmp_path / "measured.npz", **altered.arrays())
        return tmp_path / "measured.npz"

    return measured


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def error_on(data: DataSet, run: Path) -> float:
    """Loss of a run's newest EMA weights on samples."""
    recipe = recipe_for(None, None, run, {})
    condition = Condition.from_dict(json.loads((run / "condition.json").read_text()))
    network = networks.build(recipe.network, recipe.network_arguments)
    network.load_state_dict(checkpoint.load_weights(checkpoint.latest(run)))
    batch = Batches(data, condition, recipe).validation()

    class Here:
        device = "cpu"

    return _validate(network.eval(), objective(recipe), to_device(batch, Here()))


def test_mixing_keeps_it_from_forgetting(first: Path, small_data: Path, measured: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipe_for(None, None, first, {"epochs": 12, "lr": 5e-3, "batch_size": 16})
    assert (recipe.objective, recipe.network_arguments["channels"]) == ("scattering", 16), "taken over from the first run"
    here = measured()
    plain, mixed = tmp_path / "plain", tmp_path / "mixed"
    train(here, plain, recipe, progress=False, init=first, pictures_every=0)
    train(here, mixed, recipe, progress=False, init=first, mix=small_data, pictures_every=0)
    data = load(small_data)
    held = data.take(split(data, 0.2)[1])
    before, forgotten, kept = (error_on(held, run) for run in (first, plain, mixed))
    assert forgotten > 1.1 * before, "the test would see forgetting"
    assert kept < 0.95 * forgotten
    rows = rows_of(mixed)
    assert rows[-1]["validation_loss_mix"] == pytest.approx(kept, rel=1e-5)
    assert rows[-1]["validation_loss"] < error_on(load(here).take(split(load(here), 0.2)[1]), first), "and it learnt the new ones"
    assert "validation_loss_mix" not in rows_of(plain)[-1]
    facts = json.loads((mixed / "data.json").read_text())
    assert facts["mix"]["data"] == "small.npz"
    assert facts["mix"]["training_samples"] + facts["mix"]["validation_samples"] == 160
    assert facts["geometry"] == json.loads((first / "data.json").read_text())["geometry"], "measured data have no solver settings"
    assert (mixed / "condition.json").read_bytes() == (first / "condition.json").read_bytes()


def test_a_resumed_fine_tuning_is_byte_identical(
    small_run: Path, small_recipe: Recipe, small_data: Path, measured: Callable[..., Path], tmp_path: Path
) -> None:
    """Condition, geometry and mixture stay those of its beginning, though --init is not named again."""
    here, whole, broken = measured(), tmp_path / "whole", tmp_path / "broken"
    recipe = dataclasses.replace(small_recipe, batch_size=12, target_noise=0.1, epochs=2)
    last = train(here, whole, recipe, progress=False, init=small_run, mix=small_data, pictures_every=0)
    train(here, broken, recipe, progress=False, init=small_run, mix=small_data, stop_after=3, pictures_every=0)
    again = train(here, broken, recipe, progress=False, mix=small_data, resume=True, pictures_every=0)
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"):
        assert (last / name).read_bytes() == (again / name).read_bytes(), name
    assert (whole / "data.json").read_bytes() == (broken / "data.json").read_bytes()
    with pytest.raises(DataError, match=r"begun with small\.npz mixed in; name it with --mix"):
        train(here, broken, recipe, progress=False, resume=True)
    with pytest.raises(DataError, match=r"holds other samples \(\d+ to train on\)"):
        train(here, broken, recipe, progress=False, resume=True, mix=here)


def test_what_does_not_go_together_is_a_sentence(
    small_run: Path, small_recipe: Recipe, small_data: Path, measured: Callable[..., Path], tmp_path: Path
) -> None:
    data = load(small_data)
    wide = {**small_recipe.network_arguments, "channels": 24}
    other = dataclasses.replace(data.geometry, wavelength_nm=1310.0)
    maps = np.pad(data.Rm[:40], ((0, 0), (1, 1), (1, 1)))
    cases: list[tuple[Path, Recipe, dict[str, object], str]] = [
        (measured(), dataclasses.replace(small_recipe, network_arguments=wide), {}, r"'network_arguments\.channels' 16.* has 24"),
        (measured(), dataclasses.replace(RECIPES["lab2023"], validation_fraction=0.2), {}, "'network' 'spectral'.* has 'lab2023'"),
        (
            measured(),
            dataclasses.replace(small_recipe, scheduler={**small_recipe.scheduler, "prediction_type": "epsilon"}),
            {},
            r"'scheduler\.prediction_type' 'v_prediction'.* has 'epsilon'",
        ),
        (measured(), small_recipe, {"mix": "nowhere.npz"}, r"nowhere\.npz does not exist"),
        (measured(), small_recipe, {"init": tmp_path / "nothing"}, r"condition\.json does not exist"),
    ]
    for path, recipe, more, words in cases:
        with pytest.raises(DataError, match=words):
            train(path, tmp_path / "run", recipe, progress=False, **{"init": small_run, **more})  # type: ignore[arg-type]
    for changes, words in (
        ({"geometry": other}, "another geometry than .*wavelength_nm is 1310"),
        ({"h": np.full(40, 700, np.float32)}, "heights of 700 to 700 nm and .* trained on 106 to 399 nm"),
        ({"Rm": maps, "Tm": maps}, "'network_arguments.orders' 3.* has 4|has orders 3"),
    ):
        with pytest.raises(DataError, match=words):
            train(measured(**changes), tmp_path / "run", small_recipe, progress=False, init=small_run)
    with pytest.raises(DataError, match="--mix is for fine-tuning"):
        train(measured(), tmp_path / "run", small_recipe, progress=False, mix=small_data)
    elsewhere = measured(geometry=other)
    with pytest.raises(DataError, match=r"measured\.npz was made for another geometry"):
        train(small_data, tmp_path / "run", small_recipe, progress=False, init=small_run, mix=elsewhere)
    assert not (tmp_path / "run").exists()


def test_a_run_begun_from_another_and_killed_before_its_first_checkpoint(
    small_run: Path, small_recipe: Recipe, small_data: Path, tmp_path: Path
) -> None:
    """Resumed without --init it would silently begin from nothing."""
    run = tmp_path / "run"
    last = train(small_data, run, small_recipe, progress=False, init=small_run, stop_after=1)
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    with pytest.raises(DataError, match="no checkpoint yet and was to start from small; name that run with --init again"):
        train(small_data, run, small_recipe, progress=False, resume=True)
    with pytest.raises(DataError, match=r"was begun from small, not from other; leave --init out"):
        train(small_data, run, small_recipe, progress=False, resume=True, init=Path(shutil.copytree(small_run, tmp_path / "other")))
    with pytest.raises(DataError, match=r"was begun from nothing, not from run"):
        train(small_data, small_run, small_recipe, progress=False, resume=True, init=shutil.copytree(small_run, tmp_path / "x" / "run"))
    again = train(small_data, run, small_recipe, progress=False, resume=True, init=small_run, stop_after=1)
    assert checkpoint.step_of(again) == 1


def test_other_samples_of_the_same_number_are_noticed(small_data: Path, small_run: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    data = load(small_data)
    write_npz(tmp_path / "small.npz", **dataclasses.replace(data, Rm=data.Tm, Tm=data.Rm).arrays())
    with pytest.raises(DataError, match="holds other samples"):
        train(tmp_path / "small.npz", small_run, small_recipe, progress=False, resume=True)


def test_the_recipe_is_that_of_the_run_one_goes_on_with(small_run: Path, tmp_path: Path) -> None:
    own = recipe_for(None, None, small_run, {"lr": 1e-5, "epochs": None})
    assert (own.lr, own.epochs, own.network_arguments["channels"]) == (1e-5, 2, 16)
    assert recipe_for(None, small_run, None, {}).network_arguments["channels"] == 16
    assert recipe_for("surrogate", small_run, small_run, {}).name == "surrogate"
    assert recipe_for(None, tmp_path, None, {}) == RECIPES["default"]
