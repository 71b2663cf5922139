"""The recipes flowers and craters: their data, what is shown of them, and a run of each that is resumed, exported and sampled."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import cli
from runtime import pixels
from runtime.errors import DataError
from runtime.sample_sources import STRIDE, craters, tiles
from runtime.samples import SampleSet
from runtime.samples import load as load_samples
from train import checkpoint, tasks
from train.loop import train
from train.recipes import RECIPES, load_recipe, override, quick
from train.sample_batches import SampleBatches

TINY: dict[str, Any] = {"channels": [8, 16], "attention": [False, True], "layers": 1, "groups": 4}
CRATERS = override(
    RECIPES["craters"],
    {"canvas": 8, "batch_size": 4, "epochs": 2, "sampling_scheduler": "ddim", "sampling_steps": 4, "network_arguments": TINY},
    "test",
)


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.group, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve coloured pictures of 30 x 24 pixels, red above and blue beneath."""
    image = pytest.importorskip("PIL.Image")
    path = tmp_path_factory.mktemp("pictures")
    for k in range(12):
        picture = np.zeros((24, 30, 3), np.uint8)
        picture[:12, :, 0], picture[12:, :, 2] = 150 + 5 * k, 200
        image.fromarray(picture).save(path / f"{k:02d}.png")
    return path


def test_photographs_are_cut_into_tiles() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")
    found = load_samples("photographs", 16)
    assert (found.shape, found.x.dtype, found.classes) == ((3, 16, 16), np.uint8, ())
    assert len(found) > 8000
    assert load_samples("photographs").shape == (3, 32, 32)
    pictures = np.arange(2 * 20 * 28 * 3).reshape(2, 20, 28, 3).astype(np.uint8)
    cut = tiles(pictures, 12)
    assert cut.shape == (2 * 2 * 3, 3, 12, 12)
    assert np.array_equal(cut[1], pictures[0, :12, STRIDE : STRIDE + 12].transpose(2, 0, 1))
    assert np.array_equal(cut[-1], pictures[1, STRIDE : STRIDE + 12, 2 * STRIDE : 2 * STRIDE + 12].transpose(2, 0, 1))


def test_drawn_craters_are_bowls_lit_from_the_left() -> None:
    found = craters(32, 12)
    assert (found.shape, found.dtype) == ((12, 1, 32, 32), np.uint8)
    assert np.array_equal(found[:3], craters(32, 3)), "a picture does not depend on how many there are"
    larger = craters(64, 3).reshape(3, 1, 32, 2, 32, 2).mean(axis=(3, 5))
    assert np.corrcoef(larger.ravel(), found[:3].ravel())[0, 1] > 0.95, "nor on their size"
    middle = found[:, 0, 12:20].mean(axis=(0, 1))
    # The bowl's left wall lies in its own shadow and its right wall faces the sun.
    assert middle[9:14].mean() + 40 < middle[18:23].mean()


def test_colours_and_sizes_are_what_a_recipe_asks_for(folder: Path, tmp_path: Path) -> None:
    assert load_samples(folder).shape == (3, 24, 24)
    grey = load_samples(folder, 8, 1)
    assert grey.shape == (1, 8, 8)
    assert grey.x[0, 0, 0, 0] == round(0.299 * 150), "luma of ITU-R 601"
    np.savez(tmp_path / "a.npz", x=load_samples(folder).x)
    assert abs(load_samples(tmp_path / "a.npz", channels=1).x[0, 0, 0, 0] - grey.x[0, 0, 0, 0]) <= 1
    pytest.importorskip("sklearn")
    digits = load_samples("digits", channels=3)
    assert digits.shape == (3, 8, 8)
    assert (digits.x[:, 0] == digits.x[:, 2]).all()
    with pytest.raises(DataError, match="for images of 8 bits"):
        load_samples("swiss-roll", channels=1)


def test_scaling_averages_and_cuts_within_its_box() -> None:
    x = np.zeros((2, 1, 8, 8), np.uint8)
    x[:, :, :, 4:] = 200
    assert np.array_equal(pixels.scaled(x, 8), x)
    half = pixels.scaled(x, 4, [(4.0, 0.0, 8.0, 4.0), (0.0, 0.0, 8.0, 8.0)])
    assert (half[0] == 200).all()
    assert abs(float(half[1].mean()) - 100) < 2
    wide = np.concatenate([x, x], axis=3)[:, :, :, 2:14]
    assert pixels.scaled(wide, 8).shape == (2, 1, 8, 8)


def test_what_is_shown_of_craters_is_cut_turned_over_and_a_function_of_the_step() -> None:
    recipe = dataclasses.replace(CRATERS, canvas=16, batch_size=64)
    # Brightness rises to the right, and downwards by a tenth of that.
    ramp = (5 * np.arange(24)[None] + 0.5 * np.arange(24)[:, None]).astype(np.uint8)
    data = SampleSet(np.repeat(ramp[None, None], 64, axis=0), np.full(64, -1))
    part = SampleBatches(data, data.labels(False), recipe)
    first, again, other = part.training(3), part.training(3), part.training(4)
    assert first["sample"].shape == (64, 1, 16, 16)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["sample"], other["sample"])
    right = (np.diff(first["sample"].mean(axis=2)[:, 0]).mean(axis=1) > 0).mean()
    down = (np.diff(first["sample"].mean(axis=3)[:, 0]).mean(axis=1) > 0).mean()
    assert 0.3 < right < 0.7
    assert 0.3 < down < 0.7
    span = np.ptp(first["sample"].mean(axis=2)[:, 0], axis=1)
    assert span.min() == pytest.approx(recipe.crop * span.max(), rel=0.1), "squares of 0.7 of the side to all of it"
    held = part.validation()["sample"]
    assert np.ptp(held.mean(axis=2)[:, 0], axis=1).min() == pytest.approx(span.max(), rel=0.05), "nothing is cut out of what validates"
    plain = SampleBatches(data, data.labels(False), dataclasses.replace(recipe, flips=False)).training(3)["sample"]
    assert (np.diff(plain.mean(axis=3)[:, 0]).mean(axis=1) > 0).all()


def test_a_folder_trains_resumes_to_the_same_bytes_and_samples(folder: Path, tmp_path: Path) -> None:
    held = tasks.load(folder, CRATERS)
    assert isinstance(held, SampleSet)
    assert held.shape == (1, 12, 12), "larger than the canvas, for cut-outs are scaled down"
    whole = train(folder, tmp_path / "whole", CRATERS, progress=False, pictures_every=1)
    train(folder, tmp_path / "run", CRATERS, progress=False, pictures_every=0, stop_after=3)
    last = train(folder, tmp_path / "run", CRATERS, progress=False, pictures_every=0, resume=True)
    for name in ("model", "ema", "optimizer"):
        assert (last / f"{name}.safetensors").read_bytes() == (whole / f"{name}.safetensors").read_bytes()
    assert (tmp_path / "whole" / "samples" / "epoch-002.png").exists()
    made = run("export", tmp_path / "whole", "--out", tmp_path / "bundle")
    assert made.exit_code == 0, made.output
    options = ("--bundle", tmp_path / "bundle", "--backend", "onnxruntime")
    done = run("infer", *options, "-n", 3, "--out", tmp_path / "samples")
    assert done.exit_code == 0, done.output
    assert load_samples(tmp_path / "samples" / "samples.npz").shape == (1, 8, 8)
    fill(folder, tmp_path, options)
    for words in (("reverse", *options), ("forward", folder, *options[:2]), ("schedule", *options[:2])):
        assert run("plot", *words, "--out", tmp_path / f"{words[0]}.png").exit_code == 0
        assert (tmp_path / f"{words[0]}.png").stat().st_size > 3000


def fill(folder: Path, tmp_path: Path, options: tuple[Any, ...]) -> None:
    """``infer --input --mask`` by a picture and by an array, and what it says where it cannot."""
    image = pytest.importorskip("PIL.Image")
    hidden = np.zeros((24, 30), np.uint8)
    hidden[:, :15] = 255
    image.fromarray(hidden).save(tmp_path / "mask.png")
    np.savez(tmp_path / "mask.npz", mask=np.arange(8)[None] < np.full((8, 1), 4))
    np.savez(tmp_path / "two.npz", x=load_samples(folder, 8, 1).x[:2])
    given = load_samples(folder, 8, 1).x
    for source, mask, count in ((folder / "00.png", "mask.png", 1), (tmp_path / "two.npz", "mask.npz", 2)):
        words = ("--input", source, "--mask", tmp_path / mask, "--resample", 2, "-n", 3, "--out", tmp_path / "filled")
        done = run("infer", *options, *words)
        assert done.exit_code == 0, done.output
        found = load_samples(tmp_path / "filled" / "samples.npz").x.reshape(count, 3, 1, 8, 8)
        assert (found[..., 4:] == given[:count, None, :, :, 4:]).all(), "what is known comes back exactly"
        assert (found[:, 0, ..., :4] != found[:, 1, ..., :4]).any(), "each filling is another"
    assert json.loads((tmp_path / "filled" / "samples.json").read_text())["settings"]["resample"] == 2
    np.savez(tmp_path / "none.npz", mask=np.zeros((8, 8)))
    np.savez(tmp_path / "odd.npz", mask=np.zeros((3, 3)))
    mistakes: tuple[tuple[tuple[Any, ...], str], ...] = (
        (("--input", folder / "00.png"), "Missing option '--noise-level'"),
        (("--mask", tmp_path / "mask.png"), "--mask says where images of --input are to be filled"),
        (("--input", folder / "00.png", "--mask", tmp_path / "mask.png", "--noise-level", 0.5), "is for denoising"),
        (("--resample", 2), "--resample is for sampling with something held"),
        (("--input", folder / "00.png", "--mask", tmp_path / "none.npz"), "leaves nothing to fill"),
        (("--input", folder / "00.png", "--mask", tmp_path / "odd.npz"), "of 0 (stays) and 1 (filled)"),
        (("--input", folder / "00.png", "--mask", tmp_path / "two.npz"), "lacks the key 'mask'"),
        (("--input", folder / "none.png", "--mask", tmp_path / "mask.png"), "cannot be read as a picture"),
        (("--input", folder / "00.png", "--mask", tmp_path / "mask.txt"), "is no mask"),
    )
    for wrong, sentence in mistakes:
        said = run("infer", *options, *wrong, "--out", tmp_path / "nothing")
        assert (said.exit_code, sentence in said.output.replace("\n", " ")) == (2, True), said.output
        assert not (tmp_path / "nothing").exists()


def test_a_run_begun_from_another_keeps_its_units_and_checkpoints(tmp_path: Path) -> None:
    """Created, loaded, updated, several kept: for points as for metasurfaces."""
    small = override(RECIPES["swiss-roll"], {"epochs": 4, "batch_size": 64, "network_arguments": {"hidden": 16, "layers": 2}}, "test")
    draws = np.random.default_rng(0)
    for name, spread in (("old", 1.0), ("new", 4.0)):
        np.savez(tmp_path / f"{name}.npz", x=spread * draws.standard_normal((200, 2)).astype(np.float32))
    train(tmp_path / "old.npz", tmp_path / "old", small, progress=False, pictures_every=0, checkpoint_every=2, keep=3)
    assert len(list((tmp_path / "old" / "checkpoints").iterdir())) == 3
    words = ("--data", tmp_path / "new.npz", "--init", tmp_path / "old", "--out", tmp_path / "tuned", "--pictures-every", 0)
    refused = run("train", *words, "--quick")
    assert (refused.exit_code, "name the --recipe, or shorten the run by --epochs" in refused.output) == (2, True)
    assert not (tmp_path / "tuned").exists()
    done = run("train", *words, "--epochs", 1)
    assert done.exit_code == 0, done.output
    facts = [json.loads((tmp_path / name / "condition.json").read_text()) for name in ("old", "tuned")]
    assert facts[0] == facts[1], "the same network sees the same units"
    weights = [checkpoint.load_weights(checkpoint.latest(tmp_path / name)) for name in ("old", "tuned")]
    assert any((weights[0][key] != weights[1][key]).any() for key in weights[0])


@pytest.mark.parametrize("name", ["flowers", "craters"])
def test_recipes_are_the_issues(name: str) -> None:
    recipe = load_recipe(name)
    schedule = {key: recipe.scheduler[key] for key in ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")}
    assert list(schedule.values()) == [1000, "linear", 1e-4, 0.02, "epsilon"]
    assert (recipe.canvas, recipe.colours) == {"flowers": (32, "rgb"), "craters": (64, "grey")}[name]
    assert quick(recipe).scheduler == recipe.scheduler


@pytest.mark.parametrize(
    ("recipe", "fields", "words"),
    [
        ("craters", {"canvas": 0}, "state the side in pixels"),
        ("craters", {"crop": 1.5}, "must be from 0 to 1"),
        ("craters", {"colours": "sepia"}, "choose , grey, rgb"),
        ("default", {"flips": True}, "which is for the layout 'labels'"),
    ],
)
def test_fields_that_make_no_sense_are_refused(recipe: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        override(RECIPES[recipe], fields, "test")
