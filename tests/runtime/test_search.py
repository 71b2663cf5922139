"""Patterns as classes under cyclic shifts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.search import canonical, unique


def shifts(pattern: np.ndarray) -> list[np.ndarray]:
    n = len(pattern)
    return [np.roll(pattern, (i, j), (0, 1)) for i in range(n) for j in range(n)]


def test_a_lone_pixel_goes_to_the_corner() -> None:
    pattern = np.zeros((1, 4, 4), np.uint8)
    pattern[0, 2, 3] = 1
    assert np.argwhere(canonical(pattern)[0]).tolist() == [[0, 0]]


@pytest.mark.parametrize("size", [1, 3, 8, 10])
def test_is_the_largest_shift_read_as_a_number(size: int) -> None:
    patterns = (np.random.default_rng(size).random((6, size, size)) < 0.5).astype(np.uint8)
    found = canonical(patterns)
    assert found.dtype == np.uint8
    for pattern, representative in zip(patterns, found, strict=True):
        largest = max(int("".join(map(str, shifted.ravel())), 2) for shifted in shifts(pattern))
        assert int("".join(map(str, representative.ravel())), 2) == largest


@given(st.integers(0, 10**9), st.integers(0, 9), st.integers(0, 9))
def test_one_representative_for_a_class_and_only_for_it(seed: int, i: int, j: int) -> None:
    patterns = (np.random.default_rng(seed).random((2, 10, 10)) < 0.5).astype(np.uint8)
    found = canonical(patterns)
    assert (canonical(np.roll(patterns, (i, j), (1, 2))) == found).all()
    assert any((shifted == found[0]).all() for shifted in shifts(patterns[0]))
    assert (found[0] != found[1]).any()


def test_unique_keeps_the_first_of_each_class_in_order() -> None:
    a, b, c = (np.random.default_rng(7).random((3, 10, 10)) < 0.5).astype(np.uint8)
    patterns = np.stack([c, a, np.roll(c, (3, 4), (0, 1)), b, a, np.roll(a, 1, 1), np.roll(b, 9, 0)])
    assert unique(patterns).tolist() == [0, 1, 3]


def test_a_mirror_image_is_another_class() -> None:
    # Its scattering is the mirrored one, so it is no duplicate.
    pattern = np.zeros((5, 5), np.uint8)
    pattern[0, 0] = pattern[0, 1] = pattern[1, 2] = 1
    assert unique(np.stack([pattern, pattern[::-1], pattern[:, ::-1]])).tolist() == [0, 1, 2]


def test_no_patterns() -> None:
    assert canonical(np.zeros((0, 10, 10))).shape == (0, 10, 10)
    assert unique(np.zeros((0, 10, 10))).tolist() == []
