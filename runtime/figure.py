"""The figure of one design for a paper: pattern, order maps, strongest orders, and what it bears of the lab's errors where that is known.

Two columns of a journal wide (7.2 inches), in type that is read at that size. (a) the pattern; (b) and (d) transmitted and reflected
orders, wanted and achieved, on one scale; (c) the strongest orders; (e) misrouted power with one thing off at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .drawing import (
    ACCENT,
    FAINT,
    FONT,
    GAMMA,
    INK,
    PILLAR,
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
from .files import atomic_file

if TYPE_CHECKING:
    from .design import Design
    from .target import Target
    from .tolerance import Tolerance

DPI = 300
ORDERS = 8  # in the bar chart
_WANTED, _FREE = "#c9d2dc", "#a9a9a9"
# Inches: margins, square panels, gaps; heights of the tolerance panels, above and below a row.
_LEFT, _PANEL, _APART, _PAIR, _RIGHT, _TOP, _ABOVE, _BELOW, _FAN = 0.62, 1.72, 0.62, 0.12, 0.78, 0.62, 0.3, 0.5, 1.15
_SHORT = {
    "height": "height (nm)",
    "edge": "pillar edges (nm)",
    "wavelength": "wavelength (nm)",
    "tilt_x": "incidence to x (°)",
    "tilt_y": "incidence to y (°)",
}
_SIZE = 7.5


class Bar(NamedTuple):
    """One order of the bar chart; ``wanted`` None where it was not asked for, ``achieved`` None where the design was not solved, ``ends``
    of what counts as reached where that is a range."""

    name: str
    wanted: float | None
    achieved: float | None
    ends: tuple[float, float] | None = None


def design_figure(design: Design, target: Target, path: str | os.PathLike[str]) -> None:
    """Draw one design, atomically; the suffix of ``path`` names the format: .png, .svg or .pdf. Equal designs are equal files.

    Raises:
        DataError: a place that cannot be written.
        BackendError: matplotlib is not installed.
    """
    write(draw(design, target), path)


def write(figure: Any, path: str | os.PathLike[str]) -> None:
    """Save what :func:`draw` drew, as :func:`design_figure` does."""
    suffix = Path(path).suffix.lower()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata={".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix))
        if suffix == ".svg":
            temporary.write_text(_numbered(temporary.read_text(encoding="utf-8")), encoding="utf-8")


def draw(design: Design, target: Target) -> Any:
    """The matplotlib Figure of :func:`design_figure`."""
    with matplotlib_needed("a figure"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure
    maps = panels(design, target)
    top = max((float(np.nanmax(panel.values)) for panel in maps if np.isfinite(panel.values).any()), default=0.0) or 1e-3
    norm = PowerNorm(GAMMA, vmin=0.0, vmax=top)
    pitch = _ABOVE + _PANEL + _BELOW
    left = [_LEFT, _LEFT + _PANEL + _APART, _LEFT + 2 * _PANEL + _APART + _PAIR]
    width = left[2] + _PANEL + _RIGHT
    height = _TOP + 2 * pitch + (_ABOVE + _FAN + _BELOW - 0.2 if design.tolerance is not None else 0.0)
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def axes(x: float, y: float, across: float, up: float = _PANEL) -> Any:
        return figure.add_axes((x / width, y / height, across / width, up / height))

    def text(x: float, y: float, words: str, **settings: Any) -> None:
        figure.text(x / width, y / height, words, family=FONT, parse_math=False, **settings)

    name = target.name if len(target.name) <= 40 else target.name[:39] + "…"
    text(0.12, height - 0.24, name, size=10, weight="bold", color=INK)
    text(width - 0.12, height - 0.24, heading(design), size=8, color=INK, ha="right")
    text(width - 0.12, height - 0.42, f"{arrangement(design.geometry)}   ·   design {design.digest}", size=6.5, color=FAINT, ha="right")
    first, second = height - _TOP - _ABOVE - _PANEL, height - _TOP - pitch - _ABOVE - _PANEL
    for letter, x, y in (("a", 0.12, first), ("b", left[1] - 0.42, first), ("c", 0.12, second), ("d", left[1] - 0.42, second)):
        text(x, y + _PANEL + 0.07, letter, size=10, weight="bold", color=INK)
    text(width - 0.12, second + _PANEL + 0.24, key(maps), size=6.5, color=FAINT, ha="right")
    draw_pattern(axes(left[0], first, _PANEL), design)
    _draw_bars(axes(left[0], second, _PANEL), bars(design, target))
    for bottom, pair in ((first, maps[:2]), (second, maps[2:])):
        for column, panel in enumerate(pair):
            image = draw_map(axes(left[1 + column], bottom, _PANEL), panel, norm, labelled=column == 0)
        bar = figure.colorbar(image, cax=axes(left[2] + _PANEL + 0.12, bottom, 0.1), ticks=bar_ticks(top), format="%g")
        bar.set_label("efficiency", size=_SIZE, color=INK, family=FONT)
        style(bar.ax)
    if design.tolerance is not None:
        bottom = second - _BELOW - _ABOVE - _FAN + 0.15
        text(0.12, bottom + _FAN + 0.07, "e", size=10, weight="bold", color=INK)
        _draw_fan(axes, design.tolerance, bottom, width)
    return figure


def bars(design: Design, target: Target) -> list[Bar]:
    """Up to eight orders: the strongest that are asked for, then the strongest of what the design does besides."""
    wanted = {"R": (target.R, target.mask_R), "T": (target.T, target.mask_T)}
    asked = [order for order in target.strongest(ORDERS) if target.wanted(*order) > 0 or target.partial]
    chosen = asked[: ORDERS if design.R is None else ORDERS - 2]
    if design.R is not None and design.T is not None:
        orders = len(design.R) // 2
        achieved = [
            (float(value), kind, int(m) - orders, int(n) - orders)
            for kind, maps in (("T", design.T), ("R", design.R))
            for (m, n), value in np.ndenumerate(maps)
        ]
        achieved.sort(key=lambda entry: -entry[0])
        chosen += [(kind, m, n) for value, kind, m, n in achieved if value > 0 and (kind, m, n) not in chosen][: ORDERS - len(chosen)]
    made = []
    for kind, m, n in chosen:
        inside = max(abs(m), abs(n)) <= target.orders
        known = inside and wanted[kind][1][m + target.orders, n + target.orders]
        got = None if design.R is None or max(abs(m), abs(n)) > len(design.R) // 2 else design.efficiency(kind, m, n)
        low, high = target.range_of(kind, m, n) if known else (0.0, 0.0)
        name = f"{kind}({m},{n})".replace("-", "−")
        made.append(Bar(name, target.wanted(kind, m, n) if known else None, got, (low, high) if low < high else None))
    return made


def _draw_bars(axes: Any, shown: Sequence[Bar]) -> None:
    """Wanted over achieved, an order a line, the strongest wanted on top; a range is a bar between its ends, or to the edge."""
    highest = max((value for bar in shown for value in (bar.wanted, bar.achieved) if value is not None), default=0.0) or 1e-3
    for line, bar in enumerate(shown):
        if bar.ends is not None:
            low, high = bar.ends[0], min(bar.ends[1], 2 * highest)
            axes.barh(line - 0.19, high - low, 0.36, left=low, color=_WANTED, linewidth=0)
            axes.plot([low, low], [line - 0.37, line - 0.01], color="#8494a5", linewidth=0.8)
        elif bar.wanted is not None:
            axes.barh(line - 0.19, bar.wanted, 0.36, color=_WANTED, linewidth=0)
        if bar.achieved is not None:
            below, colour = (0.0, _FREE) if bar.wanted is None else (0.19, PILLAR)
            axes.barh(line + below, bar.achieved, 0.36, color=colour, linewidth=0)
    axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
    axes.set_yticks(range(len(shown)), [bar.name for bar in shown])
    axes.set_xlim(0, 1.08 * highest)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("efficiency", size=_SIZE, color=INK, family=FONT, labelpad=1.5)
    style(axes)
    axes.tick_params(axis="y", length=0, labelsize=6.5)
    # In words above, in the bars' own colours: a legend would cover bars.
    asked = [bar for bar in shown if bar.wanted is not None]
    words = (
        ("wanted", "#8494a5", bool(asked)),
        ("achieved", PILLAR, any(bar.achieved is not None for bar in asked)),
        ("not asked", "#8a8a8a", len(asked) < len(shown)),
    )
    place = 0.0
    for word, colour, there in words:
        if there:
            axes.text(place, 1.04, f"■ {word}", transform=axes.transAxes, size=6.5, color=colour, family=FONT)
            place += 0.0315 * (len(word) + 2) + 0.045


def _draw_fan(axes: Any, tolerance: Tolerance, bottom: float, width: float) -> None:
    """A panel per parameter on one scale of misrouted power; the worst case is marked."""
    worst, curves = tolerance.worst, tolerance.curves
    gap = 0.2
    across = (width - _LEFT - 0.12 - gap * (len(curves) - 1)) / len(curves)
    highest = 1.22 * max(worst.score, 1e-3)
    for column, (name, curve) in enumerate(curves.items()):
        panel = axes(_LEFT + column * (across + gap), bottom, across, _FAN)
        panel.axhline(tolerance.nominal, color=FAINT, linewidth=0.6, dashes=(4, 3))
        panel.plot(curve.shifts, curve.scores, color=PILLAR, linewidth=1.2, marker="o", markersize=3)
        if name == worst.parameter:
            panel.plot([worst.shift], [worst.score], color=ACCENT, marker="o", markersize=4.5)
            side = "left" if worst.shift < 0 else "right" if worst.shift > 0 else "center"
            words, place = f"worst {worst.score:.3f}", (worst.shift, worst.score)
            panel.annotate(words, place, (0, 4), textcoords="offset points", size=6.5, color=ACCENT, family=FONT, ha=side)
        reach = 1.15 * max(abs(shift) for shift in curve.shifts)
        panel.set_xlim(-reach, reach)
        panel.set_xticks([shift for shift in curve.shifts if shift in (curve.shifts[0], 0.0, curve.shifts[-1])])
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:+.3g}".replace("-", "−") if value else "0")
        panel.set_ylim(0, highest)
        panel.locator_params(axis="y", nbins=5)
        panel.set_xlabel(_SHORT[name], size=_SIZE, color=INK, family=FONT, labelpad=1.5)
        style(panel)
        panel.tick_params(labelleft=column == 0)
        if column == 0:
            panel.set_ylabel("misrouted power", size=_SIZE, color=INK, family=FONT, labelpad=2.5)


def _numbered(svg: str) -> str:
    """The SVG with matplotlib's random names of its parts replaced by their numbers, so that equal figures are equal files."""
    names = list(dict.fromkeys(re.findall(r'\bid="((?:[a-zA-Z]|image)[0-9a-f]{10})"', svg)))
    numbers = {name: f"n{number}" for number, name in enumerate(names)}
    return re.sub(r"\b(?:[a-zA-Z]|image)[0-9a-f]{10}\b", lambda found: numbers.get(found.group(), found.group()), svg)
