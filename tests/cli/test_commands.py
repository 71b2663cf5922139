"""The commands of the contract: all listed, each with an example to copy, and what verify, evaluate, doctor and simulate give."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from runtime.data import load as load_data

COMMANDS = ["simulate", "train", "export", "infer", "verify", "evaluate", "doctor", "bench"]
MORE = ["tolerance", "gds", "plot", "serve", "unpack"]


def test_every_command_of_the_contract_is_listed(run: Callable[..., Result], ok: Callable[[Result], Result]) -> None:
    listed = {line.split()[0] for line in ok(run("--help")).stdout.split("Commands:")[1].splitlines() if line.strip()}
    assert listed == {*COMMANDS, *MORE}


@pytest.mark.parametrize("command", [*COMMANDS, "tolerance", "gds", "plot light", "plot reverse", "serve", "unpack"])
def test_help_has_an_example_to_copy(command: str, run: Callable[..., Result], ok: Callable[[Result], Result]) -> None:
    text = ok(run(*command.split(), "--help")).stdout
    examples = re.findall(rf"^ +(?:metascatter|python cli\.py) {command}\b(.*)$", text, re.M)
    assert examples, f"{command} --help has no example"
    known = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", text.split("Options:")[1]))
    for example in examples:
        assert set(re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", example)) <= known, f"{command}: the example uses an unknown flag"


def test_version(run: Callable[..., Result], ok: Callable[[Result], Result]) -> None:
    from runtime.version import __version__

    assert ok(run("--version")).stdout == f"metascatter, version {__version__}\n"


@pytest.mark.usefixtures("no_picture")
def test_verify_gives_the_scores_again(
    small_bundle: Path,
    target: Path,
    tmp_path: Path,
    run: Callable[..., Result],
    ok: Callable[[Result], Result],
    sentence: Callable[..., str],
    quick: list[str],
) -> None:
    made = json.loads(ok(run("infer", target, "--out", tmp_path, "--bundle", small_bundle, *quick, "--json")).stdout)
    result = ok(run("verify", tmp_path / "designs.npz", "--target", target, "--json"))
    document = json.loads(result.stdout)
    assert [d["score"] for d in document["designs"]] == pytest.approx([d["score"] for d in made["designs"]], abs=1e-12)
    assert all(d["verified"] for d in document["designs"])
    table = ok(run("verify", tmp_path / "designs.npz", "--target", target)).stdout
    assert f"{document['designs'][0]['score']:.3f}" in table
    assert "does not exist" in sentence(run("verify", tmp_path / "x.npz", "--target", target), 2)
    assert "lacks the key" in sentence(run("verify", target, "--target", target), 2)
    assert "does not exist" in sentence(run("verify", tmp_path / "designs.npz", "--target", tmp_path / "x.json"), 2)


def test_evaluate_has_the_contracts_fields(
    small_bundle: Path,
    small_data: Path,
    tmp_path: Path,
    run: Callable[..., Result],
    ok: Callable[[Result], Result],
    sentence: Callable[..., str],
) -> None:
    common = ["evaluate", "--data", small_data, "--bundle", small_bundle, "--limit", 2, "-n", 8, "--steps", 3, "--device", "cpu"]
    result = ok(run(*common, "--train-data", small_data, "--json"))
    document = json.loads(result.stdout)
    assert document["targets"] == 2
    assert {"best_of_1", "best_of_8", "best_of_64"} <= set(document["oracle"])
    assert {"random_best_of_64", "nearest_training"} <= set(document["baselines"])
    summaries = [document["ranked"], document["oracle"]["best_of_1"], document["oracle"]["best_of_8"], *document["baselines"].values()]
    for summary in summaries:
        assert {"median", "q25", "q75", "under", "solves"} <= set(summary)
        assert set(summary["under"]) == {"0.02", "0.05", "0.10"}
        assert 0 <= summary["q25"] <= summary["median"] <= summary["q75"] <= 1
    assert document["oracle"]["best_of_8"]["median"] <= document["oracle"]["best_of_1"]["median"]
    assert document["oracle"]["best_of_64"] is None, "there were 8 candidates"
    assert document["baselines"]["nearest_training"]["median"] < 1e-4, "the targets are in their own training data"
    assert {"refined", "by_height_nm", "lab_scores"} <= set(document)
    assert "Medians by height" in ok(run(*common)).stdout
    assert "does not exist" in sentence(run("evaluate", "--data", tmp_path / "x.npz", "--bundle", small_bundle), 2)


def test_doctor(small_bundle: Path, tmp_path: Path, run: Callable[..., Result], ok: Callable[[Result], Result]) -> None:
    document = json.loads(ok(run("doctor", "--bundle", small_bundle, "--json")).stdout)
    assert document["ok"] is True
    assert "self-test passed" in ok(run("doctor", "--bundle", small_bundle)).stdout
    result = run("doctor", "--bundle", tmp_path / "nowhere", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["ok"] is False
    assert re.fullmatch(r"Error: there is no bundle at .*nowhere.*\n", result.stderr)


def test_simulate_makes_and_solves_data(
    tmp_path: Path, spawn: Callable[..., subprocess.CompletedProcess[str]], names: Callable[[Path], list[str]]
) -> None:
    settings = ["--harmonics", 3, "--period-nm", 2000, "--workers", 1]
    done = spawn("simulate", "--count", 3, "--seed", 1, "--height-nm", 100, 200, "--out", tmp_path / "a.npz", *settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "a.npz")
    assert names(tmp_path) == ["a.npz"]
    data = load_data(tmp_path / "a.npz")
    assert (len(data), data.geometry.harmonics, data.geometry.period_nm) == (3, 3, (2000.0, 2000.0))
    assert ((data.h >= 100) & (data.h <= 200)).all()
    done = spawn("simulate", "--patterns", tmp_path / "a.npz", "--out", tmp_path / "b.npz", *settings)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(load_data(tmp_path / "b.npz").Tm, data.Tm, atol=1e-6)


def test_simulate_refuses_in_words(
    tmp_path: Path, run: Callable[..., Result], names: Callable[[Path], list[str]], sentence: Callable[..., str]
) -> None:
    assert "give either --count or --patterns" in run("simulate", "--out", tmp_path / "x.npz").stderr
    said = sentence(run("simulate", "--count", 2, "--height-nm", 300, 100, "--out", tmp_path / "x.npz"), 2)
    assert "height" in said
    assert "does not exist" in sentence(run("simulate", "--patterns", tmp_path / "p.npz", "--out", tmp_path / "x.npz"), 2)
    assert names(tmp_path) == []
