"""The figures of the seed documents: light matrices, samples beside what they were made for, the reverse process as a strip."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .data import DataSet
from .drawing import COLOURS, FAINT, INK, PILLAR, box_of, matplotlib_needed
from .files import atomic_file
from .geometry import Geometry, propagating
from .loop import Guidance
from .sampler import Sampler
from .schedulers import Plan
from .target import Target

_DARKEST = 1e-4  # efficiency at the dark end of the colour scale
MOMENTS = 9  # moments of the reverse process shown


class Field(NamedTuple):
    """A cell of a picture in greys from -1 (white) to 1 (dark): a pattern under noise, (n, n)."""

    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Row:
    """One validation sample of a picture: words to its left, then a cell for each column, each with words beneath.

    A cell is a pattern (n, n) of integers, an order map of floats in which NaN is left blank, or a :class:`Field`.
    """

    label: str
    cells: Sequence[np.ndarray | Field]
    notes: Sequence[str]


def lit(maps: np.ndarray, geometry: Geometry, side: int) -> np.ndarray:
    """An order map cut to the box of orders that can carry power; NaN where one cannot. ``side`` 0 is reflection, 1 transmission."""
    light = propagating(geometry, maps.shape[-1] // 2)[side]
    box = box_of(light)
    return np.where(light[box], maps[box], np.nan)


def sample_grid(path: Path, title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Draw cells in rows and columns, atomically; the suffix of ``path`` names the format. Patterns and fields have x right and y up, order
    maps m right and n up, on one logarithmic scale of efficiency.

    Raises:
        BackendError: matplotlib is not installed.
        DataError: a place that cannot be written.
    """
    with matplotlib_needed():
        from matplotlib.colors import ListedColormap, LogNorm
        from matplotlib.figure import Figure

    wide, high, across, down = 1.0, 1.0, 1.12, 1.3
    figure = Figure(figsize=(1.15 * len(columns) * across + 1.9, 1.15 * len(rows) * down + 0.75), facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    scale = LogNorm(_DARKEST, 1.0)
    image = None
    for r, row in enumerate(rows):
        bottom = -r * down - high
        axes.text(-0.1, bottom + high / 2, row.label, ha="right", va="center", size=8, color=INK)
        for c, (cell, note) in enumerate(zip(row.cells, row.notes, strict=True)):
            extent = (c * across, c * across + wide, bottom, bottom + high)
            # An image's rows are its second coordinate.
            if isinstance(cell, Field):
                shown = cell.values.T
                axes.imshow(shown, cmap="Greys", vmin=-1.5, vmax=1.5, origin="lower", interpolation="nearest", extent=extent)
            elif cell.dtype.kind == "f":
                shown = np.ma.masked_invalid(cell.T).clip(_DARKEST, 1.0)
                image = axes.imshow(shown, cmap=COLOURS, norm=scale, origin="lower", interpolation="nearest", extent=extent)
            else:
                colours = ListedColormap(["white", PILLAR])
                axes.imshow(cell.T, cmap=colours, vmin=0, vmax=1, origin="lower", interpolation="nearest", extent=extent)
            axes.plot(
                [extent[0], extent[1], extent[1], extent[0], extent[0]],
                [extent[2], extent[2], extent[3], extent[3], extent[2]],
                color=FAINT,
                linewidth=0.5,
            )
            axes.text(c * across + wide / 2, bottom - 0.04, note, ha="center", va="top", size=7, color=FAINT)
    for c, name in enumerate(columns):
        axes.text(c * across + wide / 2, 0.08, name, ha="center", va="bottom", size=8.5, color=INK)
    right = len(columns) * across
    axes.text(-0.95, 0.42, title, ha="left", va="bottom", size=10, weight="bold", color=INK)
    axes.set(xlim=(-1.0, right + 0.75), ylim=(-len(rows) * down - 0.05, 0.75), aspect="equal")
    axes.axis("off")
    if image is not None:
        bar = figure.colorbar(
            image,
            cax=axes.inset_axes(
                (right + 0.05, -down * min(len(rows), 3) + 0.3, 0.12, down * min(len(rows), 3) - 0.3), transform=axes.transData
            ),
        )
        bar.set_label("efficiency", size=8, color=INK)
        bar.ax.tick_params(labelsize=7)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def chosen(data: DataSet, count: int) -> DataSet:
    """Up to ``count`` samples, from the lowest pillars to the tallest."""
    order = np.argsort(data.h, kind="stable")
    return data.take(order[np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int))])


def light_matrices(data: DataSet, path: Path, count: int = 8) -> None:
    """Draw ``count`` samples of a data set, from the lowest pillars to the tallest: the pattern and its order maps, cut to the orders that
    can carry power.

    Raises:
        BackendError, DataError: as :func:`sample_grid`.
    """
    rows = [
        Row(f"{h:g} nm", [xx, lit(R, data.geometry, 0), lit(T, data.geometry, 1)], ["", f"R {R.sum():.3f}", f"T {T.sum():.3f}"])
        for xx, h, R, T in zip(*dataclasses.astuple(chosen(data, count))[:4], strict=True)
    ]
    sample_grid(path, "Light matrices", ["pattern", "reflected orders", "transmitted orders"], rows)


def reverse_process(sampler: Sampler, target: Target, path: Path, n: int = 3, seed: int = 0, **settings: Any) -> None:
    """Draw how n candidates for a target come out of noise: for each a row of what is there before a step, and one of what the network
    then takes the finished pattern to be; last the pattern itself.

    Args:
        settings: ``steps``, ``scheduler``, ``eta``, ``guidance_scale`` and ``guidance_interval`` of :meth:`Sampler.stream`.

    Raises:
        BackendError, DataError: as :func:`sample_grid`.
        TargetError, BundleError: as :meth:`Sampler.stream`.
    """
    table, guidance, estimates, before, samples = trace(sampler, sampler.condition(target), n, seed, **settings)
    done = sampler.patterns(samples)
    shown = np.unique(np.linspace(0, table.num_steps - 1, min(MOMENTS, table.num_steps)).round().astype(int)).tolist()
    # Methods in sigma let the sample grow with the noise; in the picture its spread is that of a pattern.
    spread = [max(1.0, float(before[k].std())) for k in shown]
    names = [f"t = {table.timesteps[k]:g}" for k in shown]
    rows = []
    for i in range(n):
        rows.append(
            Row(
                f"{i + 1}   sample",
                [*(Field(sampler.window(before[k])[i] / s) for k, s in zip(shown, spread, strict=True)), done[i]],
                [""] * (len(shown) + 1),
            )
        )
        rows.append(Row("estimate", [*(Field(sampler.window(estimates[k])[i]) for k in shown), done[i]], [""] * (len(shown) + 1)))
    words = f"{table.num_steps} steps" + ("" if guidance.scale == 1 else f", guidance {guidance.scale:g}")
    sample_grid(path, f"Reverse process for {target.name}, {target.height_nm:g} nm ({words})", [*names, "pattern"], rows)


def trace(
    sampler: Sampler, condition: Mapping[str, np.ndarray], n: int, seed: int, **settings: Any
) -> tuple[Plan, Guidance, list[np.ndarray], list[np.ndarray], np.ndarray]:
    """The reverse process of n samples for one condition: its table and guidance, what the network takes the finished samples to be after
    every step, the samples before every step and after the last, and the finished ones; arrays (n, *sample_shape).

    Raises:
        TargetError, BundleError: as :meth:`Sampler.stream`.
    """
    table = sampler.plan(settings.get("steps"), settings.get("scheduler"), settings.get("eta"))
    guidance = sampler.guidance(settings.get("guidance_scale"), settings.get("guidance_interval"))
    told, free = sampler.told(condition, guidance)
    before: list[np.ndarray] = []
    estimates: list[np.ndarray] = []
    moving: list[np.ndarray] = []

    def watched(k: int, found: np.ndarray) -> None:
        if k < 0:
            moving.append(found)  # the sample itself, which every step moves in place
        else:
            estimates.append(found.copy())
        before.append(moving[0].copy())

    done = sampler.denoise(table, told, free, guidance, seed, range(n), watched)
    return table, guidance, estimates, before, done
