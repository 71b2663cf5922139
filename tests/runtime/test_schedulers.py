"""The samplers on a problem solved on paper, in their limits, and refusing what they do not know.

``test_schedulers_diffusers.py`` compares them with diffusers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import BundleError
from runtime.schedulers import SCHEDULERS, load_config, plan

DDPM, DDIM, DPM = (entry.class_name for entry in SCHEDULERS.values())
LINEAR = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def config(class_name: str = DDIM, **options: Any) -> dict[str, Any]:
    return {"_class_name": class_name, "_diffusers_version": "0.42.1", **LINEAR, **options}


# --- A Gaussian target, whose network and whose flow are known ------------------------------------------------------

MEAN, STD = 0.7, 0.4  # of the data; from it x_t ~ N(sqrt(a) MEAN, a STD^2 + 1 - a)


def gaussian(sample: np.ndarray, t: int, sigma: float) -> np.ndarray:
    """The noise in ``sample`` as an ideal network sees it, E[z | x_t], from the noise level alone."""
    a = 1.0 / (1.0 + sigma**2)
    return np.sqrt(1.0 - a) * (sample - np.sqrt(a) * MEAN) / (a * STD**2 + 1.0 - a)


def flow(sample: np.ndarray, sigma: float, end: float) -> np.ndarray:
    """Where the probability-flow ODE takes ``sample`` from noise level ``sigma`` to ``end``: quantiles are kept."""
    a, b = 1.0 / (1.0 + sigma**2), 1.0 / (1.0 + end**2)
    return np.sqrt(b) * MEAN + (sample - np.sqrt(a) * MEAN) * np.sqrt((b * STD**2 + 1 - b) / (a * STD**2 + 1 - a))


@pytest.mark.parametrize(
    ("options", "steps", "order"),
    [
        (config(DDIM, clip_sample=False), (20, 40, 100, 200), 1.0),
        (config(DPM, use_karras_sigmas=True, solver_order=1, final_sigmas_type="sigma_min"), (20, 40, 80, 160), 1.0),
        (config(DPM, use_karras_sigmas=True, final_sigmas_type="sigma_min", lower_order_final=False), (20, 40, 80, 160), 2.0),
        (config(DPM, use_karras_sigmas=True, final_sigmas_type="sigma_min", solver_type="heun"), (20, 40, 80, 160), 2.0),
    ],
)
def test_order_of_convergence(
    options: dict[str, Any], steps: tuple[int, ...], order: float, run_plan: Callable[..., list[np.ndarray]]
) -> None:
    start = np.linspace(-2.0, 2.0, 9)[None]  # float64 throughout, so that only the method's error is left
    errors = []
    for num_steps in steps:
        built = plan(options, num_steps)
        end = built.sigmas[-1] if options["_class_name"] == DPM else 0.0
        errors.append(np.abs(run_plan(built, gaussian, start)[-1] - flow(start, built.sigmas[0], end)).max())
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(
    ("options", "num_steps", "eta", "tolerance"),
    [
        (config(DDPM, clip_sample=False), None, 0.0, 0.01),
        (config(DDPM, clip_sample=False, variance_type="fixed_large"), None, 0.0, 0.01),
        (config(DDIM, clip_sample=False), 200, 0.0, 0.01),
        (config(DDIM, clip_sample=False), 200, 1.0, 0.03),
        (config(DPM, timestep_spacing="trailing"), 25, 0.0, 0.03),
    ],
)
def test_mean_and_variance(
    options: dict[str, Any], num_steps: int | None, eta: float, tolerance: float, run_plan: Callable[..., list[np.ndarray]]
) -> None:
    """The network is affine, so every step is x <- A x + B + d z and the moments follow exactly, without sampling."""
    built = plan(options, num_steps, eta=eta)
    rows = np.array([[0.0], [1.0]])
    # Two linear trajectories, from 0 and from 1, give the mean; each step's noise is carried to the end by what follows it.
    history = built.new_history(rows.shape, np.float64)
    variance = np.empty(built.num_steps)
    gains = np.empty(built.num_steps)
    for k, t in enumerate(built.timesteps):
        before = rows[1, 0] - rows[0, 0]
        built.step(k, gaussian(rows, t, built.sigmas[k]), rows, np.zeros_like(rows), history)
        gains[k] = (rows[1, 0] - rows[0, 0]) / before
        variance[k] = built.table["noise"][k] ** 2
    onwards = np.append(np.cumprod(gains[::-1])[::-1][1:], 1.0)
    total = (rows[1, 0] - rows[0, 0]) ** 2 + np.sum(onwards**2 * variance)
    assert rows[0, 0] == pytest.approx(MEAN, abs=tolerance)
    assert np.sqrt(total) == pytest.approx(STD, abs=tolerance)
    if num_steps:  # and the same by sampling, in float32
        noises = np.random.default_rng(0).standard_normal((built.num_steps + 1, 20_000), dtype=np.float32)
        last = run_plan(built, gaussian, noises[-1], noises)[-1]
        assert last.dtype == np.float32
        assert last.mean() == pytest.approx(rows[0, 0], abs=0.015)
        assert last.std() == pytest.approx(np.sqrt(total), abs=0.01)


# --- Limits and the contract of a step ------------------------------------------------------------------------------


def test_ddim_with_all_steps_and_eta_1_is_ddpm(run_plan: Callable[..., list[np.ndarray]]) -> None:
    ddim, ddpm = plan(config(DDIM), 1000, eta=1.0), plan(config(DDPM))
    np.testing.assert_allclose(ddim.table["noise"], ddpm.table["noise"], rtol=1e-9)
    np.testing.assert_array_equal(ddim.timesteps, ddpm.timesteps)
    unclipped = {"clip_sample": False}
    noises = np.random.default_rng(1).standard_normal((1001, 1, 8))
    one, other = (
        run_plan(plan(config(c, **unclipped), 1000, eta=e), gaussian, noises[-1], noises)[-1] for c, e in ((DDIM, 1.0), (DDPM, 0.0))
    )
    np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("class_name", [DDIM, DPM])
def test_deterministic_methods_draw_no_noise(class_name: str) -> None:
    assert not plan(config(class_name), 20).needs_noise.any()


def test_a_step_of_no_length_changes_nothing() -> None:
    """All timesteps, then sigma_min, which the last of them has reached already; diffusers' heun divides 0 by 0 here."""
    options = config(DPM, timestep_spacing="trailing", final_sigmas_type="sigma_min", solver_type="heun")
    last = plan(options, 1000).table[-1]
    assert [last[name] for name in ("sample", "output", "estimate", "previous")] == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("num_steps", "second_order"), [(14, False), (15, True)])
def test_fewer_than_15_steps_end_in_first_order(num_steps: int, second_order: bool) -> None:
    previous = plan(config(DPM, final_sigmas_type="sigma_min"), num_steps).table["previous"]
    assert (previous[-1] != 0.0) == second_order
    assert (previous[1:-1] != 0.0).all()


def test_variances_named_by_their_logarithm_are_the_same() -> None:
    for plain in ("fixed_small", "fixed_large"):
        one, other = (plan(config(DDPM, variance_type=kind), 20).table for kind in (plain, plain + "_log"))
        np.testing.assert_array_equal(one["noise"], other["noise"])


@pytest.mark.parametrize("class_name", [DDPM, DDIM, DPM])
def test_a_step_leaves_its_inputs_alone_and_never_couples_samples(class_name: str, run_plan: Callable[..., list[np.ndarray]]) -> None:
    steps = plan(config(class_name, thresholding=True, sample_max_value=2.0), 5)
    rng = np.random.default_rng(2)
    start, *noises = rng.standard_normal((6, 7, 3, 4), dtype=np.float32)
    whole = run_plan(steps, gaussian, start, noises)[-1]
    for part in (slice(0, 1), slice(1, 4), slice(4, 7)):
        np.testing.assert_array_equal(run_plan(steps, gaussian, start[part], [z[part] for z in noises])[-1], whole[part])

    output, sample, noise = gaussian(start, 0, 2.0), start.copy(), noises[0].copy()
    kept = output.copy()
    history = steps.new_history(sample.shape)
    estimate = steps.step(0, output, sample, noise, history)
    assert np.shares_memory(estimate, history)
    assert np.abs(estimate).max() <= 1.0
    np.testing.assert_array_equal(output, kept)
    np.testing.assert_array_equal(noise, noises[0])
    assert (sample.dtype, history.dtype) == (np.float32, np.float32)


def test_a_plan_is_immutable_and_asks_for_its_noise() -> None:
    steps = plan(config(DDPM), 5)
    for array in (steps.timesteps, steps.sigmas, steps.table, steps.needs_noise):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    sample = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="needs_noise"):
        steps.step(0, sample.copy(), sample, None, steps.new_history(sample.shape))


def test_a_name_overrides_the_class_and_keeps_the_noise_schedule() -> None:
    mine = config(DDPM, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", variance_type="fixed_large")
    for word, entry in SCHEDULERS.items():
        named, own = plan(mine, 10, scheduler=word), plan({**mine, "_class_name": entry.class_name}, 10)
        np.testing.assert_array_equal(named.table, own.table)
    unknown = {**mine, "_class_name": "UniPCMultistepScheduler", "predict_x0": True, "solver_type": "bh2"}
    assert plan(unknown, 10, scheduler="dpmsolver++").memory == 2
    assert [plan(mine, scheduler=word).num_steps for word in SCHEDULERS] == [1000, 50, 20]


# --- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_name", "option", "value"),
    [
        (DDPM, "variance_type", "learned"),
        (DDPM, "variance_type", "learned_range"),
        (DDIM, "variance_type", "learned"),
        (DDIM, "beta_schedule", "sigmoid"),
        (DDIM, "beta_schedule", ["linear"]),
        (DDIM, "prediction_type", "flow_prediction"),
        (DDIM, "timestep_spacing", "even"),
        (DDIM, "num_train_timesteps", 10**400),
        (DDIM, "num_train_timesteps", True),
        (DDIM, "beta_end", 2),
        (DDIM, "beta_start", float("nan")),
        (DDIM, "trained_betas", [0.1, 0.2]),
        (DDIM, "trained_betas", "all of them"),
        (DDIM, "clip_sample", "yes"),
        (DDIM, "clip_sample_range", 0),
        (DDIM, "steps_offset", 500),
        (DDIM, "a_new_feature", True),
        (DPM, "solver_order", 3),
        (DPM, "algorithm_type", "sde-dpmsolver++"),
        (DPM, "algorithm_type", "dpmsolver"),
        (DPM, "solver_type", "euler"),
        (DPM, "final_sigmas_type", "one"),
        (DPM, "lambda_min_clipped", 1000.0),
        (DPM, "use_exponential_sigmas", True),
        (DPM, "use_beta_sigmas", True),
        (DPM, "use_lu_lambdas", True),
        (DPM, "use_flow_sigmas", True),
        (DPM, "use_dynamic_shifting", True),
    ],
)
def test_what_is_not_supported_is_refused_by_name(class_name: str, option: str, value: Any) -> None:
    with pytest.raises(BundleError, match=option):
        plan(config(class_name, **{option: value}), 20)


def test_what_is_switched_off_or_another_classes_is_not_refused() -> None:
    plan(config(DDIM, a_new_feature=False, use_exponential_sigmas=True, thresholding=None), 20)  # DDIM has no such sigmas
    plan(config(DPM, clip_sample=True, use_exponential_sigmas=False, flow_shift=1.0, variance_type=None), 20)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"config": config("HeunDiscreteScheduler")}, "HeunDiscreteScheduler"),
        ({"config": LINEAR}, "_class_name"),
        ({"config": {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "scheduler": "ddim"}, "beta_schedule"),
        ({"config": config(), "scheduler": "fastest"}, "fastest"),
        ({"config": config(), "num_steps": 0}, "num_steps"),
        ({"config": config(), "num_steps": 1001}, "num_steps"),
        ({"config": config(), "num_steps": "ten"}, "num_steps"),
        ({"config": config(DPM), "num_steps": 1000}, "num_steps"),
        ({"config": config(), "eta": 1.5}, "eta"),
        ({"config": config(DPM), "eta": 0.5}, "eta"),
        ({"config": config(rescale_betas_zero_snr=True, timestep_spacing="trailing")}, "rescale_betas_zero_snr"),
        ({"config": config(beta_end=0.9999)}, "beta_end"),
    ],
)
def test_arguments_are_refused_in_one_sentence(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(BundleError, match=named) as caught:
        plan(**arguments)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["linspace", "trailing", 1e-12, 0.9999]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
KEYS = sorted({field.name for entry in SCHEDULERS.values() for field in dataclasses.fields(entry.options)})


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), JSON, max_size=4), st.sampled_from([DDPM, DDIM, DPM]), st.integers(1, 1000)
)
def test_any_config_gives_finite_numbers_or_one_sentence(options: dict[str, Any], class_name: str, num_steps: int) -> None:
    try:
        steps = plan({**config(class_name), **options}, num_steps)
    except BundleError:
        return
    assert np.isfinite(steps.table.view(np.float64)).all()
    assert steps.timesteps.min() >= 0


def test_load_config(tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    with pytest.raises(BundleError, match="no such file"):
        load_config(path)
    path.write_text(json.dumps(config(DPM, lambda_min_clipped=float("-inf"))))
    assert load_config(path) == config(DPM, lambda_min_clipped=float("-inf"))
    for content, complaint in ((b"{", "not valid JSON"), (b"\xff\xfe", "not valid JSON"), (b"[1]", "object"), (b"[" * 100_000, "JSON")):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=complaint):
            load_config(path)
    with pytest.raises(BundleError, match="cannot be read"):
        load_config(tmp_path)
