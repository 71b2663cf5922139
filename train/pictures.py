"""Pictures a training run leaves behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime.files import atomic_file
from runtime.geometry import Geometry, propagating

_DARKEST = 1e-4  # efficiency at the dark end of the colour scale
_LIGHT, _PILLAR, _INK, _FAINT = "viridis", "#33475b", "#222222", "#707070"


@dataclasses.dataclass(frozen=True)
class Row:
    """One validation sample of a picture: words to its left, then a cell for each column, each with words beneath.

    A cell is a pattern (n, n) of integers, or an order map of floats in which NaN is left blank.
    """

    label: str
    cells: Sequence[np.ndarray]
    notes: Sequence[str]


def lit(maps: np.ndarray, geometry: Geometry, side: int) -> np.ndarray:
    """An order map cut to the box of orders that can carry power; NaN where one cannot. ``side`` 0 is reflection, 1 transmission."""
    light = propagating(geometry, maps.shape[-1] // 2)[side]
    if not light.any():
        return np.full((1, 1), np.nan)
    m, n = (np.flatnonzero(light.any(axis=axis)) for axis in (1, 0))
    box = slice(m[0], m[-1] + 1), slice(n[0], n[-1] + 1)
    return np.where(light[box], maps[box], np.nan)


def sample_grid(path: Path, title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Cells in rows and columns, as a PNG: patterns in two colours with x right and y up, order maps with m right and n up, on one
    logarithmic scale of efficiency."""
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.figure import Figure

    wide, high, across, down = 1.0, 1.0, 1.12, 1.3
    figure = Figure(figsize=(1.15 * len(columns) * across + 1.9, 1.15 * len(rows) * down + 0.75), facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    scale = LogNorm(_DARKEST, 1.0)
    image = None
    for r, row in enumerate(rows):
        bottom = -r * down - high
        axes.text(-0.1, bottom + high / 2, row.label, ha="right", va="center", size=8, color=_INK)
        for c, (cell, note) in enumerate(zip(row.cells, row.notes, strict=True)):
            extent = (c * across, c * across + wide, bottom, bottom + high)
            # An image's rows are its second coordinate.
            if cell.dtype.kind == "f":
                shown = np.ma.masked_invalid(cell.T).clip(_DARKEST, 1.0)
                image = axes.imshow(shown, cmap=_LIGHT, norm=scale, origin="lower", interpolation="nearest", extent=extent)
            else:
                colours = ListedColormap(["white", _PILLAR])
                axes.imshow(cell.T, cmap=colours, vmin=0, vmax=1, origin="lower", interpolation="nearest", extent=extent)
            axes.plot(
                [extent[0], extent[1], extent[1], extent[0], extent[0]],
                [extent[2], extent[2], extent[3], extent[3], extent[2]],
                color=_FAINT,
                linewidth=0.5,
            )
            axes.text(c * across + wide / 2, bottom - 0.04, note, ha="center", va="top", size=7, color=_FAINT)
    for c, name in enumerate(columns):
        axes.text(c * across + wide / 2, 0.08, name, ha="center", va="bottom", size=8.5, color=_INK)
    right = len(columns) * across
    axes.text(-0.95, 0.42, title, ha="left", va="bottom", size=10, weight="bold", color=_INK)
    axes.set(xlim=(-1.0, right + 0.75), ylim=(-len(rows) * down - 0.05, 0.75), aspect="equal")
    axes.axis("off")
    if image is not None:
        bar = figure.colorbar(
            image,
            cax=axes.inset_axes(
                (right + 0.05, -down * min(len(rows), 3) + 0.3, 0.12, down * min(len(rows), 3) - 0.3), transform=axes.transData
            ),
        )
        bar.set_label("efficiency", size=8, color=_INK)
        bar.ax.tick_params(labelsize=7)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def loss_curve(metrics: Path, out: Path) -> None:
    """Training and validation loss of ``metrics.jsonl`` against epochs, as a PNG."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in rows]
    axes.plot(epochs, [row["loss"] for row in rows], label="training (mean of the epoch)")
    axes.plot(epochs, [row["validation_loss"] for row in rows], label="validation (EMA weights)")
    axes.set(xlabel="epoch", ylabel="loss", title="Training loss")
    axes.grid(True, alpha=0.3)
    axes.legend(frameon=False)
    with atomic_file(out) as temporary:
        figure.savefig(temporary, dpi=120)
