"""An earlier checkpoint of a run is exported by its step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cli
from export.run import Run
from runtime.errors import DataError
from train import checkpoint
from train.loop import train
from train.recipes import RECIPES


def test_a_checkpoint_by_its_step(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "points.npz", x=rng.standard_normal((100, 2)).astype(np.float32))
    small = {"hidden": 8, "layers": 1, "embedding": 8}
    recipe = dataclasses.replace(RECIPES["swiss-roll"], epochs=3, batch_size=32, network_arguments=small)
    run = tmp_path / "run"
    train(tmp_path / "points.npz", run, recipe, checkpoint_every=2, keep=9, progress=False, pictures_every=0)
    steps = [checkpoint.step_of(path) for path in checkpoint.found(run)]
    assert len(steps) >= 4
    early, late = Run.open(run, "denoising", steps[0]), Run.open(run, "denoising")
    assert (early.newest, late.newest) == (checkpoint.path_of(run, steps[0]), checkpoint.path_of(run, steps[-1]))
    assert early.history()["steps"] == 2
    assert early.history()["epochs"] == pytest.approx(2 / (steps[-1] / 3))
    assert late.history()["epochs"] == 3
    assert any((a != b).any() for a, b in zip(early.network.parameters(), late.network.parameters(), strict=True))
    with pytest.raises(DataError, match=r"no checkpoint of step 3; it has 2, 4"):
        Run.open(run, "denoising", 3)
    told = CliRunner().invoke(cli.group, ["export", str(run), "--checkpoint", "3", "--out", str(tmp_path / "bundle")])
    assert (told.exit_code, "no checkpoint of step 3" in told.output) == (2, True)
    assert not (tmp_path / "bundle").exists()
