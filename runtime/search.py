"""Candidates as a set: what is the same pattern up to a cyclic shift of the cell, which scatter alike."""

from __future__ import annotations

import numpy as np


def canonical(patterns: np.ndarray) -> np.ndarray:
    """The representative of each pattern's class under the n*n cyclic shifts of the cell.

    Args:
        patterns: (N, n, n) of 0 and 1.

    Returns:
        (N, n, n) uint8: the shift whose pixels, read row by row as one binary number, are largest.
    """
    patterns = np.asarray(patterns, np.uint8)
    count, size = patterns.shape[0], patterns.shape[-1]
    best = np.packbits(patterns.reshape(count, size * size), axis=1)
    for rows in range(size):
        for columns in range(size):
            if rows or columns:
                shifted = np.packbits(np.roll(patterns, (rows, columns), axis=(1, 2)).reshape(count, size * size), axis=1)
                best = np.where(_greater(shifted, best)[:, None], shifted, best)
    return np.unpackbits(best, axis=1, count=size * size).reshape(patterns.shape)


def unique(patterns: np.ndarray) -> np.ndarray:
    """Indices, ascending, of the first of each class under cyclic shifts; patterns (N, n, n)."""
    flat = canonical(patterns).reshape(len(patterns), np.shape(patterns)[-1] ** 2)
    return np.sort(np.unique(flat, axis=0, return_index=True)[1])


def _greater(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, whether bytes ``a`` (N, k) come after ``b`` (N, k)."""
    different = a != b
    first = different.argmax(axis=1)[:, None]
    return different.any(axis=1) & (np.take_along_axis(a, first, 1) > np.take_along_axis(b, first, 1))[:, 0]
