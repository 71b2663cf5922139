"""``plot data``, ``plot schedule`` and ``plot forward``: what is in the figures, and what is said where there can be none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from runtime import forward, sample_pictures
from runtime.bundle import Bundle
from runtime.commands import group
from runtime.data import load as load_cells
from runtime.samples import SampleSet
from runtime.schedulers import schedule


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(group, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The parts of each figure, kept in place of drawing them."""
    found: list[Any] = []
    for name in ("draw", "animate"):
        monkeypatch.setattr(sample_pictures, name, lambda path, title, parts, columns=None, side=None: found.append((parts, columns)))
    return found


def test_a_schedule_is_that_of_its_definition() -> None:
    config = {"_class_name": "DDPMScheduler", "num_train_timesteps": 50, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    betas, signal = schedule(config)
    np.testing.assert_allclose(betas, np.linspace(1e-4, 0.02, 50), rtol=1e-9)
    np.testing.assert_allclose(signal, np.cumprod(1 - np.linspace(1e-4, 0.02, 50)))
    assert schedule({**config, "rescale_betas_zero_snr": True})[1][-1] == 0


def test_images_are_shown_by_class_and_points_all(tmp_path: Path, drawn: list[Any]) -> None:
    x = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", **SampleSet(x, np.arange(12) % 3, ("a", "b", "c")).arrays())  # type: ignore[arg-type]
    np.savez(tmp_path / "b.npz", x=np.zeros((30, 2), np.float32))
    np.savez(tmp_path / "c.npz", x=x)
    for name, count in (("a", 6), ("b", 6), ("c", 4)):
        assert run("plot", "data", tmp_path / f"{name}.npz", "--count", count, "--out", tmp_path / "a.png")[0] == 0
    [(a, columns), (b, _), (c, _)] = drawn
    assert (a[0][1][:, 0, 0, 0].tolist(), columns) == ([0, 3, 1, 4, 2, 5], 2)
    assert b[0][1].shape == (30, 2, 1, 1)
    assert c[0][1][:, 0, 0, 0].tolist() == [0, 4, 7, 11]


def test_patterns_are_shown_with_y_up(small_data: Path, tmp_path: Path, drawn: list[Any]) -> None:
    assert run("plot", "data", small_data, "--count", 5, "--out", tmp_path / "a.png")[0] == 0
    [(parts, _)] = drawn
    images, data = parts[0][1], load_cells(small_data)
    assert images.shape == (5, 1, 5, 5)
    lowest = data.xx[np.argsort(data.h, kind="stable")[0]]
    assert np.array_equal(images[0, 0] < 128, lowest.T[::-1] == 1)


@pytest.mark.parametrize(("suffix", "frames"), [("png", forward.MOMENTS), ("gif", forward.FRAMES)])
def test_the_forward_process_goes_from_the_data_to_noise(
    small_bundle: Path, small_data: Path, tmp_path: Path, drawn: list[Any], suffix: str, frames: int
) -> None:
    assert run("plot", "forward", small_data, "--bundle", small_bundle, "-n", 60, "--out", tmp_path / f"a.{suffix}")[0] == 0
    [(parts, _)] = drawn
    assert [name for name, _ in parts[:2]] == ["data", "t = 0"]
    assert len(parts) == 1 + frames
    clean = parts[0][1].astype(float).ravel()
    kept = [np.corrcoef(clean, values.astype(float).ravel())[0, 1] for _, values in parts]
    assert kept[1] > 0.99
    assert abs(kept[-1]) < 0.1
    assert (np.diff(kept) < 0.02).all()


def test_pictures_are_written(small_bundle: Path, small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((small_bundle / "scheduler_config.json").read_bytes())
    for words in (
        ("data", small_data),
        ("schedule", "--bundle", small_bundle),
        ("schedule", tmp_path / "config.json"),
        ("forward", small_data, "--bundle", small_bundle, "-n", 2),
    ):
        status, out, error = run("plot", *words, "--out", tmp_path / "a.png")
        assert (status, out, error) == (0, f"{tmp_path / 'a.png'}\n", "")
        assert (tmp_path / "a.png").stat().st_size > 3000
        (tmp_path / "a.png").unlink()


def test_mistakes_end_in_a_sentence(small_bundle: Path, small_data: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "points.npz", x=np.zeros((30, 2), np.float32))
    (tmp_path / "odd.json").write_text(json.dumps({"_class_name": "DDPMScheduler", "beta_schedule": "quadratic"}))
    for words, sentence in (
        (("data", tmp_path / "none"), "there is no data set"),
        (("data", small_data, "--size", 0), "0 is not in the range"),
        (("schedule", tmp_path / "odd.json"), 'beta_schedule is "quadratic"'),
        (("schedule", tmp_path / "odd.json", "--bundle", small_bundle), "not both"),
        (("forward", "--bundle", small_bundle), "Missing argument 'DATA'"),
        (("forward", tmp_path / "points.npz", "--bundle", small_bundle), "is of metasurfaces and the data are images or points"),
    ):
        status, _, error = run("plot", *words, "--out", tmp_path / "a.png")
        assert (status, sentence in error.replace("\n", " ")) == (2, True), error
        assert not (tmp_path / "a.png").exists()
    assert Bundle.open(small_bundle).designs
