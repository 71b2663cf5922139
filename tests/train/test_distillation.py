"""Few-step models: they learn the teacher's path, go down it in calls of several passes, and sample in two steps."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from export.bundle import export
from export.precision import half
from runtime.condition import Condition
from runtime.data import load as load_data
from runtime.errors import DataError
from runtime.sampler import load
from runtime.schedulers import plan
from runtime.target import Target
from train import checkpoint
from train.batches import Batches
from train.distillation import Distillation
from train.finetune import Start, recipe_for, recipe_of
from train.loop import train
from train.networks.spectral import SpectralDenoiser
from train.networks.unrolled import descent, retimed
from train.objective import objective
from train.recipes import RECIPES, Recipe, override

SCHEDULER = {**RECIPES["consistency"].scheduler, "clip_sample": False}
SMALL: dict[str, Any] = {"size": 5, "orders": 3, "channels": 8, "components": 4, "hidden": 8, "blocks": 2, "tokens": 4, "embedding": 16}


def student(
    calls: int, teacher_steps: int, guidance_scale: float = 1.0, power: float = 1, passes: int = 1, **scheduler: Any
) -> Distillation:
    """Its objective; the teacher knows ``SCHEDULER``, and the student another schedule where a call has parts of its own."""
    taught = {**SCHEDULER, **scheduler}
    recipe = dataclasses.replace(
        RECIPES["consistency"],
        loss="mse",
        guidance_scale=guidance_scale,
        sampling_steps=calls,
        teacher_steps=teacher_steps,
        scheduler=taught if passes == power == 1 else retimed(taught, calls * passes, power),
        network_arguments={"unrolled": {"scheduler": taught, "calls": calls, "passes": passes, "power": power}},
    )
    return Distillation(recipe)


class Knows(nn.Module):
    """Predicts v for the one clean sample it knows, shifted by ``off`` where nothing is asked of the light; ``bend`` is by timestep."""

    def __init__(self, goal: Distillation, clean: torch.Tensor, off: float = 0.0, bend: float = 0.0) -> None:
        super().__init__()
        self.goal, self.clean, self.off, self.bend = goal, clean, off, bend
        self.starts: list[torch.Tensor] = []

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, light: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        self.starts.append(sample)
        asked = light.flatten(1).any(dim=1)[:, None, None, None]
        clean = torch.where(asked, self.clean, self.clean + self.off)
        now = int(timestep[0])
        return self.goal.output(clean * (1 + self.bend * (now / 1000) ** 2), sample, now)


def batch(count: int = 40) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(3)
    return {
        "sample": torch.randn(count, 1, 4, 4, generator=draws).sign(),
        "noise": torch.randn(count, 1, 4, 4, generator=draws),
        "timestep": torch.linspace(0, 999, count).long(),
        "light": torch.ones(count, 4, 3, 3),
        "height": torch.zeros(count, 1),
    }


@pytest.mark.parametrize("calls", [1, 2, 4, 5, 10])
def test_calls_start_where_the_sampler_makes_them(calls: int) -> None:
    goal = student(calls, 2 * calls)
    assert goal.called == plan(SCHEDULER, calls, "ddim").timesteps.tolist() == [part[0] for part in goal.parts]
    assert goal.parts[0][0] == 999
    assert [part[-1] for part in goal.parts] == [*goal.called[1:], -1]


@pytest.mark.parametrize(("calls", "passes", "power"), [(2, 3, 2), (2, 6, 2), (4, 2, 1), (1, 12, 1.5)])
def test_a_students_levels_are_its_teachers(calls: int, passes: int, power: float) -> None:
    goal = student(calls, 12, power=power, passes=passes)
    kept = goal.scheduler.alphas_cumprod
    assert len(kept) == calls * passes
    assert goal.called == [passes * k - 1 for k in range(calls, 0, -1)]
    assert [part[-1] for part in goal.parts] == [*(part[0] for part in goal.parts[1:]), -1]
    for now, part in zip(goal.called, goal.parts, strict=True):
        np.testing.assert_allclose(math.sqrt(kept[now]), math.cos(goal.angle(part[0])), atol=1e-5)


def test_parts_grow_towards_the_clean_sample() -> None:
    assert descent(1000, 4, 1) == [999, 749, 499, 249, -1]
    assert descent(1000, 4, 2) == [999, 937, 749, 437, -1]
    assert descent(1000, 2, 2) == descent(1000, 4, 2)[::2]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_teachers_path_is_the_runtimes_dpmsolver(prediction_type: str) -> None:
    scheduler = {**SCHEDULER, "prediction_type": prediction_type}
    goal, given = student(1, 10, prediction_type=prediction_type), batch(3)
    goal.teacher = Knows(goal, 0.3 * given["sample"], bend=1.5)
    condition = {key: given[key] for key in ("light", "height")}
    steps = plan(scheduler, 10, "dpmsolver++")
    x = given["noise"].numpy().copy()
    history = steps.new_history(x.shape)
    assert goal.parts == [[*steps.timesteps, -1]]
    for k, t in enumerate(steps.timesteps):
        steps.step(k, goal.teacher(torch.from_numpy(x), torch.full((3,), int(t)), **condition).numpy(), x, None, history)
    found = goal.arrived(given["noise"], goal.parts[0], condition)
    np.testing.assert_allclose(found.numpy(), x.clip(-1, 1), atol=2e-4)
    assert np.abs(x).max() < 0.99, "nothing of it was clipped"


def test_who_arrives_where_the_teacher_does_has_nothing_to_learn() -> None:
    for calls in (1, 2, 4):
        goal, given = student(calls, 12), batch()
        goal.teacher = Knows(goal, given["sample"])
        assert goal(Knows(goal, given["sample"]), given) < 1e-8
        assert goal(Knows(goal, 0.5 * given["sample"]), given) > 1e-3


def test_a_call_begins_where_the_one_before_arrived() -> None:
    goal, given = student(2, 12), batch()
    goal.teacher = Knows(goal, given["sample"])
    apart = Knows(goal, 0.5 * given["sample"])
    goal(apart, given)
    first, second = apart.starts
    assert torch.equal(first, given["noise"])
    torch.testing.assert_close(second, goal.arrive(0.5 * given["sample"], first, 999, 499))
    teachers = goal.teacher.starts[6]
    assert torch.equal(teachers, second), "and so does the teacher"


def test_the_path_is_guided() -> None:
    goal, given = student(2, 12, guidance_scale=3.0), batch()
    goal.teacher = Knows(goal, 0.5 * given["sample"], off=0.1)
    condition = {key: given[key] for key in ("light", "height")}
    end = goal.estimate(goal.guided(given["noise"], 700, condition), given["noise"], 700)
    # free + 3 (conditional - free), with free = conditional + 0.1
    torch.testing.assert_close(end, 0.5 * given["sample"] - 0.2, atol=1e-4, rtol=0)
    nothing = {"light": torch.zeros_like(given["light"]), "height": given["height"]}
    end = goal.estimate(goal.guided(given["noise"], 700, nothing), given["noise"], 700)
    torch.testing.assert_close(end, 0.5 * given["sample"] + 0.1, atol=1e-4, rtol=0)


def unrolled(calls: int, passes: int, power: float = 1) -> tuple[SpectralDenoiser, SpectralDenoiser]:
    """A network of several passes, and the same one of one pass."""
    torch.manual_seed(0)
    plain = SpectralDenoiser(**SMALL).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    deep = SpectralDenoiser(**SMALL, unrolled={"scheduler": SCHEDULER, "calls": calls, "passes": passes, "power": power}).eval()
    deep.load_state_dict(plain.state_dict())
    return deep, plain


@torch.no_grad()
def sampled(network: SpectralDenoiser, scheduler: dict[str, Any], steps: int, known: list[int] | None = None) -> np.ndarray:
    """By the runtime's ddim; ``known`` are the timesteps that the network is told in place of the scheduler's."""
    draws = torch.Generator().manual_seed(1)
    x, light = torch.randn(3, 1, 5, 5, generator=draws).numpy(), torch.rand(3, 4, 7, 7, generator=draws)
    path = plan(scheduler, steps, "ddim")
    history = path.new_history(x.shape)
    for k, t in enumerate(path.timesteps if known is None else known):
        path.step(k, network(torch.from_numpy(x), torch.full((3,), int(t)), light, torch.zeros(3, 1)).numpy(), x, None, history)
    return x


def test_a_call_of_several_passes_is_as_many_steps_of_the_runtimes_ddim() -> None:
    for calls, passes, power in ((2, 4, 1), (5, 2, 1), (1, 5, 1), (2, 6, 2)):
        deep, plain = unrolled(calls, passes, power)
        own, parts = retimed(SCHEDULER, calls * passes, power), descent(1000, calls * passes, power)
        steps = sampled(plain, own, calls * passes, parts[:-1])
        np.testing.assert_allclose(sampled(deep, own, calls), steps, atol=2e-5)
        if power == 1:
            np.testing.assert_allclose(steps, sampled(plain, SCHEDULER, calls * passes), atol=2e-5)
        assert np.abs(sampled(plain, SCHEDULER, calls) - steps).max() > 1e-2, "more steps make a difference"


def test_a_call_near_the_end_of_the_path_ends_there() -> None:
    """At its last timestep a call of three passes has nothing left to do after the first; it is exported, and compared, at all of them."""
    deep, plain = unrolled(2, 3)
    x, light, height = torch.randn(2, 1, 5, 5), torch.rand(2, 4, 7, 7), torch.zeros(2, 1)
    with torch.no_grad():
        last = plain(x, torch.full((2,), descent(1000, 6, 1)[-2]), light, height)
        torch.testing.assert_close(deep(x, torch.zeros(2, dtype=torch.long), light, height), last, atol=1e-5, rtol=1e-5)


def test_a_half_network_keeps_the_sample_between_passes_in_float32() -> None:
    deep, _ = unrolled(2, 3)
    twin = half(deep)
    assert twin.get_buffer("path.table").dtype == torch.float32
    x, light, height = torch.randn(2, 1, 5, 5), torch.rand(2, 4, 7, 7), torch.zeros(2, 1)
    with torch.no_grad():
        at = torch.full((2,), 5)
        torch.testing.assert_close(twin(x, at, light, height), deep(x, at, light, height), atol=2e-2, rtol=0)


def test_a_run_spaced_otherwise_is_taught_where_it_will_be_sampled(tmp_path: Path) -> None:
    """lab2023 spaces its timesteps ``leading``: two steps would be called at 500 and 0, and go down from there."""
    (tmp_path / "recipe.json").write_text(json.dumps(dataclasses.asdict(RECIPES["lab2023"])))
    (tmp_path / "once.json").write_text(
        json.dumps({"base": "consistency", "guidance_scale": 1.0, "network_arguments": {"unrolled": {"passes": 1}}})
    )
    with pytest.raises(DataError, match=r"'guidance_scale' is 3; a network without a mask is not guided"):
        recipe_for(str(tmp_path / "once.json"), None, tmp_path, {"guidance_scale": 3})
    recipe = recipe_for(str(tmp_path / "once.json"), None, tmp_path, {})
    assert (recipe.network, recipe.network_arguments) == ("lab2023", {})
    assert plan(recipe.scheduler, 2, "ddim").timesteps.tolist() == [999, 499]
    goal = objective(recipe)
    assert isinstance(goal, Distillation)
    assert goal.called == [999, 499]


@pytest.fixture(scope="module")
def few(small_data: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("distillation") / "run"
    recipe = small_few(small_run)
    train(small_data, out, recipe, init=small_run, progress=False, pictures_every=0)
    return out


def small_few(small_run: Path) -> Recipe:
    recipe = recipe_for("consistency", None, small_run, {"epochs": 4, "batch_size": 32, "lr": 1e-3})
    return override(recipe, {"validation_fraction": 0.2, "precision": "fp32", "warmup_steps": 0, "ema_decay": 0.9}, "the test")


def test_a_student_comes_closer_to_its_teacher(few: Path, small_run: Path, small_data: Path) -> None:
    rows = [json.loads(line) for line in (few / "metrics.jsonl").read_text().splitlines()]
    recipe = small_few(small_run)
    goal = objective(recipe)
    assert isinstance(goal, Distillation)
    from export.run import Run

    student, teacher = Run.open(few, "denoising"), Run.open(small_run, "denoising")
    data = load_data(small_data)
    condition = Condition.from_dict(json.loads((few / "condition.json").read_text()))
    held = {key: torch.from_numpy(value) for key, value in Batches(data.take(slice(64)), condition, recipe).validation().items()}
    goal.teacher = teacher.network
    untaught = student.network
    with torch.no_grad():
        after = float(goal(student.network, held))
        untaught.load_state_dict(teacher.network.state_dict())
        before = float(goal(untaught, held))
    assert after < 0.9 * before
    assert rows[-1]["validation_loss"] < before * 1.2
    kept, was = checkpoint.load_weights(few, "teacher"), teacher.network.state_dict()
    assert kept.keys() == was.keys()
    assert all(torch.equal(kept[key], was[key]) for key in kept)


def test_a_student_goes_on_in_more_passes_with_the_same_teacher(few: Path, small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "deeper.json").write_text(json.dumps({"base": "consistency", "network_arguments": {"unrolled": {"passes": 4, "power": 1}}}))
    recipe = recipe_for(str(tmp_path / "deeper.json"), None, few, {"batch_size": 32, "lr": 1e-9})
    recipe = override(recipe, {"validation_fraction": 0.2, "precision": "fp32"}, "the test")
    before, now = recipe_of(few).network_arguments, recipe.network_arguments
    assert (now["size"], now["unrolled"]) == (5, {**before["unrolled"], "passes": 4, "power": 1})
    assert recipe.scheduler["num_train_timesteps"] == 8
    last = train(small_data, tmp_path / "run", recipe, init=few, progress=False, pictures_every=0, stop_after=1)
    for folder, name, was in ((last, "ema", checkpoint.latest(few)), (tmp_path / "run", "teacher", few)):
        kept, before = checkpoint.load_weights(folder, name), checkpoint.load_weights(was, name)
        assert kept.keys() == before.keys()
        assert all(torch.allclose(kept[key], before[key], rtol=0, atol=1e-6) for key in kept)
    assert json.loads((tmp_path / "run" / "data.json").read_text())["init"] == Start.open(few).facts()
    again = recipe_for(None, None, few, {"epochs": 1})
    assert again.network_arguments == recipe_of(few).network_arguments


def test_resumed_without_its_teachers_run(few: Path, small_run: Path, small_data: Path, tmp_path: Path) -> None:
    recipe = small_few(small_run)
    train(small_data, tmp_path / "run", recipe, init=small_run, progress=False, pictures_every=0, stop_after=3)
    again = recipe_for("consistency", tmp_path / "run", None, {"epochs": 4, "batch_size": 32, "lr": 1e-3})
    assert again.network_arguments == recipe.network_arguments
    last = train(small_data, tmp_path / "run", recipe, resume=True, progress=False, pictures_every=0)
    for name in ("model", "ema", "optimizer"):
        assert filecmp.cmp(last / f"{name}.safetensors", checkpoint.latest(few) / f"{name}.safetensors", shallow=False), name


def test_its_bundle_samples_in_two_steps(few: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import parity, yardsticks

    monkeypatch.setattr(parity, "ENGINES", ("onnxruntime",))
    monkeypatch.setattr(yardsticks, "CANDIDATES", 2)
    data = load_data(small_data)
    target = Target.from_arrays(data.Rm[0], data.Tm[0], float(data.h[0]), geometry=data.geometry)
    with load(export(few, tmp_path / "bundle"), "onnxruntime", "cpu") as sampler:
        assert sampler.bundle.manifest["sampling"]["scheduler"] == "ddim"
        assert sampler.bundle.json("scheduler_config.json")["clip_sample"] is False
        assert sampler.plan().num_steps == 2
        assert "ddim, 2 steps of 3 passes each" in sampler.bundle.read("README.md").decode()
        patterns = sampler.propose(target, 5)
        assert patterns.shape == (5, 5, 5)
        assert len(np.unique(patterns.reshape(5, -1), axis=0)) > 1


def test_mistakes_are_sentences(few: Path, small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"consistency learns from a trained model; name its run with --init"):
        recipe_for("consistency", None, None, {})
    with pytest.raises(DataError, match=r"'teacher_steps' is 12 and 'sampling_steps' 5; each step learns as many"):
        override(RECIPES["consistency"], {"sampling_steps": 5}, "here")
    with pytest.raises(DataError, match=r"'sampling_steps' is 3 and the scheduler has 1000 timesteps"):
        override(RECIPES["consistency"], {"sampling_steps": 3, "network_arguments": {"unrolled": {"passes": 1}}}, "here")
    with pytest.raises(DataError, match=r"'teacher_steps' cuts the 1000 timesteps of the scheduler into 32 parts by the power 2, of which"):
        override(RECIPES["consistency"], {"teacher_steps": 32}, "here")
    with pytest.raises(DataError, match=r"'network_arguments.unrolled.passes' cuts the 1000 timesteps .* into 1200 parts by the"):
        override(RECIPES["consistency"], {"network_arguments": {"unrolled": {"passes": 600, "power": 1}}}, "here")
    with pytest.raises(DataError, match=r"'network_arguments.unrolled' has no 'power'; name it beside 'passes'"):
        override(RECIPES["consistency"], {"network_arguments": {"unrolled": {"passes": 6}}}, "here")
    with pytest.raises(DataError, match=r"'network_arguments.unrolled' has the unknown field 'powr'; it has passes and power"):
        override(RECIPES["consistency"], {"network_arguments": {"unrolled": {"passes": 3, "powr": 2}}}, "here")
    with pytest.raises(DataError, match=r"'network_arguments.unrolled.power' is 0.5; expected a number from 1, equal parts, to 4"):
        override(RECIPES["consistency"], {"network_arguments": {"unrolled": {"passes": 3, "power": 0.5}}}, "here")
    with pytest.raises(DataError, match=r"'network_arguments.unrolled' is \{'passes': 0\}; expected"):
        override(RECIPES["consistency"], {"network_arguments": {"unrolled": {"passes": 0}}}, "here")
    with pytest.raises(DataError, match=r"'teacher_steps' is 12, which is for the objective 'distillation'; leave it at 0"):
        override(RECIPES["default"], {"teacher_steps": 12}, "here")
    with pytest.raises(DataError, match=r"'guidance_scale' is 3.0; of metasurfaces it is stated when exporting"):
        override(RECIPES["default"], {"guidance_scale": 3.0}, "here")
    with pytest.raises(DataError, match=r"holds a few-step model, .* and the recipe default would teach it another; name the run it"):
        recipe_for("default", None, few, {})
    lab = dataclasses.replace(RECIPES["lab2023"], name="lab")
    (tmp_path / "recipe.json").write_text(json.dumps(dataclasses.asdict(lab)))
    with pytest.raises(
        DataError,
        match=r"has the network 'lab2023', and only 'spectral' with .* makes 3 passes in a call and cuts its path by the power 2; set",
    ):
        recipe_for("consistency", None, tmp_path, {})
    (tmp_path / "recipe.json").write_text(json.dumps(dataclasses.asdict(RECIPES["surrogate"])))
    with pytest.raises(DataError, match=r"holds a surrogate, which samples nothing"):
        recipe_for("consistency", None, tmp_path, {})
