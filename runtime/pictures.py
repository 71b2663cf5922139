"""The picture of a few designs: the pattern as it repeats, and the orders wanted beside the orders achieved, on one colour scale."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .drawing import (
    ACCENT,
    DPI,
    FAINT,
    FONT,
    GAMMA,
    INK,
    arrangement,
    bar_ticks,
    draw_map,
    draw_pattern,
    heading,
    key,
    matplotlib_needed,
    panels,
    style,
)
from .errors import DataError
from .files import atomic_file

if TYPE_CHECKING:
    from .design import Design
    from .target import Target

ROWS = 4  # designs shown
# Inches: left margin, a square panel, gaps within and between pairs of maps, the colour bar, right margin, the heading of the page
# and of a row, and a row's axis labels.
_LEFT, _PANEL, _PAIR, _APART, _BAR, _RIGHT, _TOP, _HEADING, _BELOW = 0.6, 1.7, 0.14, 0.6, 0.1, 0.6, 0.4, 0.58, 0.45


def design_picture(designs: Sequence[Design], target: Target, path: str | os.PathLike[str]) -> None:
    """Draw up to four designs, a row each, best first, atomically; the suffix of ``path`` names the format.

    A row shows the pattern 3 x 3 (x right, y up, seen from the air, one unit cell outlined), then target and achieved order
    maps in transmission and in reflection (m right, n up), cut to the orders that can carry power; orders that cannot are blank.
    In a partial target the orders asked for are framed in both maps, and the others hatched in the target's.

    Raises:
        DataError: no design, or a place that cannot be written.
        BackendError: matplotlib is not installed.
    """
    if not designs:
        raise DataError(f"there is no design to draw in {path}; sample at least one candidate")
    figure = draw(designs, target)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def draw(designs: Sequence[Design], target: Target) -> Any:
    """The matplotlib Figure of :func:`design_picture`; five axes and a colour bar a row, in reading order."""
    with matplotlib_needed():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure
    shown = list(designs)[:ROWS]
    rows = [panels(design, target) for design in shown]
    highest = max((float(np.nanmax(p.values)) for row in rows for p in row if np.isfinite(p.values).any()), default=0.0)
    top = max(highest, 1e-3)
    norm = PowerNorm(GAMMA, vmin=0.0, vmax=top)

    left = [_LEFT]
    for gap in (_APART, _PAIR, _APART, _PAIR):
        left.append(left[-1] + _PANEL + gap)
    bar_left, pitch = left[-1] + _PANEL + 0.14, _HEADING + _PANEL + _BELOW
    width, height = bar_left + _BAR + _RIGHT, _TOP + pitch * len(shown)
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def axes(x: float, y: float, across: float) -> Any:
        return figure.add_axes((x / width, y / height, across / width, _PANEL / height))

    def text(x: float, y: float, words: str, **style: Any) -> None:
        figure.text(x / width, y / height, words, family=FONT, parse_math=False, **style)

    name = target.name if len(target.name) <= 30 else target.name[:29] + "…"
    text(_LEFT, height - 0.3, f"Target {name}", size=12, weight="bold", color=INK)
    text(bar_left + _BAR, height - 0.3, arrangement(shown[0].geometry), size=7.5, color=FAINT, ha="right")
    for row, (design, maps) in enumerate(zip(shown, rows, strict=True)):
        bottom = height - _TOP - row * pitch - _HEADING - _PANEL
        text(_LEFT, bottom + _PANEL + 0.31, f"{row + 1}", size=10, weight="bold", color=ACCENT)
        text(_LEFT + 0.18, bottom + _PANEL + 0.31, heading(design), size=9, color=INK)
        if row == 0:
            text(bar_left + _BAR, bottom + _PANEL + 0.31, key(maps), size=7.5, color=FAINT, ha="right")
        draw_pattern(axes(left[0], bottom, _PANEL), design)
        image = None
        for column, panel in enumerate(maps):
            # Of designs that were not solved there is nothing to compare: the target is shown once.
            if design.R is not None or (row == 0 and column % 2 == 0):
                image = draw_map(axes(left[column + 1], bottom, _PANEL), panel, norm, labelled=column % 2 == 0)
        if image is None:
            continue
        bar = figure.colorbar(image, cax=axes(bar_left, bottom, _BAR), ticks=bar_ticks(top), format="%g")
        bar.set_label("efficiency", size=7.5, color=INK, family=FONT)
        style(bar.ax)
    return figure
