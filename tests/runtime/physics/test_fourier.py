"""Closed-form Fourier coefficients, rectilinear cells, and the factorised matrices against meent's."""

from __future__ import annotations

import dataclasses
import itertools

import meent
import numpy as np
import pytest
from meent.on_numpy.emsolver.convolution_matrix import cell_compression
from meent.on_numpy.emsolver.fourier_analysis import cfs2d

from runtime.errors import DataError
from runtime.geometry import Geometry
from runtime.physics.fourier import Cell, Factorisation, RealBasis, harmonics_kept, interval_coefficients
from runtime.physics.rcwa import Solver

GEOMETRY = Geometry(period_nm=(2300.0, 1900.0), harmonics=4, dtype="complex128")


def test_interval_coefficients_are_the_integrals() -> None:
    edges = np.array([0.0, 130.0, 400.0, 1000.0])
    x = (np.arange(200_000) + 0.5) / 200
    for column, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (x > low) & (x < high)
        for order in (-2, 0, 3):
            integral = np.mean(inside * np.exp(-2j * np.pi * order * x / 1000))
            assert interval_coefficients(edges, 3)[order + 3, column] == pytest.approx(integral, abs=1e-5)


def test_harmonics_kept_counts() -> None:
    assert len(harmonics_kept(11, "circle")[0]) == 377
    assert len(harmonics_kept(9, "square")[0]) == 361
    m, n = harmonics_kept(5, "circle")
    half = len(m) // 2
    assert (m[0], n[0]) == (0, 0)
    assert np.array_equal(m[1 : half + 1], -m[half + 1 :])
    assert np.array_equal(n[1 : half + 1], -n[half + 1 :])


def test_real_basis_is_the_unitary_change_of_basis() -> None:
    m, n = harmonics_kept(3, "square")
    half = len(m) // 2
    cell = Cell.from_pattern(np.random.default_rng(0).integers(0, 2, (5, 6)), GEOMETRY)
    unitary = RealBasis.to_plane_waves(np.eye(len(m))).T
    full, leading = Factorisation(m, n, "li", len(m)), Factorisation(m, n, "li", half + 1)
    for whole, rows in zip(full.matrices(cell), leading.matrices(cell), strict=True):
        assert np.allclose(unitary.conj().T @ whole @ unitary, RealBasis.operator(rows), atol=1e-12)
        assert np.allclose(whole, whole.conj().T, atol=1e-12)


def test_a_cell_with_subdivided_pixels_is_the_same_cell() -> None:
    pattern = np.random.default_rng(1).integers(0, 2, (4, 5))
    solver = Solver(GEOMETRY)
    whole = solver.solve(pattern, 300.0)
    cell = Cell.from_pattern(np.kron(pattern, np.ones((3, 2))), GEOMETRY)
    uneven = Cell(
        np.sort(np.r_[np.linspace(0, 2300, 5), 123.0, 800.5]), np.linspace(0, 1900, 6), np.where(pattern, 3.48, 1.0)[[0, 0, 1, 1, 2, 3]]
    )
    for other in (cell, uneven):
        assert all(np.allclose(a, b, atol=1e-11) for a, b in zip(solver.solve(other, 300.0), whole, strict=True))


def test_growing_moves_every_edge_outwards() -> None:
    geometry = dataclasses.replace(GEOMETRY, period_nm=(400.0, 300.0))
    pattern = np.zeros((4, 3))
    pattern[0, 1] = 1
    for grow, size in ((0.0, (100, 100)), (10.0, (120, 120)), (-10.0, (80, 80))):
        cell = Cell.from_pattern(pattern, geometry, grow)
        areas = np.outer(np.diff(cell.x_edges_nm), np.diff(cell.y_edges_nm))
        assert (areas * (cell.index > 2)).sum() == pytest.approx(size[0] * size[1])
    grown = Cell.from_pattern(pattern, geometry, 10.0)
    pillar = grown.index > 2
    at = np.digitize([5.0, 105.0, 115.0, 385.0, 395.0], grown.x_edges_nm) - 1
    assert pillar[at, np.digitize(150.0, grown.y_edges_nm) - 1].tolist() == [True, True, False, False, True]


def test_growing_a_pattern_is_shrinking_its_gaps() -> None:
    pattern = np.random.default_rng(2).integers(0, 2, (5, 5))
    swapped = dataclasses.replace(GEOMETRY, index_pillar=GEOMETRY.index_gap, index_gap=GEOMETRY.index_pillar)
    grown, shrunk = Cell.from_pattern(pattern, GEOMETRY, 20.0), Cell.from_pattern(1 - pattern, swapped, -20.0)
    assert np.array_equal(grown.index, shrunk.index)
    assert np.array_equal(grown.x_edges_nm, shrunk.x_edges_nm)


@pytest.mark.parametrize("pixels", [1, -1, 2])
def test_growing_by_whole_pixels_is_growing_pixels(pixels: int) -> None:
    pattern = (np.random.default_rng(4).random((7, 5)) < 0.3).astype(int)
    geometry = dataclasses.replace(GEOMETRY, period_nm=(2300.0, 2300.0 / 7 * 5))
    cell, solid = Cell.from_pattern(pattern, geometry, pixels * 2300.0 / 7), pattern if pixels > 0 else 1 - pattern
    grown = np.zeros_like(pattern)
    for i, j in np.argwhere(solid):
        for di, dj in np.ndindex(2 * abs(pixels) + 1, 2 * abs(pixels) + 1):
            grown[(i + di - abs(pixels)) % 7, (j + dj - abs(pixels)) % 5] = 1
    np.testing.assert_array_equal(cell.index > 2, grown if pixels > 0 else 1 - grown)
    np.testing.assert_allclose(cell.x_edges_nm, np.linspace(0, 2300, 8))


@pytest.mark.parametrize("fine", [3, -1])
def test_growing_by_part_of_a_pixel_is_growing_a_finer_pattern(fine: int) -> None:
    """A growth of 3/4 of a pixel closes every gap of one pixel; it is not the growth of single edges."""
    pattern = np.random.default_rng(5).integers(0, 2, (4, 4))
    geometry = dataclasses.replace(GEOMETRY, period_nm=(1600.0, 1600.0))
    solver = Solver(geometry)
    solid = np.kron(pattern if fine > 0 else 1 - pattern, np.ones((4, 4), int))
    shifts = range(-abs(fine), abs(fine) + 1)
    grown = np.max([np.roll(solid, (i, j), (0, 1)) for i in shifts for j in shifts], axis=0)
    expected = solver.solve(grown if fine > 0 else 1 - grown, 300.0)
    found = solver.solve(Cell.from_pattern(pattern, geometry, fine * 100.0), 300.0)
    assert all(np.allclose(a, b, atol=1e-10) for a, b in zip(found, expected, strict=True))


def test_growing_beyond_every_gap_fills_the_cell() -> None:
    for pattern, grow, index in ((np.eye(4), 2e4, 3.48), (1 - np.eye(4), -2e4, 1.0)):
        assert np.all(Cell.from_pattern(pattern, GEOMETRY, grow).index == index)


def test_scattering_follows_growth_smoothly() -> None:
    pattern = np.random.default_rng(3).integers(0, 2, (4, 4))
    solver = Solver(GEOMETRY)
    zero, tiny, small = (solver.solve(Cell.from_pattern(pattern, GEOMETRY, grow), 300.0) for grow in (0.0, 1e-3, 10.0))
    assert np.abs(tiny[1] - zero[1]).sum() < 1e-4
    assert 1e-3 < np.abs(small[1] - zero[1]).sum() < 0.5


def test_bad_cells_are_refused() -> None:
    x, y = np.array([0.0, 1.0, 2.0]), np.array([0.0, 3.0])
    for fields in (
        (x[::-1], y, np.ones((2, 1))),
        (x, y, np.ones((1, 2))),
        (x + 1, y, np.ones((2, 1))),
        (x, y, np.full((2, 1), np.nan)),
        (x, y, -np.ones((2, 1))),
        (x, np.array([0.0]), np.ones((2, 0))),
    ):
        with pytest.raises(DataError):
            Cell(*fields)
    for grow in (float("inf"), float("nan"), np.array([10.0, 10.0])):
        with pytest.raises(DataError, match="growth"):
            Cell.from_pattern(np.eye(4), GEOMETRY, grow)  # type: ignore[arg-type]


def meent_solution(pattern: np.ndarray, geometry: Geometry, height_nm: float, as_published: bool) -> tuple[np.ndarray, np.ndarray]:
    """(R, T) by meent, m along the first axis; its rows are y from the top, its columns x, pol 1 with phi 0 is E along x.

    meent 0.13.2 takes eps_y as we do but eps_x in the other order (Fourier series along y first, then the inverse rule).
    Both converge to one limit but differ at a finite truncation, so unless ``as_published`` its own series is called with
    the axes exchanged for eps_x, which is Li's form for both.
    """
    h = geometry.harmonics
    ucell = np.where(pattern.T[::-1], geometry.index_pillar, geometry.index_gap)
    mee = meent.call_mee(
        backend=0,
        pol=1,
        n_top=geometry.index_incident,
        n_bot=geometry.index_cover,
        theta=0.0,
        phi=0.0,
        wavelength=geometry.wavelength_nm,
        period=list(geometry.period_nm),
        thickness=[height_nm],
        ucell=ucell[None],
        fto=[h, h],
        fourier_type=1,
        type_complex=0,
    )
    if as_published:
        result = mee.conv_solve()
    else:
        index, x, y = cell_compression(ucell)
        side = 2 * h + 1
        epsilon_z, epsilon_y = (cfs2d(index**2, x, y, 1, along_y, h, h) for along_y in (1, 0))
        exchanged = cfs2d(index.T**2, y, x, 1, 0, h, h).reshape(side, side, side, side)
        epsilon_x = exchanged.transpose(1, 0, 3, 2).reshape(epsilon_y.shape)
        result = mee.solve_for_conv(geometry.wavelength_nm, epsilon_x[None], epsilon_y[None], np.linalg.inv(epsilon_z)[None])
    return result.de_ri.T, result.de_ti.T


@pytest.mark.parametrize("height_nm", [150.0, 480.0])
def test_agrees_with_meent_to_rounding(height_nm: float) -> None:
    geometry = Geometry(harmonics=5, truncation="square", dtype="complex128")
    pattern = np.random.default_rng(4).integers(0, 2, (10, 10))
    ours, theirs = Solver(geometry, 5).solve(pattern, height_nm), meent_solution(pattern, geometry, height_nm, False)
    assert sum(np.abs(a - b).sum() for a, b in zip(ours, theirs, strict=True)) < 1e-8


@pytest.mark.slow
def test_agrees_with_meent_at_nine_harmonics() -> None:
    geometry = Geometry(harmonics=9, truncation="square", dtype="complex128")
    pattern = np.random.default_rng(5).integers(0, 2, (10, 10))
    ours = Solver(geometry, 9).solve(pattern, 300.0)
    same, published = (meent_solution(pattern, geometry, 300.0, as_published) for as_published in (False, True))
    assert sum(np.abs(a - b).sum() for a, b in zip(ours, same, strict=True)) < 0.01
    assert sum(np.abs(a - b).sum() for a, b in zip(ours, published, strict=True)) < 0.1
