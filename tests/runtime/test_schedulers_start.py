"""A run that begins in the middle: the forward process by hand, and no memory of the steps that were not taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.errors import BundleError
from runtime.schedulers import SCHEDULERS, plan

Config = Callable[..., dict[str, Any]]

TRAILING = {"timestep_spacing": "trailing", "clip_sample": False}


@pytest.mark.parametrize("word", SCHEDULERS)
def test_data_are_noised_as_the_forward_process_does(word: str, scheduler_config: Config) -> None:
    """q(x_t | x_0), DDPM eq. 4, with alphas_cumprod written out; methods in sigma keep the same scale."""
    rest = plan(scheduler_config(word, **TRAILING), 20).since(600)
    t = rest.timesteps[0]
    signal = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))[t]
    x0, z = np.random.default_rng(0).standard_normal((2, 3, 1, 4, 4))
    noised = rest.noised(x0.astype(np.float32), z.astype(np.float32))
    assert noised.dtype == np.float32
    np.testing.assert_allclose(noised, np.sqrt(signal) * x0 + np.sqrt(1 - signal) * z, atol=2e-6)
    assert t == 599


def test_karras_levels_and_no_signal_at_all(scheduler_config: Config) -> None:
    x0, z = np.ones((1, 2), np.float32), np.full((1, 2), 3.0, np.float32)
    rest = plan(scheduler_config("euler", use_karras_sigmas=True, **TRAILING), 10).since(700)
    sigma = rest.sigmas[0]
    np.testing.assert_allclose(rest.noised(x0, z), (x0 + sigma * z) / np.sqrt(1 + sigma**2), rtol=1e-6)
    drowned = plan(scheduler_config("ddim", rescale_betas_zero_snr=True, prediction_type="v_prediction", **TRAILING), 10)
    assert np.isinf(drowned.sigmas[0])
    np.testing.assert_array_equal(drowned.noised(x0, z), z)


@pytest.mark.parametrize("word", SCHEDULERS)
def test_the_rest_is_the_run_whose_earlier_estimates_were_the_first(word: str, scheduler_config: Config) -> None:
    whole = plan(scheduler_config(word, **TRAILING), 12)
    rest = whole.since(500)
    first = whole.num_steps - rest.num_steps
    np.testing.assert_array_equal(rest.timesteps, whole.timesteps[first:])
    assert rest.timesteps[0] <= 500 < whole.timesteps[first - 1] or word == "heun"
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 5))
    mine, history = x.copy(), rest.new_history(x.shape, np.float64)
    estimates: list[np.ndarray] = []
    history.fill(np.nan)  # nothing may be read before it is written
    for k, row in enumerate(whole.table[first:]):
        m, z = rng.standard_normal((2, *x.shape))
        estimate = row["gain"] * (row["from_sample"] * x + row["from_output"] * m)
        estimates += [estimate] * (1 if estimates else 3)
        previous, earlier = estimates[-2], estimates[-3]
        x = row["sample"] * x + row["output"] * m + row["estimate"] * estimate + row["noise"] * z
        x += row["previous"] * previous + row["earlier"] * earlier
        np.testing.assert_allclose(rest.step(k, m, mine, z, history), estimate, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(mine, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("word", ["dpmsolver++", "unipc"])
def test_a_multistep_method_begins_with_a_step_of_first_order(word: str, scheduler_config: Config) -> None:
    rest = plan(scheduler_config(word, **TRAILING), 10).since(500)
    simple = plan(scheduler_config("ddim", **TRAILING), 10).since(500)
    rng = np.random.default_rng(2)
    x, m = rng.standard_normal((2, 1, 6))
    other = x.copy()
    rest.step(0, m, x, None, rest.new_history(x.shape, np.float64))
    simple.step(0, m, other, None, simple.new_history(x.shape, np.float64))
    np.testing.assert_allclose(x, other, atol=1e-12)


def test_heun_begins_with_a_step_and_not_with_the_end_of_one(scheduler_config: Config) -> None:
    whole = plan(scheduler_config("heun", **TRAILING), 10)
    for bound in whole.timesteps:
        rest = whole.since(bound)
        assert rest.num_steps % 2 == 1
        assert rest.timesteps[0] == bound
        np.testing.assert_array_equal(rest.table[0], whole.table[whole.num_steps - rest.num_steps])


def test_the_whole_run_and_none_of_it(scheduler_config: Config) -> None:
    whole = plan(scheduler_config("ddim", **TRAILING), 4)
    assert whole.since(1000) is whole
    assert whole.since(999) is whole
    with pytest.raises(BundleError, match=r"last of 4 steps is at timestep 249, above 200; take more steps"):
        whole.since(200)
