"""Each variation against the solver asked for just that, and what is made of the scores."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from runtime.design import Design
from runtime.errors import Cancelled, DataError, GeometryError
from runtime.geometry import Geometry
from runtime.physics.fourier import Cell
from runtime.physics.rcwa import Solver
from runtime.report import to_dict
from runtime.score import misrouted_power
from runtime.target import Target
from runtime.tolerance import PARAMETERS, Curve, Tolerance, table, tilted, tolerances

GEOMETRY = Geometry(wavelength_nm=1550.0, period_nm=(2000.0, 1600.0), harmonics=3, dtype="complex128")
PATTERN = (np.random.default_rng(2).random((5, 5)) < 0.5).astype(np.uint8)
HEIGHT = 300.0


def scattering(pattern: object = PATTERN, height: float = HEIGHT, geometry: Geometry = GEOMETRY) -> tuple[np.ndarray, np.ndarray]:
    return Solver(geometry, 3).solve(pattern, height)


@pytest.fixture(scope="module")
def target() -> Target:
    """Nothing but what the design itself does would be exact: every variation shows."""
    R, T = scattering()
    return Target.from_arrays(R, T, HEIGHT, name="itself")


@pytest.fixture(scope="module")
def design(target: Target) -> Design:
    return Design(PATTERN, HEIGHT, target.R, target.T, 0.0, True, 0, 0, GEOMETRY)


@pytest.fixture(scope="module")
def tolerance(design: Design, target: Target) -> Tolerance:
    (found,) = tolerances([design], target, workers=1)
    assert found.tolerance is not None
    return found.tolerance


def changed(**fields: float) -> Geometry:
    return dataclasses.replace(GEOMETRY, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parameter", "shift", "expected"),
    [
        ("height", -15.0, lambda: scattering(height=285.0)),
        ("height", 15.0, lambda: scattering(height=315.0)),
        ("edge", -20.0, lambda: scattering(Cell.from_pattern(PATTERN, GEOMETRY, -20.0))),
        ("edge", 10.0, lambda: scattering(Cell.from_pattern(PATTERN, GEOMETRY, 10.0))),
        ("wavelength", -10.0, lambda: scattering(geometry=changed(wavelength_nm=1540.0))),
        ("wavelength", 10.0, lambda: scattering(geometry=changed(wavelength_nm=1560.0))),
        ("tilt_x", 1.0, lambda: scattering(geometry=changed(theta_deg=1.0))),
        ("tilt_x", -1.0, lambda: scattering(geometry=changed(theta_deg=1.0, phi_deg=180.0))),
        ("tilt_y", 1.0, lambda: scattering(geometry=changed(theta_deg=1.0, phi_deg=90.0))),
        ("tilt_y", -1.0, lambda: scattering(geometry=changed(theta_deg=1.0, phi_deg=-90.0))),
    ],
)
def test_a_variation_is_the_solver_asked_for_it(parameter: str, shift: float, expected, tolerance: Tolerance, target: Target) -> None:
    curve = tolerance.curves[parameter]
    score = curve.scores[curve.shifts.index(shift)]
    R, T = expected()
    assert score == pytest.approx(misrouted_power(R, T, target), abs=1e-10)
    assert score > 1e-4, "it shows"


def test_no_variation_is_the_pixel_solver(tolerance: Tolerance) -> None:
    assert [(name, curve.scores[curve.shifts.index(0.0)]) for name, curve in tolerance.curves.items()] == [(n, 0.0) for n in PARAMETERS]
    whole, grown = scattering(), scattering(Cell.from_pattern(PATTERN, GEOMETRY, 0.0))
    assert all(np.allclose(a, b, atol=1e-10) for a, b in zip(whole, grown, strict=True))


def test_twelve_solves_a_design_and_one_more_where_it_was_not_verified(design: Design, target: Target, tolerance: Tolerance) -> None:
    counted: list[tuple[int, int]] = []
    unsolved = dataclasses.replace(design, R=None, T=None, score=None, verified=False)
    found = tolerances([design, unsolved], target, on_done=lambda done, total: counted.append((done, total)))
    assert counted == [(k, 25) for k in range(1, 26)]
    for other in found:
        assert other.tolerance is not None
        for name, curve in other.tolerance.curves.items():
            assert curve.shifts == tolerance.curves[name].shifts
            np.testing.assert_allclose(curve.scores, tolerance.curves[name].scores, atol=1e-12)
    assert found[0].R is design.R


def test_turning_the_incidence_adds_to_an_oblique_one() -> None:
    oblique = changed(theta_deg=20.0, phi_deg=0.0)
    assert tilted(oblique, 1.5, 0.0).theta_deg == pytest.approx(21.5)
    back = tilted(oblique, -20.0, 0.0)
    assert back.theta_deg == pytest.approx(0.0, abs=1e-12)
    aside = tilted(oblique, 0.0, 1.0)
    assert np.sin(np.radians(aside.theta_deg)) * np.cos(np.radians(aside.phi_deg)) == pytest.approx(np.sin(np.radians(20.0)))
    assert 0 < aside.phi_deg < 5
    assert tilted(changed(theta_deg=5.0, phi_deg=-90.0), 0.0, -1.0).theta_deg == pytest.approx(6.0)
    with pytest.raises(GeometryError, match="theta_deg"):
        tilted(changed(theta_deg=89.5), 1.0, 0.0)


def test_slope_and_sensitivity_of_a_known_curve() -> None:
    line = Curve((-20.0, -10.0, 0.0, 10.0, 20.0), (0.5, 0.4, 0.3, 0.2, 0.1))
    assert (line.slope, line.sensitivity) == (pytest.approx(-0.01), pytest.approx(0.01))
    sharp = Curve((-1.0, 0.0, 1.0), (0.3, 0.0, 0.2))
    assert (sharp.slope, sharp.sensitivity) == (pytest.approx(-0.05), pytest.approx(0.3))


def test_the_worst_case_is_found_and_told(design: Design, target: Target, tolerance: Tolerance) -> None:
    worst = tolerance.worst
    assert worst.score == max(score for curve in tolerance.curves.values() for score in curve.scores)
    assert tolerance.curves[worst.parameter].scores[tolerance.curves[worst.parameter].shifts.index(worst.shift)] == worst.score
    known = dataclasses.replace(design, tolerance=tolerance)
    told = to_dict(known, target, 1)["tolerance"]
    assert told["worst"] == {"score": round(worst.score, 6), "parameter": worst.parameter, "shift": worst.shift}
    assert told["parameters"]["height"]["shifts"] == [-15.0, 0.0, 15.0]
    assert told["parameters"]["edge"]["unit"] == "nm"
    assert "tolerance" not in to_dict(design, target, 1)
    lines = table([known, known]).splitlines()
    assert len(lines) == 2 + 12 + 1 + 5
    (row,) = [line for line in lines if line.startswith("worst case")]
    assert row.split()[-2:] == [f"{worst.score:.3f}"] * 2
    (row,) = [line for line in lines if line.startswith("pillar edges -20 nm")]
    assert row.split()[-1] == f"{tolerance.curves['edge'].scores[0]:.3f}"


def test_what_is_not_known_is_not_printed(design: Design) -> None:
    with pytest.raises(DataError, match="not known"):
        table([design])


def test_cancelling_stops_it(design: Design, target: Target) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        tolerances([design], target, cancel=stop)
