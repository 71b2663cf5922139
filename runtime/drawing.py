"""What pictures of designs are made of: the pattern as it repeats, order maps on a colour scale, and one style for all.

Drawn with matplotlib's figures alone: no pyplot, no display, no global state, fonts that come with matplotlib.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BackendError
from .geometry import Geometry, propagating

if TYPE_CHECKING:
    from .design import Design
    from .target import Target

DPI = 150
# Perceptual and safe for the colour-blind; the power below 1 shows weak orders beside strong ones.
COLOURS, GAMMA = "viridis", 0.4
WRITTEN = 7  # maps up to this many orders across have their efficiencies written in, in per cent
NOT_ASKED, HATCH, INK, FAINT, PILLAR, ACCENT = "#e9e9e9", "#b5b5b5", "#222222", "#707070", "#33475b", "#d55e00"
FONT = "DejaVu Sans"


@contextlib.contextmanager
def matplotlib_needed(what: str = "a picture") -> Iterator[None]:
    """Imports of matplotlib inside the block that fail become a BackendError that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise BackendError(f"{what} needs matplotlib, which cannot be imported ({error}); pip install 'metascatter[lab]'") from None


@dataclasses.dataclass(frozen=True)
class Panel:
    """One order map, cut to the box of orders that can carry power.

    Args:
        title, total: the words above it, left and right.
        values: (a, b) efficiencies, m along the first axis; NaN is left blank.
        asked: (a, b) bool; orders to frame, where not all are asked for.
        hatched: (a, b) bool; orders covered as not asked for.
        first: (m, n) of ``values[0, 0]``.
        note: words in place of the map.
    """

    title: str
    total: str
    values: np.ndarray
    asked: np.ndarray
    hatched: np.ndarray
    first: tuple[int, int]
    note: str = ""


def heading(design: Design) -> str:
    """One line that says how good the design is, how tall, and whether its scattering was solved."""
    score = "score unknown" if design.score is None else f"misrouted power {design.score:.3f}"
    return f"{score}   ·   height {design.height_nm:g} nm   ·   {'verified by RCWA' if design.verified else 'not verified'}"


def panels(design: Design, target: Target) -> list[Panel]:
    """Target T, achieved T, target R, achieved R of one design."""
    made = []
    reflected, transmitted = propagating(design.geometry, target.orders)
    for name, kind, light, wanted, mask, achieved in (
        ("T", "transmitted", transmitted, target.T, target.mask_T, design.T),
        ("R", "reflected", reflected, target.R, target.mask_R, design.R),
    ):
        box = box_of(light)
        first = box[0].start - target.orders, box[1].start - target.orders
        light, asked = light[box], mask[box] & light[box]
        whole = bool((asked == light).all())
        frames = np.zeros_like(asked) if whole else asked
        note = "" if light.any() else "no order propagates"
        words = f"{'Σ' if whole else 'asked'} {wanted[mask].sum():.2f}" if asked.any() else ""
        values = np.where(asked, wanted[box], math.nan)
        made.append(
            Panel(
                f"target {name}",
                words,
                values,
                frames,
                light & ~asked,
                first,
                note or ("" if asked.any() else f"no {kind} order asked for"),
            )
        )
        if achieved is None:
            nothing = np.zeros_like(light)
            made.append(Panel(f"achieved {name}", "", np.full(light.shape, math.nan), nothing, nothing, first, note or "not solved"))
            continue
        got = _resized(achieved, target.orders)
        total, in_asked = float(np.nansum(got)), float(np.nansum(got[mask]))
        words = f"Σ {total:.2f}" if whole else f"asked {in_asked:.2f}, rest {total - in_asked:.2f}" if asked.any() else f"rest {total:.2f}"
        made.append(Panel(f"achieved {name}", words, np.where(light, got[box], math.nan), frames, np.zeros_like(light), first, note))
    return made


def box_of(light: np.ndarray) -> tuple[slice, slice]:
    """The smallest box of a map (2M+1, 2M+1) that holds all that is True; the middle alone where nothing is."""
    found = [np.flatnonzero(light.any(axis=axis)) for axis in (1, 0)]
    m, n = (slice(int(line[0]), int(line[-1]) + 1) if line.size else slice(len(light) // 2, len(light) // 2 + 1) for line in found)
    return m, n


def _resized(values: np.ndarray, orders: int) -> np.ndarray:
    """A map cut or filled with NaN to (2 orders + 1, 2 orders + 1)."""
    step = orders - len(values) // 2
    return np.pad(values.astype(np.float64), step, constant_values=math.nan) if step >= 0 else values[-step:step, -step:step]


def key(maps: Sequence[Panel]) -> str:
    """What the marks in these maps mean."""
    words = ["framed: asked for", "hatched: not asked for"] if any(panel.hatched.any() for panel in maps) else []
    return "   ·   ".join([*words, "numbers in per cent"] if any(max(panel.values.shape) <= WRITTEN for panel in maps) else words)


def draw_pattern(axes: Any, design: Design) -> None:
    """The pattern 3 x 3 in micrometres, the unit cell at the origin outlined."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    x, y = (period / 1000 for period in design.geometry.period_nm)
    # pattern[i, j] lies at x_i, y_j; an image's rows are y.
    axes.imshow(
        np.tile(design.pattern.T, (3, 3)),
        cmap=ListedColormap(["white", PILLAR]),
        vmin=0,
        vmax=1,
        origin="lower",
        interpolation="nearest",
        extent=(-x, 2 * x, -y, 2 * y),
        aspect="equal",
    )
    axes.add_patch(Rectangle((0, 0), x, y, fill=False, edgecolor=ACCENT, linewidth=1.4))
    axes.set_xticks([-x, 0, x, 2 * x])
    axes.set_yticks([-y, 0, y, 2 * y])
    axes.set_xlabel("x (µm)", size=7.5, color=INK, family=FONT, labelpad=1.5)
    axes.set_ylabel("y (µm)", size=7.5, color=INK, family=FONT, labelpad=1.5)
    axes.set_title("pattern, 3 × 3 cells", size=7.5, color=INK, family=FONT, loc="left", pad=4)
    style(axes)
    for labels in (axes.xaxis, axes.yaxis):
        labels.set_major_formatter("{x:.3g}")


def draw_map(axes: Any, panel: Panel, norm: Any, labelled: bool) -> Any:
    """One order map; returns the image, for the colour bar."""
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    m, n = panel.first
    rows, columns = panel.values.shape
    extent = (m - 0.5, m + rows - 0.5, n - 0.5, n + columns - 0.5)
    image = axes.imshow(
        np.ma.masked_invalid(panel.values.T),
        cmap=COLOURS,
        norm=norm,
        origin="lower",
        interpolation="nearest",
        extent=extent,
        aspect="equal",
    )
    asked = [Rectangle((m + i - 0.5, n + j - 0.5), 1, 1) for i, j in np.argwhere(panel.asked)]
    # matplotlib's own hatching takes longer than all the rest of the picture; a cover and a stroke a square look the same.
    if panel.hatched.any():
        cover = np.where(panel.hatched.T[..., None], to_rgba(NOT_ASKED), 0.0)
        axes.imshow(cover, origin="lower", interpolation="nearest", extent=extent, aspect="equal")
        strokes = [
            [(m + i + a - 0.5, n + j - 0.5), (m + i + 0.5, n + j + 0.5 - a)] for i, j in np.argwhere(panel.hatched) for a in (0.0, 0.5)
        ]
        axes.add_collection(LineCollection(strokes, colors=HATCH, linewidths=0.5))
    axes.add_collection(PatchCollection(asked, facecolor="none", edgecolor=ACCENT, linewidth=1.2))
    if max(rows, columns) <= WRITTEN:
        for i, j in np.argwhere(np.isfinite(panel.values)):
            value, bright = panel.values[i, j], norm(panel.values[i, j]) > 0.6
            axes.text(m + i, n + j, _percent(value), ha="center", va="center", size=6.5, family=FONT, color=INK if bright else "white")
    if panel.note:
        axes.text(
            0.5,
            0.5,
            panel.note,
            transform=axes.transAxes,
            ha="center",
            va="center",
            size=7.5,
            color=FAINT,
            family=FONT,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2.5},
        )
    axes.set_title(panel.title, size=7.5, color=INK, family=FONT, loc="left", pad=4)
    axes.set_title(panel.total, size=7, color=FAINT, family=FONT, loc="right", pad=4)
    axes.set_xticks(_order_ticks(m, rows))
    axes.set_yticks(_order_ticks(n, columns))
    axes.set_xlabel("order m", size=7.5, color=INK, family=FONT, labelpad=1.5)
    if labelled:
        axes.set_ylabel("order n", size=7.5, color=INK, family=FONT, labelpad=1.5)
    style(axes)
    axes.tick_params(labelleft=labelled)
    return image


def _order_ticks(first: int, count: int) -> list[int]:
    """Whole orders, 0 among them where it is in sight, not so many that they touch."""
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50) if count <= 8.5 * step)
    return [order for order in range(first, first + count) if order % step == 0]


def bar_ticks(top: float) -> list[float]:
    """0 and round efficiencies up to ``top`` that lie an eighth of the bar apart."""
    ticks = [0.0]
    for value in sorted(digit * 10.0**power for power in range(-8, 1) for digit in (1, 2, 5)):
        if value <= top * (1 + 1e-9) and (value / top) ** GAMMA - (ticks[-1] / top) ** GAMMA > 0.125:
            ticks.append(value)
    return ticks


def _percent(value: float) -> str:
    """An efficiency in per cent to two digits; whole from ten up, and a bare 0 where there is nothing."""
    return "0" if value == 0 else f"{100 * value:.0f}" if value >= 0.0995 else f"{100 * value:.1f}"


def arrangement(geometry: Geometry) -> str:
    """The optics in one line."""
    x, y = (period / 1000 for period in geometry.period_nm)
    angle = f", {geometry.theta_deg:g}° from the normal" if geometry.theta_deg else ""
    return (
        f"wavelength {geometry.wavelength_nm:g} nm   ·   period {x:g} × {y:g} µm   ·   {geometry.polarisation}-polarised, "
        f"from the {geometry.incidence}{angle}"
    )


def style(axes: Any) -> None:
    """Thin lines and small type, the same everywhere and whatever the reader's matplotlibrc says."""
    axes.tick_params(labelsize=7, length=2.5, width=0.6, color=FAINT, labelcolor=INK, pad=2, labelfontfamily=FONT)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
        spine.set_edgecolor(FAINT)
