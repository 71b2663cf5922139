"""A bundle turned back into a run: the weights of its files to the last bit, and a run that fine-tunes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

import cli
from export import parity, yardsticks
from export.bundle import export
from export.run import Run
from export.unpack import unpack
from runtime.bundle import Bundle
from runtime.errors import BundleError, DataError
from train import checkpoint
from train.finetune import recipe_for
from train.loop import train
from train.recipes import Recipe


@pytest.fixture(scope="module")
def judged(small_run: Path, small_data: Path, small_surrogate: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle with a surrogate, and the surrogate's run."""
    folder = tmp_path_factory.mktemp("judged")
    train(small_data, folder / "judge", dataclasses.replace(small_surrogate, epochs=2), progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "ENGINES", ("onnxruntime",))
        patch.setattr(yardsticks, "CANDIDATES", 2)
        return export(small_run, folder / "bundle", surrogate=folder / "judge"), folder / "judge"


@pytest.fixture(scope="module")
def shipped(judged: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unpacked") / "shipped"
    unpack(Bundle.open(judged[0]), out)
    return out


def test_a_denoiser_comes_back_to_the_last_bit(shipped: Path, small_run: Path) -> None:
    found, was = (checkpoint.load_weights(checkpoint.latest(path)) for path in (shipped, small_run))
    assert found.keys() == was.keys()
    assert all(torch.equal(found[key], was[key]) for key in was)
    for name in ("recipe.json", "condition.json", "scheduler_config.json"):
        assert json.loads((shipped / name).read_text()) == json.loads((small_run / name).read_text())
    mine, first = (json.loads((path / "data.json").read_text()) for path in (shipped, small_run))
    assert mine == first


def test_a_surrogate_comes_back_as_the_same_function(judged: tuple[Path, Path], tmp_path: Path) -> None:
    unpack(Bundle.open(judged[0]), tmp_path / "judge", "surrogate")
    mine, first = Run.open(tmp_path / "judge", "scattering"), Run.open(judged[1], "scattering")
    rng = np.random.default_rng(1)
    pattern = torch.from_numpy(rng.integers(0, 2, (6, 1, 5, 5)).astype(np.float32))
    height = torch.from_numpy(rng.uniform(120, 380, (6, 1)).astype(np.float32))
    with torch.no_grad():
        for found, expected in zip(mine.network(pattern, height), first.network(pattern, height), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert mine.history()["steps"] == first.history()["steps"]
    assert mine.history()["validation_loss"] == first.history()["validation_loss"]


def test_training_goes_on_from_it(shipped: Path, small_data: Path, tmp_path: Path) -> None:
    recipe = recipe_for(None, None, shipped, {"epochs": 1})
    last = train(small_data, tmp_path / "tuned", recipe, init=shipped, progress=False, pictures_every=0)
    facts = json.loads((tmp_path / "tuned" / "data.json").read_text())
    assert facts["init"] == {"run": "shipped", "steps": checkpoint.step_of(checkpoint.latest(shipped))}
    assert last.exists()


def test_what_it_cannot_do_is_said(shipped: Path, judged: tuple[Path, Path], small_bundle: Path, small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no optimiser's state; start from it with --init"):
        train(small_data, shipped, recipe_for(None, shipped, None, {}), resume=True, progress=False)
    with pytest.raises(DataError, match=r"calibration.npz does not exist.* has to be trained on first"):
        export(shipped, tmp_path / "bundle")
    with pytest.raises(DataError, match="is there already"):
        unpack(Bundle.open(small_bundle), shipped)
    with pytest.raises(BundleError, match="has no surrogate"):
        unpack(Bundle.open(small_bundle), tmp_path / "judge", "surrogate")
    assert not (tmp_path / "judge").exists()


def test_a_few_step_model_is_refused(small_bundle: Path, rewrite: Callable[..., None], tmp_path: Path) -> None:
    few = Path(shutil.copytree(small_bundle, tmp_path / "few"))
    rewrite(few, lambda manifest: manifest["recipe"].update(objective="distillation", sampling_steps=2, teacher_steps=4))
    with pytest.raises(BundleError, match="few holds a few-step model without its teacher, so no training goes on from it; unpack its"):
        unpack(Bundle.open(few), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("change", "words"), [("name", "another version of the exporter"), ("value", "differs from its golden outputs")])
def test_files_that_do_not_fit_are_refused(
    change: str, words: str, small_bundle: Path, rewrite: Callable[..., None], tmp_path: Path
) -> None:
    spoiled = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    model = onnx.load(spoiled / "denoiser.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "network.conv_out.weight")
    if change == "name":
        weight.name = "other"
    else:
        weight.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(weight), weight.name))
    content = model.SerializeToString()
    (spoiled / "denoiser.onnx").write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(spoiled, lambda manifest: manifest["files"].update({"denoiser.onnx": entry}))
    result = CliRunner().invoke(cli.group, ["unpack", str(spoiled), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert words in result.output
    assert not (tmp_path / "run").exists()
