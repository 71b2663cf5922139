"""The samplers against diffusers: the values its own tests publish, and whole trajectories of drawn configurations."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from runtime.schedulers import SCHEDULERS, load_config, plan

Config = Callable[..., dict[str, Any]]
RunPlan = Callable[..., list[np.ndarray]]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, on NumPy 2

# --- Values published in diffusers' own tests -----------------------------------------------------------------------

RAMP = np.ascontiguousarray((np.arange(768).reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2)).astype(np.float32)
# What those tests set.
DPM_TEST = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
DPM_THRESHOLD = {**DPM_TEST, "thresholding": True, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5}
UNIPC_TEST = {"final_sigmas_type": "sigma_min"}
LCM_TEST = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SIGMA_TEST = {"num_train_timesteps": 1100}
V = {"prediction_type": "v_prediction"}
KARRAS = {"use_karras_sigmas": True}


def dummy(sample: np.ndarray, t: int, sigma: float = 0.0) -> np.ndarray:
    return sample * np.float32(t / (t + 1))


def seeded(count: int) -> list[np.ndarray]:
    """The noise that diffusers' tests draw from torch.manual_seed(0)."""
    torch = pytest.importorskip("torch")
    generator = torch.manual_seed(0)
    return [torch.randn(RAMP.shape, generator=generator).numpy() for _ in range(count)]


@pytest.mark.parametrize(
    ("word", "options", "num_steps", "total", "mean"),
    [
        ("ddim", {}, 10, 172.0067, 0.223967),
        ("ddim", V, 10, 52.5302, 0.0684),
        ("ddim", {"beta_start": 0.01}, 10, 149.8295, 0.1951),
        ("ddim", {"beta_start": 0.01, "set_alpha_to_one": False}, 10, 149.0784, 0.1941),
        ("ddpm", {}, 1000, 258.9606, 0.3372),
        ("ddpm", V, 1000, 202.0296, 0.2631),
        ("dpmsolver++", DPM_TEST, 10, None, 0.3301),
        ("dpmsolver++", {**DPM_TEST, **V}, 10, None, 0.2251),
        ("dpmsolver++", DPM_THRESHOLD, 10, None, 1.1364),
        ("unipc", UNIPC_TEST, 10, None, 0.2464),
        ("unipc", {**UNIPC_TEST, **V}, 10, None, 0.1014),
        ("unipc", {**UNIPC_TEST, **KARRAS}, 10, None, 0.2925),
        ("unipc", {**UNIPC_TEST, **V, **KARRAS}, 10, None, 0.1966),
        ("lcm", LCM_TEST, 1, 18.7097, 0.0244),
        ("lcm", LCM_TEST, 10, 197.7616, 0.2575),
    ],
)
def test_published_loops(
    word: str, options: dict[str, Any], num_steps: int, total: float | None, mean: float, scheduler_config: Config, run_plan: RunPlan
) -> None:
    steps = plan(scheduler_config(word, **options), num_steps)
    noises = seeded(num_steps) if steps.needs_noise.any() else None
    last = run_plan(steps, dummy, RAMP, noises)[-1]
    assert np.abs(last).mean() == pytest.approx(mean, abs=1e-3)
    if total is not None:
        assert np.abs(last).sum() == pytest.approx(total, abs=1e-2)


@pytest.mark.parametrize(
    ("word", "options", "total"),
    [
        ("euler", {}, 10.0807),
        ("euler", V, 0.0002),
        ("euler", KARRAS, 124.52299499511719),
        ("euler-ancestral", {}, 152.3192),
        ("euler-ancestral", V, 108.4439),
    ],
)
def test_published_loops_in_sigma(word: str, options: dict[str, Any], total: float, scheduler_config: Config) -> None:
    """Those tests write the network's input over the sample, which divides it by sqrt(1 + sigma^2) once too often.

    Their Karras timesteps are fractional, hence 2e-4. (In the test of Heun the second stage then does not begin where the
    first one arrived, which no sampling loop does.)
    """
    steps = plan(scheduler_config(word, **SIGMA_TEST, **options), 10)
    noises = seeded(10)
    sample = steps.start(RAMP.copy())
    history = steps.new_history(sample.shape)
    for k, t in enumerate(steps.timesteps):
        output = dummy(sample, t)
        sample /= np.float32(np.sqrt(1 + steps.sigmas[k] ** 2))
        steps.step(k, output, sample, noises[k], history)
    assert np.abs(sample).sum() == pytest.approx(total, abs=1e-2, rel=2e-4)


def test_published_variances_and_timesteps(scheduler_config: Config) -> None:
    variance = plan(scheduler_config("ddpm")).table["noise"][::-1] ** 2
    assert variance[[0, 487, 999]] == pytest.approx([0.0, 0.00979, 0.02], abs=1e-5)
    by_50 = plan(scheduler_config("ddim"), 50, eta=1.0)
    assert by_50.timesteps[0] == 980
    assert by_50.table["noise"][[0, 28]] ** 2 == pytest.approx([0.32460, 0.14771], abs=1e-5)  # 980 to 960, 420 to 400
    assert plan(scheduler_config("ddim", steps_offset=1), 5).timesteps.tolist() == [801, 601, 401, 201, 1]
    assert plan(scheduler_config("lcm"), 10).timesteps.tolist() == list(range(999, 0, -100))


# --- diffusers itself, in float64 -----------------------------------------------------------------------------------

MODULES = (
    *("ddpm", "ddim", "lcm", "dpmsolver_multistep", "unipc_multistep"),
    *("euler_discrete", "euler_ancestral_discrete", "heun_discrete"),
)


class Double:
    """A module whose float32 is float64."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, "float64" if name == "float32" else name)


@contextlib.contextmanager
def doubled(draw: Callable[..., Any]) -> Iterator[None]:
    """diffusers' schedulers compute in float64 and take their noise from ``draw``."""
    import torch

    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        for name in MODULES:
            module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
            for attribute, value in (("torch", Double(torch)), ("np", Double(np)), ("randn_tensor", draw)):
                if hasattr(module, attribute):
                    stack.enter_context(mock.patch.object(module, attribute, value))
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def reference(options: dict[str, Any], num_steps: int, eta: float, network: Any, start: np.ndarray, noises: Any) -> Any:
    """diffusers' timesteps, whole ones, and its trajectory, on the scale of the network's input, in float64 and with our noise."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    noise: list[Any] = []
    trajectory = []
    with doubled(lambda *args, **kwargs: noise[-1]):
        scheduler = getattr(diffusers, options["_class_name"]).from_config(options)
        scheduler.set_timesteps(num_steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # else it starts at the second of two equal timesteps
        in_sigma = type(scheduler).__name__.endswith("DiscreteScheduler")
        state = torch.from_numpy(start.astype(np.float64)) * scheduler.init_noise_sigma
        for k, t in enumerate(scheduler.timesteps):
            noise.append(torch.from_numpy(noises[k].astype(np.float64)))
            seen = scheduler.scale_model_input(state, t)
            output = torch.from_numpy(network(seen.numpy(), round(float(t))))
            ddim = {"eta": eta, "variance_noise": noise[-1], "use_clipped_model_output": True}
            extra = ddim if type(scheduler).__name__ == "DDIMScheduler" else {}
            state = scheduler.step(output, t, state, **extra).prev_sample
            scale = np.hypot(1.0, float(scheduler.sigmas[scheduler.step_index])) if in_sigma else 1.0
            trajectory.append(state.numpy() / scale)
    assert state.dtype == torch.float64
    return [round(float(t)) for t in scheduler.timesteps], trajectory


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, dict[str, Any], int, float]:
    """A word, options that its class reads, a number of steps and eta."""

    def one_of(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    word, flag, n = one_of(*SCHEDULERS), st.booleans(), one_of(50, 100, 1000)
    solver, chain = word in ("dpmsolver++", "sde-dpmsolver++", "unipc"), word in ("ddpm", "ddim", "lcm")
    rescale = draw(flag) and word != "heun"
    # Without any signal left, epsilon says nothing: refused, and tested elsewhere. Euler ancestral has no sample in diffusers.
    predictions = ("epsilon", "v_prediction", "sample")[rescale and chain : 2 if word == "euler-ancestral" else 3]
    options = {
        "num_train_timesteps": n,
        "beta_schedule": one_of("linear", "scaled_linear", "squaredcos_cap_v2"),
        "beta_start": one_of(0.0001, 0.00085, 0.005),
        "beta_end": one_of(0.012, 0.02, 0.05),
        "trained_betas": one_of(None, None, None, np.geomspace(1e-4, 0.05, n).tolist()),
        "rescale_betas_zero_snr": rescale,
        "prediction_type": one_of(*predictions),
        "timestep_spacing": one_of("leading", "trailing", "linspace"),
        "steps_offset": one_of(0, 1),
    }
    if solver or chain:
        options |= {"thresholding": draw(flag), "dynamic_thresholding_ratio": one_of(0.0, 0.7, 0.995, 1.0)}
        options |= {"sample_max_value": one_of(0.5, 1.0, 3.0)}
    if chain or word == "heun":
        options |= {"clip_sample": draw(flag), "clip_sample_range": one_of(0.5, 1.0, 2.0)}
    if solver or word == "euler":
        options |= {"final_sigmas_type": one_of("zero", "sigma_min")}
    if solver or word in ("euler", "heun"):
        options |= {"use_karras_sigmas": draw(flag), "sigma_min": one_of(None, None, 0.02), "sigma_max": one_of(None, None, 20.0)}
    if solver:
        options |= {"solver_order": one_of(1, 2), "lower_order_final": draw(flag)}
    if word == "unipc":
        options |= {"solver_type": one_of("bh1", "bh2", "midpoint"), "disable_corrector": one_of([], [0, 1], [3], list(range(30)))}
    elif solver:
        options |= {"solver_type": one_of("midpoint", "heun", "bh2"), "euler_at_final": draw(flag)}
        options |= {"lambda_min_clipped": one_of(float("-inf"), -5.1)}
    if word == "euler" and options["use_karras_sigmas"]:
        options |= {"interpolation_type": one_of("linear", "log_linear")}
    if word == "lcm":
        options |= {"original_inference_steps": one_of(30, 50), "timestep_scaling": one_of(0.01, 10.0)}
    if word == "ddpm":
        options |= {"variance_type": one_of("fixed_small", "fixed_small_log", "fixed_large")}
    if word == "ddim":
        options |= {"set_alpha_to_one": draw(flag)}
    return word, options, draw(st.integers(2, 30)), one_of(0.0, 0.3, 1.0) if word == "ddim" else 0.0


HARD = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing", "rescale_betas_zero_snr": False}


@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(configurations(), st.integers(0, 2**32 - 1))
@example(("ddim", {**HARD, "clip_sample": False}, 20, 0.0), 0)
@example(("ddpm", {**HARD, "clip_sample": True}, 20, 0.0), 0)
@example(("unipc", HARD, 20, 0.0), 0)
@example(("euler", HARD, 20, 0.0), 0)
@example(("heun", HARD, 20, 0.0), 0)
@example(("euler-ancestral", HARD, 20, 0.0), 0)
def test_trajectories_are_those_of_diffusers(
    scheduler_config: Config, run_plan: RunPlan, drawn: tuple[str, dict[str, Any], int, float], seed: int
) -> None:
    word, options, num_steps, eta = drawn
    options = scheduler_config(word, **options)
    n = options["num_train_timesteps"]
    # One timestep more than asked for, at -1: see test_trailing_never_visits_a_timestep_of_minus_one.
    assume(options["timestep_spacing"] != "trailing" or np.arange(n, 0, -n / num_steps).round()[-1] > 0)
    # diffusers divides by zero: see test_a_last_step_into_zero_is_of_first_order.
    into_zero = word == "unipc" and options.get("final_sigmas_type", "zero") == "zero"
    assume(not into_zero or options.get("lower_order_final", True) or options.get("solver_order", 2) == 1)
    rng = np.random.default_rng(seed)
    start, *noises = rng.standard_normal((2 * num_steps, 2, 1, 4, 4), dtype=np.float32)

    def network(sample: np.ndarray, t: int, sigma: float = 0.0) -> np.ndarray:
        return np.tanh(sample) * (0.7 + 0.3 * t / n) + 0.1 * np.cos(sample + t)

    with np.errstate(all="ignore"):
        timesteps, theirs = reference(options, num_steps, eta, network, start, noises)
    assume(np.isfinite(theirs).all())  # DPM-Solver's heun divides 0 by 0 when the last step has no length
    steps = plan(options, num_steps, eta=eta)
    assert steps.timesteps.tolist() == timesteps
    scale = np.maximum.accumulate([max(1.0, np.abs(expected).max()) for expected in theirs])
    doubles = start.astype(np.float64), np.asarray(noises, np.float64)
    for mine, expected, size in zip(run_plan(steps, network, *doubles), theirs, scale, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-7 * size)
    # In float32 the network's own rounding comes back times the gain near pure noise (and clipping hides it from the sample's
    # size), and times the slope's coefficient where two steps of Heun span the whole schedule.
    tolerance = max(1e-4, 8 * np.finfo(np.float32).eps * np.abs(steps.table.view(np.float64)).max())
    for mine, expected, size in zip(run_plan(steps, network, start, noises), theirs, scale, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, expected, rtol=0, atol=tolerance * size)


# --- Where diffusers is not followed --------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [word for word in SCHEDULERS if word not in ("heun", "lcm")])
@pytest.mark.parametrize("num_steps", [61, 103, 121])
def test_trailing_never_visits_a_timestep_of_minus_one(word: str, num_steps: int, scheduler_config: Config) -> None:
    """numpy.arange's rounding gives diffusers one timestep too many here, at -1."""
    timesteps = plan(scheduler_config(word, timestep_spacing="trailing"), num_steps).timesteps
    assert len(timesteps) == num_steps
    assert timesteps[0] == 999
    assert 0 <= timesteps[-1] < 1000 / num_steps


def test_reads_what_diffusers_writes(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    for word, entry in SCHEDULERS.items():
        getattr(diffusers, entry.class_name)(beta_schedule="squaredcos_cap_v2").save_pretrained(tmp_path)
        named, own = (plan(load_config(tmp_path / "scheduler_config.json"), 10, scheduler=choice) for choice in (word, None))
        assert named.num_steps == own.num_steps == (19 if word == "heun" else 10)
