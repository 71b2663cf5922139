"""Schedulers: the contract of a step and a plan, and the limits in which one method becomes another.

``test_schedulers_gaussian.py`` has a problem solved on paper, ``test_schedulers_diffusers.py`` compares with diffusers,
``test_schedulers_refusals.py`` says what is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.schedulers import SCHEDULERS, plan

Config = Callable[..., dict[str, Any]]
RunPlan = Callable[..., list[np.ndarray]]

STOCHASTIC = ("ddpm", "sde-dpmsolver++", "euler-ancestral", "lcm")
DETERMINISTIC = [word for word in SCHEDULERS if word not in STOCHASTIC]


def network(sample: np.ndarray, t: int, sigma: float = 0.0) -> np.ndarray:
    return np.tanh(sample) * (0.7 + 0.3 * t / 1000) + 0.1 * np.cos(sample + t)


# --- The contract of a step and a plan ------------------------------------------------------------------------------


@pytest.mark.parametrize("word", SCHEDULERS)
def test_which_steps_draw_noise(word: str, scheduler_config: Config) -> None:
    needs_noise = plan(scheduler_config(word), 20).needs_noise
    assert needs_noise[:-1].all() == needs_noise.any() == (word in STOCHASTIC)
    assert not needs_noise[-1]


@pytest.mark.parametrize("word", SCHEDULERS)
def test_a_step_leaves_its_inputs_alone_and_never_couples_samples(word: str, scheduler_config: Config, run_plan: RunPlan) -> None:
    steps = plan(scheduler_config(word, thresholding=True, sample_max_value=2.0, clip_sample=True), 5)
    rng = np.random.default_rng(2)
    start, *noises = rng.standard_normal((10, 7, 3, 4), dtype=np.float32)
    whole = run_plan(steps, network, start, noises)[-1]
    for part in (slice(0, 1), slice(1, 4), slice(4, 7)):
        np.testing.assert_array_equal(run_plan(steps, network, start[part], [z[part] for z in noises])[-1], whole[part])

    output, sample, noise = network(start, 0), start.copy(), noises[0].copy()
    kept = output.copy()
    history = steps.new_history(sample.shape)
    estimate = steps.step(0, output, sample, noise, history)
    assert np.shares_memory(estimate, history)
    if word not in ("euler", "euler-ancestral"):  # these neither clip nor threshold, in diffusers either
        assert np.abs(estimate).max() <= 1.0
    np.testing.assert_array_equal(output, kept)
    np.testing.assert_array_equal(noise, noises[0])
    assert (sample.dtype, history.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("word", SCHEDULERS)
def test_the_row_says_everything_that_a_step_does(word: str, scheduler_config: Config) -> None:
    """The sum that ``steps.py`` states, written out: what an exporter may rely on."""
    steps = plan(scheduler_config(word), 6)
    rng = np.random.default_rng(4)
    x = steps.start(rng.standard_normal((2, 5)))
    mine, history, estimates = x.copy(), steps.new_history(x.shape, np.float64), [np.zeros_like(x)] * 2
    for k, row in enumerate(steps.table):
        m, z = network(x, steps.timesteps[k]), rng.standard_normal(x.shape)
        estimate = row["gain"] * (row["from_sample"] * x + row["from_output"] * m)
        if steps.clip is not None:
            estimate = np.clip(estimate, -steps.clip, steps.clip)
        previous, earlier = estimates[-1], estimates[-2]
        x = row["sample"] * x + row["output"] * m + row["estimate"] * estimate + row["noise"] * z
        x += row["previous"] * previous + row["earlier"] * earlier
        estimates.append(estimate)
        np.testing.assert_allclose(steps.step(k, m, mine, z, history), estimate, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(mine, x, rtol=1e-12, atol=1e-12)


def test_a_plan_is_immutable_and_asks_for_its_noise(scheduler_config: Config) -> None:
    steps = plan(scheduler_config("ddpm"), 5)
    for array in (steps.timesteps, steps.sigmas, steps.table, steps.needs_noise):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    sample = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="needs_noise"):
        steps.step(0, sample.copy(), sample, None, steps.new_history(sample.shape))


@pytest.mark.parametrize("word", SCHEDULERS)
def test_the_sample_stays_on_the_scale_of_the_forward_process(word: str, scheduler_config: Config, run_plan: RunPlan) -> None:
    """A network that predicts 0 for data that are 0: at every evaluation the sample is noise of the forward process there."""
    steps = plan(scheduler_config(word, prediction_type="sample", timestep_spacing="trailing"), 20)
    noises = np.random.default_rng(5).standard_normal((40, 40_000))
    scales: list[float] = []

    def silence(sample: np.ndarray, t: int, sigma: float) -> np.ndarray:
        scales.append(float(sample.std() * np.hypot(1.0, sigma) / sigma))
        return np.zeros_like(sample)

    run_plan(steps, silence, noises[-1], noises)
    assert scales == pytest.approx([1.0] * steps.num_steps, abs=0.15 if word == "ddpm" else 0.02)


# --- Words ----------------------------------------------------------------------------------------------------------


def test_a_name_overrides_the_class_and_keeps_the_noise_schedule(scheduler_config: Config) -> None:
    mine = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing", "variance_type": "fixed_large"}
    for word in SCHEDULERS:
        named, own = plan(scheduler_config("ddpm", **mine), 10, scheduler=word), plan(scheduler_config(word, **mine), 10)
        np.testing.assert_array_equal(named.table, own.table)
    unknown = {**scheduler_config("unipc", solver_type="logrho"), "_class_name": "DEISMultistepScheduler", "an_option": 1}
    assert plan(unknown, 10, scheduler="dpmsolver++").memory == 2
    given = {word: plan(scheduler_config("ddpm"), scheduler=word).num_steps for word in SCHEDULERS}
    assert list(given.values()) == [1000, 50, 20, 20, 20, 30, 30, 39, 4]


@pytest.mark.parametrize("algorithm_type", ["dpmsolver++", "sde-dpmsolver++"])
def test_the_config_chooses_the_form_of_dpmsolver_unless_a_word_does(algorithm_type: str, scheduler_config: Config) -> None:
    options = scheduler_config("dpmsolver++", algorithm_type=algorithm_type)
    assert plan(options, 10).needs_noise.any() == (algorithm_type == "sde-dpmsolver++")
    assert plan(options, 10, scheduler="sde-dpmsolver++").needs_noise.any()
    assert not plan(options, 10, scheduler="dpmsolver++").needs_noise.any()


# --- Limits in which one method becomes another ---------------------------------------------------------------------

TRAILING = {"timestep_spacing": "trailing", "clip_sample": False}
FIRST = {**TRAILING, "solver_order": 1}
NEVER = {"disable_corrector": list(range(50))}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("euler", TRAILING, 0.0), ("ddim", TRAILING, 0.0)),
        (("dpmsolver++", FIRST, 0.0), ("ddim", TRAILING, 0.0)),
        (("unipc", {**FIRST, **NEVER}, 0.0), ("ddim", TRAILING, 0.0)),
        (("unipc", {**TRAILING, **NEVER}, 0.0), ("dpmsolver++", TRAILING, 0.0)),
        (("euler-ancestral", TRAILING, 0.0), ("ddim", TRAILING, 1.0)),
        (("sde-dpmsolver++", FIRST, 0.0), ("ddim", TRAILING, 1.0)),
        (("ddpm", TRAILING, 0.0), ("ddim", TRAILING, 1.0)),
    ],
)
def test_methods_that_are_the_same(
    one: tuple[str, dict[str, Any], float], other: tuple[str, dict[str, Any], float], scheduler_config: Config, run_plan: RunPlan
) -> None:
    start, *noises = np.random.default_rng(6).standard_normal((21, 2, 8))

    def trajectory(word: str, options: dict[str, Any], eta: float) -> list[np.ndarray]:
        steps = plan(scheduler_config(word, **options), 20, eta=eta)
        return run_plan(steps, network, start / steps.init_noise_sigma, noises)

    np.testing.assert_allclose(trajectory(*one), trajectory(*other), rtol=0, atol=1e-9)


def test_ddim_with_all_steps_and_eta_1_is_ddpm(scheduler_config: Config, run_plan: RunPlan) -> None:
    ddim, ddpm = plan(scheduler_config("ddim", clip_sample=False), 1000, eta=1.0), plan(scheduler_config("ddpm", clip_sample=False))
    np.testing.assert_allclose(ddim.table["noise"], ddpm.table["noise"], rtol=1e-9)
    np.testing.assert_array_equal(ddim.timesteps, ddpm.timesteps)
    noises = np.random.default_rng(1).standard_normal((1001, 1, 8))
    one, other = (run_plan(steps, network, noises[-1], noises)[-1] for steps in (ddim, ddpm))
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_heun_with_one_step_is_euler(scheduler_config: Config) -> None:
    for spacing in ("leading", "trailing", "linspace"):
        one, other = (plan(scheduler_config(word, timestep_spacing=spacing), 1) for word in ("heun", "euler"))
        np.testing.assert_array_equal(one.table, other.table)
        assert (one.num_steps, one.init_noise_sigma) == (1, other.init_noise_sigma)


def test_heun_evaluates_twice_where_each_step_arrives(scheduler_config: Config) -> None:
    heun, euler = (plan(scheduler_config(word), 4) for word in ("heun", "euler"))
    assert heun.timesteps.tolist() == [999, 666, 666, 333, 333, 0, 0]
    np.testing.assert_array_equal(heun.sigmas[::2], euler.sigmas)
    np.testing.assert_array_equal(heun.table[::2], euler.table)


def test_lcm_with_one_step_returns_the_scaled_estimate(scheduler_config: Config) -> None:
    """c_out x0 + c_skip x, and x itself at timestep 0, where each part of the training schedule is one timestep long."""
    steps = plan(scheduler_config("lcm", timestep_scaling=0.001), 1)
    sample = np.random.default_rng(7).standard_normal((1, 5))
    after = sample.copy()
    estimate = steps.step(0, network(sample, 999), after, None, steps.new_history(sample.shape, np.float64))
    u = 0.999  # the scaled timestep, and 0.5 the data's standard deviation
    np.testing.assert_allclose(after, u / np.hypot(u, 0.5) * estimate + 0.25 / (u**2 + 0.25) * sample, rtol=1e-12)
    last = plan(scheduler_config("lcm", original_inference_steps=1000), 1000).table[-1]
    assert (last["sample"], last["estimate"]) == (1.0, 0.0)


# --- Corners --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["dpmsolver++", "sde-dpmsolver++", "unipc", "euler"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun", "bh2"])
def test_a_step_of_no_length_changes_nothing(word: str, solver_type: str, scheduler_config: Config) -> None:
    """All timesteps, then sigma_min, which the last of them has reached already; diffusers' heun divides 0 by 0 here."""
    options = {"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min", "solver_type": solver_type, "disable_corrector": [998]}
    last = plan(scheduler_config(word, **options), 1000).table[-1]
    assert [last[name] for name in ("sample", "output", "estimate", "previous", "earlier", "noise")] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("num_steps", "second_order"), [(14, False), (15, True)])
def test_fewer_than_15_steps_of_dpmsolver_end_in_first_order(num_steps: int, second_order: bool, scheduler_config: Config) -> None:
    previous = plan(scheduler_config("dpmsolver++", final_sigmas_type="sigma_min"), num_steps).table["previous"]
    assert (previous[-1] != 0.0) == second_order
    assert (previous[1:-1] != 0.0).all()


@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
def test_a_last_step_into_zero_is_of_first_order(solver_type: str, scheduler_config: Config) -> None:
    """UniPC without lower_order_final; diffusers divides by zero here."""
    last = plan(scheduler_config("unipc", lower_order_final=False, solver_type=solver_type), 20).table[-1]
    assert [last[name] for name in ("sample", "estimate", "previous", "earlier")] == [0.0, 1.0, 0.0, 0.0]


def test_the_corrector_is_left_out_where_it_is_disabled(scheduler_config: Config) -> None:
    some, none = (plan(scheduler_config("unipc", disable_corrector=steps), 10).table for steps in ([0, 1, 4], list(range(10))))
    same = [k for k in range(10) if some[k] == none[k]]
    assert same == [0, 1, 2, 5, 9], (
        "the step after a disabled one, the first, and the last, into sigma = 0, where nothing is left to correct"
    )


def test_variances_named_by_their_logarithm_are_the_same(scheduler_config: Config) -> None:
    for plain in ("fixed_small", "fixed_large"):
        one, other = (plan(scheduler_config("ddpm", variance_type=kind), 20).table for kind in (plain, plain + "_log"))
        np.testing.assert_array_equal(one["noise"], other["noise"])


@pytest.mark.parametrize("word", ["euler", "euler-ancestral"])
def test_noise_levels_between_timesteps_go_by_the_nearest(word: str, scheduler_config: Config) -> None:
    """999 / 7 apart: diffusers tells the network fractional timesteps, this one takes whole ones."""
    steps = plan(scheduler_config(word), 8)
    assert steps.timesteps.tolist() == [999, 856, 714, 571, 428, 285, 143, 0]
    whole = plan(scheduler_config("ddpm")).sigmas[::-1]
    below, above = np.floor(999 * np.arange(8) / 7), np.ceil(999 * np.arange(8) / 7)
    levels = steps.sigmas[::-1]
    assert ((whole[below.astype(int)] <= levels) & (levels <= whole[above.astype(int)])).all()
    assert (levels != whole[steps.timesteps[::-1]]).any()


def test_karras_levels_span_what_the_options_say(scheduler_config: Config) -> None:
    training = plan(scheduler_config("ddpm")).sigmas
    karras = {"use_karras_sigmas": True, "timestep_spacing": "leading"}
    for word in ("dpmsolver++", "unipc", "euler", "heun"):
        named = plan(scheduler_config(word, **karras, sigma_min=0.1, sigma_max=10.0), 10).sigmas
        assert (named[0], named[-1]) == (pytest.approx(10.0), pytest.approx(0.1))
    chosen, whole = (plan(scheduler_config("euler", **karras, interpolation_type=kind), 10).sigmas for kind in ("linear", "log_linear"))
    assert (chosen[0], chosen[-1]) == (pytest.approx(training[99]), pytest.approx(training[999]))
    assert (whole[0], whole[-1]) == (pytest.approx(training[0]), pytest.approx(training[999]))
