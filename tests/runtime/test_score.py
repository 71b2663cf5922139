"""Misrouted power and the lab's scores against numbers worked out on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import DataError
from runtime.score import lab_scores, misrouted_power
from runtime.target import Target


def ask(wanted: dict[tuple[str, int, int], float], orders: int = 2) -> Target:
    """A partial target that asks for the orders named."""
    maps = {kind: np.zeros((2 * orders + 1, 2 * orders + 1)) for kind in "RT"}
    masks = {kind: np.zeros((2 * orders + 1, 2 * orders + 1), bool) for kind in "RT"}
    for (kind, m, n), value in wanted.items():
        maps[kind][m + orders, n + orders] = value
        masks[kind][m + orders, n + orders] = True
    return Target.from_arrays(maps["R"], maps["T"], 300, masks["R"], masks["T"])


def light(orders: int = 2, **powers: float) -> tuple[np.ndarray, np.ndarray]:
    """Achieved R, T; t10=0.4 is T(1,0)."""
    maps = {kind: np.zeros((2 * orders + 1, 2 * orders + 1)) for kind in "rt"}
    for name, value in powers.items():
        maps[name[0]][int(name[1]) + orders, int(name[2]) + orders] = value
    return maps["r"], maps["t"]


def score(achieved: np.ndarray, wanted: np.ndarray, masks: np.ndarray | None = None) -> float:
    """Misrouted power of pairs (R, T), each (2, 2M+1, 2M+1)."""
    asked = np.ones(wanted.shape, bool) if masks is None else masks
    return float(misrouted_power(achieved[0], achieved[1], Target.from_arrays(wanted[0], wanted[1], 300, asked[0], asked[1])))


class TestMisroutedPower:
    def test_two_orders_swapped(self) -> None:
        target = Target.from_arrays(*light(t10=0.7, t01=0.3), 300)
        assert misrouted_power(*light(t10=0.3, t01=0.7), target) == pytest.approx(0.4)

    def test_everything_elsewhere_is_1_and_exact_is_0(self) -> None:
        target = Target.from_arrays(*light(t10=0.7, r01=0.3), 300)
        assert misrouted_power(*light(r10=1.0), target) == pytest.approx(1)
        assert misrouted_power(*light(t10=0.7, r01=0.3), target) == 0

    def test_full_target_is_half_the_l1_distance(self) -> None:
        rng = np.random.default_rng(0)
        a, w = (rng.dirichlet(np.ones(50)).reshape(2, 5, 5) for _ in range(2))
        assert score(a, w) == pytest.approx(np.abs(a - w).sum() / 2)

    def test_unasked_orders_are_one_bin(self) -> None:
        target = ask({("T", 1, 0): 0.6})
        # Where the other 0.4 goes is nobody's concern; 0.2 missing from T(1,0) is 0.2 misrouted into the bin.
        assert misrouted_power(*light(t10=0.6, r00=0.1, t01=0.3), target) == pytest.approx(0)
        assert misrouted_power(*light(t10=0.4, r00=0.6), target) == pytest.approx(0.2)
        assert misrouted_power(*light(t10=0.4, r11=0.3, t01=0.3), target) == pytest.approx(0.2)

    def test_swapped_within_the_asked_orders_leaves_the_bin_alone(self) -> None:
        target = ask({("T", 1, 0): 0.4, ("R", 0, 0): 0.1})
        assert misrouted_power(*light(t10=0.1, r00=0.4, t00=0.5), target) == pytest.approx(0.3)

    def test_nothing_asked_is_0(self) -> None:
        nothing = np.zeros((5, 5))
        target = Target(nothing, nothing, nothing.astype(bool), nothing.astype(bool), 300.0)
        assert misrouted_power(*light(t10=1.0), target) == 0

    def test_reflection_and_transmission_have_masks_of_their_own(self) -> None:
        assert misrouted_power(*light(t10=0.5), ask({("R", 1, 0): 0.5})) == pytest.approx(0.5)

    def test_batches_and_float32(self) -> None:
        target = ask({("T", 1, 0): 0.6, ("R", 0, 1): 0.2})
        rng = np.random.default_rng(1)
        R, T = np.moveaxis(rng.dirichlet(np.ones(50), size=(3, 4)).reshape(3, 4, 2, 5, 5), 2, 0).astype(np.float32)
        scores = misrouted_power(R, T, target)
        assert isinstance(scores, np.ndarray)
        assert scores.shape == (3, 4)
        assert scores.dtype == np.float64
        assert scores[2, 1] == pytest.approx(misrouted_power(R[2, 1], T[2, 1], target))
        assert isinstance(misrouted_power(R[0, 0], T[0, 0], target), float)

    def test_other_sizes_are_refused(self) -> None:
        with pytest.raises(DataError, match=r"\(7, 7\).*\(5, 5\); resize"):
            misrouted_power(*light(orders=3), ask({("T", 1, 0): 0.6}))

    @given(st.integers(0, 10**9), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1), st.floats(0.05, 5))
    def test_a_bounded_distance_of_what_is_asked(self, seed: int, total_a: float, total_w: float, share: float, spread: float) -> None:
        rng = np.random.default_rng(seed)
        a = total_a * rng.dirichlet(np.full(18, spread)).reshape(2, 3, 3)
        w = total_w * rng.dirichlet(np.full(18, spread)).reshape(2, 3, 3)
        masks = rng.random((2, 3, 3)) < share
        masks[0, 0, 0] = True
        found = score(a, w, masks)
        assert -1e-12 <= found <= 1 + 1e-12
        # Zero exactly when the asked orders agree, whatever the rest does.
        largest = np.abs(a - w)[masks].max()
        assert largest / 2 - 1e-12 <= found <= masks.sum() * largest + 1e-12
        assert score(np.where(masks, w, a), w, masks) <= 1e-12
        # With the same masks on both sides the two roles can be exchanged.
        assert found == pytest.approx(score(w, a, masks), abs=1e-12)

    @given(st.integers(0, 10**9))
    def test_triangle_inequality(self, seed: int) -> None:
        a, b, c = np.random.default_rng(seed).dirichlet(np.ones(18), size=3).reshape(3, 2, 3, 3)
        assert score(a, c) <= score(a, b) + score(b, c) + 1e-12


class TestLabScores:
    def test_known_counts(self) -> None:
        # Pattern 1 is exact (2 pillars). Pattern 2 has 3 pillars, 1 of them right, of 2 wanted: 2 + 1 pixels unequal.
        reference = np.array([[[1, 1], [0, 0]], [[1, 0], [0, 1]]])
        pattern = np.array([[[1, 1], [0, 0]], [[1, 1], [1, 0]]])
        assert lab_scores(pattern, reference)["plain"] == {
            "image_accuracy": 0.5,
            "precision": pytest.approx(3 / 5),
            "recall": pytest.approx(3 / 4),
            "unequal_pixels": 1.5,
        }

    def test_a_shifted_pattern_is_exact_modulo_shift(self) -> None:
        reference = (np.random.default_rng(3).random((5, 10, 10)) < 0.5).astype(np.uint8)
        shifts = [(0, 0), (1, 0), (0, 9), (3, 7), (5, 5)]
        pattern = np.stack([np.roll(r, shift, (0, 1)) for r, shift in zip(reference, shifts, strict=True)])
        scores = lab_scores(pattern, reference)
        assert scores["modulo_shift"] == {"image_accuracy": 1.0, "precision": 1.0, "recall": 1.0, "unequal_pixels": 0.0}
        assert scores["plain"]["image_accuracy"] == 0.2

    def test_the_shift_is_the_best_one(self) -> None:
        rng = np.random.default_rng(4)
        pattern, reference = (rng.random((2, 6, 7, 7)) < 0.4).astype(np.uint8)
        least = [
            min((np.roll(p, (i, j), (0, 1)) != r).sum() for i in range(7) for j in range(7))
            for p, r in zip(pattern, reference, strict=True)
        ]
        scores = lab_scores(pattern, reference)
        assert scores["modulo_shift"]["unequal_pixels"] == pytest.approx(np.mean(least))
        assert scores["plain"]["unequal_pixels"] == pytest.approx((pattern != reference).sum(axis=(1, 2)).mean())

    def test_one_pattern_and_no_pillars(self) -> None:
        empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
        assert lab_scores(empty, full)["plain"] == {"image_accuracy": 0.0, "precision": 0.0, "recall": 0.0, "unequal_pixels": 16.0}
        assert lab_scores(full, full)["modulo_shift"]["precision"] == 1

    @pytest.mark.parametrize(
        ("pattern", "reference", "words"),
        [
            (np.zeros((2, 4, 4)), np.zeros((3, 4, 4)), r"\(2, 4, 4\).*\(3, 4, 4\)"),
            (np.zeros((0, 4, 4)), np.zeros((0, 4, 4)), "N above 0"),
            (np.zeros((2, 4, 3)), np.zeros((2, 4, 3)), r"\(N, n, n\)"),
            (np.full((4, 4), 0.5), np.zeros((4, 4)), "patterns hold values other than 0 and 1"),
            (np.zeros((4, 4)), np.full((4, 4), -1), "references hold values other than 0 and 1"),
        ],
    )
    def test_refusals(self, pattern: Any, reference: Any, words: str) -> None:
        with pytest.raises(DataError, match=words):
            lab_scores(pattern, reference)
