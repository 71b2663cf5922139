"""The samplers against diffusers: the values its own tests publish, and whole trajectories of drawn configurations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from runtime.schedulers import SCHEDULERS, load_config, plan

DDPM, DDIM, DPM = (entry.class_name for entry in SCHEDULERS.values())
LINEAR = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def config(class_name: str = DDIM, **options: Any) -> dict[str, Any]:
    return {"_class_name": class_name, "_diffusers_version": "0.42.1", **LINEAR, **options}


# --- Values published in diffusers' own tests -----------------------------------------------------------------------

RAMP = np.ascontiguousarray((np.arange(768).reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2)).astype(np.float32)
DPM_TEST = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}  # what those tests set
DPM_THRESHOLD = {**DPM_TEST, "thresholding": True, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5}


def dummy(sample: np.ndarray, t: int, sigma: float = 0.0) -> np.ndarray:
    return sample * np.float32(t / (t + 1))


@pytest.mark.parametrize(
    ("class_name", "options", "total", "mean"),
    [
        (DDIM, {}, 172.0067, 0.223967),
        (DDIM, {"prediction_type": "v_prediction"}, 52.5302, 0.0684),
        (DDIM, {"beta_start": 0.01}, 149.8295, 0.1951),
        (DDIM, {"beta_start": 0.01, "set_alpha_to_one": False}, 149.0784, 0.1941),
        (DPM, DPM_TEST, None, 0.3301),
        (DPM, {**DPM_TEST, "prediction_type": "v_prediction"}, None, 0.2251),
        (DPM, DPM_THRESHOLD, None, 1.1364),
    ],
)
def test_published_loops(
    class_name: str, options: dict[str, Any], total: float | None, mean: float, run_plan: Callable[..., list[np.ndarray]]
) -> None:
    last = run_plan(plan(config(class_name, **options), 10), dummy, RAMP)[-1]
    assert np.abs(last).mean() == pytest.approx(mean, abs=1e-3)
    if total is not None:
        assert np.abs(last).sum() == pytest.approx(total, abs=1e-2)


@pytest.mark.parametrize(("prediction", "total", "mean"), [("epsilon", 258.9606, 0.3372), ("v_prediction", 202.0296, 0.2631)])
def test_published_ddpm_loop(prediction: str, total: float, mean: float, run_plan: Callable[..., list[np.ndarray]]) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.manual_seed(0)
    noises = [torch.randn(RAMP.shape, generator=generator).numpy() for _ in range(999)]
    last = run_plan(plan(config(DDPM, prediction_type=prediction)), dummy, RAMP, noises)[-1]
    assert np.abs(last).sum() == pytest.approx(total, abs=1e-2)
    assert np.abs(last).mean() == pytest.approx(mean, abs=1e-3)


def test_published_variances_and_timesteps() -> None:
    variance = plan(config(DDPM)).table["noise"][::-1] ** 2
    assert variance[[0, 487, 999]] == pytest.approx([0.0, 0.00979, 0.02], abs=1e-5)
    by_50 = plan(config(DDIM), 50, eta=1.0)
    assert by_50.timesteps[0] == 980
    assert by_50.table["noise"][[0, 28]] ** 2 == pytest.approx([0.32460, 0.14771], abs=1e-5)  # 980 to 960, 420 to 400
    assert plan(config(DDIM, steps_offset=1), 5).timesteps.tolist() == [801, 601, 401, 201, 1]


# --- diffusers itself, in float64 -----------------------------------------------------------------------------------


def double_betas(options: dict[str, Any]) -> np.ndarray:
    """diffusers' betas, which it only keeps in float32; the caller checks them against its rounded ones."""
    n, low, high = options["num_train_timesteps"], options["beta_start"], options["beta_end"]
    if options.get("trained_betas") is not None:
        return np.array(options["trained_betas"])
    if options["beta_schedule"] == "squaredcos_cap_v2":
        bar = [np.cos((i / n + 0.008) / 1.008 * np.pi / 2) ** 2 for i in range(n + 1)]
        return np.array([min(1 - after / before, 0.999) for before, after in itertools.pairwise(bar)])
    power = 2.0 if options["beta_schedule"] == "scaled_linear" else 1.0
    return np.linspace(low ** (1 / power), high ** (1 / power), n) ** power


def reference(options: dict[str, Any], num_steps: int, eta: float, network: Any, sample: np.ndarray, noises: np.ndarray) -> Any:
    """diffusers' timesteps and trajectory with its coefficients and samples in float64 and our noise."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_ddim, scheduling_ddpm

    scheduler = getattr(diffusers, options["_class_name"]).from_config(options)
    betas = torch.from_numpy(double_betas(options))
    if options["rescale_betas_zero_snr"]:
        betas = scheduling_ddim.rescale_zero_terminal_snr(betas)
    torch.testing.assert_close(scheduler.betas.double(), betas, atol=2e-5, rtol=0)
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    is_dpm = options["_class_name"] == DPM
    if is_dpm and options["rescale_betas_zero_snr"]:
        scheduler.alphas_cumprod[-1] = 2.0**-24
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5
    scheduler.lambda_t = -torch.log(sigmas)
    if not options.get("set_alpha_to_one", True):
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(num_steps)
    if is_dpm:
        levels = sigmas[scheduler.timesteps.clamp(min=0)].numpy()
        if options["use_karras_sigmas"]:
            levels = scheduler._convert_to_karras(sigmas.numpy()[::-1], num_steps)
        ending = 0.0 if options["final_sigmas_type"] == "zero" else float(sigmas[0])
        scheduler.sigmas = torch.from_numpy(np.append(levels, ending))
        scheduler.set_begin_index(0)  # else it starts at the second of two equal timesteps

    state: Any = torch.from_numpy(sample.astype(np.float64))
    trajectory = []
    original = scheduling_ddpm.randn_tensor
    try:
        for k, t in enumerate(scheduler.timesteps[:num_steps]):
            noise = torch.from_numpy(noises[k].astype(np.float64))
            scheduling_ddpm.randn_tensor = lambda *args, noise=noise, **kwargs: noise
            output = torch.from_numpy(network(state.numpy(), int(t)))
            extra = {"eta": eta, "variance_noise": noise} if options["_class_name"] == DDIM else {}
            state = scheduler.step(output, t, state, **extra).prev_sample
            trajectory.append(state.numpy())
    finally:
        scheduling_ddpm.randn_tensor = original
    return scheduler.timesteps.numpy(), trajectory


@st.composite
def configurations(draw: st.DrawFn) -> tuple[dict[str, Any], int, float]:
    def one_of(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    class_name, flag, n = one_of(DDPM, DDIM, DPM), st.booleans(), one_of(50, 100, 1000)
    rescale = draw(flag)
    # Without any signal left, epsilon says nothing: refused, and tested below.
    predictions = ("v_prediction", "sample") if rescale and class_name != DPM else ("epsilon", "v_prediction", "sample")
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
        "thresholding": draw(flag),
        "dynamic_thresholding_ratio": one_of(0.0, 0.7, 0.995, 1.0),
        "sample_max_value": one_of(0.5, 1.0, 3.0),
    }
    if class_name == DPM:
        options |= {"solver_order": one_of(1, 2), "solver_type": one_of("midpoint", "heun", "bh2"), "lower_order_final": draw(flag)}
        options |= {"euler_at_final": draw(flag), "use_karras_sigmas": draw(flag), "final_sigmas_type": one_of("zero", "sigma_min")}
        options |= {"lambda_min_clipped": one_of(float("-inf"), -5.1)}
    else:
        options |= {"clip_sample": draw(flag), "clip_sample_range": one_of(0.5, 1.0, 2.0)}
    if class_name == DDPM:
        options |= {"variance_type": one_of("fixed_small", "fixed_small_log", "fixed_large")}
    if class_name == DDIM:
        options |= {"set_alpha_to_one": draw(flag)}
    eta = one_of(0.0, 0.3, 1.0) if class_name == DDIM else 0.0
    return config(class_name, **options), draw(st.integers(2, 30)), eta


HARD = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing", "rescale_betas_zero_snr": False}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@settings(max_examples=800, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(configurations(), st.integers(0, 2**32 - 1))
@example((config(DDIM, **HARD, clip_sample=False), 20, 0.0), 0)
@example((config(DDPM, **HARD, clip_sample=True), 20, 0.0), 0)
def test_trajectories_are_those_of_diffusers(
    run_plan: Callable[..., list[np.ndarray]], drawn: tuple[dict[str, Any], int, float], seed: int
) -> None:
    options, num_steps, eta = drawn
    rng = np.random.default_rng(seed)
    start, *noises = rng.standard_normal((1 + num_steps, 2, 1, 4, 4), dtype=np.float32)
    n = options["num_train_timesteps"]

    def network(sample: np.ndarray, t: int, sigma: float = 0.0) -> np.ndarray:
        return np.tanh(sample) * (0.7 + 0.3 * t / n) + 0.1 * np.cos(sample + t)

    with np.errstate(all="ignore"):
        timesteps, theirs = reference(options, num_steps, eta, network, start, np.array(noises))
    assume(timesteps[-1] >= 0)  # see test_trailing_never_visits_a_timestep_of_minus_one
    assume(np.isfinite(theirs).all())  # heun divides 0 by 0 when the last step has no length
    steps = plan(options, num_steps, eta=eta)
    assert steps.timesteps.tolist() == timesteps.tolist()
    scale = 1.0
    for mine, expected in zip(run_plan(steps, network, start, noises), theirs, strict=True):
        scale = max(scale, float(np.abs(expected).max()))
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("class_name", [DDPM, DDIM, DPM])
@pytest.mark.parametrize("num_steps", [61, 103, 121])
def test_trailing_never_visits_a_timestep_of_minus_one(class_name: str, num_steps: int) -> None:
    """numpy.arange's rounding gives diffusers one timestep too many here, at -1."""
    timesteps = plan(config(class_name, timestep_spacing="trailing"), num_steps).timesteps
    assert len(timesteps) == num_steps
    assert timesteps[0] == 999
    assert 0 <= timesteps[-1] < 1000 / num_steps


def test_reads_what_diffusers_writes(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    for word, entry in SCHEDULERS.items():
        getattr(diffusers, entry.class_name)(beta_schedule="squaredcos_cap_v2").save_pretrained(tmp_path)
        assert plan(load_config(tmp_path / "scheduler_config.json"), 10).memory == (2 if word == "dpmsolver++" else 1)
