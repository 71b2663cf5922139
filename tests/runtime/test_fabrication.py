"""Minimum widths, corner contacts and single pixels of cells counted by hand, against brute force, and under the cell's symmetries."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from runtime.errors import DataError
from runtime.fabrication import Limits, measure, violations
from runtime.geometry import Geometry

CELL = Geometry(period_nm=(4000.0, 4000.0))


def cell(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows], np.uint8)


BLOCKS = cell(
    "##......",
    "##......",
    "..##....",
    "..##....",
    "........",
    ".....#..",
    "........",
    "........",
)
# A bar of 3 pixels along y, its middle cut into the border, and one gap of 5.
BAR = cell("####", "####", "....", "....", "....", "....", "....", "####")


def test_counts_made_by_hand() -> None:
    found = measure(BLOCKS, Geometry(period_nm=(800.0, 800.0)))
    assert (found.corner_contacts, found.single_pillars, found.single_holes) == (1, 1, 0)
    assert found.min_solid_nm == 100.0
    assert found.fill_factor == 9 / 64
    without = BLOCKS.copy()
    without[5, 5] = 0
    assert measure(without, Geometry(period_nm=(800.0, 800.0))).min_solid_nm == 200.0


def test_a_bar_across_the_border_is_as_wide_as_it_repeats() -> None:
    found = measure(BAR, Geometry(period_nm=(800.0, 400.0)))
    assert (found.min_solid_nm, found.min_void_nm) == (300.0, 500.0)
    turned = measure(BAR.T, Geometry(period_nm=(400.0, 800.0)))
    assert found == turned


def test_the_brush_is_a_square_in_nanometres_where_pixels_are_oblong() -> None:
    block = np.zeros((8, 8), np.uint8)
    block[2:6, 3:5] = 1  # 4 x 2 pixels
    assert measure(block, Geometry(period_nm=(800.0, 800.0))).min_solid_nm == 200.0
    assert measure(block, Geometry(period_nm=(800.0, 1200.0))).min_solid_nm == 300.0
    assert measure(block, Geometry(period_nm=(800.0, 3200.0))).min_solid_nm == 400.0


def test_a_checkerboard_is_all_corners_and_single_pixels() -> None:
    board = np.indices((6, 6)).sum(0) % 2
    found = measure(board, Geometry(period_nm=(600.0, 600.0)))
    assert (found.corner_contacts, found.single_pillars, found.single_holes, found.fill_factor) == (36, 18, 18, 0.5)
    assert violations(board, CELL, Limits(corners=False)) == 36


@pytest.mark.parametrize("value", [0, 1])
def test_a_plain_surface_has_no_width(value: int) -> None:
    found = measure(np.full((5, 5), value), CELL)
    assert (found.min_solid_nm, found.min_void_nm, found.fill_factor) == (None, None, float(value))
    assert violations(np.full((5, 5), value), CELL, Limits(10_000.0, corners=False)) == 0


def paintable(phase: np.ndarray, side: int) -> bool:
    """Whether every pixel of a periodic cell lies in a block of side x side pixels that are all of its kind; by looking at each."""
    count = len(phase)
    painted = np.zeros_like(phase)
    for i, j in np.ndindex(phase.shape):
        block = np.ix_(np.arange(i, i + side) % count, np.arange(j, j + side) % count)
        if phase[block].all():
            painted[block] = True
    return bool((painted == phase).all())


def test_widths_and_limits_against_painting_every_block() -> None:
    rng = np.random.default_rng(0)
    sides = set()
    for _ in range(40):
        pattern = np.kron(rng.integers(0, 2, (3, 3)), np.ones((2, 2), int))  # features of 2 pixels and more
        pattern = np.roll(pattern, rng.integers(0, 6, 2), (0, 1))
        pattern[tuple(rng.integers(0, 6, 2))] ^= int(rng.integers(0, 2))
        solid = pattern.astype(bool)
        if solid.all() or not solid.any():
            continue
        found = measure(pattern, Geometry(period_nm=(600.0, 600.0)))
        for phase, width in ((solid, found.min_solid_nm), (~solid, found.min_void_nm)):
            expected = max(side for side in range(1, 7) if paintable(phase, side))
            assert width == expected * 100.0
            sides.add(expected)
        for side in (1, 2, 3):
            kept = violations(pattern, Geometry(period_nm=(600.0, 600.0)), Limits(100.0 * side)) == 0
            assert kept == (paintable(solid, side) and paintable(~solid, side))
    assert len(sides) > 1


def test_shifts_mirrors_and_exchange_change_nothing_else() -> None:
    pattern = (np.random.default_rng(1).random((10, 10)) < 0.4).astype(np.uint8)
    found = measure(pattern, CELL)
    assert found.corner_contacts > 0
    for same in (np.roll(pattern, (3, 7), (0, 1)), pattern[::-1], pattern.T):
        assert measure(same, CELL) == found
    other = measure(1 - pattern, CELL)
    assert (other.single_pillars, other.single_holes) == (found.single_holes, found.single_pillars)
    assert dataclasses.replace(
        other, single_pillars=found.single_pillars, single_holes=found.single_holes, fill_factor=found.fill_factor
    ) == dataclasses.replace(found, min_solid_nm=found.min_void_nm, min_void_nm=found.min_solid_nm)


def test_violations_fall_as_a_pattern_is_mended() -> None:
    limits = Limits(200.0, corners=False)
    geometry = Geometry(period_nm=(800.0, 800.0))
    mended = BLOCKS.copy()
    counts = [violations(mended, geometry, limits)]
    for pixel in ((5, 5), (1, 2), (2, 1)):  # the single pillar goes, then the corner is filled to a square of 2 by 2
        mended[pixel] ^= 1
        counts.append(violations(mended, geometry, limits))
    assert counts[0] == 2  # the single pillar, and the corner
    assert counts[1] == 1
    assert counts[-1] == 0


@pytest.mark.parametrize("pattern", [np.zeros(4), np.zeros((0, 4)), np.full((3, 3), 2), np.full((3, 3), np.nan)])
def test_what_is_no_pattern_is_refused(pattern: np.ndarray) -> None:
    with pytest.raises(DataError, match="of 0 and 1"):
        measure(pattern, CELL)


@pytest.mark.parametrize("width", [-1.0, float("nan"), float("inf")])
def test_a_width_that_is_none_is_refused(width: float) -> None:
    with pytest.raises(DataError, match="least width"):
        Limits(width)
