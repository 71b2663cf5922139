"""Symmetries of diffraction that turn one solved sample into many, as array operations on batches."""

from __future__ import annotations

import numpy as np

from runtime.geometry import Geometry


def mirrors_hold(geometry: Geometry) -> bool:
    """Mirroring the cell mirrors its order maps only where the incident wave is its own mirror image: normal incidence."""
    return geometry.theta_deg == 0


def mirror(maps: np.ndarray, flip_x: np.ndarray, flip_y: np.ndarray) -> np.ndarray:
    """Reverse the last two axes of (B, k, k) where ``flip_x``, ``flip_y`` (B,) say so.

    A pattern so reversed and its order maps so reversed belong together: x -> -x takes order (m, n) to (-m, n).
    """
    maps = np.where(flip_x[:, None, None], maps[:, ::-1], maps)
    return np.where(flip_y[:, None, None], maps[:, :, ::-1], maps)


def shift(patterns: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cyclic shift of each (n, n) pattern of a batch by its own (rows, columns); the efficiencies stay as they are."""
    size = patterns.shape[-1]
    index = np.arange(size)
    i = (index[None] - rows[:, None]) % size
    j = (index[None] - columns[:, None]) % size
    return patterns[np.arange(len(patterns))[:, None, None], i[:, :, None], j[:, None, :]]
