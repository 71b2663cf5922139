"""What the network sees, against numbers worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from runtime.condition import Condition
from runtime.errors import BundleError, TargetError


def maps(**orders: float) -> np.ndarray:
    """(1, 3, 3); o01=0.4 is order (0, 1)."""
    out = np.zeros((1, 3, 3))
    for name, value in orders.items():
        out[0, int(name[1]) + 1, int(name[2]) + 1] = value
    return out


def constants(layout: str = "orders", canvas: int = 0) -> Condition:
    """Two samples, 100 and 300 nm. Mean T: 0.25 at (0,0), 0.05 at the four diagonal orders. Mean R: 0.1 at (0,0)."""
    R = np.concatenate([maps(o00=0.0), maps(o00=0.2)])
    T = np.concatenate([maps(o00=0.5, o11=0.4), maps(o00=0.0)])
    return Condition.measure(layout, R, T, np.array([100.0, 300.0]), canvas)


class TestMeasure:
    def test_means_share_the_symmetry_of_the_mirrors(self) -> None:
        condition = constants()
        assert condition.mean_T == pytest.approx(np.array([[0.05, 0, 0.05], [0, 0.25, 0], [0.05, 0, 0.05]]))
        assert condition.mean_R == pytest.approx(np.array([[0, 0, 0], [0, 0.1, 0], [0, 0, 0]]))
        assert condition.height_range_nm == (100, 300)
        assert condition.orders == 1
        assert condition.mean_T.dtype == np.float32

    def test_scale_is_over_all_orders(self) -> None:
        # R: 18 values, one of them 0.2. T: 18 values, 0.5 and 0.4.
        mean_R, std_R, mean_T, std_T = constants().scale
        assert mean_R == pytest.approx(0.2 / 18)
        assert std_R == pytest.approx((0.04 / 18 - (0.2 / 18) ** 2) ** 0.5)
        assert mean_T == pytest.approx(0.9 / 18)
        assert std_T == pytest.approx((0.41 / 18 - 0.05**2) ** 0.5)


class TestOrders:
    def test_amplitudes_masks_and_height(self) -> None:
        R, T = maps(o00=0.4), maps(o00=0.0625, o11=0.2)
        arrays = constants().arrays(R, T, np.array([250]))
        assert set(arrays) == {"light", "height"}
        light = arrays["light"]
        assert light.dtype == arrays["height"].dtype == np.float32
        assert light.shape == (1, 4, 3, 3)
        assert arrays["height"] == pytest.approx(np.array([[0.5]]))
        assert light[0, 0] == pytest.approx(np.array([[0, 0, 0], [0, 2, 0], [0, 0, 0]]))
        assert light[0, 1] == pytest.approx(np.array([[0, 0, 0], [0, 0.5, 0], [0, 0, 2]]))
        assert (light[0, 2:] == 1).all()

    def test_values_that_are_not_asked_for_do_not_reach_the_network(self) -> None:
        condition, height = constants(), np.array([100.0, 300.0])
        mask = np.zeros((2, 3, 3), bool)
        mask[:, 1, 1] = True
        T = np.concatenate([maps(o00=0.25, o11=0.9), maps(o00=0.25, o11=np.nan)])
        arrays = condition.arrays(T, T, height, mask, mask)
        assert (arrays["light"][0] == arrays["light"][1]).all()
        assert arrays["light"][0, 1, 1, 1] == 1
        assert arrays["light"][0, 3].sum() == 1
        assert arrays["height"].ravel().tolist() == [-1, 1]

    def test_orders_that_never_had_power_and_round_off_below_0(self) -> None:
        light = constants().arrays(maps(o01=0.5), maps(o00=-1e-9), np.array([200]))["light"]
        assert (light[0, :2] == 0).all()

    def test_unconditional_asks_for_nothing_and_keeps_the_height(self) -> None:
        arrays = constants().arrays(maps(o00=0.4), maps(o00=0.5), np.array([250]))
        free = constants().unconditional(arrays)
        assert (free["light"] == 0).all()
        assert free["light"].shape == (1, 4, 3, 3)
        assert (free["height"] == arrays["height"]).all()


class TestPlanes:
    def test_the_seeds_canvas(self) -> None:
        condition = constants("planes", canvas=8)
        R, T = maps(o00=0.2, o01=0.1), maps(o10=0.5)
        planes = condition.arrays(R, T, np.array([150]))["planes"]
        mean_R, std_R, mean_T, std_T = condition.scale
        assert planes.shape == (1, 3, 8, 8)
        assert planes.dtype == np.float32
        window = planes[0, :, 2:5, 2:5]
        assert window[0] == pytest.approx((R[0] - mean_R) / std_R, abs=1e-6)
        assert window[1] == pytest.approx((T[0] - mean_T) / std_T, abs=1e-6)
        assert (window[2] == -0.5).all()
        planes[0, :, 2:5, 2:5] = 0
        assert (planes == 0).all()

    def test_23_orders_lie_at_4_to_27_of_32(self) -> None:
        # FACTS.md: the 23x23 planes sit at [4:27, 4:27] of 32x32.
        R, T = np.random.default_rng(0).random((2, 3, 23, 23))
        planes = Condition.measure("planes", R, T, np.array([1.0, 2, 3]), 32).arrays(R, T, np.array([2.5, 2.5, 2.5]))["planes"]
        assert np.argwhere(planes[0, 2]).min(axis=0).tolist() == [4, 4]
        assert np.argwhere(planes[0, 2]).max(axis=0).tolist() == [26, 26]

    def test_standardises_its_own_training_part(self) -> None:
        R, T = np.random.default_rng(0).random((2, 50, 3, 3))
        planes = Condition.measure("planes", R, T, np.arange(50.0), 3).arrays(R, T, np.arange(50.0))["planes"]
        assert planes[:, :2].mean(axis=(0, 2, 3)) == pytest.approx(0, abs=1e-6)
        assert planes[:, :2].std(axis=(0, 2, 3)) == pytest.approx(1, abs=1e-6)

    def test_has_no_place_for_a_mask_or_for_no_condition(self) -> None:
        condition, ones = constants("planes", 8), np.ones((1, 3, 3), bool)
        arrays = condition.arrays(maps(), maps(), np.array([200]), ones, ones)
        with pytest.raises(TargetError, match="no mask input: name the efficiency of every order"):
            condition.arrays(maps(), maps(), np.array([200]), ones, maps() > 0)
        with pytest.raises(BundleError, match="guidance_scale must be 1"):
            condition.unconditional(arrays)


class TestJson:
    def test_round_trip_gives_the_same_inputs_bit_for_bit(self) -> None:
        rng = np.random.default_rng(0)
        power, height = rng.dirichlet(np.ones(98), 5).reshape(5, 2, 7, 7), rng.uniform(50, 600, 5)
        for layout, canvas in (("orders", 0), ("planes", 16)):
            condition = Condition.measure(layout, power[:, 0], power[:, 1], height, canvas)
            again = Condition.from_dict(json.loads(json.dumps(condition.to_dict())))
            for name, array in condition.arrays(power[:, 0], power[:, 1], height).items():
                assert (again.arrays(power[:, 0], power[:, 1], height)[name] == array).all()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"mean_R": None}, r"shapes \(\) and \(3, 3\)"),
            ({"mean_R": "flat"}, "incomplete or malformed"),
            ({"mean_R": [[1, 2], [3]]}, "incomplete or malformed"),
            ({"mean_R": [[1, 2], [3, 4]], "mean_T": [[1, 2], [3, 4]]}, r"shapes \(2, 2\) and \(2, 2\); expected two equal odd squares"),
            ({"mean_R": [[1]]}, r"shapes \(1, 1\) and \(3, 3\)"),
            ({"mean_R": [[0, 0, 0], [0, -1, 0], [0, 0, 0]]}, "negative means"),
            ({"mean_T": [[0, 0, 0], [0, float("nan"), 0], [0, 0, 0]]}, "not finite"),
            ({"height_range_nm": [300]}, "incomplete or malformed"),
            ({"height_range_nm": [300, 100]}, "empty height range"),
            ({"height_range_nm": [float("nan"), 100]}, "not finite"),
            ({"scale": [1, 2, 3]}, "incomplete or malformed"),
            ({"canvas": float("inf")}, "incomplete or malformed"),
            ({"layout": "spiral"}, "layout is 'spiral'; this version knows orders and planes"),
            ({"layout": "planes", "canvas": 2}, "canvas 2 .*at least 3"),
            ({"layout": "planes", "canvas": 8, "scale": [0, 0, 0, 1]}, "deviations above 0"),
        ],
    )
    def test_refusals(self, change: dict[str, Any], words: str) -> None:
        with pytest.raises(BundleError, match=words):
            Condition.from_dict({**constants().to_dict(), **change})

    def test_missing_field_and_no_object(self) -> None:
        fields = constants().to_dict()
        del fields["scale"]
        with pytest.raises(BundleError, match="'scale'"):
            Condition.from_dict(fields)
        with pytest.raises(BundleError, match="incomplete or malformed"):
            Condition.from_dict(None)  # type: ignore[arg-type]
