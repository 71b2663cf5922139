"""Targets: what is accepted, clipped and refused, and how the physics and a network's range limit them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import TargetError
from runtime.geometry import Geometry
from runtime.target import Target, check_height, check_orders

SIDE, M = 23, 11
LAB = Geometry()


class TestArrays:
    def test_full_target_keeps_its_values(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        R, T = maps(R0_0=0.25, T1_m2=0.75)
        target = Target.from_arrays(R, T, 300)
        assert not target.partial
        assert target.orders == M
        assert target.wanted("T", 1, -2) == 0.75
        assert (target.R == R).all()
        assert (target.T == T).all()

    def test_values_at_orders_not_asked_for_are_dropped(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        R, T = maps(R0_0=0.25, T1_0=0.5, T0_1=0.5)
        mask = np.zeros((SIDE, SIDE))
        mask[1 + M, M] = 1
        target = Target.from_arrays(R, T, 300, mask_R=np.zeros((SIDE, SIDE), bool), mask_T=mask)
        assert target.partial
        assert target.R.sum() == 0
        assert target.T.sum() == 0.5 == target.wanted("T", 1, 0)

    def test_what_it_holds_cannot_be_changed_through_the_callers_array(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        R, T = maps(T0_0=1.0)
        target = Target.from_arrays(R, T, 300)
        T[M, M] = 0
        assert target.T[M, M] == 1
        with pytest.raises(ValueError, match="read-only"):
            target.T[M, M] = 0

    def test_small_negatives_become_zero_with_a_warning(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        R, T = maps(R0_0=-0.01, T0_0=0.9)
        with pytest.warns(UserWarning, match=r"efficiencies down to -0\.01 are taken as 0"):
            target = Target.from_arrays(R, T, 300)
        assert target.R.min() == 0
        assert target.T[M, M] == 0.9

    def test_a_total_up_to_105_percent_is_scaled_to_1_with_a_warning(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        R, T = maps(R0_0=0.42, T0_0=0.63)
        with pytest.warns(UserWarning, match=r"add up to 1\.05 and are scaled to 1"):
            target = Target.from_arrays(R, T, 300)
        assert target.R[M, M] == pytest.approx(0.4)
        assert target.T[M, M] == pytest.approx(0.6)

    def test_the_round_off_of_a_solver_is_mended_silently(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        R, T = maps(R0_0=0.4, T0_0=0.6003)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target = Target.from_arrays(R, T, 300)
        assert target.R.sum() + target.T.sum() == pytest.approx(1, abs=1e-12)

    def test_the_limits_themselves_are_within_them_in_float32_too(self) -> None:
        R, T = np.full((2, 23, 23), 1.05 / 1058, np.float32)
        with pytest.warns(UserWarning, match="scaled to 1"):
            Target.from_arrays(R, T, 300)
        with pytest.warns(UserWarning, match="taken as 0"):
            Target.from_arrays(np.full((5, 5), -0.01, np.float32), np.full((5, 5), 0.01, np.float32), 300)

    @given(st.integers(0, 10**6), st.floats(0.2, 1.05))
    def test_whatever_is_accepted_is_a_possible_distribution(self, seed: int, total: float) -> None:
        values = np.random.default_rng(seed).random((2, 5, 5)) - 0.02
        values = np.maximum(values * total / values.sum(), -0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                target = Target.from_arrays(values[0], values[1], 300)
            except TargetError:
                assert np.maximum(values, 0).sum() > 1.05
                return
        assert min(target.R.min(), target.T.min()) >= 0
        assert target.R.sum() + target.T.sum() <= 1 + 1e-12

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"R": np.zeros((23, 21))}, ["'R'", "(23, 21)"]),
            ({"R": np.zeros((22, 22)), "T": np.zeros((22, 22))}, ["'R'", "(22, 22)", "odd"]),
            ({"R": np.zeros((21, 21))}, ["'R'", "(21, 21)", "'T'", "(23, 23)", "same"]),
            ({"R": np.full((23, 23), np.nan)}, ["'R'", "nan", "finite"]),
            ({"T": np.full((23, 23), -np.inf)}, ["'T'", "-inf", "finite"]),
            ({"T": np.zeros((23, 23), complex)}, ["'T'", "real numbers"]),
            ({"R": [[0, 0], [0]]}, ["'R'", "real numbers"]),
            ({"T": np.pad([[-0.0101]], ((M + 1, M - 1), (M - 3, M + 3)))}, ["'T'", "T(1,-3)", "-0.0101", "from 0 to 1"]),
            ({"T": np.pad([[0.6], [0.451]], ((M, M - 1), (M, M)))}, ["'R' and 'T'", "1.051", "scale"]),
            ({"R": np.pad([[7.0]], M)}, ["'R'", "add up to 7"]),
            ({"height_nm": 0}, ["'height_nm'", "0.0", "above 0"]),
            ({"height_nm": -3}, ["'height_nm'", "-3.0", "above 0"]),
            ({"height_nm": float("nan")}, ["'height_nm'", "nan", "above 0"]),
            ({"height_nm": "tall"}, ["'height_nm'", "real numbers"]),
            ({"height_nm": [300, 400]}, ["'height_nm'", "2 values", "one height"]),
            ({"mask_R": np.ones((3, 3))}, ["'mask_R'", "(3, 3)", "(23, 23)"]),
            ({"mask_T": np.full((23, 23), 0.5)}, ["'mask_T'", "0 and 1"]),
            ({"mask_R": np.zeros((23, 23)), "mask_T": np.zeros((23, 23))}, ["no order is asked for"]),
        ],
    )
    def test_refusals(
        self, change: dict[str, Any], words: list[str], maps: Callable[..., tuple[np.ndarray, np.ndarray]], plain: Callable[[str], bool]
    ) -> None:
        R, T = maps(T0_0=0.5)
        with pytest.raises(TargetError) as caught:
            Target.from_arrays(**{"R": R, "T": T, "height_nm": 300, "name": "beam", **change})
        text = str(caught.value)
        assert text.startswith("beam: ")
        assert plain(text)
        for word in words:
            assert word in text


class TestResized:
    def test_there_and_back(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        target = Target.from_arrays(*maps(R0_0=0.3, T2_m1=0.7), 300)
        small = target.resized(2)
        assert small.orders == 2
        assert small.T[4, 1] == 0.7
        back = small.resized(11)
        assert (back.T == target.T).all()
        assert (back.R == target.R).all()
        # Its total is 1, so nothing is left for the orders added: it is still a full target.
        assert not back.partial

    def test_orders_added_to_an_incomplete_target_are_not_asked_for(self) -> None:
        target = Target.from_arrays(np.zeros((3, 3)), np.full((3, 3), 0.05), 300).resized(4)
        assert target.mask_T.sum() == target.mask_R.sum() == 9
        assert target.mask_T[3:6, 3:6].all()

    def test_orders_added_to_a_partial_target_are_not_asked_for_even_if_all_light_is_spoken_for(
        self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]
    ) -> None:
        R, T = maps(T1_0=1.0)
        target = Target.from_arrays(R, T, 300, R > 0, T > 0).resized(12)
        assert target.mask_T.sum() + target.mask_R.sum() == 1
        assert target.mask_T[13, 12]

    def test_cutting_off_power_is_refused(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        target = Target.from_arrays(*maps(R0_0=0.3, T2_m3=0.7), 300, name="beam")
        with pytest.raises(TargetError, match=r"beam: order T\(2,-3\) is asked 0\.7, but the maps here end at order 2"):
            target.resized(2)
        assert target.resized(3).wanted("T", 2, -3) == 0.7

    def test_cutting_off_every_asked_order_is_refused(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        mask = maps(R5_0=1)[0] > 0
        target = Target.from_arrays(*maps(), 300, mask_R=mask, mask_T=np.zeros_like(mask))
        with pytest.raises(TargetError, match="no order it asks for lies within -4 to 4"):
            target.resized(4)


def test_strongest_breaks_ties_by_distance(maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    target = Target.from_arrays(*maps(R0_0=0.1, T3_0=0.2, R0_m1=0.2), 300)
    assert target.strongest(4) == [("R", 0, -1), ("T", 3, 0), ("R", 0, 0), ("T", 0, 0)]


def test_check_height_names_the_range(maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    target = Target.from_arrays(*maps(T0_0=1.0), 600, name="beam")
    check_height(target, (50, 600))
    with pytest.raises(TargetError, match="beam: the height is 600 nm, outside the 50 to 599 nm"):
        check_height(target, (50, 599))
    with pytest.raises(TargetError, match="outside the 601 to 700 nm"):
        check_height(target, (601, 700))


class TestCheckOrders:
    def test_the_reference_problem(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        # T: m^2 + n^2 <= 5 in air, R: <= 80 in silicon.
        check_orders(Target.from_arrays(*maps(T2_m1=0.5, R8_4=0.5), 300), LAB)
        with pytest.raises(TargetError, match=r"beam: order T\(-2,2\) is asked 0\.3, but it is evanescent at 1550 nm .*index 1 "):
            check_orders(Target.from_arrays(*maps(Tm2_2=0.3, R9_0=0.2), 300, name="beam"), LAB)
        with pytest.raises(TargetError, match=r"order R\(0,9\) .*index 3\.48 "):
            check_orders(Target.from_arrays(*maps(R0_9=0.3), 300), LAB)

    def test_asking_for_nothing_there_is_possible(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        check_orders(Target.from_arrays(*maps(T0_0=1.0), 300), LAB)

    def test_noise_passes_until_it_adds_up(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        R, T = maps(T0_0=0.9)
        T[0, :9] = 0.001
        check_orders(Target.from_arrays(R, T, 300), LAB)
        T[0, :11] = 0.001
        with pytest.raises(TargetError, match="evanescent"):
            check_orders(Target.from_arrays(R, T, 300), LAB)

    def test_light_from_the_cover_side_and_from_aside(self, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        cover = Geometry(incidence="cover")
        check_orders(Target.from_arrays(*maps(T8_4=0.5), 300), cover)
        with pytest.raises(TargetError, match=r"order R\(3,0\)"):
            check_orders(Target.from_arrays(*maps(R3_0=0.5), 300), cover)
        # 30 degrees from +x in air adds kx = 0.5: orders -3.87 < m < 1.29 propagate instead of abs(m) < 2.58.
        aside = Geometry(incidence="cover", theta_deg=30)
        check_orders(Target.from_arrays(*maps(Rm3_0=0.5), 300), aside)
        with pytest.raises(TargetError, match=r"order R\(2,0\)"):
            check_orders(Target.from_arrays(*maps(R2_0=0.5), 300), aside)
