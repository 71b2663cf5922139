"""Training: a killed and resumed run ends byte-identical, a run refuses to mix experiments, and the loss falls."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from runtime.data import load
from runtime.errors import DataError
from train import checkpoint
from train.batches import split
from train.loop import learning_rate, train
from train.recipes import RECIPES, Recipe
from train.tasks import fitted


def same_bytes(a: Path, b: Path) -> bool:
    return all(
        (a / f"{name}.safetensors").read_bytes() == (b / f"{name}.safetensors").read_bytes() for name in ("model", "ema", "optimizer")
    )


def test_resumed_run_is_byte_identical(small_data, small_recipe, small_run, tmp_path):
    train(small_data, tmp_path / "run", small_recipe, progress=False, pictures_every=0, stop_after=3)
    assert checkpoint.latest(tmp_path / "run").name == "step-00000003"
    last = train(small_data, tmp_path / "run", small_recipe, progress=False, pictures_every=0, resume=True)
    assert same_bytes(last, checkpoint.latest(small_run))
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (small_run, tmp_path / "run")]
    assert [row["validation_loss"] for row in rows[0]] == [row["validation_loss"] for row in rows[1]]


def test_a_run_folder_is_not_overwritten_or_mixed(small_data, small_recipe, small_run):
    with pytest.raises(DataError, match="--resume"):
        train(small_data, small_run, small_recipe, progress=False, pictures_every=0)
    with pytest.raises(DataError, match="another 'lr'"):
        train(small_data, small_run, dataclasses.replace(small_recipe, lr=5e-4), progress=False, pictures_every=0, resume=True)


def test_the_network_fits_the_data(small_data, small_recipe, tmp_path):
    data = load(small_data)
    arguments = {key: value for key, value in small_recipe.network_arguments.items() if key not in ("size", "orders")}
    assert fitted(dataclasses.replace(small_recipe, network_arguments=arguments), data) == small_recipe
    with pytest.raises(DataError, match="size 10 and the data have 5"):
        fitted(dataclasses.replace(small_recipe, network_arguments={**arguments, "size": 10}), data)
    with pytest.raises(DataError, match="do not fit the canvas of 6"):
        fitted(dataclasses.replace(RECIPES["lab2023"], canvas=6), data)


def test_run_leaves_what_export_and_people_need(small_run):
    for name in (
        "recipe.json",
        "condition.json",
        "data.json",
        "machine.json",
        "scheduler_config.json",
        "calibration.npz",
        "metrics.jsonl",
        "loss.png",
        "samples/epoch-002.png",
    ):
        assert (small_run / name).stat().st_size > 0, name
    assert list((small_run / "tensorboard").iterdir())


def test_starting_from_another_runs_weights(small_data, small_recipe, small_run, tmp_path):
    recipe = dataclasses.replace(small_recipe, lr=1e-9, epochs=1, ema_decay=0.0)
    last = train(small_data, tmp_path / "run", recipe, progress=False, pictures_every=0, init=small_run)
    start = checkpoint.load_weights(checkpoint.latest(small_run))
    for name, value in checkpoint.load_weights(last).items():
        assert (value - start[name]).abs().max() < 1e-6, name


def test_learning_rate_schedule():
    recipe = dataclasses.replace(RECIPES["default"], lr=1.0, warmup_steps=10)
    rates = [learning_rate(recipe, step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1, rel=1e-3)
    assert max(rates) == pytest.approx(1.0, rel=1e-2)
    assert rates[-1] == pytest.approx(0.01, rel=1e-2)
    assert learning_rate(RECIPES["lab2023"], 123, 1000) == 3e-4


def test_damaged_checkpoint_is_named(small_data, small_recipe, tmp_path):
    last = train(small_data, tmp_path / "run", small_recipe, progress=False, pictures_every=0)
    (last / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(DataError, match=r"model\.safetensors"):
        train(small_data, tmp_path / "run", dataclasses.replace(small_recipe, epochs=3), progress=False, pictures_every=0, resume=True)


def test_the_surrogate_learns_in_the_same_loop(small_data: Path, small_surrogate: Recipe, tmp_path: Path) -> None:
    """Its loss is the misrouted power; a kill changes nothing; it beats what knows the mean alone."""
    recipe = dataclasses.replace(small_surrogate, epochs=12, lr=3e-3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    last = train(small_data, whole, recipe, progress=False, pictures_every=0)
    train(small_data, broken, recipe, progress=False, pictures_every=0, stop_after=7)
    again = train(small_data, broken, recipe, progress=False, pictures_every=0, resume=True)
    assert same_bytes(last, again)
    assert not (whole / "scheduler_config.json").exists(), "it has no scheduler"
    data = load(small_data)
    _, held = split(data, recipe.validation_fraction)
    rest = np.setdiff1d(np.arange(len(data)), held)
    means = [maps[rest].mean(axis=0) for maps in (data.Rm, data.Tm)]
    guess = 0.5 * sum(np.abs(maps[held] - mean).sum(axis=(1, 2)) for maps, mean in zip((data.Rm, data.Tm), means, strict=True)).mean()
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["validation_loss"] < 0.9 * guess


def test_a_run_that_starts_from_another_says_so(small_data: Path, small_run: Path, small_recipe, tmp_path: Path) -> None:
    """Its first weights are the other's, and the facts of the run, which reach the model card, keep that over a resumption."""
    run = tmp_path / "run"
    train(small_data, run, small_recipe, progress=False, pictures_every=0, init=small_run, stop_after=1)
    train(small_data, run, small_recipe, progress=False, pictures_every=0, resume=True, stop_after=1)
    last = checkpoint.latest(small_run)
    facts = json.loads((run / "data.json").read_text())
    assert facts["init"] == {"run": small_run.name, "steps": checkpoint.step_of(last)}
    assert json.loads((small_run / "data.json").read_text())["init"] is None
    before, after = checkpoint.load_weights(last), checkpoint.load_weights(checkpoint.latest(run), "model")
    moved = max((before[key] - after[key]).abs().max().item() for key in before)
    assert 0 < moved < 0.02, "two steps of a warming-up learning rate away"
