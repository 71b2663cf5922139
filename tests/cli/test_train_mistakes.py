"""What ``cli.py train`` refuses, in one sentence, before it writes anything; and which recipe it means."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from train import checkpoint
from train.recipes import Recipe


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--init", "{tmp}/nowhere"], 2, r"nowhere/.*\.json does not exist; name the folder that 'cli\.py train --out' wrote"),
        (["--mix", "{data}"], 2, "--mix is for fine-tuning; name the run to start from with --init"),
        (["--init", "{run}", "--mix", "{tmp}/nowhere.npz"], 2, r"nowhere\.npz does not exist"),
        (
            ["--init", "{run}", "--recipe", "{tmp}/wide.toml"],
            2,
            r"'network_arguments\.blocks' 2 and this recipe has 8; leave --recipe out",
        ),
        (["--init", "{run}", "--mix", "{data}", "--batch-size", "1"], 2, "a batch of 1 cannot hold two kinds of samples"),
        (["--recipe", "{tmp}/half.toml"], 1, "the precision fp16 needs an NVIDIA GPU"),
        (["--recipe", "{tmp}/flow.toml"], 2, "prediction_type is 'flow'"),
        (["--recipe", "{tmp}/steps.toml"], 2, "num_steps is 5000"),
        (["--recipe", "{tmp}/net.toml"], 2, "there is no network 'transformer'; choose "),
        (["--recipe", "{tmp}/argument.toml"], 2, r"spectral has no argument 'colour'"),
        (["--recipe", "{tmp}/deep.toml"], 2, r"network 'spectral' cannot be made with the recipe's network_arguments \("),
        (
            ["--recipe", "{tmp}/other.toml"],
            2,
            r"'surrogate' takes pattern, height_nm, and the objective 'denoising'",
        ),
        (["--validation-fraction", "0.0001"], 2, r"160 samples are too few to set 0% aside"),
    ],
)
def test_one_sentence_and_nothing_written(
    options: list[str],
    status: int,
    words: str,
    small_data: Path,
    small_run: Path,
    tmp_path: Path,
    run: Callable[..., Result],
    sentence: Callable[..., str],
) -> None:
    if "half" in " ".join(options) and torch.cuda.is_available():
        pytest.skip("there is a GPU, which fp16 needs")
    recipes = {
        "wide": "",
        "half": 'precision = "fp16"\n',
        "flow": '[scheduler]\nprediction_type = "flow"\n',
        "steps": "sampling_steps = 5000\n",
        "net": 'network = "transformer"\n',
        "deep": '[network_arguments]\nchannels = "many"\n',
        "other": 'network = "surrogate"\n',
        "argument": "[network_arguments]\ncolour = 3\n",
    }
    for name, text in recipes.items():
        (tmp_path / f"{name}.toml").write_text(f'base = "default"\n{text}')
    named = [option.format(tmp=tmp_path, data=small_data, run=small_run) for option in options]
    said = sentence(run("train", "--data", small_data, "--out", tmp_path / "out", *named), status)
    assert re.search(words, said), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--keep", "--pictures-every", "--mix-share", "--validation-fraction"])
def test_numbers_out_of_range(option: str, small_data: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    result = run("train", "--data", small_data, "--out", tmp_path / "out", option, "-1")
    assert result.exit_code == 2
    assert option in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_damaged_is_named(
    small_data: Path, small_run: Path, tmp_path: Path, run: Callable[..., Result], sentence: Callable[..., str]
) -> None:
    for name, damage, words in (
        ("recipe.json", "{", r"recipe\.json cannot be read"),
        ("recipe.json", "[]", r"recipe\.json holds no recipe"),
        ("data.json", "{}", "is no whole run folder"),
        ("condition.json", "{}", "is no whole run folder"),
    ):
        broken = Path(shutil.copytree(small_run, tmp_path / "broken"))
        (broken / name).write_text(damage)
        for options in (["--out", broken, "--resume"], ["--out", tmp_path / "out", "--init", broken]):
            said = sentence(run("train", "--data", small_data, *options), 2)
            assert re.search(words, said), said
        shutil.rmtree(broken)
    assert not (tmp_path / "out").exists()


def test_a_surrogate_is_exported_with_what_it_ranks(
    small_data: Path, small_surrogate: Recipe, tmp_path: Path, run: Callable[..., Result], ok: Callable[[Result], Result]
) -> None:
    """By itself it is no bundle, and the last line does not send anyone there."""
    (tmp_path / "tiny.json").write_text(json.dumps(dataclasses.replace(small_surrogate, epochs=1).to_dict()))
    judge = tmp_path / "judge"
    result = ok(run("train", "--data", small_data, "--recipe", tmp_path / "tiny.json", "--out", judge))
    assert f"next: python cli.py export RUN --surrogate {judge} --out bundles/RUN" in result.stdout


def test_resuming_and_fine_tuning_take_the_recipe_over(
    small_data: Path, small_run: Path, tmp_path: Path, run: Callable[..., Result], ok: Callable[[Result], Result]
) -> None:
    """Neither names a recipe: the small network is the first run's. What is said ends with how to go on."""
    tuned = tmp_path / "tuned"
    result = ok(
        run("train", "--data", small_data, "--init", small_run, "--mix", small_data, "--mix-share", 0.25, "--epochs", 1, "--out", tuned)
    )
    assert f"next: python cli.py export {tuned} --surrogate RUN --out bundles/tuned" in result.stdout
    recipe = json.loads((tuned / "recipe.json").read_text())
    assert (recipe["network_arguments"]["channels"], recipe["mix_share"], recipe["epochs"]) == (16, 0.25, 1)
    before = checkpoint.step_of(checkpoint.latest(tuned))
    ok(run("train", "--data", small_data, "--mix", small_data, "--epochs", 2, "--resume", "--keep", 1, "--out", tuned))
    assert [checkpoint.step_of(path) for path in checkpoint.found(tuned)] == [2 * before]
    assert sorted(path.name for path in (tuned / "samples").iterdir()) == ["epoch-001.png", "epoch-002.png"]
