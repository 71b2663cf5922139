"""Pictures of images and points: a mosaic, or a scatter plot, and the same moving from noise to the finished samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .drawing import ACCENT, FAINT, INK, matplotlib_needed
from .files import atomic_file
from .labels import Labels

MOST = 100  # samples of a mosaic
DPI, LARGEST = 130, 24.0  # of a picture: dots and inches


def is_points(shape: Sequence[int]) -> bool:
    """Whether samples of (channels, height, width) are points."""
    return tuple(shape[1:]) == (1, 1)


def mosaic(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Images (N, C, H, W) uint8 side by side in one of (rows, columns, 3), a white line between them."""
    count, channels, high, wide = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    page = np.full((rows * (high + 1) + 1, columns * (wide + 1) + 1, 3), 255, np.uint8)
    for k, image in enumerate(images):
        top, left = 1 + (k // columns) * (high + 1), 1 + (k % columns) * (wide + 1)
        page[top : top + high, left : left + wide] = image.transpose(1, 2, 0) if channels == 3 else image[0][..., None]
    return page


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Grey levels or colours in units of the data, rounded to uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def shown(samples: np.ndarray, labels: Labels) -> np.ndarray:
    """Samples (N, C, H, W) of the network as a picture takes them: uint8 images, or points in units of the data."""
    values = labels.to_data(samples)
    return values if is_points(samples.shape[1:]) else to_bytes(values)


def draw(path: Path, title: str, parts: Sequence[tuple[str, np.ndarray]], columns: int | None = None, side: float | None = None) -> None:
    """Draw sets of samples side by side: points (N, 2, 1, 1) as scatter plots, images (N, C, H, W) uint8 as mosaics; atomically.

    Args:
        columns: images in a row of a mosaic; None makes it square.
        side: width in inches of each set; None is by what there is to see.

    Raises:
        BackendError: matplotlib is not installed.
        DataError: a place that cannot be written.
    """
    figure = _figure(title, parts, columns, side=side)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def animate(path: Path, title: str, moments: Sequence[tuple[str, np.ndarray]], columns: int | None = None) -> None:
    """A GIF of one set of samples at several moments; atomically, its last moment held. Errors as for :func:`draw`."""
    with matplotlib_needed("an animation"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image
    frames = []
    edges = _edges([values for _, values in moments])
    for name, values in moments:
        figure = _figure(title, [(name, values)], columns, edges)
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(80)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    with atomic_file(path) as temporary:
        durations = [120] * (len(frames) - 1) + [2000]
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _edges(sets: Sequence[np.ndarray]) -> float:
    """Half the side of a square that holds all but the farthest of the points."""
    return 1.1 * max(float(np.quantile(np.abs(values), 0.999)) for values in sets)


def _figure(
    title: str, parts: Sequence[tuple[str, np.ndarray]], columns: int | None, edge: float | None = None, side: float | None = None
) -> Any:
    with matplotlib_needed():
        from matplotlib.figure import Figure

    pages = [None if is_points(values.shape[1:]) else mosaic(values[:MOST], columns) for _, values in parts]
    shape = [1.0 if page is None else page.shape[0] / page.shape[1] for page in pages]
    if side is None:
        # Never fewer dots than pixels.
        widest = max((page.shape[1] for page in pages if page is not None), default=0) * 1.05 / DPI
        side = max(4.0 if len(parts) == 1 else 2.6, min(widest, LARGEST / len(parts)))
    figure = Figure(figsize=(side * len(parts), side * max(shape) + 0.7), facecolor="white", layout="constrained")
    figure.suptitle(title, size=10, color=INK, x=0.02, ha="left", weight="bold")
    edge = edge or _edges([values for _, values in parts])
    for axis, page, (name, values) in zip(figure.subplots(1, len(parts), squeeze=False)[0], pages, parts, strict=True):
        axis.set_title(name, size=8, color=FAINT)
        if page is None:
            axis.scatter(values[:, 0, 0, 0], values[:, 1, 0, 0], s=3, color=ACCENT, alpha=0.5, linewidths=0)
            axis.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal")
            axis.tick_params(labelsize=6, colors=FAINT)
        else:
            axis.imshow(page, interpolation="nearest")
            axis.axis("off")
    return figure
