"""Images and points through the whole house: trained, resumed, exported, sampled without PyTorch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import cli
from runtime.errors import BundleError, DataError, TargetError
from runtime.generate import generate
from runtime.sampler import load
from runtime.samples import SampleSet
from runtime.samples import load as load_samples
from train import checkpoint
from train.loop import train
from train.recipes import RECIPES, Recipe, load_recipe, override, quick

POINTS = override(
    RECIPES["swiss-roll"],
    {"epochs": 150, "batch_size": 64, "lr": 3e-3, "ema_decay": 0.99, "network_arguments": {"hidden": 64, "layers": 3}},
    "test",
)
IMAGES = override(
    RECIPES["digits"],
    {
        "epochs": 3,
        "batch_size": 16,
        "sampling_steps": 4,
        "mirrors": True,
        "network_arguments": {"channels": [8, 16], "layers": 1, "groups": 4},
    },
    "test",
)


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.group, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 points on a circle of radius 3 around (1, 2)."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 400)
    path = tmp_path_factory.mktemp("points") / "circle.npz"
    np.savez(path, x=np.stack([1 + 3 * np.cos(angle), 2 + 3 * np.sin(angle)], axis=1).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 images of two classes: a bright left or a bright upper half."""
    rng = np.random.default_rng(1)
    label = np.arange(96) % 2
    x = rng.integers(0, 40, (96, 1, 8, 8)).astype(np.uint8)
    x[label == 0, :, :, :4] += 200
    x[label == 1, :, :4, :] += 200
    path = tmp_path_factory.mktemp("images") / "halves.npz"
    np.savez(path, **SampleSet(x, label, ("left", "upper")).arrays())  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def trained_points(points: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "circle"
    train(points, folder, POINTS, progress=False)
    return folder


@pytest.fixture(scope="module")
def image_bundle(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from export.bundle import export

    folder = tmp_path_factory.mktemp("runs") / "halves"
    train(images, folder, IMAGES, progress=False)
    return export(folder, tmp_path_factory.mktemp("bundles") / "halves")


def test_points_come_back_to_their_circle(points: Path, trained_points: Path, tmp_path: Path) -> None:
    from export.bundle import export

    assert (trained_points / "samples" / "epoch-150.png").exists()
    bundle = export(trained_points, tmp_path / "circle")
    with load(bundle, backend="onnxruntime", device="cpu", precision="fp32") as sampler:
        found = sampler.bundle.labels.to_data(generate(sampler, None, 500, 0)[0])[:, :, 0, 0]
    noise = np.random.default_rng(2).standard_normal((500, 2)) * load_samples(points).x.std()
    off = [np.abs(np.hypot(*(rows - (1, 2)).T) - 3).mean() for rows in (found, noise)]
    assert off[0] < off[1] / 2
    assert np.abs(found.mean(axis=0) - (1, 2)).max() < 0.6


def test_a_run_of_points_that_was_killed_ends_as_one_that_was_not(points: Path, trained_points: Path, tmp_path: Path) -> None:
    train(points, tmp_path / "run", POINTS, progress=False, pictures_every=0, stop_after=31)
    last = train(points, tmp_path / "run", POINTS, progress=False, pictures_every=0, resume=True)
    whole = checkpoint.latest(trained_points)
    for name in ("model", "ema", "optimizer"):
        assert (last / f"{name}.safetensors").read_bytes() == (whole / f"{name}.safetensors").read_bytes()


def test_images_of_a_class_without_pytorch(image_bundle: Path, tmp_path: Path) -> None:
    options = ("--bundle", image_bundle, "--backend", "onnxruntime", "--precision", "fp32")
    done = run("infer", *options, "-n", 6, "--out", tmp_path / "both", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["labels"] == [0, 1]
    both = load_samples(tmp_path / "both" / "samples.npz")
    assert (both.x.shape, both.x.dtype, both.label.tolist(), both.classes) == (
        (6, 1, 8, 8),
        np.uint8,
        [0, 0, 0, 1, 1, 1],
        ("left", "upper"),
    )
    assert run("infer", *options, "-n", 3, "--label", "upper", "--batch-size", 2, "--out", tmp_path / "one").exit_code == 0
    one = load_samples(tmp_path / "one" / "samples.npz")
    assert np.abs(one.x.astype(int) - both.x[3:].astype(int)).max() <= 1, "the same noise, whatever the batch"
    assert (tmp_path / "one" / "samples.png").stat().st_size > 3000
    for suffix in ("png", "gif"):
        picture = tmp_path / f"reverse.{suffix}"
        assert run("plot", "reverse", *options, "--label", 1, "-n", 4, "--out", picture).exit_code == 0
        assert picture.stat().st_size > 3000


def test_images_are_not_served(image_bundle: Path) -> None:
    pytest.importorskip("nicegui")
    done = run("serve", "--bundle", image_bundle, "--port", 0)
    assert (done.exit_code, "the server designs metasurfaces" in done.output) == (2, True)


def test_guidance_follows_the_class(image_bundle: Path) -> None:
    with load(image_bundle, backend="onnxruntime", device="cpu", precision="fp32") as sampler:
        samples = {scale: generate(sampler, "left", 4, 0, guidance_scale=scale)[0] for scale in (1.0, 2.0, 4.0)}
        free = sampler.sample(sampler.labelled(None), 4, guidance_scale=1.0)
        nothing = sampler.sample(sampler.labelled("left"), 4, guidance_scale=0.0)
    assert np.abs(nothing - free).max() < 1e-4, "a scale of 0 is the sample of no class"
    assert not np.allclose(samples[1.0], samples[4.0], atol=1e-2)


def test_what_does_not_go_together_is_said(image_bundle: Path, small_bundle: Path, tmp_path: Path) -> None:
    for arguments, status, words in (
        (("infer", "--bundle", image_bundle, "--label", "right"), 2, "no class 'right'; it knows left, upper"),
        (("infer", "--bundle", small_bundle), 2, "designs metasurfaces; name what the light should do"),
        (("infer", "deflector", "--bundle", image_bundle), 2, "samples images or points, not metasurfaces"),
        (("infer", "deflector", "--label", "1"), 2, "--label is for bundles of images"),
        (("plot", "reverse", "deflector", "--label", "1"), 2, "--label is for bundles of images"),
        (("plot", "reverse", "deflector", "-n", 21), 2, "more than the 20 candidates that fit a picture"),
    ):
        done = run(*arguments, "--out", tmp_path / "out")
        assert done.exit_code == status
        assert words in done.output.replace("\n", " ")
        assert not (tmp_path / "out").exists()
    with load(image_bundle, backend="onnxruntime", device="cpu") as sampler, pytest.raises(BundleError, match="takes no target"):
        _ = sampler.bundle.condition
    with load(small_bundle, backend="onnxruntime", device="cpu") as sampler, pytest.raises(BundleError, match="knows no classes"):
        sampler.labelled("1")
    with load(image_bundle, backend="onnxruntime", device="cpu") as sampler, pytest.raises(TargetError, match="has no class '7'"):
        sampler.labelled(7)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"masks": 0.1}, "'masks' is 0.1, which is for metasurfaces"),
        ({"objective": "scattering"}, "expected 'denoising'"),
        ({"labelled": False}, "need a network that is told the class"),
        ({"layout": "orders"}, "which is for the layout 'labels'"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        override(RECIPES["digits"], fields, "test")


def test_quick_settings_are_the_recipes_own() -> None:
    made = quick(RECIPES["digits"])
    assert made.epochs == RECIPES["digits"].quick["epochs"]
    assert made.network_arguments["attention"] == RECIPES["digits"].network_arguments["attention"]
    with pytest.raises(DataError, match="has no quick settings"):
        quick(load_recipe("default"))


def test_data_that_do_not_fit_the_recipe_are_refused(points: Path, trained_points: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has none; name data with classes"):
        train(points, tmp_path / "run", IMAGES, progress=False)
    solid: Recipe = dataclasses.replace(POINTS, network_arguments={**POINTS.network_arguments, "shape": [3, 1, 1]})
    with pytest.raises(DataError, match="has shape"):
        train(points, tmp_path / "run", solid, progress=False)
    moved = tmp_path / "moved.npz"
    np.savez(moved, x=load_samples(points).x[:, :, 0, 0] + 1)
    with pytest.raises(DataError, match="other samples"):
        train(moved, trained_points, POINTS, progress=False, resume=True)
    missing = run("train", "--recipe", "default", "--out", tmp_path / "none")
    assert (missing.exit_code, "no data of its own" in missing.output) == (2, True)
    assert not (tmp_path / "none").exists()


def test_evaluate_compares_with_real_data(image_bundle: Path, images: Path, trained_points: Path, points: Path, tmp_path: Path) -> None:
    from export.bundle import export

    done = run("evaluate", "--bundle", image_bundle, "--data", images, "--backend", "onnxruntime", "-n", 20, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [row["guidance_scale"] for row in result["by_guidance_scale"]] == [1, 2, 3, 5]
    assert all(0 <= row["class_accuracy"] <= 1 and row["frechet"] >= 0 for row in result["by_guidance_scale"])
    assert result["baselines"]["real"]["class_accuracy"] == 1
    assert result["baselines"]["real"]["frechet"] < result["baselines"]["independent_pixels"]["frechet"]
    bundle = export(trained_points, tmp_path / "circle")
    said = run("evaluate", "--bundle", bundle, "--data", points, "--backend", "onnxruntime", "--steps", 20)
    assert said.exit_code == 0, said.output
    scores = {line.rsplit(maxsplit=1)[0].strip(): float(line.split()[-1]) for line in said.output.splitlines()[2:5]}
    assert scores["a fresh draw of real points"] < scores["samples"] < scores["one Gaussian, mean and covariance alike"] * 2
    wrong = run("evaluate", "--bundle", image_bundle, "--data", points)
    assert (wrong.exit_code, "name the data of this bundle" in wrong.output) == (2, True)
    missing = run("evaluate")
    assert (missing.exit_code, "Missing option '--data'" in missing.output) == (2, True)
