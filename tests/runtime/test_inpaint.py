"""Sampling with a part held: on Gaussian data, whose network and conditional moments are known, and with the small bundles."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from runtime.batching import BatchingSampler
from runtime.errors import Cancelled, DataError, TargetError
from runtime.inpaint import Known, jump_back
from runtime.loop import Guidance, denoise
from runtime.sampler import Sampler
from runtime.schedulers import SCHEDULERS, Plan, plan
from runtime.target import Target

MEAN, COVARIANCE = np.array([0.3, -0.2]), np.array([[0.5, 0.225], [0.225, 0.125]])
GIVEN = 1.2  # the first coordinate
SLOPE = COVARIANCE[0, 1] / COVARIANCE[0, 0]
CONDITIONAL = MEAN[1] + SLOPE * (GIVEN - MEAN[0]), np.sqrt(COVARIANCE[1, 1] - SLOPE * COVARIANCE[0, 1])
FIRST = np.array([True, False])[:, None, None]


class Exact:
    """The noise in samples of two correlated numbers, as an ideal network sees it: E[z | x_t]."""

    device = "cpu"

    def __init__(self, steps: Plan) -> None:
        self.signal = dict(zip(steps.timesteps.tolist(), (1 / (1 + steps.sigmas**2)).tolist(), strict=True))
        self.calls = 0

    @contextlib.contextmanager
    def bind(self, fixed: Any, batch: int) -> Iterator[Any]:
        def call(varying: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.calls += 1
            a, x = self.signal[int(varying["timestep"][0])], varying["sample"][:, :, 0, 0]
            inverse = np.linalg.inv(a * COVARIANCE + (1 - a) * np.eye(2))
            return {"output": (np.sqrt(1 - a) * (x - np.sqrt(a) * MEAN) @ inverse).astype(np.float32)[:, :, None, None]}

        yield call


def sampled(steps: Plan, known: Known | None, count: int, first: int = 0) -> np.ndarray:
    """(count, 2) samples of the Gaussian, of the candidates from ``first`` on."""
    found = denoise(Exact(steps), steps, (2, 1, 1), {}, None, Guidance(), 3, range(first, first + count), lambda k, x: None, known=known)  # type: ignore[arg-type]
    return found[:, :, 0, 0]


def known(resample: int, mask: np.ndarray = FIRST) -> Known:
    return Known.of(np.array([GIVEN, -0.4])[:, None, None], mask, resample)


@pytest.fixture
def chosen(scheduler_config: Callable[..., dict[str, Any]]) -> Callable[..., Plan]:
    """The plan of a scheduler in so many steps."""

    def chosen(word: str, num_steps: int) -> Plan:
        return plan(scheduler_config(word, clip_sample=False, timestep_spacing="trailing"), num_steps, word)

    return chosen


def test_the_conditional_mean_comes_out_and_resampling_brings_it(chosen: Callable[..., Plan]) -> None:
    """RePaint is no exact sampler: its spread comes out up to a sixth too narrow, which the bound on it says."""
    steps, count = chosen("ddpm", 100), 500
    off = []
    for resample in (1, 8):
        second = sampled(steps, known(resample), count)[:, 1]
        off.append((abs(float(second.mean()) - CONDITIONAL[0]), abs(float(second.std()) - CONDITIONAL[1])))
    error = CONDITIONAL[1] / np.sqrt(count)
    assert off[0][0] > 4 * error, "a single pass does not reach it"
    assert off[1][0] < 4 * error
    assert off[1][1] < CONDITIONAL[1] / 4
    assert np.linalg.norm(off[1]) < 0.7 * np.linalg.norm(off[0])
    free = sampled(steps, None, count)[:, 1]
    assert abs(free.mean() - CONDITIONAL[0]) > 0.3, "the data's own mean is elsewhere"


@pytest.mark.parametrize("word", SCHEDULERS)
def test_every_scheduler_holds_what_is_known_exactly(word: str, chosen: Callable[..., Plan]) -> None:
    steps = chosen(word, 6)
    found = sampled(steps, known(3), 40)
    assert (found[:, 0] == np.float32(GIVEN)).all()
    assert np.isfinite(found).all()
    # More of the right value than without the one that is held: the two are correlated.
    assert found[:, 1].mean() - sampled(steps, None, 40)[:, 1].mean() > 0.1
    whole = sampled(steps, known(2, np.ones((2, 1, 1), bool)), 3)
    assert (whole == np.array([GIVEN, -0.4], np.float32)).all()
    one = sampled(steps, known(3), 1, first=7)
    np.testing.assert_allclose(one[0], found[7], atol=1e-5)


def test_steps_are_repeated_where_the_noise_falls(chosen: Callable[..., Plan]) -> None:
    assert known(3).steps(chosen("ddim", 4)) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert known(1).steps(chosen("ddim", 4)) == [0, 1, 2, 3]
    heun = chosen("heun", 3)
    assert heun.timesteps[1] == heun.timesteps[2], "it comes twice to a level"
    assert known(2).steps(heun) == [0, 0, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("word", ["dpmsolver++", "unipc", "heun", "ddim"])
def test_a_repeated_step_remembers_nothing(word: str, chosen: Callable[..., Plan]) -> None:
    alone = chosen(word, 6).first_order()
    assert not alone.table["previous"].any()
    assert not alone.table["earlier"].any()
    # A constant estimate is the same to every order.
    whole = chosen(word, 6)
    kept = sum(whole.table[name] for name in ("estimate", "previous", "earlier"))
    np.testing.assert_allclose(alone.table["estimate"], kept)


def test_jumping_back_adds_the_noise_of_the_forward_process() -> None:
    draws = np.random.default_rng(0)
    sigma, above = 0.5, 2.0
    a, b = 1 / (1 + sigma**2), 1 / (1 + above**2)
    x = (np.sqrt(a) * 0.7 + np.sqrt(1 - a) * draws.standard_normal(40_000)).astype(np.float32)
    jump_back(x, sigma, above, draws.standard_normal(40_000, dtype=np.float32))
    assert x.mean() == pytest.approx(np.sqrt(b) * 0.7, abs=0.015)
    assert x.std() == pytest.approx(np.sqrt(1 - b), abs=0.015)
    lost = np.ones(5, np.float32)
    jump_back(lost, sigma, np.inf, np.full(5, 0.25, np.float32))
    assert (lost == 0.25).all(), "no signal is left at the end of a schedule with zero SNR"


def test_what_cannot_be_held_is_said(sampler: Sampler, condition: dict[str, np.ndarray]) -> None:
    for values, mask, resample, words in (
        (np.zeros((1, 5, 5)), np.ones((5, 5)), 1, "expected that of a sample for both"),
        (np.full((1, 5, 5), np.nan), np.ones((1, 5, 5)), 1, "are not finite"),
        (np.zeros((1, 5, 5)), np.ones((1, 5, 5)), 0, "at least once"),
    ):
        with pytest.raises(TargetError, match=words):
            Known.of(values, mask, resample)
    with pytest.raises(TargetError, match=r"known values have shape \(2, 1, 1\)"):
        sampler.sample(condition, 1, known=known(1))


# --- Metasurfaces ---------------------------------------------------------------------------------------------------

FIXED = np.array([[1, 0, 1, 0, 1], [-1, -1, -1, -1, -1], [-1, 0, 0, -1, -1], [-1, -1, -1, -1, -1], [-1, -1, -1, -1, 1]])


def test_patterns_hold_their_pixels_and_do_not_depend_on_their_batch(sampler: Sampler, target: Target) -> None:
    hold = sampler.held(FIXED, 2)
    made = sampler.propose(target, 6, known=hold, steps=4)
    assert (made[:, FIXED >= 0] == FIXED[FIXED >= 0]).all()
    assert (made[:, FIXED < 0].mean(axis=0) % 1 > 0).any(), "the rest is sampled"
    np.testing.assert_array_equal(sampler.propose(target, 6, known=hold, steps=4, batch_size=2), made)
    told: list[tuple[int, int]] = []
    sampler.propose(target, 4, known=hold, steps=4, batch_size=2, on_step=lambda step, total, estimate: told.append((step, total)))
    assert told == [(k, 14) for k in range(1, 15)], "each step twice but the last, two batches"
    with pytest.raises(Cancelled):
        sampler.propose(target, 1, known=hold, steps=4, stop=lambda: True)


def test_designs_hold_their_pixels_while_they_are_sampled(sampler: Sampler, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Known | None] = []
    stream = sampler.stream

    def watched(*args: Any, **settings: Any) -> Iterator[np.ndarray]:
        made.append(settings.get("known"))
        return stream(*args, **settings)

    monkeypatch.setattr(sampler, "stream", watched)
    designs = sampler.design(target, n=6, top=3, steps=4, fixed=FIXED, resample=3)
    assert all((design.pattern[FIXED >= 0] == FIXED[FIXED >= 0]).all() for design in designs)
    hurried = sampler.design(target, n=6, top=2, steps=4, fixed=FIXED, deadline_s=0.0)
    assert all((design.pattern[FIXED >= 0] == FIXED[FIXED >= 0]).all() for design in hurried), "of a sample that is not finished as well"
    assert made[0] is not None
    assert made[0].resample == 3
    with pytest.raises(DataError, match="at least once"):
        sampler.design(target, fixed=FIXED, resample=0)


def test_callers_of_a_batching_sampler_hold_their_own(sampler: Sampler, target: Target) -> None:
    with BatchingSampler(sampler.bundle, "onnxruntime", "cpu", threads=1) as shared:
        made = shared.propose(target, 3, known=shared.held(FIXED, 2), steps=4)
    np.testing.assert_array_equal(made, sampler.propose(target, 3, known=sampler.held(FIXED, 2), steps=4))
