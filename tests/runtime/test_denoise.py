"""Images out of noise: the blur and the scores against known answers, the reverse process against a denoiser that is known on paper."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import denoise, denoise_pictures, denoise_scores
from runtime.bundle import Bundle
from runtime.errors import BundleError, DataError, TargetError
from runtime.labels import Labels
from runtime.sampler import Sampler
from runtime.samples import SampleSet, load, set_aside

RNG = np.random.default_rng(0)
MEAN, SPREAD = 0.4, 0.2  # of the pixels, white being 1


def test_the_noise_of_every_size_is_the_same_but_for_its_size() -> None:
    x = RNG.random((2, 1, 30, 30), dtype=np.float32)
    one, two = (denoise.noisy(x, sigma, 7) - x for sigma in (1.0, 0.5))
    assert np.allclose(one, 2 * two, atol=1e-5)
    assert one.std() == pytest.approx(1, abs=0.05)
    assert np.abs(denoise.noisy(x, 1.0, 7, 1) - x - one).max() > 1


def test_psnr_is_the_formula() -> None:
    x = np.full((3, 1, 4, 4), 0.5)
    assert denoise_scores.psnr(x + 0.1, x) == pytest.approx(20)
    assert denoise_scores.psnr(np.full_like(x, 9.0), np.ones_like(x)) is None, "cut to [0, 1]"
    halves = np.concatenate([x, x + 0.2])
    assert denoise_scores.psnr(halves, np.concatenate([x, x])) == pytest.approx(-10 * np.log10(0.02)), "the mean error of all, not of PSNRs"


def test_the_blur_is_a_gaussian_and_mirrors_at_the_edges() -> None:
    x = np.zeros((2, 3, 41, 41), np.float32)
    x[1, 2, 20, 20] = 1
    k = np.arange(-8, 9)
    line = np.exp(-(k**2) / (2 * 2.0**2))
    line /= line.sum()
    found = denoise_scores.blur(x, 2.0)
    assert np.allclose(found[1, 2, 12:29, 12:29], np.outer(line, line), atol=1e-6)
    assert np.abs(found[0]).max() == np.abs(found[1, :2]).max() == 0, "neither images nor channels mix"
    assert np.allclose(denoise_scores.blur(np.ones_like(x), 5.0), 1, atol=1e-5)
    assert denoise_scores.blur(x, 0) is x


def test_the_best_blur_is_found() -> None:
    """White noise of variance v on a constant leaves v / (4 pi w^2): the wider the better; on noise itself nothing is gained."""
    flat = np.full((4, 1, 64, 64), 0.5, np.float32)
    given = denoise.noisy(flat, 0.1, 0)
    assert denoise_scores.best_width(given, flat) == denoise_scores.WIDTHS[-1]
    assert denoise_scores.psnr(denoise_scores.blur(given, 2.0), flat) == pytest.approx(-10 * np.log10(0.01 / (4 * np.pi * 4)), abs=0.5)
    grain = RNG.random((4, 1, 16, 16), dtype=np.float32)
    assert denoise_scores.best_width(grain, grain) == 0
    smooth = np.clip(denoise_scores.blur(denoise.noisy(flat, 3.0, 1), 3.0), 0, 1)
    given = denoise.noisy(smooth, 0.3, 2)
    errors = [np.mean((np.clip(denoise_scores.blur(given, width), 0, 1) - smooth) ** 2) for width in denoise_scores.WIDTHS]
    assert denoise_scores.best_width(given, smooth) == denoise_scores.WIDTHS[int(np.argmin(errors))], "as by trying them all"


def test_what_was_held_out_is_known_from_the_images_alone() -> None:
    data = SampleSet(RNG.integers(0, 256, (400, 1, 3, 3)).astype(np.uint8), np.full(400, -1))
    held = set_aside(data.identities(), 0.25)
    assert 60 < held.sum() < 140
    order = RNG.permutation(400)
    assert np.array_equal(set_aside(data.take(order).identities(), 0.25), held[order])
    assert held[set_aside(data.identities(), 0.1)].all(), "a smaller share is part of a larger one"


class Gaussian:
    """A network that knows the best answer for pixels that are independent and Gaussian, and what it was called with."""

    device = "nowhere"

    def __init__(self, alphas: np.ndarray, mean: float, spread: float) -> None:
        self.alphas, self.mean, self.spread, self.calls = alphas, mean, spread, list[int]()

    @contextlib.contextmanager
    def bind(self, fixed: Any, batch: int) -> Iterator[Callable[..., Any]]:
        def call(varying: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.calls.append(len(varying["sample"]))
            a = self.alphas[varying["timestep"]].reshape(-1, 1, 1, 1)
            noise = np.sqrt(1 - a) * (varying["sample"] - np.sqrt(a) * self.mean) / (a * self.spread**2 + 1 - a)
            return {"output": noise.astype(np.float32)}

        yield call


@pytest.fixture
def sampler(scheduler_config: Callable[..., dict[str, Any]]) -> Sampler:
    """A sampler of grey images of 12 x 12 whose network is exact."""
    config = {**scheduler_config("ddim"), "prediction_type": "epsilon", "clip_sample": False, "timestep_spacing": "trailing"}
    manifest = {
        "task": "samples",
        "sample_shape": [1, 12, 12],
        "sampling": {"scheduler": "ddim", "steps": 100, "guidance_scale": 3.0},
        "recipe": {"name": "exact", "data": "", "validation_fraction": 0.2},
    }
    made = Sampler.__new__(Sampler)
    made.bundle = Bundle(Path("exact"), manifest, Labels((), 127.5, 127.5))
    made.scheduler_config = config
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    made.networks = {"denoiser": Gaussian(alphas, 2 * MEAN - 1, 2 * SPREAD)}  # type: ignore[dict-item]
    return made


def images(count: int) -> np.ndarray:
    return (MEAN + SPREAD * np.random.default_rng(3).standard_normal((count, 1, 12, 12))).astype(np.float32)


def test_one_step_and_many_are_what_they_are_on_paper(sampler: Sampler) -> None:
    """One step is Wiener's filter; the noise-free reverse process maps one Gaussian on the other, and is further from the truth."""
    x = images(200)
    found = denoise.iterate(sampler, x, level=0.5, batch_size=64, seed=1, steps=1000)
    assert (found.timestep, found.steps) == (500, 501)
    assert (found.noised - x).std() == pytest.approx(found.sigma, rel=0.02)
    share = SPREAD**2 / (SPREAD**2 + found.sigma**2)
    assert np.allclose(found.one_step, MEAN + share * (found.noised - MEAN), atol=1e-4)
    assert np.allclose(found.finished, MEAN + np.sqrt(share) * (found.noised - MEAN), atol=0.02)
    errors = [float(np.mean((values - x) ** 2)) for values in (found.one_step, found.finished)]
    assert errors[0] == pytest.approx(SPREAD**2 * (1 - share), rel=0.05)
    assert errors[1] > 1.3 * errors[0]


def test_noise_that_is_there_already_is_not_added(sampler: Sampler) -> None:
    x = images(40)
    given = denoise.noisy(x, 0.5, 2)
    found = denoise.iterate(sampler, given, sigma=0.5, noised=True, batch_size=40)
    assert np.allclose(found.noised, given, atol=1e-5)
    assert found.sigma == pytest.approx(0.5, rel=0.05)
    assert np.mean((found.one_step - x) ** 2) < 0.25 * np.mean((given - x) ** 2)


def test_an_image_depends_on_its_seed_and_not_on_its_company(sampler: Sampler) -> None:
    x = images(7)
    whole, parts, other = (
        denoise.iterate(sampler, x, level=0.4, seed=seed, batch_size=size, scheduler="ddpm", steps=10).finished
        for seed, size in ((1, 7), (1, 3), (2, 7))
    )
    assert np.allclose(whole, parts, atol=1e-5)
    assert np.abs(whole - other).max() > 0.1
    calls: list[int] = sampler.networks["denoiser"].calls  # type: ignore[attr-defined]
    assert max(calls) == 7
    assert min(calls) == 1
    heard: list[tuple[int, int]] = []
    denoise.iterate(sampler, x, level=0.4, batch_size=3, steps=10, on_step=lambda k, total, _: heard.append((k, total)))
    assert heard == [(k, 12) for k in range(1, 13)], "three batches of four steps"


def test_what_cannot_be_begun_from_is_said(sampler: Sampler) -> None:
    x = images(2)
    for arguments, error, words in (
        ({}, TargetError, "--noise-level, or the size of the noise"),
        ({"level": 0.5, "sigma": 0.5}, TargetError, "--noise-level, or the size of the noise"),
        ({"level": 1.5}, TargetError, "expected a share of the schedule"),
        ({"sigma": -1.0}, TargetError, "expected a size above 0"),
        ({"sigma": 1e6}, BundleError, r"none is near 1e\+06"),
        ({"level": 0.001}, BundleError, "take more steps"),
        ({"level": 0.5, "guidance_scale": 2.0}, TargetError, "no class is asked for"),
        ({"level": 0.5, "label": "3"}, TargetError, "has no class '3'"),
    ):
        with pytest.raises(error, match=words):
            denoise.iterate(sampler, x, batch_size=2, **arguments)
    with pytest.raises(DataError, match=r"expected \(N, 1, 12, 12\)"):
        denoise.iterate(sampler, x[:, :, :5], level=0.5)
    assert denoise.reachable(sampler, (0.05, 0.3, 0.9), steps=5) == [0.3, 0.9]


def data(count: int = 60) -> SampleSet:
    return SampleSet(np.clip(np.rint(255 * images(count)), 0, 255).astype(np.uint8), np.full(count, -1))


def test_scores_of_a_diffusion_model_stand_side_by_side(sampler: Sampler, tmp_path: Path) -> None:
    rows = denoise_scores.iterated(sampler, data(), seed=1, batch_size=32)
    assert [row["level"] for row in rows] == list(denoise_scores.LEVELS)
    for row in rows:
        assert row["one_step"] > row["iterative"] - 0.1, "the mean is nearest, whatever is sampled"
        assert row["one_step"] > row["blur"] >= row["noisy"] - 0.05
    assert rows[0]["one_step"] > rows[-1]["one_step"]
    lines = denoise_scores.iterated_table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    denoise_pictures.draw(sampler, data(), tmp_path / "a.png", 3, batch_size=8)
    assert (tmp_path / "a.png").stat().st_size > 8000
    with pytest.raises(DataError, match="too few to hold some out"):
        denoise_scores.iterated(sampler, data(1))
    with pytest.raises(DataError, match="PSNR is measured on clean images of 8 bits"):
        denoise_scores.iterated(sampler, SampleSet(images(9), np.full(9, -1)))
    with pytest.raises(BundleError, match="take more --steps"):
        denoise_pictures.draw(sampler, data(), tmp_path / "b.png", steps=1)


def test_pictures_and_arrays_are_read_as_the_bundle_needs_them(sampler: Sampler, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((24, 30, 3), (255, 255, 255), np.uint8)).save(tmp_path / "white.png")
    found = denoise.read(tmp_path / "white.png", sampler.bundle)
    assert found.shape == (1, 1, 12, 12)
    assert (found == 1).all()
    assert load(tmp_path / "white.png").shape == (3, 24, 24), "as it is where nothing is asked for"
    for name, x, words in (
        ("bytes", np.full((2, 12, 12), 51, np.uint8), None),
        ("floats", np.full((2, 12, 12), 0.2), None),
        ("loud", np.full((2, 12, 12), 200.0), "floats up to 200; expected bytes, or floats in which black is 0"),
        ("large", np.full((2, 13, 12), 0.2), "holds samples of shape"),
    ):
        np.savez(tmp_path / f"{name}.npz", x=x)
        if words is None:
            assert np.allclose(denoise.read(tmp_path / f"{name}.npz", sampler.bundle), 0.2)
        else:
            with pytest.raises(DataError, match=words):
                denoise.read(tmp_path / f"{name}.npz", sampler.bundle)
