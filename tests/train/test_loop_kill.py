"""kill -9 and Ctrl-C: what is resumed ends where an unbroken run does, byte for byte, and nothing half-written stays."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime.errors import DataError
from train import checkpoint, networks
from train.loop import train
from train.networks.spectral import SpectralDenoiser
from train.recipes import Recipe

FILES = ["ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]
needs_forks = pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")


def run_cli(arguments: list[str], stderr: str) -> None:
    """``python cli.py``, in a process that has imported everything already."""
    from cli import group

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
    descriptor = os.open(stderr, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", closefd=False)
    group(arguments, prog_name="cli.py")


@pytest.fixture(scope="module")
def launch(small_data: Path) -> Callable[..., BaseProcess]:
    """Starts ``cli.py train`` on the small data; the process that all are forked from imports PyTorch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli", "train.loop", "train.finetune", "torch.utils.tensorboard"])

    def launch(recipe: Recipe, run: Path, *more: object) -> BaseProcess:
        file = run.parent / "recipe.json"
        file.write_text(json.dumps(recipe.to_dict()))
        options = ["--data", small_data, "--recipe", file, "--out", run, "--checkpoint-every", 3, "--pictures-every", 0, *more]
        process = context.Process(target=run_cli, args=(["train", *map(str, options)], str(run.parent / "stderr.txt")))
        process.start()
        return process

    return launch


def newest(run: Path) -> int:
    return max((int(path.name[5:]) for path in checkpoint.found(run)), default=0)


def wait_past(process: BaseProcess, run: Path, step: int) -> None:
    """Until there is a checkpoint later than ``step``."""
    while newest(run) <= step:
        assert process.is_alive(), f"the run ended by itself: {(run.parent / 'stderr.txt').read_text()}"
        time.sleep(0.002)


def rows_of(run: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_same(a: Path, b: Path) -> None:
    """Two runs ended with the same bytes in every file of the last checkpoint, and the same rows but for the seconds."""
    first, second = checkpoint.latest(a), checkpoint.latest(b)
    assert first.name == second.name
    assert FILES == sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert rows_of(a) == rows_of(b)


@needs_forks
def test_killed_again_and_again_it_ends_byte_identical(
    launch: Callable[..., BaseProcess], small_data: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    """At any moment: in a step, in a checkpoint, in the log. A checkpoint every three steps makes the second likely."""
    recipe = dataclasses.replace(small_recipe, epochs=10_000, lr_schedule="constant")  # without end; the rate does not depend on it
    run, moments = tmp_path / "run", [random.uniform(0, 0.4) for _ in range(4)]
    for kill, moment in enumerate(moments):
        process = launch(recipe, run, *(["--resume"] if kill else []))
        wait_past(process, run, newest(run))
        time.sleep(moment)
        assert process.is_alive(), (tmp_path / "stderr.txt").read_text()
        process.kill()
        process.join()
        for path in checkpoint.found(run):
            assert sorted(file.name for file in path.iterdir()) == FILES, f"half a checkpoint after {moments[: kill + 1]} s"
    # A little further in this process, and the whole way in one go.
    end = dataclasses.replace(recipe, epochs=newest(run) // 4 + 2)
    train(small_data, run, end, progress=False, resume=True, checkpoint_every=3, pictures_every=0)
    train(small_data, tmp_path / "unbroken", end, progress=False, pictures_every=0)
    assert_same(run, tmp_path / "unbroken")
    assert not list(run.rglob(".*")), f"litter of the kills after {moments} s"
    assert len(checkpoint.found(run)) == 2


@needs_forks
def test_a_folder_where_a_training_is_at_work_is_refused(
    launch: Callable[..., BaseProcess], small_data: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(small_recipe, epochs=10_000, lr_schedule="constant")
    run = tmp_path / "run"
    process = launch(recipe, run)
    try:
        wait_past(process, run, 0)
        with pytest.raises(DataError, match=r"another training is at work in .*run; wait for its end"):
            train(small_data, run, recipe, progress=False, resume=True)
        assert process.is_alive(), (tmp_path / "stderr.txt").read_text()
    finally:
        process.kill()
        process.join()
    end = dataclasses.replace(recipe, epochs=newest(run) // 4 + 1)
    train(small_data, run, end, progress=False, resume=True, pictures_every=0)  # what was killed holds nothing any more


def test_what_kills_leave_half_written_goes_with_the_next_start(small_data: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small_data, run, small_recipe, progress=False, stop_after=3, pictures_every=0)
    litter = [
        run / "checkpoints" / ".step-00000005.0123456789ab",
        run / "checkpoints" / ".step-00000001.0123456789ab.old",
        run / ".loss.0123456789ab.png",
        run / "samples" / ".epoch-010.0123456789ab.png",
    ]
    for path in litter:
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if "step" in path.name else path.write_bytes(b"half")
        if path.is_dir():
            (path / "model.safetensors").write_bytes(b"half")
    (run / ".gitignore").write_text("*\n")
    train(small_data, run, small_recipe, progress=False, resume=True, pictures_every=0)
    assert not [path for path in litter if path.exists()]
    assert (run / ".gitignore").exists(), "only our own temporaries"


@needs_forks
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_the_work_and_says_how_to_go_on(
    number: signal.Signals, launch: Callable[..., BaseProcess], small_data: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(small_recipe, epochs=10_000, lr_schedule="constant")
    run = tmp_path / "run"
    process = launch(recipe, run, "--checkpoint-every", 1_000_000)  # the later of two flags counts: no checkpoint but the last
    while not (run / "metrics.jsonl").exists() or len(rows_of(run)) < 2:
        assert process.is_alive(), (tmp_path / "stderr.txt").read_text()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    os.kill(process.pid, number)  # as a launcher passes it on; the checkpoint is written all the same
    process.join()
    said = (tmp_path / "stderr.txt").read_text().splitlines()
    step = newest(run)
    assert step >= 8
    assert process.exitcode == 1
    assert said[-1].startswith(f"Error: interrupted after {step} of 40000 steps, kept in {run}")
    assert said[-1].endswith("the same command with --resume goes on")
    assert not [line for line in said if "Traceback" in line]
    end = dataclasses.replace(recipe, epochs=step // 4 + 2)
    train(small_data, run, end, progress=False, resume=True, pictures_every=0)
    train(small_data, tmp_path / "unbroken", end, progress=False, pictures_every=0)
    assert_same(run, tmp_path / "unbroken")


_TWICE = """
import signal, time
from train.interrupt import Interrupts

def interrupted():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return True
    return False

signal.signal(signal.SIGINT, signal.default_int_handler)
now = 100.0
time.monotonic = lambda: now
with Interrupts() as interrupts:
    assert not interrupts.asked
    assert not interrupted() and not interrupted() and interrupts.asked
    now += 2
    assert interrupted()
assert interrupted()
signal.signal(signal.SIGINT, signal.SIG_IGN)
with Interrupts() as interrupts:
    assert not interrupted() and not interrupts.asked, "a job in the background stays uninterrupted"
    signal.raise_signal(signal.SIGTERM)
    assert interrupts.asked, "but it can be told to stop"
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
print("as it should")
"""


def test_a_second_interrupt_a_while_later_does_not_wait_for_the_step() -> None:
    # In a process of its own: signals and the clock belong to all that the other tests have loaded.
    done = subprocess.run(
        [sys.executable, "-c", _TWICE], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "as it should\n", done.stderr


class Noisy(SpectralDenoiser):
    """A network that draws random numbers of its own, as dropout does."""

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, light: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(sample, 0.5, self.training), timestep, light, height)


def test_a_networks_own_random_numbers_are_resumed_too(
    small_data: Path, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(networks.NETWORKS, "noisy", Noisy)
    recipe = dataclasses.replace(small_recipe, network="noisy")
    train(small_data, tmp_path / "broken", recipe, progress=False, stop_after=3, pictures_every=0)
    torch.manual_seed(1)  # another process has drawn other numbers
    train(small_data, tmp_path / "broken", recipe, progress=False, resume=True, pictures_every=0)
    train(small_data, tmp_path / "whole", recipe, progress=False, pictures_every=0)
    assert_same(tmp_path / "broken", tmp_path / "whole")
    plain = train(small_data, tmp_path / "plain", small_recipe, progress=False, pictures_every=0)
    weights = [checkpoint.load_weights(path, "model") for path in (plain, checkpoint.latest(tmp_path / "whole"))]
    assert any((weights[0][key] - weights[1][key]).abs().max() > 1e-4 for key in weights[0]), "the test would see dropout that does nothing"


@pytest.mark.parametrize("damage", ["", "{", "{}", '{"step": "x", "param_groups": []}'])
def test_a_damaged_state_is_named(damage: str, small_data: Path, small_recipe: Recipe, small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    (checkpoint.latest(run) / "state.json").write_text(damage)
    with pytest.raises(DataError, match=r"state\.json cannot be read.*remove that checkpoint"):
        train(small_data, run, dataclasses.replace(small_recipe, epochs=3), progress=False, resume=True)
