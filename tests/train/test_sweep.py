"""Sweeps: every run an ordinary run, a table that says what the runs' own files say, budgets, resumption, and mistakes in one sentence."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import group
from runtime.condition import CONDITIONINGS
from runtime.data import load
from runtime.errors import DataError
from train import checkpoint, sweep_report
from train import sweep as room
from train.batches import split
from train.recipes import RECIPES, load_recipe
from train.sweep import Sweep, sweep
from train.sweep_time import seconds_per_step

SHIPPED = Path(__file__).parents[2] / "train" / "sweeps"
SETTINGS = """recipe = "default"
[settings]
epochs = 2
batch_size = 32
warmup_steps = 2
precision = "fp32"
validation_fraction = 0.2
network_arguments = {channels = 16, components = 8, hidden = 16, blocks = 1, tokens = 8, embedding = 16}
"""
GRID = SETTINGS + '[grid]\nlr = [1e-3, 1e-2]\nloss = ["mse", "l1"]\n'
FILES = {"sweep.json", "sweep.csv", "sweep.png", "loss_curves.png"}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["train", *map(str, arguments)], prog_name="cli.py")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "four.toml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def four(small_data: Path, written: Path) -> tuple[Path, Result]:
    """A sweep of 2 x 2 from the command line, and what it said."""
    out = written.parent / "four"
    result = run("--data", small_data, "--sweep", written, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out, result


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_sweep_of_two_by_two(four: tuple[Path, Result]) -> None:
    """The results are those of the runs' own files, and what was trained with the squared error has it as its loss."""
    out, result = four
    results = json.loads((out / "sweep.json").read_text())
    folders = [f"lr={lr}_loss={loss}" for lr in (0.001, 0.01) for loss in ("mse", "l1")]
    assert list(results["runs"]) == folders
    assert {path.name for path in out.iterdir()} == {*folders, *FILES}
    assert (results["axes"], results["budget"]) == ({"lr": [0.001, 0.01], "loss": ["mse", "l1"]}, "epochs")
    for folder, row in results["runs"].items():
        last = rows_of(out / folder)[-1]
        assert row["status"] == "done"
        assert (row["validation_loss"], row["loss"], row["steps"]) == (last["validation_loss"], last["loss"], last["step"])
        recipe = json.loads((out / folder / "recipe.json").read_text())
        assert {key: recipe[key] for key in ("lr", "loss")} == row["settings"]
        if row["settings"]["loss"] == "mse":
            assert row["yardstick"] == pytest.approx(row["validation_loss"], rel=1e-6)
        else:
            assert abs(row["yardstick"] - row["validation_loss"]) > 0.05
    with (out / "sweep.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [line["run"] for line in table] == folders
    assert [float(line["yardstick"]) for line in table] == [row["yardstick"] for row in results["runs"].values()]
    for name in ("sweep.png", "loss_curves.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
        assert (out / name).stat().st_size > 10_000
    for row in results["runs"].values():
        for name in ("validation_loss", "loss", "yardstick"):
            assert f"{row[name]:.4f}" in result.stdout
    assert "run 4 of 4: lr=0.01_loss=l1" in result.stderr
    assert "Losses of different loss functions cannot be compared; the validation MSE" in result.stdout


def test_table_2_is_the_minimum_by_loss(four: tuple[Path, Result]) -> None:
    out, result = four
    runs = json.loads((out / "sweep.json").read_text())["runs"].values()
    lines = result.stdout.split("Table 2: minimum of the validation loss by loss\n")[1].splitlines()
    assert lines[1].split()[:3] == ["loss", "best", "lr"]
    for line, loss in zip(lines[2:4], ("mse", "l1"), strict=True):
        best = min((row for row in runs if row["settings"]["loss"] == loss), key=lambda row: row["validation_loss"])
        assert line.split()[:3] == [loss, f"{best['settings']['lr']:g}", f"{best['validation_loss']:.4f}"]


def test_a_finished_sweep_is_not_trained_again(four: tuple[Path, Result], small_data: Path, written: Path) -> None:
    out, result = four
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*") if path.is_file()}
    refused = run("--data", small_data, "--sweep", written, "--out", out)
    assert refused.exit_code == 2
    assert "already holds a sweep; add --resume" in refused.stderr
    results = json.loads((out / "sweep.json").read_text())
    for row in results["runs"].values():
        del row["recipe"]["seed"]  # as an older version wrote it, before there was such a field
    (out / "sweep.json").write_text(json.dumps(results))
    again = run("--data", small_data, "--sweep", written, "--out", out, "--resume")
    assert again.stdout == result.stdout
    assert again.stderr.count("done before") == 4
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*") if path.is_file()} == before


def test_a_killed_sweep_goes_on(
    four: tuple[Path, Result], small_data: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off in the middle of its second run, it ends with the bytes of one that was not, and trains the first only once."""
    whole, out, calls = four[0], tmp_path / "out", []
    train = room.train

    def dies(data: Any, folder: Path, *rest: Any, **settings: Any) -> Path:
        calls.append(folder.name)
        if len(calls) == 2:
            train(data, folder, *rest, **settings, stop_after=3)
            raise KeyboardInterrupt
        return train(data, folder, *rest, **settings)

    monkeypatch.setattr(room, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        sweep(written, small_data, out, progress=False)
    assert [row["status"] for row in json.loads((out / "sweep.json").read_text())["runs"].values()] == ["done", "started"]
    sweep(written, small_data, out, resume=True, progress=False)
    names = [f"lr={lr}_loss={loss}" for lr in (0.001, 0.01) for loss in ("mse", "l1")]
    assert calls == [*names[:2], *names[1:]]
    for name in names:
        for part in ("model", "ema", "optimizer"):
            mine, theirs = (checkpoint.latest(folder / name) / f"{part}.safetensors" for folder in (out, whole))
            assert mine.read_bytes() == theirs.read_bytes(), (name, part)


def test_a_run_that_diverges_is_marked_and_the_others_go_on(small_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "wild.toml"
    path.write_text(SETTINGS + "[grid]\nlr = [1e30, 1e-3]\n")
    results = sweep(path, small_data, tmp_path / "out", progress=False)
    wild, tame = results["runs"].values()
    assert (wild["status"], tame["status"]) == ("failed", "done")
    text = sweep_report.tables(results)
    assert "1e+30           failed" in text
    assert "failed: lr=1e+30: the loss is" in text
    assert "lower --lr" in text


def test_budgets(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and seconds become whole epochs; precisions may differ from run to run within one process."""
    data = load(small_data)
    count = len(split(data, 0.2)[0])
    path = tmp_path / "steps.toml"
    text = SETTINGS.replace("epochs = 2\n", "").replace("batch_size = 32\n", "")
    path.write_text(text + '[grid]\nbatch_size = [16, 64]\nprecision = ["bf16", "fp32"]\n[options]\nbudget = "steps"\nsteps = 8\n')
    plan = Sweep.read(path)
    taken = {recipe.batch_size: room._epochs(plan, recipe, data, split(data, 0.2)[0]) for _, recipe in plan.runs.values()}
    assert taken == {16: round(8 / -(-count // 16)), 64: round(8 / -(-count // 64))}
    assert taken[64] > taken[16]
    path.write_text(path.read_text().replace("[16, 64]", "[64]"))
    results = sweep(path, small_data, tmp_path / "out", progress=False)
    assert [row["steps"] for row in results["runs"].values()] == [taken[64] * -(-count // 64)] * 2
    bf16, fp32 = (checkpoint.load_weights(checkpoint.latest(tmp_path / "out" / name)) for name in results["runs"])
    assert any(not (bf16[key] == fp32[key]).all() for key in fp32)
    assert "Budget: 8 steps a run, to the nearest whole epoch." in sweep_report.tables(results)

    path.write_text(path.read_text().replace('budget = "steps"\nsteps = 8', 'budget = "seconds"\nseconds = 60'))
    timed = Sweep.read(path)
    monkeypatch.setattr(room, "seconds_per_step", lambda recipe, training: 0.5)
    assert {room._epochs(timed, recipe, data, split(data, 0.2)[0]) for _, recipe in timed.runs.values()} == {round(120 / -(-count // 64))}


def test_a_step_is_timed_for_every_objective(small_data: Path) -> None:
    narrow = {"channels": 16, "components": 8, "hidden": 16, "blocks": 1, "tokens": 8, "embedding": 16}
    for name in ("default", "surrogate"):
        recipe = load_recipe(name, {"network_arguments": narrow, "batch_size": 8, "optimizer": "muon"})
        assert seconds_per_step(recipe, load(small_data)) > 0


def results_of(axes: dict[str, list[Any]], value: Callable[..., float]) -> dict[str, Any]:
    runs = {}
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        number = value(**settings)
        runs[room.slug(settings)] = {
            "settings": settings,
            "status": "done",
            "validation_loss": number,
            "loss": 2 * number,
            "yardstick": 3 * number,
            "steps": 10,
            "seconds": 1.5,
            "epochs": 2,
        }
    facts = {"recipe": "lab2023", "data": {"name": "data.npz", "samples": 9}, "budget": "epochs", "amount": 0}
    return {**facts, "axes": axes, "yardstick": "validation MSE of the prediction", "runs": runs}


def test_what_is_the_yardstick_itself_is_shown_once() -> None:
    results = results_of({"optimizer": ["adam", "muon"]}, lambda optimizer: {"adam": 0.5, "muon": 0.25}[optimizer])
    twice = sweep_report.tables(results)
    assert "0.7500" in twice
    for row in results["runs"].values():
        row["yardstick"] = row["validation_loss"]
    once = sweep_report.tables(results)
    assert once.split("\n\n")[1].splitlines()[2].split() == ["muon", "0.2500", "0.5000", "2", "10", "1.5"]
    assert once.split("\n\n")[3].splitlines()[1].split() == ["muon", "0.2500", "0.5000", "2", "10", "1.5"]
    assert "The validation loss is the validation MSE of the prediction." in once


def test_wide_tables_are_folded() -> None:
    """The grid of the seed's table: learning rates down, losses and batch sizes across, the least of a column marked."""
    axes: dict[str, list[Any]] = {"loss": ["mse", "l1", "huber"], "batch_size": [20, 40, 64, 128], "lr": [1e-3, 1e-4]}
    text = sweep_report.tables(results_of(axes, lambda lr, loss, batch_size: 1e3 * lr + batch_size / 1e3 + len(loss) / 1e4))
    assert max(map(len, text.splitlines())) <= 100
    assert "Table 1: loss by lr, loss and batch_size" in text
    block = text.split("validation loss, * least of its column\n")[1].split("\n\n")[0].splitlines()
    assert block[0].split() == ["loss", *["mse"] * 4, *["l1"] * 4, "huber"]
    assert block[1].split() == ["batch_size", "20", "40", "64", "128", "20", "40", "64", "128", "20"]
    assert block[3].split()[:3] == ["0.001", "1.0203", "1.0403"]
    assert block[4].split()[:3] == ["0.0001", "0.1203*", "0.1403*"]
    assert block[5].split() == ["loss", "huber", "huber", "huber"]
    best = text.split("Table 2: minimum of the validation loss by loss and batch_size\n\n")[1].splitlines()
    assert len(best[: best.index("")]) == 1 + 12
    assert best[1].split()[:4] == ["mse", "20", "0.0001", "0.1203"]


def test_shipped_sweeps_are_in_order() -> None:
    plans = {path.stem: Sweep.read(path) for path in SHIPPED.glob("*.toml")}
    assert plans.keys() == {"lab2023", "optimizers", "conditioning", "samples", "samples_denoiser", "cifar5", "digits_simple_improved"}
    for name, epochs in (("cifar5", 500), ("digits_simple_improved", 60)):
        recipes = [recipe for _, recipe in plans[name].runs.values()]
        assert [recipe.name for recipe in recipes] == ["cifar5-simple", "cifar5", "cifar5-diffusers"]
        assert {recipe.epochs for recipe in recipes} == {epochs}
        assert list(plans[name].runs)[1] == "recipe=cifar5"
    for name in ("samples", "samples_denoiser"):
        assert [recipe.training_samples for _, recipe in plans[name].runs.values()] == [5000, 10000, 0]
    seed = RECIPES["lab2023"]
    assert (seed.lr, seed.loss, seed.batch_size) in [(r.lr, r.loss, r.batch_size) for _, r in plans["lab2023"].runs.values()]
    kinds = [recipe.network_arguments["conditioning"] for _, recipe in plans["conditioning"].runs.values()]
    assert tuple(kinds) == CONDITIONINGS
    assert list(plans["conditioning"].runs) == [f"conditioning={kind}" for kind in CONDITIONINGS]
    assert {recipe.optimizer for _, recipe in plans["optimizers"].runs.values()} == {"adam", "adamw", "muon"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipe = ", "cannot be read"),
        ("[grid]\nlr = [1e-3]", "lacks a recipe"),
        ('recipe = "default"', r"lacks \[grid\]"),
        ('recipe = "best"\n[grid]\nlr = [1e-3]', "no recipe 'best'"),
        ('recipe = "mine.toml"\n[grid]\nlr = [1e-3]', r"mine\.toml cannot be read"),
        ('recipe = "default"\ngrid = 3', r"'grid' is 3; expected a table \[grid\]"),
        ('recipe = "default"\n[grids]\nlr = [1e-3]', "unknown field 'grids'"),
        ('recipe = "default"\n[grid]\nlr = 1e-3', r"'lr' is 0\.001; expected a list"),
        ('recipe = "default"\n[grid]\nlr = []', "expected a list"),
        ('recipe = "default"\n[grid]\nlr = ["fast"]', r"\[grid\]: 'lr' is 'fast'; expected a number"),
        ('recipe = "default"\n[grid]\nlr = [1e-3, 1e-3]', r"two runs .* \(lr=0\.001\)"),
        ('recipe = "default"\n[grid]\nloss = ["mse", "hinge"]', r"\[grid\]: 'loss' is 'hinge'; choose mse"),
        ('recipe = "default"\n[grid]\nrate = [1e-3]', r"\[grid\] has the unknown recipe field 'rate'"),
        ('recipe = "default"\n[grid]\nlr.peak = [1e-3]', r"'lr' is \{'peak': 0\.001\}; expected"),
        ('recipe = "default"\n[settings]\nrate = 1\n[grid]\nlr = [1e-3]', r"\[settings\] has the unknown recipe field 'rate'"),
        ('recipe = "default"\n[grid]\nrecipe = ["digits"]', "no 'recipe' above it"),
        ('[grid]\nrecipe = ["digits", "default"]', "are not for the same data"),
        ('[grid]\nrecipe = ["digits", "none"]', "no recipe 'none'"),
        ('recipe = "default"\n[grid]\nlr = [1e-3]\n[options]\nquick = true', "has no quick settings"),
        ('recipe = "digits"\n[grid]\nlr = [1e-3]\n[options]\nquick = 1', "'quick' is 1; expected true or false"),
        ('recipe = "default"\n[grid]\nlr = [1e-3]\n[options]\nbudget = "hours"', "'budget' is 'hours'; choose epochs, steps, seconds"),
        ('recipe = "default"\n[grid]\nlr = [1e-3]\n[options]\nbudget = "steps"', "'steps' is None; expected what each run may take"),
        ('recipe = "default"\n[grid]\nlr = [1e-3]\n[options]\nsteps = 5', "has 'steps' and the budget is epochs"),
        ('recipe = "default"\n[grid]\nepochs = [1, 2]\n[options]\nbudget = "steps"\nsteps = 5', "varies 'epochs' and the budget is steps"),
        ('recipe = "default"\n[grid]\nchannels = [["Tm_y"]]', "varies 'channels', which changes the data"),
        ('recipe = "default"\n[grid]\nnetwork_arguments.size = [7]', "has size 7 and the data have 5"),
        ('recipe = "default"\n[grid]\nnetwork_arguments.depth = [1]', "the network spectral has no argument 'depth'"),
        ('recipe = "lab2023"\n[grid]\nnetwork_arguments.conditioning = ["class", "none"]', "no conditioning 'none'; choose"),
    ],
)
def test_a_faulty_sweep_is_one_sentence_and_nothing_is_trained(text: str, words: str, small_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine" / "sweep.toml"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        sweep(path, small_data, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_flags_that_the_sweep_decides_are_refused(
    small_data: Path, small_run: Path, written: Path, four: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("--data", small_data, "--sweep", written, "--out", tmp_path / "out")
    timed = tmp_path / "timed.toml"
    timed.write_text(SETTINGS + '[grid]\nlr = [1e-3]\n[options]\nbudget = "seconds"\nseconds = 5\n')
    other = tmp_path / "other.toml"
    other.write_text(GRID.replace("warmup_steps = 2", "warmup_steps = 3"))
    for arguments, words in (
        ((*start, "--recipe", "lab2023"), "names its recipe; leave --recipe out"),
        ((*start, "--lr", "1e-3"), r"decides 'lr' itself (its [grid] varies it); leave --lr out"),
        (
            ("--data", small_data, "--sweep", timed, "--out", tmp_path / "out", "--epochs", "3"),
            "its budget is seconds); leave --epochs out",
        ),
        (("--data", small_data, "--sweep", tmp_path / "none.toml", "--out", tmp_path / "out"), "none.toml cannot be read"),
        (("--data", small_data, "--sweep", written, "--out", small_run), "holds a single run"),
        (("--data", small_data, "--sweep", other, "--out", four[0], "--resume"), "was swept with another 'warmup_steps'"),
        (("--data", small_data, "--sweep", written, "--out", four[0], "--resume", "--epochs", "3"), "was swept with another 'epochs'"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert "one process" in run(*start).stderr
    assert not (tmp_path / "out").exists()
