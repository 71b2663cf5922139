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


def nearest_shift(patterns: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cyclic shift (rows, columns), each (B,), that brings each pattern (B, n, n) nearest to its own noise (B, n, n).

    Of all that a target may be met by, only the shift is left to chance: efficiencies do not depend on it. Where noise and pattern are
    drawn one by one, a network that is shown much noise sees every shift as likely and can but predict their mean, which is blank. Paired
    so, the noise says which shift it becomes, and the paths from one to the other are straighter: the optimal transport of equivariant
    flow matching (Klein et al., arXiv 2306.15030), here over a group of n x n shifts alone, so that each pattern keeps its own
    light. The noise as such stays normal, and a sampler that goes down deterministically starts as ever; one that adds fresh noise on
    its way leaves these pairs.

    Shifts of a pattern all have one norm, so the nearest one correlates most; all correlations are a product of two transforms.
    """
    correlation = np.fft.ifft2(np.fft.fft2(noise) * np.conj(np.fft.fft2(patterns))).real
    rows, columns = np.unravel_index(correlation.reshape(len(patterns), -1).argmax(axis=1), patterns.shape[1:])
    return rows, columns
