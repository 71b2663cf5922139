"""The adjoint gradient against central differences of the solver's own equations, and against PyTorch's derivative."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from runtime.errors import DataError
from runtime.geometry import Geometry
from runtime.physics.adjoint import gradient, trusted
from runtime.physics.rcwa import Solver
from runtime.score import misrouted_power
from runtime.target import Target

# Other periods and pixels along x than along y: nothing that is exchanged between the axes goes unseen.
CELL = Geometry(period_nm=(2300.0, 1900.0), index_pillar=2.4, index_substrate=1.5, harmonics=4, dtype="complex128")
PATTERN = np.random.default_rng(0).integers(0, 2, (5, 4))
TILTED = {"theta_deg": 25.0, "phi_deg": 40.0}
CASES: dict[str, dict[str, Any]] = {
    "normal": {},
    "other polarisation": {"polarisation": "y", "truncation": "square"},
    "laurent": {"rule": "laurent"},
    "oblique": {**TILTED, "dtype": "complex64"},
    "oblique from the cover, laurent": {**TILTED, "rule": "laurent", "incidence": "cover", "polarisation": "y"},
}
ORDERS = 3


def wanted(geometry: Geometry, asked: float, seed: int = 0) -> Target:
    """What another cell scatters, of which about the share ``asked`` of the orders is asked for."""
    rng = np.random.default_rng(seed)
    R, T = Solver(geometry, ORDERS).solve(rng.integers(0, 2, PATTERN.shape), 250.0)
    return Target.from_arrays(R, T, 300.0, *(rng.random((2, *R.shape)) <= asked))


@pytest.mark.parametrize("asked", [1.0, 0.3], ids=["full", "partial"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_derivative_of_its_own_score(case: str, asked: float) -> None:
    """A grey pixel has a score too, so each of a few pixels and the height are moved a little and the score looked at."""
    geometry = dataclasses.replace(CELL, **CASES[case])
    solver, target, height = Solver(geometry, ORDERS), wanted(geometry, asked), 310.0
    pattern = np.where(PATTERN > 0, 0.9, 0.1)
    _, by_pixel, by_height_nm = gradient(solver, pattern, height, target)
    for i, j in ((0, 0), (1, 3), (4, 2)):
        step = np.zeros(pattern.shape)
        step[i, j] = 1e-4
        difference = (gradient(solver, pattern + step, height, target)[0] - gradient(solver, pattern - step, height, target)[0]) / 2e-4
        assert by_pixel[i, j] == pytest.approx(difference, rel=1e-5, abs=1e-8)
    difference = (gradient(solver, pattern, height + 0.01, target)[0] - gradient(solver, pattern, height - 0.01, target)[0]) / 0.02
    assert by_height_nm == pytest.approx(difference, rel=1e-5, abs=1e-9)
    assert np.abs(by_pixel).max() > 1e-3
    assert abs(by_height_nm) > 1e-6


@pytest.mark.parametrize("height", [0.0, 60.0, 800.0])
@pytest.mark.parametrize("case", CASES)
def test_the_score_is_the_solvers(case: str, height: float) -> None:
    geometry = dataclasses.replace(CELL, **{**CASES[case], "dtype": "complex128"})
    solver, target = Solver(geometry, ORDERS), wanted(geometry, 0.5)
    score, _, _ = gradient(solver, PATTERN, height, target)
    assert score == pytest.approx(misrouted_power(*solver.solve(PATTERN, height), target), abs=1e-9)


@pytest.mark.parametrize("asked", [1.0, 0.3], ids=["full", "partial"])
@pytest.mark.parametrize("case", CASES)
def test_it_agrees_with_pytorch(case: str, asked: float) -> None:
    pytest.importorskip("torch")
    from train.rcwa import TorchSolver
    from train.rcwa import gradient as by_autograd

    geometry, height = dataclasses.replace(CELL, **CASES[case]), 340.0
    target = wanted(geometry, asked, seed=1)
    ours = gradient(Solver(geometry, ORDERS), PATTERN, height, target)
    theirs = by_autograd(TorchSolver(geometry, ORDERS), PATTERN[None], np.array([height]), target)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(mine), other.numpy()[0], rtol=1e-6, atol=1e-9)


def test_a_shifted_cell_has_the_shifted_gradient() -> None:
    target = wanted(CELL, 1.0)
    score, by_pixel, by_height_nm = gradient(Solver(CELL, ORDERS), PATTERN, 300.0, target)
    moved = gradient(Solver(CELL, ORDERS), np.roll(PATTERN, (2, 1), (0, 1)), 300.0, target)
    assert moved[0] == pytest.approx(score, abs=1e-10)
    np.testing.assert_allclose(moved[1], np.roll(by_pixel, (2, 1), (0, 1)), atol=1e-9)
    assert moved[2] == pytest.approx(by_height_nm, abs=1e-10)


def test_what_it_refuses() -> None:
    solver, target = Solver(CELL, ORDERS), wanted(CELL, 1.0)
    with pytest.raises(DataError, match="every pixel from 0"):
        gradient(solver, PATTERN * 2, 300.0, target)
    with pytest.raises(DataError, match="2-D"):
        gradient(solver, PATTERN.ravel(), 300.0, target)
    with pytest.raises(DataError, match="height"):
        gradient(solver, PATTERN, -1.0, target)
    assert trusted(solver, 800.0)
    assert not trusted(solver, 8000.0)
    with pytest.raises(DataError, match="8000 nm is too thick"):
        gradient(solver, PATTERN, 8000.0, target)
