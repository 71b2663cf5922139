"""The denoising loss: min-SNR weights against numbers worked out by hand, and every prediction, loss, schedule and precision trains."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from runtime.data import load
from runtime.errors import BackendError, DataError
from train.loop import train
from train.objective import Denoising, min_snr_weights, objective
from train.recipes import RECIPES, Recipe, override
from train.run import open_run
from train.sample_batches import batches

SCHEDULER = RECIPES["default"].scheduler


# SNR = alpha / (1 - alpha): 9, 1, 1/4 and 0. min(SNR, 5) = 5, 1, 1/4, 0.
@pytest.mark.parametrize(
    ("prediction_type", "weights"),
    [
        ("sample", [5.0, 1.0, 0.25, 0.0]),
        ("epsilon", [5 / 9, 1.0, 1.0, 1.0]),
        ("v_prediction", [5 / 10, 1 / 2, 0.25 / 1.25, 0.0]),
    ],
)
def test_min_snr_weights_by_hand(prediction_type: str, weights: list[float]) -> None:
    alphas = torch.tensor([0.9, 0.5, 0.2, 0.0], dtype=torch.float64)
    assert min_snr_weights(alphas, prediction_type, 5.0).tolist() == pytest.approx(weights, abs=1e-12)


def test_a_large_gamma_asks_the_same_of_every_prediction_type() -> None:
    """With gamma beyond every SNR the three losses are one: SNR times the squared error of the clean sample."""
    torch.manual_seed(0)
    batch = {
        "sample": torch.randn(16, 1, 4, 4).double(),
        "noise": torch.randn(16, 1, 4, 4).double(),
        "timestep": torch.randint(1, 900, (16,)),
    }
    guess = torch.randn(16, 1, 4, 4).double()  # of the clean sample, the same whatever the network predicts
    losses = []
    for prediction_type in ("sample", "epsilon", "v_prediction"):
        goal = Denoising({**SCHEDULER, "prediction_type": prediction_type}, "mse", 1e9)
        goal.scheduler.alphas_cumprod = goal.scheduler.alphas_cumprod.double()

        def answer(noisy: torch.Tensor, timestep: torch.Tensor, goal: Denoising = goal, kind: str = prediction_type) -> torch.Tensor:
            alpha = goal.scheduler.alphas_cumprod[timestep].reshape(-1, 1, 1, 1)
            noise = (noisy - alpha.sqrt() * guess) / (1 - alpha).sqrt()
            return {"sample": guess, "epsilon": noise, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * guess}[kind]

        losses.append(goal(answer, batch).item())
    alpha = goal.scheduler.alphas_cumprod[batch["timestep"]]
    expected = (alpha / (1 - alpha) * ((guess - batch["sample"]) ** 2).flatten(1).mean(1)).mean().item()
    assert losses == pytest.approx([expected] * 3, rel=1e-3)


def test_the_weights_reach_the_loss_and_gamma_0_is_none() -> None:
    batch = {"sample": torch.zeros(2, 1, 2, 2), "noise": torch.zeros(2, 1, 2, 2), "timestep": torch.tensor([10, 700])}
    scheduler = {**SCHEDULER, "prediction_type": "epsilon"}

    def network(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)

    goal = Denoising(scheduler, "mse", 5.0)
    alpha = goal.scheduler.alphas_cumprod[batch["timestep"]].tolist()
    first, second = (min(1.0, 5.0 * (1 - a) / a) for a in alpha)
    assert first < 0.05, "a nearly clean sample counts little"
    assert goal(network, batch).item() == pytest.approx((first * 1 + second * 9) / 2, rel=1e-4)
    assert Denoising(scheduler, "mse")(network, batch).item() == pytest.approx((1 + 9) / 2)
    assert objective(dataclasses.replace(RECIPES["default"], min_snr_gamma=5.0)).weights is not None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prediction_type": "flow"}, r"prediction_type is 'flow'; choose epsilon, v_prediction, sample"),
        ({"beta_schedule": "steep"}, "steep"),
        ({"beta_schedule": "linear", "num_train_timesteps": "many"}, "diffusers refuses"),
    ],
)
def test_unknown_schedulers_are_sentences(fields: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Denoising({**SCHEDULER, **fields}, "mse")


@pytest.mark.parametrize(
    ("prediction_type", "loss", "beta_schedule", "precision", "more", "share"),
    [
        ("epsilon", "mse", "linear", "fp32", {"min_snr_gamma": 5.0}, 0.7),
        ("v_prediction", "l1", "squaredcos_cap_v2", "bf16", {"target_noise": 0.1}, 0.97),
        ("sample", "huber", "linear", "bf16", {"min_snr_gamma": 5.0, "optimizer": "adam", "lr_schedule": "constant"}, 0.7),
    ],
)
def test_every_objective_and_precision_trains(
    prediction_type: str,
    loss: str,
    beta_schedule: str,
    precision: str,
    more: dict[str, object],
    share: float,
    small_data: Path,
    small_recipe: Recipe,
    tmp_path: Path,
) -> None:
    """From the loss of a network that says nothing, in a few passes; how far depends on what can be known at all."""
    fields: dict[str, object] = {"loss": loss, "precision": precision, "epochs": 5, "batch_size": 16, "lr": 1e-2, "ema_decay": 0.8, **more}
    fields["scheduler"] = {"prediction_type": prediction_type, "beta_schedule": beta_schedule}
    recipe = override(small_recipe, fields, "the test")
    run = tmp_path / "run"
    train(small_data, run, recipe, progress=False, pictures_every=0)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) for row in rows)
    opened = open_run(run, recipe, small_data, load(small_data), resume=True)
    batch = batches(opened.data.take(opened.validation), opened.condition, recipe).validation()
    silent = Denoising(recipe.scheduler, recipe.loss, recipe.min_snr_gamma)(
        lambda sample, timestep, **light: torch.zeros_like(sample), {k: torch.from_numpy(v) for k, v in batch.items()}
    )
    assert rows[-1]["validation_loss"] < share * float(silent)
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which fp16 needs")
def test_fp16_on_a_cpu_is_refused_in_a_sentence(small_data: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"fp16 needs an NVIDIA GPU.*bf16 or fp32"):
        train(small_data, tmp_path / "run", dataclasses.replace(small_recipe, precision="fp16"), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_fp16_trains_and_resumes_on_a_gpu(small_data: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    """The gradient scaler's state is part of the checkpoint."""
    recipe = dataclasses.replace(small_recipe, precision="fp16", epochs=4)
    whole = train(small_data, tmp_path / "whole", recipe, progress=False)
    train(small_data, tmp_path / "broken", recipe, progress=False, stop_after=7)
    again = train(small_data, tmp_path / "broken", recipe, progress=False, resume=True)
    assert (whole / "state.json").read_bytes() == (again / "state.json").read_bytes()
    assert "scaler" in json.loads((whole / "state.json").read_text())
