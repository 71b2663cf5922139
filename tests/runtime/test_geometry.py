"""The geometry's JSON is the contract of DESIGN.md, and its orders are those the physics has."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import GeometryError
from runtime.geometry import Geometry, propagating

# DESIGN.md, word for word.
CONTRACT = """{"wavelength_nm": 1550.0, "period_nm": [4000.0, 4000.0], "index_pillar": 3.48, "index_gap": 1.0, "index_substrate": 3.48,
"index_cover": 1.0, "incidence": "substrate", "polarisation": "x", "theta_deg": 0.0, "phi_deg": 0.0, "rule": "li", "harmonics": 11,
"truncation": "circle", "dtype": "complex64"}"""


def test_the_default_is_the_contracts_reference_problem() -> None:
    assert Geometry.from_json(CONTRACT) == Geometry()
    assert list(json.loads(Geometry().to_json())) == list(json.loads(CONTRACT))
    assert json.loads(Geometry().to_json()) == json.loads(CONTRACT)


@given(
    st.builds(
        Geometry,
        wavelength_nm=st.floats(1, 1e5),
        period_nm=st.tuples(st.floats(1, 1e5), st.integers(1, 10000)),
        index_pillar=st.floats(0.1, 10),
        incidence=st.sampled_from(["substrate", "cover"]),
        polarisation=st.sampled_from("xy"),
        theta_deg=st.floats(0, 89),
        phi_deg=st.floats(-360, 360),
        harmonics=st.integers(0, 60),
    )
)
def test_json_round_trip_is_exact(geometry: Geometry) -> None:
    again = Geometry.from_json(geometry.to_json())
    assert again == geometry
    assert hash(again) == hash(geometry)


def test_media_by_side_of_incidence() -> None:
    assert (Geometry().index_incident, Geometry().index_exit) == (3.48, 1.0)
    assert (Geometry(incidence="cover").index_incident, Geometry(incidence="cover").index_exit) == (1.0, 3.48)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"polarisation": "z"}, ["'polarisation'", "'z'", "x or y"]),
        ({"incidence": ["cover"]}, ["'incidence'", "substrate or cover"]),
        ({"rule": None}, ["'rule'", "li or laurent"]),
        ({"period_nm": 4000}, ["'period_nm'", "two lengths"]),
        ({"period_nm": [4000]}, ["'period_nm'", "two lengths"]),
        ({"period_nm": [4000, -1]}, ["'period_nm'", "above 0"]),
        ({"period_nm": [4000, "4000"]}, ["'period_nm'", "'4000'"]),
        ({"wavelength_nm": 0}, ["'wavelength_nm'", "above 0"]),
        ({"wavelength_nm": True}, ["'wavelength_nm'", "True"]),
        ({"wavelength_nm": float("nan")}, ["'wavelength_nm'", "nan"]),
        ({"wavelength_nm": 10**400}, ["'wavelength_nm'", "finite"]),
        ({"index_pillar": -3.48}, ["'index_pillar'", "above 0"]),
        ({"theta_deg": 90}, ["'theta_deg'", "below 90"]),
        ({"theta_deg": -1}, ["'theta_deg'", "from 0"]),
        ({"harmonics": 11.0}, ["'harmonics'", "whole number"]),
        ({"harmonics": True}, ["'harmonics'", "True"]),
        ({"harmonics": 61}, ["'harmonics'", "60"]),
        ({"wavelength": 3}, ["unknown field 'wavelength'", "wavelength_nm"]),
    ],
)
def test_refusals(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(GeometryError) as caught:
        Geometry.from_dict({**Geometry().to_dict(), **change})
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_missing_field_is_named() -> None:
    fields = Geometry().to_dict()
    del fields["rule"]
    with pytest.raises(GeometryError, match="lacks the field 'rule'"):
        Geometry.from_dict(fields)


@pytest.mark.parametrize("text", ["", "{", "[" * 100000, '{"wavelength_nm": 1' + "0" * 5000 + "}", "3", "null", '"x"'])
def test_text_that_is_no_geometry(text: str) -> None:
    with pytest.raises(GeometryError, match=r"not JSON|must be a JSON object"):
        Geometry.from_json(text)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, None),
        ({"rule": "laurent", "harmonics": 9, "truncation": "square", "dtype": "complex128"}, None),
        ({"wavelength_nm": 1500.0}, "wavelength_nm is 1550.0 in one and 1500.0 in the other"),
        ({"period_nm": (4000.0, 4100.0)}, "period_nm is"),
        ({"incidence": "cover"}, "incidence is"),
        ({"phi_deg": 1.0}, "phi_deg is"),
    ],
)
def test_difference_is_optical(change: dict[str, Any], named: str | None) -> None:
    difference = Geometry().difference(Geometry(**change))
    assert difference is None if named is None else (difference or "").startswith(named)


class TestPropagating:
    def test_the_labs_21_and_249(self) -> None:
        # FACTS.md: 21 nonzero orders in T (m^2 + n^2 <= 5), 249 in R (<= 80).
        R, T = propagating(Geometry(), 11)
        squares = np.add.outer(np.arange(-11, 12) ** 2, np.arange(-11, 12) ** 2)
        assert (T.sum(), R.sum()) == (21, 249)
        assert ((squares <= 5) == T).all()
        assert ((squares <= 80) == R).all()

    def test_the_first_axis_is_x(self) -> None:
        T = propagating(Geometry(period_nm=(4000.0, 1000.0)), 3)[1]
        assert np.argwhere(T).tolist() == [[1, 3], [2, 3], [3, 3], [4, 3], [5, 3]]

    def test_oblique_incidence_shifts_along_its_azimuth(self) -> None:
        # sin 30 deg = 0.5 from the cover along +y: n * 0.3875 in (-1.5, 0.5).
        R, T = propagating(Geometry(incidence="cover", theta_deg=30, phi_deg=90), 4)
        assert np.flatnonzero(R[4]).tolist() == [1, 2, 3, 4, 5]
        assert (R[::-1] == R).all()
        assert T[4].all()

    def test_exactly_at_grazing_carries_nothing(self) -> None:
        T = propagating(Geometry(wavelength_nm=1000.0, period_nm=(2000.0, 2000.0)), 2)[1]
        assert not T[4, 2]
        assert T[3, 2]

    @pytest.mark.parametrize("change", [{}, {"incidence": "cover", "theta_deg": 25.0, "phi_deg": 40.0}])
    def test_the_solver_has_power_in_these_orders_alone(self, change: dict[str, Any]) -> None:
        from runtime.physics.rcwa import solve

        geometry = Geometry(period_nm=(2300.0, 1900.0), harmonics=5, **change)
        pattern = (np.random.default_rng(0).random((5, 5)) < 0.5).astype(np.uint8)
        for power, free in zip(solve(pattern, 220.0, geometry, orders=4), propagating(geometry, 4), strict=True):
            assert (power[free] > 0).all()
            assert (power[~free] == 0).all()
