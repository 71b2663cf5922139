"""Ranges: the score is the least over all targets they admit, what a network is shown lies within them, noise widens values."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from runtime.errors import TargetError
from runtime.geometry import Geometry
from runtime.score import misrouted_power, missed
from runtime.target import Target, check_orders
from runtime.target_ranges import Ranges, words

SHAPE = (2, 3, 3)


def ask(low: np.ndarray, high: np.ndarray, mask: np.ndarray) -> Target:
    """A target of M = 1 whose orders in ``mask`` lie between ``low`` and ``high``, all (2, 3, 3)."""
    low, high = np.where(mask, low, 0.0), np.where(mask, high, 0.0)
    target = Target.from_arrays(low[0], low[1], 300, mask[0], mask[1])
    return dataclasses.replace(target, ranges=Ranges(low[0], low[1], high[0], high[1]))


def least_by_linear_programme(achieved: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """The least misrouted power of achieved (K,) over all wanted w (K,) with low <= w <= high and sum of w <= 1.

    Variables w, the K absolute differences u and that of the sums v: minimise (sum of u + v) / 2 with u and v not below either sign.
    """
    count, one = len(achieved), np.eye(len(achieved))
    nothing, row = np.zeros((count, 1)), np.ones((1, count))
    rows = [
        np.hstack([-one, -one, nothing]),  # a - w <= u
        np.hstack([one, -one, nothing]),
        np.hstack([-row, 0 * row, [[-1.0]]]),  # sum a - sum w <= v
        np.hstack([row, 0 * row, [[-1.0]]]),
        np.hstack([row, 0 * row, [[0.0]]]),  # sum w <= 1
    ]
    total = achieved.sum()
    bounds = [*zip(low, high, strict=True), *[(0, None)] * (count + 1)]
    cost = np.concatenate([np.zeros(count), np.full(count + 1, 0.5)])
    found = linprog(cost, np.vstack(rows), np.concatenate([-achieved, achieved, [-total], [total], [1.0]]), bounds=bounds)
    assert found.status == 0, found.message
    return float(found.fun)


def case(seed: int, total: float, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Achieved power, lower ends that add up to at most 1, upper ends, mask: each (2, 3, 3)."""
    rng = np.random.default_rng(seed)
    achieved = total * rng.dirichlet(np.full(18, spread)).reshape(SHAPE)
    low = rng.random() * rng.dirichlet(np.full(18, spread)).reshape(SHAPE)
    low[rng.random(SHAPE) < 0.3] = 0.0
    high = np.minimum(low + rng.exponential(0.1, SHAPE) * (rng.random(SHAPE) < 0.7), 1.0)
    mask = rng.random(SHAPE) < rng.random()
    mask[1, 1, 1] = True
    return achieved, low, high, mask


class TestScore:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 10**9), st.floats(0, 1), st.floats(0.05, 5))
    def test_is_the_least_over_all_targets_that_the_ranges_admit(self, seed: int, total: float, spread: float) -> None:
        achieved, low, high, mask = case(seed, total, spread)
        found = misrouted_power(achieved[0], achieved[1], ask(low, high, mask))
        assert found == pytest.approx(least_by_linear_programme(achieved[mask], low[mask], high[mask]), abs=1e-6)

    @given(st.integers(0, 10**9), st.floats(0, 1), st.floats(0.05, 5))
    def test_wider_is_never_worse_and_no_width_is_the_plain_score(self, seed: int, total: float, spread: float) -> None:
        (R, T), low, high, mask = case(seed, total, spread)
        exactly = np.where(mask, low, 0.0)
        plain = Target.from_arrays(exactly[0], exactly[1], 300, mask[0], mask[1])
        assert plain.ranges is None
        exact, half, whole = (misrouted_power(R, T, ask(low, low + part * (high - low), mask)) for part in (0.0, 0.5, 1.0))
        assert exact == misrouted_power(R, T, plain)
        assert 0 <= whole <= half + 1e-15 <= exact + 2e-15 <= 1 + 1e-12

    def test_by_hand(self) -> None:
        low, high, mask = np.zeros(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE, bool)
        low[1, 2, 1], high[1, 2, 1] = 0.3, 0.5  # T(1,0)
        high[1, 1, 1] = 0.1  # T(0,0) at most 0.1
        mask[1, 1:, 1] = True
        target = ask(low, high, mask)
        R, T = np.zeros((3, 3)), np.zeros((3, 3))
        for one, zero, expected in ((0.4, 0.05, 0.0), (0.3, 0.1, 0.0), (0.2, 0.0, 0.1), (0.4, 0.3, 0.2), (0.2, 0.3, 0.2), (0.7, 0.3, 0.4)):
            T[2, 1], T[1, 1] = one, zero
            assert misrouted_power(R, T, target) == pytest.approx(expected), (one, zero)
        assert missed(R, T, target) == pytest.approx([0.2, 0.2])  # T(0,0) stands before T(1,0)


class TestShown:
    @pytest.mark.parametrize(
        ("orders", "shown"),
        [
            ({"T(1,0)": [0.2, 0.4]}, 0.3),
            ({"T(1,0)": {"min": 0.2}}, 0.2),
            ({"T(1,0)": {"max": 0.2}}, 0.1),
            ({"T(1,0)": {"min": 0.2, "max": 0.3}}, 0.25),
            ({"T(1,0)": {"value": 0.2, "sigma": 0.15}}, 0.2),
            ({"T(1,0)": [0.2, 0.4], "T(0,0)": 0.75}, 0.25),
        ],
    )
    def test_value(self, orders: dict[str, Any], shown: float) -> None:
        assert Target.from_dict({"height_nm": 300, "orders": orders}).wanted("T", 1, 0) == pytest.approx(shown)

    @given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=9))
    def test_lies_within_the_ranges_and_is_no_more_than_all_the_light(self, ends: list[tuple[float, float]]) -> None:
        orders = {f"T({i},0)": sorted(pair) for i, pair in enumerate(ends)}
        fields = {"height_nm": 300, "orders": orders}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if sum(min(pair) for pair in ends) > 1.0501:
                with pytest.raises(TargetError, match="add up to"):
                    Target.from_dict(fields)
                return
            assume(sum(min(pair) for pair in ends) < 1.05)
            target = Target.from_dict(fields)
        assert target.T.sum() <= 1 + 1e-9
        for i, pair in enumerate(ends):
            low, high = target.range_of("T", i, 0)
            assert low - 1e-12 <= target.wanted("T", i, 0) <= high + 1e-12
            assert low <= min(pair) + 1e-12
            assert high <= max(pair)


class TestNoise:
    @given(st.integers(0, 10**9), st.floats(0, 0.05))
    def test_reached_within_two_standard_deviations(self, seed: int, sigma: float) -> None:
        rng = np.random.default_rng(seed)
        wanted = 0.9 * rng.dirichlet(np.ones(18)).reshape(SHAPE)
        target = Target.from_arrays(wanted[0], wanted[1], 300, sigma_R=sigma, sigma_T=np.full((3, 3), sigma))
        off = np.clip(wanted + rng.choice([-1.99, 1.99], SHAPE) * sigma, 0, 1)
        assert misrouted_power(off[0], off[1], target) <= 1e-12
        far = wanted.copy()
        far[1, 0, 0] += 2 * sigma + 0.01
        assert misrouted_power(far[0], far[1], target) == pytest.approx(0.01)
        assert pytest.approx(wanted[1]) == target.T, "a network is shown what was measured"

    def test_a_total_above_1_is_explained_by_noise_or_refused(self) -> None:
        R, T = np.zeros((3, 3)), np.zeros((3, 3))
        R[1, 1], T[1, 1] = 0.5, 0.6
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target = Target.from_arrays(R, T, 300, sigma_R=0.05, sigma_T=0.05)
        assert target.R.sum() + target.T.sum() == pytest.approx(1)
        assert target.range_of("R", 0, 0) == pytest.approx((0.4, 0.6))
        with pytest.raises(TargetError, match=r"the lower ends of the efficiencies in 'R' and 'T' add up to 1\.06"):
            Target.from_arrays(R, T, 300, sigma_R=0.01, sigma_T=0.01)

    def test_negative_values_within_noise_pass_without_a_word(self) -> None:
        T = np.full((3, 3), -0.015)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target = Target.from_arrays(np.zeros((3, 3)), T, 300, sigma_T=0.01)
        assert target.range_of("T", 0, 0) == pytest.approx((0, 0.005))
        with pytest.raises(TargetError, match=r"'T' asks for -0\.015"):
            Target.from_arrays(np.zeros((3, 3)), T, 300, sigma_T=0.0015)

    @pytest.mark.parametrize(
        ("sigma", "text"),
        [
            (-0.1, "'sigma_T' holds -0.1"),
            (np.nan, "'sigma_T' holds nan"),
            (np.ones((5, 5)), r"'sigma_T' has shape \(5, 5\)"),
            ("x", "sigma_T"),
        ],
    )
    def test_refusals(self, sigma: Any, text: str) -> None:
        with pytest.raises(TargetError, match=text):
            Target.from_arrays(np.zeros((3, 3)), np.zeros((3, 3)), 300, sigma_T=sigma)


class TestOrders:
    def test_ranges_are_resized_with_their_maps(self) -> None:
        target = Target.from_dict({"height_nm": 300, "orders": {"T(1,-2)": [0.1, 0.3], "R(4,0)": {"max": 0.2}}})
        for orders in (14, 4):
            other = target.resized(orders)
            assert other.range_of("T", 1, -2) == (0.1, 0.3)
            assert other.range_of("R", 4, 0) == (0, 0.2)
            assert other.ranges is not None
            assert {ends.shape for ends in other.ranges} == {(2 * orders + 1, 2 * orders + 1)}
            assert not other.ranges.high_R.flags.writeable
        # Nothing has to be there: it may be cut off. What has to be may not.
        assert target.resized(3).mask_R.sum() == 0
        with pytest.raises(TargetError, match=r"order T\(1,-2\) is asked 0\.1, but the maps here end at order 1"):
            target.resized(1)

    def test_an_evanescent_order_may_be_limited_and_not_be_asked_for(self) -> None:
        check_orders(Target.from_dict({"height_nm": 300, "orders": {"T(3,0)": {"max": 0.2}, "T(1,0)": 0.1}}), Geometry())
        check_orders(Target.from_dict({"height_nm": 300, "noise": 0.01, "orders": {"T(3,0)": 0.02, "T(1,0)": 0.1}}), Geometry())
        with pytest.raises(TargetError, match=r"order T\(3,0\) is asked at least 0\.2, .*, in T at most m from -2 to 2, n from -2 to 2"):
            check_orders(Target.from_dict({"height_nm": 300, "orders": {"T(3,0)": [0.2, 0.3]}}), Geometry())


@pytest.mark.parametrize(
    ("low", "high", "text"), [(0.3, 0.3, "0.300"), (0.3, 0.5, "0.300-0.500"), (0.3, 1, ">=0.300"), (0, 0.05, "<=0.050"), (0, 1, "any")]
)
def test_words(low: float, high: float, text: str) -> None:
    assert words(low, high) == text
