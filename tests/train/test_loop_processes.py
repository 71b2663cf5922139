"""Several processes train as one does: the real command under the two launchers, on the CPU."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import DataError
from train import checkpoint, processes
from train.loop import train
from train.recipes import Recipe

ROOT = Path(__file__).parents[2]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
}


@pytest.fixture(scope="module")
def uneven(small_recipe: Recipe) -> Recipe:
    """A batch that two processes cannot halve, and steps large enough that a wrong gradient shows."""
    return dataclasses.replace(small_recipe, batch_size=33, lr=1e-2, warmup_steps=0, min_snr_gamma=5.0)


@pytest.fixture(scope="module")
def alone(small_data: Path, uneven: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    train(small_data, run, uneven, progress=False)
    return run


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_as_one(launcher: str, small_data: Path, uneven: Recipe, alone: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(uneven.to_dict()))
    run = tmp_path / "run"
    options = ["train", "--data", small_data, "--recipe", tmp_path / "recipe.json", "--out", run, "--checkpoint-every", 3]
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], "cli.py", *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained:") == 1, "one process speaks"
    assert "deprecated" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("epoch ")]) == 2
    assert json.loads((run / "machine.json").read_text())["processes"] == 2
    rows, expected = rows_of(run), rows_of(alone)
    assert len(rows) == len(expected) == 2
    for row, other in zip(rows, expected, strict=True):
        assert row["step"] == other["step"]
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row["validation_loss"] == pytest.approx(other["validation_loss"], abs=1e-5)
    first, second = (checkpoint.load_weights(checkpoint.latest(path)) for path in (run, alone))
    assert max((first[key] - second[key]).abs().max().item() for key in first) < 1e-3
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in alone.iterdir())
    assert len(list((run / "tensorboard").iterdir())) == 1, "one process writes"
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["epoch-002.png"]


class Fellow:
    """One of several processes, as far as sharing a batch goes."""

    def __init__(self, index: int, processes: int) -> None:
        self.process_index, self.num_processes = index, processes


@pytest.mark.parametrize(("rows", "count"), [(33, 2), (8, 4), (7, 3), (5, 5)])
def test_shares_make_up_the_batch_and_its_mean(rows: int, count: int) -> None:
    """DDP averages over processes; with the factors, that is the mean over the samples."""
    import numpy as np

    values = np.random.default_rng(0).random(rows)
    shares = [processes.share(rows, Fellow(k, count)) for k in range(count)]
    assert np.array_equal(np.concatenate([values[start:end] for start, end, _ in shares]), values)
    assert np.mean([factor * values[start:end].mean() for start, end, factor in shares]) == pytest.approx(values.mean(), abs=1e-12)


def test_a_batch_smaller_than_the_processes_is_refused(
    small_data: Path, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "Accelerator", lambda **settings: Fellow(0, 4))
    with pytest.raises(DataError, match="a batch of 3 cannot be shared by 4 processes"):
        train(small_data, tmp_path / "run", dataclasses.replace(small_recipe, batch_size=3), progress=False)
    assert not (tmp_path / "run").exists()
