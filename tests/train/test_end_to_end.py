"""Few-step models trained end to end: towards the pattern itself, in whichever cyclic shift of it the noise leads to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime.errors import DataError
from runtime.schedulers import plan
from train import checkpoint
from train.end_to_end import EndToEnd, nearest
from train.finetune import recipe_for, recipe_of
from train.loop import train
from train.networks.spectral import SpectralDenoiser
from train.networks.unrolled import retimed
from train.objective import objective
from train.recipes import RECIPES, Recipe, override

SCHEDULER = {**RECIPES["end_to_end"].scheduler, "clip_sample": False}
SMALL: dict[str, Any] = {"size": 5, "orders": 3, "channels": 8, "components": 4, "hidden": 8, "blocks": 2, "tokens": 4, "embedding": 16}


def few(calls: int, passes: int, power: float) -> Recipe:
    whole = passes == power == 1
    arguments = SMALL if whole else {**SMALL, "unrolled": {"scheduler": SCHEDULER, "calls": calls, "passes": passes, "power": power}}
    return dataclasses.replace(
        RECIPES["end_to_end"],
        sampling_steps=calls,
        scheduler=SCHEDULER if whole else retimed(SCHEDULER, calls * passes, power),
        network_arguments=arguments,
    )


def batch(count: int = 6) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(3)
    return {
        "sample": torch.randn(count, 1, 5, 5, generator=draws).sign(),
        "noise": torch.randn(count, 1, 5, 5, generator=draws),
        "timestep": torch.zeros(count).long(),
        "light": torch.rand(count, 4, 7, 7, generator=draws),
        "height": torch.zeros(count, 1),
    }


def test_nearest_is_the_shift_that_differs_in_fewest_pixels() -> None:
    given = batch()
    arrived = torch.randn(6, 1, 5, 5, generator=torch.Generator().manual_seed(4))
    found = nearest(given["sample"], arrived)
    every = torch.stack([given["sample"].roll((i, j), (2, 3)) for i in range(5) for j in range(5)])
    distances = (every - arrived).square().flatten(2).sum(2)
    torch.testing.assert_close((found - arrived).square().flatten(1).sum(1), distances.min(dim=0).values)
    assert (every == found).flatten(2).all(2).any(0).all(), "each is a shift of its own pattern"


@pytest.mark.parametrize(("calls", "passes", "power"), [(1, 1, 1), (2, 1, 1), (2, 3, 2), (4, 2, 1.5)])
def test_its_loss_is_of_what_the_runtimes_sampler_makes(calls: int, passes: int, power: float) -> None:
    recipe, given = few(calls, passes, power), batch()
    torch.manual_seed(0)
    network = SpectralDenoiser(**recipe.network_arguments).eval()
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    steps = plan(recipe.scheduler, calls, "ddim")
    x = given["noise"].numpy().copy()
    history = steps.new_history(x.shape)
    with torch.no_grad():
        for k, t in enumerate(steps.timesteps):
            output = network(torch.from_numpy(x), torch.full((6,), int(t)), given["light"], given["height"])
            steps.step(k, output.numpy(), x, None, history)
        found = EndToEnd(recipe)(network, given)
    arrived = torch.from_numpy(x)
    errors = (arrived - nearest(given["sample"], arrived)).abs().flatten(1).mean(1)
    torch.testing.assert_close(found, torch.log(1 + errors / 0.1).mean(), atol=1e-4, rtol=0)


def test_any_shift_of_the_pattern_is_right() -> None:
    goal, given = EndToEnd(few(1, 1, 1)), batch()

    def arrives_at(clean: torch.Tensor) -> torch.Tensor:
        return goal(lambda sample, timestep, light, height: (sample * np.cos(goal.angle(999)) - clean) / np.sin(goal.angle(999)), given)

    assert arrives_at(given["sample"]) < 1e-4
    assert arrives_at(given["sample"].roll((2, 4), (2, 3))) < 1e-4
    assert arrives_at(-given["sample"]) > 0.5


def test_what_is_nearly_right_counts_most() -> None:
    """The way to one pattern that is right leads over those that can be had, not over the mean of all errors."""
    goal, given = EndToEnd(few(1, 1, 1)), batch(2)
    arrived = given["sample"] * torch.tensor([0.9, 0.2]).reshape(2, 1, 1, 1)
    arrived.requires_grad_()
    goal(lambda sample, timestep, light, height: (sample * np.cos(goal.angle(999)) - arrived) / np.sin(goal.angle(999)), given).backward()
    assert arrived.grad is not None
    nearly, hardly = arrived.grad.abs().flatten(1).sum(1)
    np.testing.assert_allclose(float(nearly / hardly), (0.1 + 0.8) / (0.1 + 0.1), rtol=1e-3)


def test_every_call_learns_from_where_the_last_arrives() -> None:
    """The gradient by what the first call says is the loss's slope, measured; it would be 0 if calls were taught apart."""
    goal, given = EndToEnd(few(2, 1, 1)), batch()

    class Two(torch.nn.Module):
        def __init__(self, weights: tuple[float, float]) -> None:
            super().__init__()
            self.weights = torch.nn.Parameter(torch.tensor(weights, dtype=torch.float64))

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, **_: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return self.weights[0 if int(timestep[0]) == 999 else 1] * torch.tanh(sample.double())

    def loss(first: float) -> torch.Tensor:
        return goal(Two((first, 0.7)), given)

    network = Two((0.3, 0.7))
    goal(network, given).backward()
    assert network.weights.grad is not None
    slope = (loss(0.3 + 1e-2) - loss(0.3 - 1e-2)).item() / 2e-2
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(network.weights.grad[0].item(), slope, rtol=2e-2)


@pytest.fixture(scope="module")
def taught(small_data: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("end_to_end") / "run"
    recipe = recipe_for("end_to_end", None, small_run, {"epochs": 1, "batch_size": 32})
    recipe = override(recipe, {"validation_fraction": 0.2, "precision": "fp32"}, "the test")
    train(small_data, out, recipe, init=small_run, progress=False, pictures_every=1)
    return out


def test_it_learns() -> None:
    recipe, given = few(2, 2, 2), batch(8)
    goal = objective(recipe)
    torch.manual_seed(0)
    network = SpectralDenoiser(**recipe.network_arguments)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = goal(network, given)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_a_run_of_it(taught: Path, small_run: Path) -> None:
    recipe, before = recipe_of(taught), recipe_of(small_run).network_arguments
    assert isinstance(objective(recipe), EndToEnd)
    assert {key: recipe.network_arguments[key] for key in before} == before
    assert recipe.network_arguments["unrolled"]["passes"] == 6
    assert not (taught / "teacher.safetensors").exists()
    assert (taught / "samples" / "epoch-001.png").exists()


def test_it_goes_on_and_is_gone_on_from(taught: Path, small_data: Path, tmp_path: Path) -> None:
    again = recipe_for(None, None, taught, {"epochs": 1})
    assert again == dataclasses.replace(recipe_of(taught), epochs=1)
    last = train(small_data, tmp_path / "run", again, init=taught, progress=False, pictures_every=0, stop_after=1)
    assert checkpoint.load_weights(last).keys() == checkpoint.load_weights(checkpoint.latest(taught)).keys()


def test_mistakes_are_sentences(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"end_to_end learns from a trained model; name its run with --init"):
        recipe_for("end_to_end", None, None, {})
    with pytest.raises(DataError, match=r"holds a few-step model that has no teacher, and the recipe consistency needs one"):
        recipe_for("consistency", None, taught, {})
    with pytest.raises(DataError, match=r"holds a few-step model, .* and the recipe default would teach it another"):
        recipe_for("default", None, taught, {})
    with pytest.raises(DataError, match=r"'sampling_steps' is 2 and 'teacher_steps' 12; the objective 'end_to_end' takes 1 step"):
        override(RECIPES["end_to_end"], {"teacher_steps": 12}, "here")
    with pytest.raises(DataError, match=r"'teacher_steps' is 12, which is for the objective 'distillation'; leave it at 0"):
        override(RECIPES["default"], {"teacher_steps": 12}, "here")
    with pytest.raises(DataError, match=r"the objective is 'end_to_end' and the layout 'planes'; a canvas is not periodic"):
        override(RECIPES["end_to_end"], {"layout": "planes"}, "here")
