"""Pictures for the page: candidates as they come out of noise, a design, its orders wanted beside achieved, and the map to click on."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing import FAINT, FONT, GAMMA, INK, PILLAR, bar_ticks, draw_map, draw_pattern, panels, style

if TYPE_CHECKING:
    from ..design import Design
    from ..target import Target

SHOWN = 64  # candidates of the batch at work
CELL = 40  # units of the clickable map's squares
_GAP = 1  # pixels between candidates
_BETWEEN = (225, 229, 234)
_DPI = 200
_PANEL = 1.72  # inches: just wide enough for the words above a map, so that they are read on a phone


def mosaic(samples: np.ndarray, columns: int = 8) -> str:
    """Up to 64 samples (K, N, N), a pillar where above 0, as a PNG in a data URL: a grid, dark where the network is sure of silicon."""
    from PIL import Image

    shown = np.clip(samples[:SHOWN], -1, 1)
    size = shown.shape[-1] + _GAP
    rows = -(-len(shown) // columns)
    grid = np.full((rows * size - _GAP, columns * size - _GAP), np.nan)
    for k, sample in enumerate(shown):
        row, column = divmod(k, columns)
        # x runs to the right and y up, as in every other picture.
        grid[row * size : (row + 1) * size - _GAP, column * size : (column + 1) * size - _GAP] = sample.T[::-1]
    dark = np.array([int(PILLAR[i : i + 2], 16) for i in (1, 3, 5)])
    shades = 255 + (grid[..., None] + 1) / 2 * (dark - 255)
    pixels = np.where(np.isnan(shades), _BETWEEN, shades).round().astype(np.uint8)
    return _data_url(Image.fromarray(pixels))


def cells(pattern: np.ndarray) -> str:
    """A pattern (N, N) 3 x 3, a dot a pixel, as a PNG in a data URL."""
    return mosaic(np.tile(2.0 * pattern - 1.0, (3, 3))[None], columns=1)


def pattern_picture(design: Design) -> str:
    """The pattern 3 x 3 as a PNG in a data URL."""
    figure, axes = _figure(_PANEL + 0.6, _PANEL + 0.6)
    draw_pattern(axes(0.45, 0.4, _PANEL), design)
    return _figure_url(figure)


def orders_picture(design: Design, target: Target, side: str) -> str:
    """Transmitted ("T") or reflected ("R") orders, wanted beside achieved on one scale, as a PNG in a data URL."""
    from matplotlib.colors import PowerNorm

    maps = panels(design, target)[:2] if side == "T" else panels(design, target)[2:]
    top = max((float(np.nanmax(panel.values)) for panel in maps if np.isfinite(panel.values).any()), default=0.0) or 1e-3
    norm = PowerNorm(GAMMA, vmin=0.0, vmax=top)
    figure, axes = _figure(2 * _PANEL + 1.2, _PANEL + 0.6)
    for column, panel in enumerate(maps):
        image = draw_map(axes(0.45 + (_PANEL + 0.1) * column, 0.4, _PANEL), panel, norm, labelled=column == 0)
    bar = figure.colorbar(image, cax=axes(0.45 + 2 * _PANEL + 0.18, 0.4, 0.08, _PANEL), ticks=bar_ticks(top), format="%g")
    bar.set_label("efficiency", size=7, color=INK, family=FONT)
    style(bar.ax)
    return _figure_url(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure in inches, and what makes axes in it at (left, bottom, width, height)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def axes(x: float, y: float, across: float, up: float | None = None) -> Any:
        return figure.add_axes((x / width, y / height, across / width, (up or across) / height))

    return figure, axes


def _figure_url(figure: Any) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DPI, format="png")
    return _url(stream.getvalue())


def _data_url(image: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return _url(stream.getvalue())


def _url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def per_cent(low: float, high: float) -> str:
    """The least and the most that counts as reached, in words."""
    a, b = f"{100 * low:.3g}", f"{100 * high:.3g}"
    return f"{a} %" if low == high else f"≤ {b} %" if low == 0 else f"≥ {a} %" if high == 1 else f"{a} to {b} %"


def order_map(light: np.ndarray, wishes: Mapping[tuple[int, int], str]) -> str:
    """The SVG of a map to click on: a square of ``CELL`` units for every order that carries light, m to the right and n up.

    Args:
        light: (2K+1, 2K+1) bool, order (m, n) at ``[m + K, n + K]``.
        wishes: the words on the orders that are asked for.
    """
    reach = len(light) // 2
    parts = []
    for (i, j), carries in np.ndenumerate(light):
        m, n = i - reach, j - reach
        x, y = i * CELL, (2 * reach - j) * CELL
        words = wishes.get((m, n))
        if carries or words is not None:
            fill, edge = ("#33475b", "#33475b") if words is not None else ("#f3f5f7", "#c9d2dc")
            parts.append(f'<rect x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}" rx="4" fill="{fill}" stroke="{edge}"/>')
        label, colour, size = (words, "#ffffff", 13) if words is not None else (f"{m},{n}", FAINT, 11)
        if (carries and reach <= 4) or words is not None:
            fitted = min(size, math.floor(1.55 * CELL / max(1, len(label or ""))))
            parts.append(
                f'<text x="{x + CELL / 2}" y="{y + CELL / 2}" font-size="{fitted}" fill="{colour}" text-anchor="middle" '
                f'dominant-baseline="central" font-family="system-ui, sans-serif">{label}</text>'
            )
    return "".join(parts)
