"""The RCWA solver against answers known elsewhere: paper formulas, published values, another library, symmetries."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from runtime.errors import DataError, GeometryError
from runtime.geometry import Geometry
from runtime.physics.rcwa import Cell, Solver, solve

LAB = Geometry(harmonics=6, dtype="complex128")
SMALL = Geometry(period_nm=(2300.0, 1900.0), index_pillar=2.4, index_substrate=1.5, harmonics=4, truncation="square", dtype="complex128")


def random_pattern(seed: int = 0, shape: tuple[int, int] = (10, 10)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, shape)


def distance(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> float:
    """L1 distance of (R, T), twice the misrouted power."""
    return float(np.abs(left[0] - right[0]).sum() + np.abs(left[1] - right[1]).sum())


def fresnel(n1: float, n2: float, theta_deg: float) -> tuple[float, float]:
    """(R_s, R_p) of an interface."""
    cos1 = math.cos(math.radians(theta_deg))
    cos2 = math.sqrt(1 - (n1 / n2 * math.sin(math.radians(theta_deg))) ** 2)
    return ((n1 * cos1 - n2 * cos2) / (n1 * cos1 + n2 * cos2)) ** 2, ((n2 * cos1 - n1 * cos2) / (n2 * cos1 + n1 * cos2)) ** 2


@pytest.mark.parametrize("incidence", ["substrate", "cover"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("polarisation", ["x", "y"])
def test_prism_sends_light_towards_rising_index(incidence: str, axis: int, polarisation: str) -> None:
    """A blaze of index 1 to 2 and one wave of path difference sends its light to order +1 of that axis."""
    period = [6000.0, 6000.0]
    period[1 - axis] = 700.0
    geometry = Geometry(
        wavelength_nm=1000.0,
        period_nm=(period[0], period[1]),
        index_substrate=1.2,
        incidence=incidence,
        polarisation=polarisation,
        harmonics=8,
        truncation="square",
        dtype="complex128",
    )
    steps = 1 + (np.arange(12) + 0.5) / 12
    edges, whole = np.linspace(0, 6000.0, 13), np.array([0, 700.0])
    cell = Cell(edges, whole, steps[:, None]) if axis == 0 else Cell(whole, edges, steps[None])
    _, t = Solver(geometry, 3).solve(cell, 1000.0)
    plus = (4, 3) if axis == 0 else (3, 4)
    assert t[plus] > 0.8
    assert np.delete(t.ravel(), np.ravel_multi_index(plus, t.shape)).max() < 0.06


@pytest.mark.parametrize("incidence", ["substrate", "cover"])
@pytest.mark.parametrize(("polarisation", "phi", "s_wave"), [("x", 0, False), ("y", 0, True), ("x", 90, True), ("y", 90, False)])
@pytest.mark.parametrize("theta", [0.0, 35.0])
def test_fresnel(incidence: str, polarisation: str, phi: float, s_wave: bool, theta: float) -> None:
    geometry = dataclasses.replace(SMALL, harmonics=1, incidence=incidence, polarisation=polarisation, theta_deg=theta, phi_deg=phi)
    n1, n2 = (1.5, 1.0) if incidence == "substrate" else (1.0, 1.5)
    r, t = solve(np.zeros((3, 3)), 0.0, geometry, orders=2)
    expected = fresnel(n1, n2, theta)[0 if s_wave else 1]
    assert r[2, 2] == pytest.approx(expected, abs=1e-10)
    assert t[2, 2] == pytest.approx(1 - expected, abs=1e-10)
    assert np.count_nonzero(t > 1e-20) == 1


def test_silicon_to_air_reflects_as_fresnel() -> None:
    assert solve(np.ones((2, 2)), 400.0, LAB)[0].sum() == pytest.approx(0.30644, abs=5e-6)


def test_oblique_polarisation_is_the_stated_mixture_of_s_and_p() -> None:
    """At azimuth phi 'x' carries cos^2 phi of p and sin^2 phi of s."""
    rs, rp = fresnel(1.5, 1.0, 38.0)
    share = math.cos(math.radians(25.0)) ** 2
    for polarisation, expected in (("x", share * rp + (1 - share) * rs), ("y", (1 - share) * rp + share * rs)):
        geometry = dataclasses.replace(SMALL, harmonics=1, polarisation=polarisation, theta_deg=38.0, phi_deg=25.0)
        assert solve(np.zeros((2, 2)), 100.0, geometry, 1)[0].sum() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("polarisation", ["x", "y"])
def test_oblique_tends_to_normal_incidence(polarisation: str) -> None:
    normal = solve(random_pattern(2, (4, 5)), 500.0, dataclasses.replace(SMALL, polarisation=polarisation))
    for phi in (0.0, 70.0, 200.0):
        tilted = dataclasses.replace(SMALL, polarisation=polarisation, theta_deg=1e-6, phi_deg=phi)
        assert distance(solve(random_pattern(2, (4, 5)), 500.0, tilted), normal) < 1e-5


@pytest.mark.parametrize(("polarisation", "theta"), [("x", 0.0), ("x", 40.0), ("y", 40.0)])
def test_fabry_perot_slab(polarisation: str, theta: float) -> None:
    """Airy's formula for a slab of 2.4 on 1.5 in air, phi = 0 so that x is p and y is s."""
    geometry = dataclasses.replace(SMALL, polarisation=polarisation, theta_deg=theta, incidence="cover", harmonics=1)
    for height in (0.0, 130.0, 700.0):
        transverse = math.sin(math.radians(theta))
        kz = [math.sqrt(n * n - transverse**2) for n in (1.0, 2.4, 1.5)]
        y = [k if polarisation == "y" else n * n / k for k, n in zip(kz, (1.0, 2.4, 1.5), strict=True)]
        r1, r2 = (y[0] - y[1]) / (y[0] + y[1]), (y[1] - y[2]) / (y[1] + y[2])
        phase = np.exp(2j * 2 * math.pi / 1550 * kz[1] * height)
        expected = abs((r1 + r2 * phase) / (1 + r1 * r2 * phase)) ** 2
        r, t = solve(np.ones((3, 3)), height, geometry, 2)
        assert r[2, 2] == pytest.approx(expected, abs=1e-9)
        assert t.sum() == pytest.approx(1 - expected, abs=1e-9)


@pytest.mark.parametrize("rule", ["li", "laurent"])
@pytest.mark.parametrize("truncation", ["circle", "square"])
@pytest.mark.parametrize(("theta", "phi"), [(0.0, 0.0), (25.0, 40.0)])
@pytest.mark.parametrize("incidence", ["substrate", "cover"])
def test_energy_is_conserved(rule: str, truncation: str, theta: float, phi: float, incidence: str) -> None:
    geometry = dataclasses.replace(LAB, harmonics=5, rule=rule, truncation=truncation, theta_deg=theta, phi_deg=phi, incidence=incidence)
    solver = Solver(geometry)
    for height in (0.0, 50.0, 333.0, 600.0, 1500.0):
        r, t = solver.solve(random_pattern(4), height)
        assert r.sum() + t.sum() == pytest.approx(1, abs=1e-9)


def test_energy_at_the_labs_settings() -> None:
    for dtype, tolerance in (("complex128", 1e-9), ("complex64", 3e-5)):
        r, t = solve(random_pattern(1), 600.0, Geometry(dtype=dtype))
        assert r.dtype == t.dtype == np.float64
        assert r.sum() + t.sum() == pytest.approx(1, abs=tolerance)


def test_single_precision_keeps_the_labels() -> None:
    single, double = Solver(Geometry()), Solver(Geometry(dtype="complex128"))
    for height in (60.0, 300.0, 530.0):
        pattern = random_pattern(int(height))
        assert distance(single.solve(pattern, height), double.solve(pattern, height)) < 6e-4


@pytest.mark.parametrize(("theta", "phi"), [(0.0, 0.0), (30.0, 20.0)])
@pytest.mark.parametrize("incidence", ["substrate", "cover"])
def test_only_propagating_orders_carry_power(theta: float, phi: float, incidence: str) -> None:
    """Exactly the orders with |k_parallel| < n k0 are non-zero; at oblique incidence this fixes the orders' signs too."""
    geometry = dataclasses.replace(SMALL, theta_deg=theta, phi_deg=phi, incidence=incidence)
    maps = dict(zip(("in", "out"), solve(random_pattern(3, (4, 4)), 400.0, geometry, 4), strict=True))
    m, n = np.mgrid[-4:5, -4:5]
    along = geometry.index_incident * math.sin(math.radians(theta))
    length = np.hypot(along * math.cos(math.radians(phi)) + m * 1550 / 2300, along * math.sin(math.radians(phi)) + n * 1550 / 1900)
    indices = {"in": geometry.index_incident, "out": 2.5 - geometry.index_incident}
    for side, index in indices.items():
        assert np.array_equal(maps[side] != 0, length < index)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_orders_exactly_at_grazing(dtype: str) -> None:
    """At a period of five wavelengths orders (3, 4) and (5, 0) leave along the surface in air."""
    geometry = Geometry(period_nm=(7750.0, 7750.0), harmonics=6, index_pillar=2.0, index_substrate=1.5, dtype=dtype)
    r, t = solve(random_pattern(3, (6, 6)), 300.0, geometry, 6)
    assert r.sum() + t.sum() == pytest.approx(1, abs=1e-9 if dtype == "complex128" else 1e-5)
    assert t[9, 10] < 1e-3
    assert t[9, 10] + t[11, 6] == pytest.approx(0, abs=1e-3)


def test_cyclic_shifts_change_nothing() -> None:
    solver = Solver(dataclasses.replace(LAB, harmonics=4))
    pattern = random_pattern(5)
    reference = solver.solve(pattern, 320.0)
    for i in range(10):
        for j in range(10):
            assert distance(solver.solve(np.roll(pattern, (i, j), (0, 1)), 320.0), reference) < 1e-9


def test_mirrors_rotation_and_transposition_act_on_the_orders() -> None:
    pattern = random_pattern(6, (5, 4))
    r, t = solve(pattern, 450.0, SMALL, 3)
    for rows, columns in ((-1, 1), (1, -1), (-1, -1)):
        expected = (r[::rows, ::columns], t[::rows, ::columns])
        assert distance(solve(pattern[::rows, ::columns], 450.0, SMALL, 3), expected) < 1e-9
    swapped = dataclasses.replace(SMALL, period_nm=SMALL.period_nm[::-1], polarisation="y")
    assert distance(solve(pattern.T, 450.0, swapped, 3), (r.T, t.T)) < 1e-9
    assert distance((r[::-1], t[::-1]), (r, t)) > 0.05


def test_oblique_symmetries() -> None:
    """Mirroring the pattern in y and the incidence with it mirrors n; transposing exchanges axes, phi and polarisation."""
    pattern = random_pattern(7, (5, 4))
    tilted = dataclasses.replace(SMALL, theta_deg=30.0, phi_deg=25.0)
    r, t = solve(pattern, 450.0, tilted, 3)
    assert distance(solve(pattern[:, ::-1], 450.0, dataclasses.replace(tilted, phi_deg=-25.0), 3), (r[:, ::-1], t[:, ::-1])) < 1e-9
    swapped = dataclasses.replace(tilted, period_nm=SMALL.period_nm[::-1], polarisation="y", phi_deg=65.0)
    assert distance(solve(pattern.T, 450.0, swapped, 3), (r.T, t.T)) < 1e-9


def test_reciprocity() -> None:
    """Summed over polarisations, zeroth-order transmission at normal incidence is the same from both sides."""
    totals = [
        sum(solve(random_pattern(8), 380.0, dataclasses.replace(LAB, incidence=side, polarisation=axis))[1][11, 11] for axis in "xy")
        for side in ("substrate", "cover")
    ]
    assert totals[0] == pytest.approx(totals[1], rel=1e-9)


@pytest.mark.parametrize(("changes", "height"), [({}, 600.0), ({"theta_deg": 30.0, "phi_deg": 50.0}, 350.0), ({"rule": "laurent"}, 250.0)])
def test_propagator_agrees_with_eigenmodes(changes: dict, height: float) -> None:
    solver = Solver(dataclasses.replace(LAB, **changes))
    fast, modes = (solver._solve(random_pattern(9), height, eigenmodes) for eigenmodes in (False, True))
    assert distance(fast, modes) < 1e-9


def test_tall_cells_are_solved_by_eigenmodes() -> None:
    solver = Solver(LAB)
    assert distance(solver.solve(random_pattern(9), 5000.0), solver._solve(random_pattern(9), 5000.0, True)) == 0
    assert sum(part.sum() for part in solver.solve(random_pattern(9), 5000.0)) == pytest.approx(1, abs=1e-9)


def test_li_checkerboard_of_1997() -> None:
    """L. Li, JOSA A 14, 2758 (1997), example 1: squares of eps 2.25, side 1.25 wavelengths, as a 2 x 2 cell."""
    geometry = Geometry(
        wavelength_nm=1000.0,
        period_nm=(2500.0, 2500.0),
        index_pillar=1.5,
        index_substrate=1.5,
        incidence="cover",
        harmonics=9,
        truncation="square",
        dtype="complex128",
    )
    r, t = solve(np.eye(2), 1000.0, geometry, 2)
    assert t[2, 2] == pytest.approx(0.1753, rel=0.01)
    assert r[2, 2] == pytest.approx(0.01111, rel=0.01)
    for m, n in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        assert t[2 + m, 2 + n] == pytest.approx(0.1307, rel=0.01)
    assert sorted([t[4, 2], t[2, 4]]) == pytest.approx([0.0403, 0.0550], rel=0.01)
    assert t[0, 2] == pytest.approx(t[4, 2])


def test_li_converges_where_laurent_does_not() -> None:
    pattern, height = random_pattern(10, (4, 4)), 300.0
    geometry = Geometry(period_nm=(1600.0, 1600.0), truncation="square", dtype="complex128")
    reference = solve(pattern, height, dataclasses.replace(geometry, harmonics=10), 3)
    errors = {
        (rule, h): distance(solve(pattern, height, dataclasses.replace(geometry, rule=rule, harmonics=h), 3), reference)
        for rule in ("li", "laurent")
        for h in (4, 7)
    }
    assert errors["li", 7] < errors["li", 4] / 2
    assert errors["li", 7] < errors["laurent", 7] / 2


def test_orders_and_harmonics_are_independent() -> None:
    wide, narrow = solve(random_pattern(), 300.0, LAB, 11), solve(random_pattern(), 300.0, LAB, 2)
    for large, small in zip(wide, narrow, strict=True):
        assert large.shape == (23, 23)
        assert np.array_equal(large[9:14, 9:14], small)


def test_errors_are_sentences() -> None:
    solver = Solver(dataclasses.replace(SMALL, harmonics=1))
    for pattern in (np.full((3, 3), 0.5), np.full((3, 3), np.nan), np.zeros(4), np.zeros((0, 3)), "pillars", [[1, 0], [1]]):
        with pytest.raises(DataError):
            solver.solve(pattern, 100.0)
    heights: tuple[Any, ...] = (-1.0, float("nan"), float("inf"), "tall", None)
    for height in heights:
        with pytest.raises(DataError, match="height"):
            solver.solve(np.zeros((3, 3)), height)
    with pytest.raises(DataError, match="period"):
        solver.solve(Cell(np.array([0, 500.0]), np.array([0, 500.0]), np.ones((1, 1))), 100.0)
    with pytest.raises(GeometryError, match="orders"):
        Solver(SMALL, -1)
