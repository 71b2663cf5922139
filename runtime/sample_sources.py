"""Data sets of images that need no download: tiles of scikit-learn's two sample photographs, and drawn craters.

They let every recipe run on a fresh machine. The real data of the two recipes are folders of pictures: ``--data FOLDER``.
"""

from __future__ import annotations

import numpy as np

TILE, STRIDE = 32, 8  # pixels, of the photographs as they are
CRATERS, CRATER_SIZE = 100, 64
_LIGHT = np.array([-0.8, -0.35, 0.5]) / np.linalg.norm([-0.8, -0.35, 0.5])  # towards the sun: low, from the left and a little from above
_FINE = 2  # samples of the ground along a pixel's side


def tiles(images: np.ndarray, size: int = 0) -> np.ndarray:
    """Squares cut from photographs (N, height, width, 3) uint8 every ``STRIDE`` pixels, (M, 3, ``TILE``, ``TILE``) uint8.

    Neighbours overlap, so what is set aside for validation is no stranger to the rest. ``size`` above 0 cuts squares of that side.
    """
    side = size or TILE
    windows = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(1, 2))[:, ::STRIDE, ::STRIDE]
    return np.ascontiguousarray(windows.reshape(-1, *windows.shape[3:]))


def craters(size: int = 0, count: int = CRATERS, seed: int = 0) -> np.ndarray:
    """``count`` pictures of craters (count, 1, side, side) uint8, drawn, not photographed; ``size`` is the side, 0 for ``CRATER_SIZE``.

    Each shows one large crater and up to six small ones on rough ground that the sun lights from the left. A crater of radius r is a
    bowl, z = d ((s / r)^2 - 1) at the distance s < r from its middle, with a rim that falls off outside as (r / s)^3, the shape of simple
    lunar craters (Pike 1977) to a few per cent. Brightness is Lambert's law: the cosine between the ground's normal and the sun.
    """
    side = size or CRATER_SIZE
    return np.stack([_crater(side, np.random.Generator(np.random.Philox(key=[seed, k]))) for k in range(count)])[:, None]


def _crater(side: int, rng: np.random.Generator) -> np.ndarray:
    """One picture (side, side) uint8."""
    from scipy.ndimage import gaussian_filter

    fine = side * _FINE
    x, y = np.meshgrid(*2 * [(np.arange(fine) + 0.5) / fine])  # y downwards, the picture's side is 1
    # Ground: noise at three scales. Its amplitude is a slope, whatever the scale.
    ground = np.zeros((fine, fine))
    for scale, slope in ((0.15, 0.06), (0.05, 0.08), (0.015, 0.10)):
        # Drawn on a grid of its own, so that a picture is the same picture at every size.
        cells = 64
        coarse = gaussian_filter(rng.standard_normal((cells, cells)), scale * cells, mode="wrap")
        ground += slope * scale * _enlarged(coarse / coarse.std(), fine)
    places = [(*rng.uniform(0.4, 0.6, 2), rng.uniform(0.22, 0.36))]
    places += [(*rng.uniform(0.02, 0.98, 2), rng.uniform(0.025, 0.09)) for _ in range(rng.integers(0, 7))]
    for across, down, radius in places:
        depth = radius * rng.uniform(0.3, 0.42)
        ground += _profile(np.hypot(x - across, y - down) / radius, depth, 0.2 * depth)
    slope_y, slope_x = np.gradient(ground, 1 / fine)
    lit = (-slope_x * _LIGHT[0] - slope_y * _LIGHT[1] + _LIGHT[2]) / np.sqrt(1 + slope_x**2 + slope_y**2)
    grey = np.maximum(lit, 0.0).reshape(side, _FINE, side, _FINE).mean(axis=(1, 3))
    return np.clip(255 * (0.06 + rng.uniform(0.85, 1.1) * grey), 0, 255).round().astype(np.uint8)


def _profile(s: np.ndarray, depth: float, rim: float) -> np.ndarray:
    """Height of a crater at s radii from its middle: -depth there, ``rim`` at s = 1, falling to 0 outside."""
    inside = (depth + rim) * s**2 - depth
    outside = rim / np.maximum(s, 1.0) ** 3
    return np.where(s < 1.0, inside, outside)


def _enlarged(values: np.ndarray, side: int) -> np.ndarray:
    """Values (n, n), periodic, at (side, side) points of the same square, by cubic splines."""
    from scipy.ndimage import map_coordinates

    at = (np.arange(side) + 0.5) * len(values) / side - 0.5
    return np.asarray(map_coordinates(values, np.meshgrid(at, at, indexing="ij"), order=3, mode="grid-wrap"))
