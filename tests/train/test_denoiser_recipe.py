"""The one-step denoiser through the whole house: trained, resumed, exported, used and scored without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import cli
from runtime.bundle import Bundle
from runtime.denoise import Denoiser, noisy
from runtime.errors import BundleError, DataError
from runtime.manifest import digest, read_manifest
from runtime.sampler import load
from runtime.samples import SampleSet
from runtime.samples import load as load_samples
from train import checkpoint
from train.loop import train
from train.networks.unet import RestorationUNet
from train.objective import Restoration, objective
from train.recipes import RECIPES, override, quick
from train.run import open_run
from train.sample_batches import batches

TINY = override(
    RECIPES["denoiser"],
    {
        "epochs": 6,
        "batch_size": 16,
        "lr": 3e-3,
        "ema_decay": 0.9,
        "network_arguments": {"channels": [16, 16], "layers": 1, "groups": 4},
    },
    "test",
)


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.group, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 images of 8 x 8 with a bright bar, standing or lying, in one of three colours: 48 of them, but for a little noise."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 30, (400, 3, 8, 8)).astype(np.uint8)
    for image, place, dark, lying in zip(x, rng.integers(0, 8, 400), rng.integers(0, 3, 400), rng.integers(0, 2, 400), strict=True):
        for channel in {0, 1, 2} - {int(dark)}:
            (image[channel] if lying else image[channel].T)[place] += 220
    path = tmp_path_factory.mktemp("images") / "bars.npz"
    np.savez(path, x=x)
    return path


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "bars"
    train(images, folder, TINY, progress=False)
    return folder


@pytest.fixture(scope="module")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from export.bundle import export

    return export(trained, tmp_path_factory.mktemp("bundles") / "bars")


ENGINE = ("--backend", "onnxruntime", "--precision", "fp32")


def test_a_few_epochs_beat_the_noise_and_the_blur(bundle: Path, images: Path, tmp_path: Path) -> None:
    done = run("evaluate", "--bundle", bundle, "--data", images, *ENGINE, "--picture", tmp_path / "psnr.png", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [row["sigma"] for row in result["psnr"]] == [0, 0.2, 0.4, 0.5, 0.6, 0.8, 1]
    assert result["images"] + result["training_images"] == 400
    at = next(row for row in result["psnr"] if row["sigma"] == 0.5)
    assert at["denoised"] > at["noisy"] + 2
    assert at["denoised"] > at["blur"] > at["noisy"]
    assert result["gain_over_blur_db"] == pytest.approx(at["denoised"] - at["blur"])
    assert result["psnr"][0]["noisy"] is None, "no noise, no error"
    assert (tmp_path / "psnr.png").stat().st_size > 5000
    said = run("evaluate", "--bundle", bundle, "--data", images, *ENGINE, "-n", 10, "--batch-size", 4).output.splitlines()
    assert "10 held-out images" in said[0]
    assert said[2].split() == ["0", "exact", "exact", "0.00", said[2].split()[-1]]
    assert "dB over the blur" in said[-1]


def test_pictures_at_the_first_and_the_fifth_epoch(trained: Path) -> None:
    assert sorted(path.name for path in (trained / "samples").iterdir()) == ["epoch-001.png", "epoch-005.png", "epoch-006.png"]
    assert (trained / "samples" / "epoch-001.png").read_bytes() != (trained / "samples" / "epoch-006.png").read_bytes()
    assert not (trained / "scheduler_config.json").exists()


def test_a_run_that_was_killed_ends_as_one_that_was_not(images: Path, trained: Path, tmp_path: Path) -> None:
    train(images, tmp_path / "run", TINY, progress=False, pictures_every=0, stop_after=31)
    last = train(images, tmp_path / "run", TINY, progress=False, pictures_every=0, resume=True)
    for name in ("model", "ema", "optimizer"):
        assert (last / f"{name}.safetensors").read_bytes() == (checkpoint.latest(trained) / f"{name}.safetensors").read_bytes()


def test_the_network_sees_images_in_which_white_is_1_and_noise_of_the_stated_size(images: Path, tmp_path: Path) -> None:
    data = load_samples(images)
    opened = open_run(tmp_path / "run", TINY, images, data, resume=False)
    batch = batches(data.take(opened.training), opened.condition, TINY).training(3)
    assert sorted(batch) == ["noise", "sample"]
    assert (batch["sample"].min(), batch["sample"].max()) == (pytest.approx(0, abs=0.01), pytest.approx(249 / 255, abs=0.02))
    seen: list[torch.Tensor] = []

    def network(sample: torch.Tensor) -> torch.Tensor:
        seen.append(sample)
        return torch.zeros_like(sample)

    given = {key: torch.from_numpy(value) for key, value in batch.items()}
    loss = Restoration(0.5, "mse")(network, given)
    assert torch.equal(seen[0], given["sample"] + 0.5 * given["noise"])
    assert loss.item() == pytest.approx(float((batch["sample"] ** 2).mean()), rel=1e-5)
    assert isinstance(objective(TINY), Restoration)


def test_a_sweep_compares_the_error_of_the_image(images: Path, tmp_path: Path) -> None:
    small = "{ channels = [8], attention = [false], layers = 1, groups = 4 }"
    plan = f'recipe = "denoiser"\n[settings]\nepochs = 1\nbatch_size = 128\nnetwork_arguments = {small}\n[grid]\nlr = [1e-3, 3e-3]\n'
    (tmp_path / "rates.toml").write_text(plan)
    done = run("train", "--data", images, "--sweep", tmp_path / "rates.toml", "--out", tmp_path / "sweep", "--pictures-every", 0)
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert results["yardstick"] == "validation MSE of the image"
    rows = list(results["runs"].values())
    assert [row["yardstick"] for row in rows] == [pytest.approx(row["validation_loss"], rel=1e-4) for row in rows]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 16)])
def test_the_network_fits_mnist_and_colours(shape: tuple[int, int, int]) -> None:
    network = RestorationUNet(shape, channels=(8, 16), layers=1, groups=4)
    assert network(torch.zeros(2, *shape)).shape == (2, *shape)
    with pytest.raises(ValueError, match="told no class"):
        RestorationUNet(shape, classes=3)


def test_noisy_images_are_denoised_without_pytorch(bundle: Path, images: Path, tmp_path: Path) -> None:
    clean = load_samples(images).x[:30].astype(np.float32) / 255
    given = noisy(clean, 0.5, 9)
    np.savez(tmp_path / "noisy.npz", x=given)
    done = run(
        "infer", "--bundle", bundle, "--input", tmp_path / "noisy.npz", "--batch-size", 7, "--out", tmp_path / "out", *ENGINE, "--json"
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["images"], told["noise_sigma"]) == (30, 0.5)
    found = load_samples(tmp_path / "out" / "denoised.npz")
    assert (found.x.shape, found.x.dtype) == ((30, 3, 8, 8), np.uint8)
    assert np.mean((found.x / 255 - clean) ** 2) < 0.5 * np.mean((np.clip(given, 0, 1) - clean) ** 2)
    assert (tmp_path / "out" / "denoised.png").stat().st_size > 3000
    with Denoiser(Bundle.open(bundle), "onnxruntime", "cpu", "fp32") as denoise:
        assert np.abs(np.clip(np.rint(denoise(given, 5) * 255), 0, 255) - found.x).max() <= 1
        with pytest.raises(DataError, match=r"expected \(N, 3, 8, 8\)"):
            denoise(given[:, :, :4])
    drawn = run("plot", "denoise", "--bundle", bundle, "--data", images, *ENGINE, "-n", 2, "--out", tmp_path / "d.png")
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "d.png").stat().st_size > 8000


def test_what_such_a_bundle_cannot_do_is_said(bundle: Path, images: Path, trained: Path, tmp_path: Path) -> None:
    one_step, out = ("--bundle", bundle), ("--out", tmp_path / "out")
    for arguments, words in (
        (("infer", "deflector", *one_step, *out), "denoises images in one step and samples nothing"),
        (("infer", *one_step, *out), "give it images with 'infer --input'"),
        (("plot", "reverse", *one_step, "--out", tmp_path / "a.png"), "denoises images in one step"),
        (("bench", *one_step), "denoises images in one step"),
        (("evaluate", *one_step, "--data", images, "--limit", 3), "--limit is for designs of metasurfaces"),
        (("evaluate", *one_step, "--data", images, "--steps", 3), "--steps is for diffusion models"),
        (("evaluate", *one_step, "--data", "swiss-roll"), "name the data of this bundle"),
        (("infer", *one_step, "--input", images, "--label", 1, *out), "--label is for diffusion models"),
        (("infer", *one_step, "--input", images, "--noise-level", 0.3, *out), "--noise-level is for diffusion models"),
        (("infer", *one_step, "--input", images, "--no-add-noise", *out), "is for diffusion models"),
        (("infer", "deflector", *one_step, "--input", images, *out), "take no target; leave one of the two out"),
        (("infer", *one_step, "--input", images, "--top", 3, *out), "--top is for designs of metasurfaces"),
        (("infer", *one_step, "--noise-sigma", 0.5, *out), "says how images are denoised; name them with --input"),
        (("infer", "--input", images, *out), "designs metasurfaces; name a bundle"),
        (("plot", "denoise", "--out", tmp_path / "a.png"), "designs metasurfaces and images are denoised here"),
        (("export", trained, "--fused", 4, *out), "leave --fused out"),
        (("export", trained, "--guidance-scale", 2, *out), "leave --guidance-scale out"),
        (("train", "--recipe", "denoiser", "--data", "swiss-roll", *out), "denoises images of 8 bits and swiss-roll holds points"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2, (arguments, done.output)
        assert words in " ".join(done.output.split()), (arguments, done.output)
        assert not (tmp_path / "out").exists()
    with pytest.raises(BundleError, match=r"with 'infer --input', or metascatter\.Denoiser"):
        load(bundle)
    with pytest.raises(BundleError, match="does not denoise in one step"):
        Denoiser(Bundle.open())


def test_the_server_and_the_self_test_know_it(bundle: Path) -> None:
    pytest.importorskip("nicegui")
    done = run("serve", "--bundle", bundle, "--port", 0)
    assert (done.exit_code, "the server designs metasurfaces" in done.output) == (2, True)
    checked = run("doctor", "--bundle", bundle, "--json")
    assert json.loads(checked.stdout)["bundle"]["ok"] is True


def test_its_manifest_is_held_against_a_schema(bundle: Path) -> None:
    fields = json.loads((bundle / "manifest.json").read_text())
    assert fields["task"] == "restoration"
    assert not {"sampling", "geometry"} & set(fields)
    assert list(fields["networks"]["denoiser"]["inputs"]) == ["sample"]

    def read(manifest: dict[str, Any]) -> dict[str, Any]:
        return read_manifest(json.dumps({**manifest, "digest": digest(manifest)}).encode(), "manifest.json")

    assert read(fields)["noise_sigma"] == 0.5
    for value in (None, "0.5", 0, -1, True, 1e9):
        with pytest.raises(BundleError, match=r"manifest\.json: 'noise_sigma'"):
            read({**fields, "noise_sigma": value})
    with pytest.raises(BundleError, match="lacks 'networks/denoiser/inputs/timestep'"):
        read({**fields, "task": "samples"})
    card = (bundle / "README.md").read_text()
    for words in ("takes noise out of images in one step", "0.5, black being 0", "PSNR (change)", "(mse, the clean image)"):
        assert words in card


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"noise_sigma": 0.0}, "'noise_sigma' is 0.0"),
        ({"labelled": True}, "'labelled' is True"),
        ({"sampling_steps": 5}, "'sampling_steps' is 5"),
        ({"scheduler": {"num_train_timesteps": 5}}, "'scheduler' is"),
        ({"objective": "denoising"}, "which is for the objective 'restoration'"),
        ({"min_snr_gamma": 5.0}, "which is for denoising"),
        ({"layout": "orders", "data": "", "quick": {}}, "'restoration' and the layout"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        override(RECIPES["denoiser"], fields, "test")


def test_quick_settings_and_data_of_another_kind(tmp_path: Path) -> None:
    assert quick(RECIPES["denoiser"]).epochs == RECIPES["denoiser"].quick["epochs"]
    np.savez(tmp_path / "floats.npz", x=np.zeros((9, 8, 8)))
    with pytest.raises(DataError, match=r"denoises images of 8 bits and .* holds float32"):
        train(tmp_path / "floats.npz", tmp_path / "run", TINY, progress=False)
    assert SampleSet(np.zeros((2, 1, 4, 4), np.uint8), np.array([-1, -1])).shape == (1, 4, 4)
    assert not (tmp_path / "run").exists()
