"""The samplers on a problem solved on paper: a Gaussian, whose network, flow and moments are known.

Of the data N(MEAN, STD^2) the forward process makes x_t ~ N(sqrt(a) MEAN, a STD^2 + 1 - a), a = alphas_cumprod.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.schedulers import SCHEDULERS, Plan, plan

Config = Callable[..., dict[str, Any]]
RunPlan = Callable[..., list[np.ndarray]]

MEAN, STD = 0.7, 0.4
UNCLIPPED = {"clip_sample": False}


def epsilon(sample: np.ndarray, t: int, sigma: float) -> np.ndarray:
    """The noise in ``sample`` as an ideal network sees it, E[z | x_t], from the noise level alone."""
    a = 1.0 / (1.0 + sigma**2)
    return np.sqrt(1.0 - a) * (sample - np.sqrt(a) * MEAN) / (a * STD**2 + 1.0 - a)


def clean(sample: np.ndarray, t: int, sigma: float) -> np.ndarray:
    """The same network as it predicts the sample, E[x_0 | x_t]."""
    a = 1.0 / (1.0 + sigma**2)
    return MEAN + np.sqrt(a) * STD**2 * (sample - np.sqrt(a) * MEAN) / (a * STD**2 + 1.0 - a)


def velocity(sample: np.ndarray, t: int, sigma: float) -> np.ndarray:
    return (epsilon(sample, t, sigma) - sigma * clean(sample, t, sigma)) / np.hypot(1.0, sigma)


def flow(sample: np.ndarray, sigma: float, end: float) -> np.ndarray:
    """Where the probability-flow ODE takes ``sample`` from noise level ``sigma`` to ``end``: quantiles are kept."""
    a, b = 1.0 / (1.0 + sigma**2), 1.0 / (1.0 + end**2)
    return np.sqrt(b) * MEAN + (sample - np.sqrt(a) * MEAN) * np.sqrt((b * STD**2 + 1 - b) / (a * STD**2 + 1 - a))


# --- Order of convergence -------------------------------------------------------------------------------------------

KARRAS = {"use_karras_sigmas": True}
MULTISTEP = {**KARRAS, "final_sigmas_type": "sigma_min", "lower_order_final": False}
UNCORRECTED = {"disable_corrector": list(range(1000))}


@pytest.mark.parametrize(
    ("word", "options", "order"),
    [
        ("ddim", UNCLIPPED, 1.0),
        ("euler", KARRAS, 1.0),
        ("heun", KARRAS, 2.0),
        ("dpmsolver++", {**MULTISTEP, "solver_order": 1}, 1.0),
        ("dpmsolver++", MULTISTEP, 2.0),
        ("dpmsolver++", {**MULTISTEP, "solver_type": "heun"}, 2.0),
        ("unipc", {**MULTISTEP, **UNCORRECTED, "solver_type": "bh1"}, 2.0),
        ("unipc", {**MULTISTEP, **UNCORRECTED}, 2.0),
        ("unipc", {**MULTISTEP, "solver_order": 1}, 2.0),  # the corrector adds an order (UniPC, theorem 3.1)
        ("unipc", {**MULTISTEP, "solver_type": "bh1"}, 3.0),
        ("unipc", MULTISTEP, 3.0),
    ],
)
def test_order_of_convergence(word: str, options: dict[str, Any], order: float, scheduler_config: Config, run_plan: RunPlan) -> None:
    start = np.linspace(-2.0, 2.0, 9)[None]  # float64 throughout, so that only the method's error is left
    counts = (50, 100, 250, 500) if word == "ddim" else (64, 128, 256, 512)
    errors = []
    for num_steps in counts:
        steps = plan(scheduler_config(word, **options), num_steps)
        # Karras levels end in one step to sigma = 0, or of no length, which says nothing of the order.
        at, end = (-1, 0.0) if word == "ddim" else (-2, steps.sigmas[-1])
        found = run_plan(steps, epsilon, start)[at]
        errors.append(np.abs(found - flow(steps.start(start.copy()), steps.sigmas[0], end)).max())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.2)


# --- Mean and variance ----------------------------------------------------------------------------------------------


def moments(steps: Plan, network: Any, run_plan: RunPlan) -> tuple[float, float]:
    """Mean and standard deviation of the samples, exactly.

    The network is affine, so the last sample is affine in the start and in each step's noise: one run without any, and one with each
    of them set to 1, tell all of it.
    """
    unit = np.eye(1 + steps.num_steps, 2 + steps.num_steps, 1)
    last = run_plan(steps, network, unit[0], unit[1:])[-1]
    return float(last[0]), float(np.sqrt(np.sum((last[1:] - last[0]) ** 2)))


@pytest.mark.parametrize(
    ("word", "options", "num_steps", "eta", "tolerance"),
    [
        ("ddpm", UNCLIPPED, 1000, 0.0, 0.01),
        ("ddpm", {**UNCLIPPED, "variance_type": "fixed_large"}, 1000, 0.0, 0.01),
        ("ddim", UNCLIPPED, 200, 0.0, 0.01),
        ("ddim", UNCLIPPED, 200, 1.0, 0.03),
        ("dpmsolver++", {"timestep_spacing": "trailing"}, 25, 0.0, 0.03),
        ("sde-dpmsolver++", KARRAS, 50, 0.0, 0.01),
        ("sde-dpmsolver++", {**KARRAS, "solver_type": "heun"}, 100, 0.0, 0.01),
        ("unipc", KARRAS, 20, 0.0, 0.02),
        ("unipc", {**KARRAS, "solver_type": "bh1"}, 30, 0.0, 0.02),
        ("euler", KARRAS, 200, 0.0, 0.01),
        ("euler-ancestral", {}, 200, 0.0, 0.03),
        ("heun", KARRAS, 40, 0.0, 0.01),
    ],
)
def test_mean_and_variance(
    word: str, options: dict[str, Any], num_steps: int, eta: float, tolerance: float, scheduler_config: Config, run_plan: RunPlan
) -> None:
    steps = plan(scheduler_config(word, **options), num_steps, eta=eta)
    mean, std = moments(steps, epsilon, run_plan)
    assert mean == pytest.approx(MEAN, abs=tolerance)
    assert std == pytest.approx(STD, abs=tolerance)
    if num_steps <= 200:  # and the same by sampling, in float32
        noises = np.random.default_rng(0).standard_normal((steps.num_steps + 1, 20_000), dtype=np.float32)
        last = run_plan(steps, epsilon, noises[-1], noises)[-1]
        assert last.dtype == np.float32
        assert last.mean() == pytest.approx(mean, abs=0.015)
        assert last.std() == pytest.approx(std, abs=0.01)


@pytest.mark.parametrize(
    ("word", "options", "eta", "order"),
    [
        ("ddpm", UNCLIPPED, 0.0, 1.0),
        ("ddim", UNCLIPPED, 1.0, 1.0),
        ("euler-ancestral", {}, 0.0, 1.0),
        ("sde-dpmsolver++", {"solver_order": 1}, 0.0, 1.0),
        ("sde-dpmsolver++", {"solver_order": 2}, 0.0, 2.0),
        ("sde-dpmsolver++", {"solver_type": "heun"}, 0.0, 2.0),
    ],
)
def test_variance_converges(
    word: str, options: dict[str, Any], eta: float, order: float, scheduler_config: Config, run_plan: RunPlan
) -> None:
    """Twice the steps of a stochastic method bring the variance closer to the target's, by as much as its order says."""
    chosen = scheduler_config(word, timestep_spacing="trailing", **options)
    some, twice = (abs(moments(plan(chosen, n, eta=eta), epsilon, run_plan)[1] - STD) for n in (500, 1000))
    assert np.log2(some / twice) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("num_steps", [1, 4, 50])
def test_consistency_sampling_with_the_exact_flow(num_steps: int, scheduler_config: Config, run_plan: RunPlan) -> None:
    """With the map that LCM's network learns, the ODE's solution at the data, any number of steps gives the target."""
    steps = plan(scheduler_config("lcm", prediction_type="sample"), num_steps)
    mean, std = moments(steps, lambda sample, t, sigma: flow(sample, sigma, 0.0), run_plan)
    assert (mean, std) == (pytest.approx(MEAN, abs=0.01), pytest.approx(STD, abs=0.01))


# --- What the network predicts does not matter ----------------------------------------------------------------------


@pytest.mark.parametrize("word", SCHEDULERS)
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_predictions_of_any_type_give_one_trajectory(word: str, schedule: str, scheduler_config: Config, run_plan: RunPlan) -> None:
    options = {"beta_schedule": schedule, "timestep_spacing": "trailing"}
    start, *noises = np.random.default_rng(3).standard_normal((24, 1, 8))
    one, *others = (
        run_plan(plan(scheduler_config(word, **options, prediction_type=kind), 12), network, start, noises)
        for kind, network in (("epsilon", epsilon), ("v_prediction", velocity), ("sample", clean))
    )
    for other in others:
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-7)  # 2e4, epsilon's gain, costs four digits
