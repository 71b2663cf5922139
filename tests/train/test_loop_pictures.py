"""What a run shows while it trains: pictures of samples, lines in a log file, TensorBoard; none of it changes the weights."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn

from runtime.data import load
from runtime.errors import BackendError
from runtime.geometry import Geometry
from runtime.plots import Row, lit
from train import checkpoint, loop, networks, samples
from train.log import duration, speed
from train.loop import train
from train.recipes import Recipe


def pictures(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "samples").iterdir())


def test_pictures_change_nothing_in_the_weights(small_data: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(small_recipe, epochs=3)
    shown = train(small_data, tmp_path / "shown", recipe, progress=False, pictures_every=1)
    state = torch.get_rng_state()
    plain = train(small_data, tmp_path / "plain", recipe, progress=False, pictures_every=0)
    assert torch.equal(state, torch.get_rng_state())
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"):
        assert (shown / name).read_bytes() == (plain / name).read_bytes(), name
    assert not (tmp_path / "plain" / "samples").exists()
    assert pictures(tmp_path / "shown") == ["epoch-001.png", "epoch-002.png", "epoch-003.png"]
    first, last = (imread(tmp_path / "shown" / "samples" / f"epoch-00{k}.png") for k in (1, 3))
    assert first.shape[0] > 800
    assert first.shape[1] > 600
    assert not np.array_equal(first, last)


@pytest.mark.parametrize(
    ("epochs", "every", "expected"), [(66, 10, [10, 20, 30, 40, 50, 60, 66]), (60, 25, [25, 50, 60]), (55, 30, [30, 50, 55]), (66, 0, [])]
)
def test_epochs_that_get_a_picture(epochs: int, every: int, expected: list[int]) -> None:
    assert [epoch for epoch in range(1, epochs + 1) if loop._pictured(float(epoch), epochs, every)] == expected


def test_the_surrogates_picture_is_of_order_maps(
    small_data: Path, small_surrogate: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[str], list[Row]]] = []
    monkeypatch.setattr(samples, "sample_grid", lambda path, title, columns, rows: drawn.append((list(columns), list(rows))))
    recipe = dataclasses.replace(small_surrogate, epochs=1)
    train(small_data, tmp_path / "run", recipe, progress=False)
    (columns, rows), data = drawn[0], load(small_data)
    assert columns == ["pattern", "true R", "predicted R", "true T", "predicted T"]
    assert len(rows) == samples.TARGETS
    heights = [float(row.label.split()[0]) for row in rows]
    assert heights == sorted(heights)
    for row in rows:
        pattern, true_R, found_R, true_T, found_T = (np.asarray(cell) for cell in row.cells)
        k = next(i for i in range(len(data)) if np.array_equal(data.xx[i], pattern) and np.isclose(data.Rm[i].sum(), np.nansum(true_R)))
        assert np.nansum(true_R) + np.nansum(true_T) == pytest.approx(1, abs=1e-3)
        assert np.nansum(found_R) + np.nansum(found_T) == pytest.approx(1, abs=1e-3)
        wrong = 0.5 * (np.nansum(np.abs(true_R - found_R)) + np.nansum(np.abs(true_T - found_T)))
        assert row.notes[0] == f"misrouted {wrong:.3f}"
        assert data.h[k] in heights


def test_a_denoisers_picture_holds_what_the_sampler_gives(small_data: Path, small_run: Path, small_recipe: Recipe) -> None:
    """The loop here is diffusers' with the same noise; patterns are moved to where they fit, which changes nothing but the shift."""
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    network = lambda sample, timestep, light: 0.3 * sample + light  # noqa: E731
    light = np.random.default_rng(0).standard_normal((4, 1, 5, 5)).astype(np.float32)
    steps = samples.quick_plan(dataclasses.replace(small_recipe, sampling_steps=1000, sampling_scheduler="ddpm"))
    assert steps.num_steps == samples.STEPS
    found = samples.sample(network, steps, (1, 5, 5), {"light": light}, torch.device("cpu"), 4)  # type: ignore[arg-type]
    scheduler = DDIMScheduler.from_config({k: v for k, v in small_recipe.scheduler.items() if k != "_class_name"})
    scheduler.set_timesteps(samples.STEPS)
    noise = np.random.Generator(np.random.Philox(key=[2023, 0])).standard_normal((4, 1, 5, 5), dtype=np.float32)
    expected = torch.from_numpy(noise)
    for timestep in scheduler.timesteps:
        output = network(expected, timestep, torch.from_numpy(light))
        expected = scheduler.step(output, timestep, expected, use_clipped_model_output=True).prev_sample
    assert np.abs(found - expected.numpy()).max() < 1e-4
    truth = np.random.default_rng(1).integers(0, 2, (5, 5))
    flipped = truth.copy()
    flipped[0, 0] ^= 1
    moved, unequal = samples.aligned(np.stack([np.roll(truth, (2, 3), (0, 1)), np.roll(flipped, (4, 1), (0, 1))]), truth)
    assert unequal.tolist() == [0, 1]
    assert np.array_equal(moved[0], truth)
    assert np.array_equal(moved[1], flipped)
    own = samples.quick_plan(small_recipe)
    assert own.num_steps == 32, "few steps of its own sampler are taken as they are"


def test_order_maps_are_cut_to_what_can_carry_power() -> None:
    maps = np.arange(23.0 * 23).reshape(23, 23)
    R, T = (lit(maps, Geometry(), side) for side in (0, 1))
    assert R.shape == (17, 17)
    assert T.shape == (5, 5)
    assert T[2, 2] == maps[11, 11]
    assert np.isfinite(T).sum() == 21
    assert np.isfinite(R).sum() == 249


def test_a_log_file_gets_a_line_an_epoch(small_data: Path, small_recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "train.log")
    train(small_data, tmp_path / "run", small_recipe, pictures_every=0)
    lines = caplog.messages
    number = r"\d+(\.\d+)?(e[+-]\d+)?"
    assert len(lines) == 2
    assert re.fullmatch(rf"epoch 1/2 · loss {number} · validation {number} · {number} (steps/s|s/step) · {number} s left", lines[0]), lines
    assert re.fullmatch(rf"epoch 2/2 · loss {number} · validation {number} · {number} (steps/s|s/step) · done", lines[1]), lines
    assert [record.step for record in caplog.records] == [4, 8]  # type: ignore[attr-defined]
    assert all(math.isfinite(record.validation_loss) for record in caplog.records)  # type: ignore[attr-defined]
    caplog.clear()
    train(small_data, tmp_path / "quiet", small_recipe, progress=False, pictures_every=0)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (65, "1 min 5 s"), (3600 + 12 * 60, "1 h 12 min"), (86400 * 2 + 3 * 3600 + 59, "2 d 3 h")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_rates_in_words() -> None:
    assert [speed(rate) for rate in (1.7, 123.4, 0.25)] == ["1.7 steps/s", "123 steps/s", "4 s/step"]


def test_tensorboard_has_the_rows(small_data: Path, small_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(small_run / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "validation_loss", "lr"):
        assert [event.step for event in events.Scalars(name)] == [row["step"] for row in rows]
        assert [event.value for event in events.Scalars(name)] == pytest.approx([row[name] for row in rows], rel=1e-6)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_k_checkpoints_stay(keep: int, small_data: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    train(small_data, tmp_path / "run", small_recipe, progress=False, checkpoint_every=2, keep=keep, pictures_every=0)
    assert [checkpoint.step_of(path) for path in checkpoint.found(tmp_path / "run")] == [2, 4, 6, 8][-keep:]


class Tiny(nn.Module):
    """A denoiser that compiles in seconds."""

    def __init__(self, size: int, orders: int) -> None:
        super().__init__()
        self.light, self.mix = nn.Linear(2 * (2 * orders + 1) ** 2, size * size), nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, light: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        seen = self.light(light[:, :2].flatten(1)).reshape(sample.shape) + height[:, :, None, None]
        return self.mix(torch.cat([sample, seen], dim=1)) * torch.sigmoid(timestep.float() / 1000)[:, None, None, None]


@pytest.fixture
def tiny(small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recipe:
    monkeypatch.setitem(networks.NETWORKS, "tiny", Tiny)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    return dataclasses.replace(small_recipe, network="tiny", network_arguments={}, compile=True, epochs=1)


@pytest.mark.slow
def test_torch_compile_trains_and_leaves_no_trace_in_the_names(small_data: Path, tiny: Recipe, tmp_path: Path) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler")
    last = train(small_data, tmp_path / "run", tiny, progress=False, pictures_every=0)
    assert list((tmp_path / "cache").rglob("*.so")), "it was compiled"
    plain = train(small_data, tmp_path / "plain", dataclasses.replace(tiny, compile=False), progress=False, pictures_every=0)
    compiled, eager = (checkpoint.load_weights(path, "model") for path in (last, plain))
    assert set(compiled) == set(eager) == {"light.weight", "light.bias", "mix.weight", "mix.bias"}
    assert max((compiled[key] - eager[key]).abs().max().item() for key in eager) < 1e-4


@pytest.mark.slow
def test_torch_compile_without_a_compiler_is_a_sentence(
    small_data: Path, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(BackendError, match=r"torch\.compile failed .*install a C\+\+ compiler, or set 'compile' to false"):
        train(small_data, tmp_path / "run", tiny, progress=False, pictures_every=0)
