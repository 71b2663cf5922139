"""Which configurations a scheduler takes: diffusers' defaults, refusals by name, and nothing that ends in a traceback."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import BundleError
from runtime.schedulers import SCHEDULERS, load_config, plan
from tests.fuzzing import counted, fuzz

Config = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("word", SCHEDULERS)
def test_defaults_are_those_of_diffusers(word: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    entry = SCHEDULERS[word]
    theirs = inspect.signature(getattr(diffusers, entry.class_name)).parameters
    shared = [field for field in dataclasses.fields(entry.options) if field.name in theirs]
    assert len(shared) >= 8
    for field in shared:
        expected = theirs[field.name].default
        assert (list(field.default) if isinstance(field.default, tuple) else field.default) == expected or (
            # Only DDPM reads it; the others' None stands for the same.
            field.name == "variance_type" and expected is None
        ), field.name


@pytest.mark.parametrize(
    ("word", "option", "value"),
    [
        ("ddpm", "variance_type", "learned"),
        ("ddpm", "variance_type", "learned_range"),
        ("ddim", "variance_type", "learned"),
        ("ddim", "beta_schedule", "sigmoid"),
        ("heun", "beta_schedule", "exp"),
        ("ddim", "beta_schedule", ["linear"]),
        ("ddim", "prediction_type", "flow_prediction"),
        ("ddim", "timestep_spacing", "even"),
        ("ddim", "num_train_timesteps", 10**400),
        ("ddim", "num_train_timesteps", True),
        ("ddim", "beta_end", 2),
        ("ddim", "beta_start", float("nan")),
        ("ddim", "trained_betas", [0.1, 0.2]),
        ("ddim", "trained_betas", "all of them"),
        ("ddim", "clip_sample", "yes"),
        ("ddim", "clip_sample_range", 0),
        ("ddim", "steps_offset", 500),
        ("ddim", "a_new_feature", True),
        ("dpmsolver++", "solver_order", 3),
        ("dpmsolver++", "algorithm_type", "sde-dpmsolver"),
        ("dpmsolver++", "algorithm_type", "dpmsolver"),
        ("dpmsolver++", "solver_type", "euler"),
        ("dpmsolver++", "final_sigmas_type", "one"),
        ("dpmsolver++", "lambda_min_clipped", 1000.0),
        ("dpmsolver++", "use_lu_lambdas", True),
        ("unipc", "solver_order", 3),
        ("unipc", "solver_type", "bh3"),
        ("unipc", "predict_x0", False),
        ("unipc", "disable_corrector", [-1]),
        ("unipc", "disable_corrector", 3),
        ("unipc", "solver_p", {"_class_name": "DDIMScheduler"}),
        ("unipc", "shift_terminal", 0.1),
        *((word, "use_exponential_sigmas", True) for word in ("dpmsolver++", "sde-dpmsolver++", "unipc", "euler", "heun")),
        *((word, "use_beta_sigmas", True) for word in ("dpmsolver++", "sde-dpmsolver++", "unipc", "euler", "heun")),
        *((word, "use_flow_sigmas", True) for word in ("dpmsolver++", "sde-dpmsolver++", "unipc")),
        *((word, "use_dynamic_shifting", True) for word in ("dpmsolver++", "unipc")),
        ("euler", "timestep_type", "continuous"),
        ("euler", "interpolation_type", "log_linear"),
        ("euler", "interpolation_type", "cubic"),
        ("euler", "sigma_min", 0.0),
        ("euler", "s_churn", 1.0),
        ("heun", "sigma_max", "large"),
        ("lcm", "original_inference_steps", 1001),
        ("lcm", "original_inference_steps", 10),
        ("lcm", "timestep_scaling", 0),
    ],
)
def test_what_is_not_supported_is_refused_by_name(word: str, option: str, value: Any, scheduler_config: Config) -> None:
    with pytest.raises(BundleError, match=option):
        plan(scheduler_config(word, **{option: value}), 20)


def test_what_is_switched_off_or_another_classes_is_not_refused(scheduler_config: Config) -> None:
    plan(scheduler_config("ddim", a_new_feature=False, use_exponential_sigmas=True, thresholding=None), 20)  # DDIM has no such sigmas
    plan(scheduler_config("dpmsolver++", clip_sample=True, use_exponential_sigmas=False, flow_shift=1.0, variance_type=None), 20)
    plan(scheduler_config("unipc", solver_p=None, shift_terminal=None, predict_x0=True, disable_corrector=[]), 20)
    plan(scheduler_config("euler-ancestral", use_karras_sigmas=True, predict_x0=False), 20)  # it has neither
    heun = plan(scheduler_config("heun", rescale_betas_zero_snr=True, thresholding=True), 20)  # nor Heun these
    np.testing.assert_array_equal(heun.table, plan(scheduler_config("heun"), 20).table)
    assert heun.threshold is None


@pytest.mark.parametrize(
    ("word", "options", "arguments", "named"),
    [
        ("ddim", {"_class_name": "PNDMScheduler"}, {}, "PNDMScheduler"),
        ("ddim", {"_class_name": None}, {}, "_class_name"),
        ("ddim", {"_class_name": ["DDIMScheduler"]}, {}, "_class_name"),
        ("ddim", {}, {"scheduler": "fastest"}, "fastest"),
        ("ddim", {}, {"num_steps": 0}, "num_steps"),
        ("ddim", {}, {"num_steps": 1001}, "num_steps"),
        ("ddim", {}, {"num_steps": "ten"}, "num_steps"),
        ("dpmsolver++", {}, {"num_steps": 1000}, "num_steps"),
        ("euler", {"timestep_spacing": "leading", "steps_offset": 500}, {"num_steps": 2}, "steps_offset"),
        ("lcm", {}, {"num_steps": 51}, "original_inference_steps"),
        ("ddim", {}, {"eta": 1.5}, "eta"),
        ("dpmsolver++", {}, {"eta": 0.5}, "eta"),
        ("euler-ancestral", {}, {"eta": 1.0}, "eta"),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, {}, "rescale_betas_zero_snr"),
        ("lcm", {"rescale_betas_zero_snr": True}, {}, "rescale_betas_zero_snr"),
        ("ddim", {"beta_end": 0.9999}, {}, "beta_end"),
        ("heun", {"use_karras_sigmas": True, "sigma_min": 20.0, "sigma_max": 2.0}, {}, "sigma_min"),
        ("unipc", {"use_karras_sigmas": True, "sigma_min": 2.0, "sigma_max": 2.0}, {}, "sigma_min"),
        ("sde-dpmsolver++", {"use_karras_sigmas": True, "sigma_min": 0.001, "final_sigmas_type": "sigma_min"}, {}, "sigma_min"),
    ],
)
def test_arguments_are_refused_in_one_sentence(
    word: str, options: dict[str, Any], arguments: dict[str, Any], named: str, scheduler_config: Config
) -> None:
    with pytest.raises(BundleError, match=named) as caught:
        plan({**scheduler_config(word), **options}, **arguments)
    assert "\n" not in str(caught.value)


def test_another_kind_of_diffusion_is_no_noise_schedule() -> None:
    for word in SCHEDULERS:
        with pytest.raises(BundleError, match="beta_schedule"):
            plan({"_class_name": "FlowMatchEulerDiscreteScheduler"}, scheduler=word)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["linspace", "trailing", 1e-12, 0.9999, 0.5, 20, "bh1", "log_linear", "sigma_min"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
KEYS = sorted({field.name for entry in SCHEDULERS.values() for field in dataclasses.fields(entry.options)})


@fuzz(600)
@given(
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), JSON, max_size=4), st.sampled_from(list(SCHEDULERS)), st.integers(1, 1000)
)
@counted
def test_any_config_gives_finite_numbers_or_one_sentence(
    scheduler_config: Config, options: dict[str, Any], word: str, num_steps: int
) -> None:
    try:
        steps = plan({**scheduler_config(word), **options}, num_steps)
    except BundleError:
        return
    assert np.isfinite(steps.table.view(np.float64)).all()
    assert np.isfinite(steps.init_noise_sigma)
    assert steps.timesteps.min() >= 0
    assert steps.timesteps.max() < options.get("num_train_timesteps", 1000)


def test_load_config(tmp_path: Path, scheduler_config: Config) -> None:
    path = tmp_path / "scheduler_config.json"
    with pytest.raises(BundleError, match="no such file"):
        load_config(path)
    options = scheduler_config("dpmsolver++", lambda_min_clipped=float("-inf"))
    path.write_text(json.dumps(options))
    assert load_config(path) == options
    for content, complaint in ((b"{", "not valid JSON"), (b"\xff\xfe", "not valid JSON"), (b"[1]", "object"), (b"[" * 100_000, "JSON")):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=complaint):
            load_config(path)
    with pytest.raises(BundleError, match="cannot be read"):
        load_config(tmp_path)
