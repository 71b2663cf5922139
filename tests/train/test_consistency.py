"""Few-step models: the path they learn is the teacher's, and what comes of it samples in the runtime in one, two and four steps."""

from __future__ import annotations

import dataclasses
import filecmp
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export.bundle import export
from runtime.condition import Condition
from runtime.data import load as load_data
from runtime.errors import DataError
from runtime.sampler import load
from runtime.schedulers import plan
from runtime.target import Target
from train import checkpoint
from train.batches import Batches
from train.consistency import Consistency
from train.finetune import recipe_for
from train.loop import train
from train.recipes import RECIPES, Recipe, override

SCHEDULER = RECIPES["consistency"].scheduler


class Knows(nn.Module):
    """Predicts v for the one clean sample it knows, shifted by ``off`` where nothing is asked of the light."""

    def __init__(self, scheduler: Consistency, clean: torch.Tensor, off: float = 0.0) -> None:
        super().__init__()
        self.scheduler, self.clean, self.off = scheduler, clean, off

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, light: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        signal, noise = self.scheduler.scales(timestep)
        asked = light.flatten(1).any(dim=1)[:, None, None, None]
        clean = torch.where(asked, self.clean, self.clean + self.off)
        return (signal * sample - clean) / noise


def batch(count: int = 40) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(3)
    return {
        "sample": torch.randn(count, 1, 4, 4, generator=draws).sign(),
        "noise": torch.randn(count, 1, 4, 4, generator=draws),
        "timestep": torch.linspace(0, 999, count).long(),
        "light": torch.ones(count, 4, 3, 3),
        "height": torch.zeros(count, 1),
    }


def test_levels_are_those_of_the_sampler() -> None:
    goal = Consistency(SCHEDULER, "mse", 1.0)
    assert goal.levels.tolist() == sorted(plan(SCHEDULER, 20, "lcm").timesteps.tolist())
    assert set(plan(SCHEDULER, 2, "lcm").timesteps.tolist()) <= set(goal.levels.tolist())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_step_of_the_path_is_the_runtimes_ddim(prediction_type: str) -> None:
    scheduler = {**SCHEDULER, "prediction_type": prediction_type, "num_train_timesteps": 1000, "timestep_spacing": "trailing"}
    goal = Consistency(scheduler, "mse", 1.0)
    steps = plan(scheduler, 20, "ddim")
    k = 7
    now, then = (torch.full((3,), int(steps.timesteps[i])) for i in (k, k + 1))
    rng = np.random.default_rng(5)
    sample, output = rng.standard_normal((2, 3, 1, 4, 4)).astype(np.float32)
    moved = sample.copy()
    steps.step(k, output, moved, None, steps.new_history(moved.shape))
    clean = goal.estimate(torch.from_numpy(output), torch.from_numpy(sample), now)
    found = goal.arrive(clean, torch.from_numpy(sample), now, then)
    np.testing.assert_allclose(found.numpy(), moved, atol=2e-5)


def test_who_knows_the_end_of_the_path_has_nothing_to_learn() -> None:
    goal, given = Consistency(SCHEDULER, "mse", 1.0), batch()
    clean = given["sample"]
    goal.teacher = Knows(goal, clean)
    assert goal(Knows(goal, clean), given) < 1e-8
    assert goal(Knows(goal, 0.5 * clean), given) > 1e-3, "only the lowest level tells a student that it is consistently wrong"


def test_the_path_is_guided() -> None:
    goal, given = Consistency(SCHEDULER, "mse", 3.0), batch()
    goal.teacher = Knows(goal, 0.5 * given["sample"], off=0.1)
    condition = {key: given[key] for key in ("light", "height")}
    noisy = goal.scheduler.add_noise(given["sample"], given["noise"], given["timestep"])
    end = goal.estimate(goal.guided(noisy, given["timestep"], condition), noisy, given["timestep"])
    # free + 3 (conditional - free), with free = conditional + 0.1
    torch.testing.assert_close(end, 0.5 * given["sample"] - 0.2, atol=1e-4, rtol=0)
    nothing = {"light": torch.zeros_like(given["light"]), "height": given["height"]}
    end = goal.estimate(goal.guided(noisy, given["timestep"], nothing), noisy, given["timestep"])
    torch.testing.assert_close(end, 0.5 * given["sample"] + 0.1, atol=1e-4, rtol=0)


def test_the_gradient_is_of_the_first_jump_alone() -> None:
    goal, given = Consistency(SCHEDULER, "mse", 1.0), batch()
    goal.teacher = Knows(goal, given["sample"])
    clean = torch.zeros_like(given["sample"]).requires_grad_()
    goal(Knows(goal, clean), given).backward()
    assert clean.grad is not None
    # Where the second jump, from another place to the same wrong end, is the aim, there is nothing to pull.
    lowest = given["timestep"] < 50
    assert clean.grad[lowest].abs().max() > 1e-4
    assert clean.grad[~lowest].abs().max() < 1e-6


@pytest.fixture(scope="module")
def few(small_data: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("consistency") / "run"
    recipe = small_few(small_run)
    train(small_data, out, recipe, init=small_run, progress=False, pictures_every=0)
    return out


def small_few(small_run: Path) -> Recipe:
    recipe = recipe_for("consistency", None, small_run, {"epochs": 4, "batch_size": 32, "lr": 1e-3})
    return override(recipe, {"validation_fraction": 0.2, "precision": "fp32", "warmup_steps": 0, "ema_decay": 0.9}, "the test")


def test_a_student_comes_closer_to_consistency(few: Path, small_run: Path, small_data: Path) -> None:
    rows = [json.loads(line) for line in (few / "metrics.jsonl").read_text().splitlines()]
    recipe = small_few(small_run)
    goal = Consistency(recipe.scheduler, recipe.loss, recipe.guidance_scale)
    from export.run import Run

    student, teacher = Run.open(few, "denoising"), Run.open(small_run, "denoising")
    data = load_data(small_data)
    condition = Condition.from_dict(json.loads((few / "condition.json").read_text()))
    held = {key: torch.from_numpy(value) for key, value in Batches(data.take(slice(64)), condition, recipe).validation().items()}
    goal.teacher = teacher.network
    with torch.no_grad():
        before, after = float(goal(teacher.network, held)), float(goal(student.network, held))
    assert after < 0.9 * before
    assert rows[-1]["validation_loss"] < before * 1.2
    kept, was = checkpoint.load_weights(few, "teacher"), teacher.network.state_dict()
    assert kept.keys() == was.keys()
    assert all(torch.equal(kept[key], was[key]) for key in kept)


def test_resumed_without_its_teachers_run(few: Path, small_run: Path, small_data: Path, tmp_path: Path) -> None:
    recipe = small_few(small_run)
    train(small_data, tmp_path / "run", recipe, init=small_run, progress=False, pictures_every=0, stop_after=3)
    again = recipe_for("consistency", tmp_path / "run", None, {"epochs": 4, "batch_size": 32, "lr": 1e-3})
    assert again.network_arguments == recipe.network_arguments
    last = train(small_data, tmp_path / "run", recipe, resume=True, progress=False, pictures_every=0)
    for name in ("model", "ema", "optimizer"):
        assert filecmp.cmp(last / f"{name}.safetensors", checkpoint.latest(few) / f"{name}.safetensors", shallow=False), name


def test_its_bundle_samples_in_few_steps(few: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import parity, yardsticks

    monkeypatch.setattr(parity, "ENGINES", ("onnxruntime",))
    monkeypatch.setattr(yardsticks, "CANDIDATES", 2)
    data = load_data(small_data)
    target = Target.from_arrays(data.Rm[0], data.Tm[0], float(data.h[0]), geometry=data.geometry)
    with load(export(few, tmp_path / "bundle"), "onnxruntime", "cpu") as sampler:
        assert sampler.bundle.manifest["sampling"]["scheduler"] == "lcm"
        assert sampler.plan().num_steps == 2
        for steps in (1, 2, 4):
            patterns = sampler.propose(target, 5, steps=steps)
            assert patterns.shape == (5, 5, 5)
            assert len(np.unique(patterns.reshape(5, -1), axis=0)) > 1


def test_mistakes_are_sentences(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"consistency learns from a trained model; name its run with --init"):
        recipe_for("consistency", None, None, {})
    with pytest.raises(DataError, match=r"'original_inference_steps' is 0"):
        override(RECIPES["consistency"], {"scheduler": {"original_inference_steps": 0}}, "here")
    with pytest.raises(DataError, match=r"'guidance_scale' is 3.0; of metasurfaces it is stated when exporting"):
        override(RECIPES["default"], {"guidance_scale": 3.0}, "here")
    (tmp_path / "recipe.json").write_text(json.dumps(dataclasses.asdict(RECIPES["surrogate"])))
    with pytest.raises(DataError, match=r"holds a surrogate, which samples nothing"):
        recipe_for("consistency", None, tmp_path, {})
