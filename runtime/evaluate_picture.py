"""The result of ``evaluate`` on one page: how good the designs are, at which height, for how many solves, and what may be trusted.

Drawn with matplotlib's figures alone, from the JSON alone: a result kept on disk can be drawn again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .drawing import ACCENT, COLOURS, DPI, FAINT, FONT, INK, matplotlib_needed, style
from .errors import DataError
from .evaluate_measures import ORACLES, RANDOM, RANDOM_NAME
from .files import atomic_file

FORMATS = (".png", ".svg", ".pdf")
# Name in the result -> label, colour, dash, marker. The colours are told apart by the colour-blind, the dashes in grey.
_LINES = {
    "ranked": ("ranked", ACCENT, "-", "o"),
    f"best_of_{ORACLES[-1]}": (f"all {ORACLES[-1]} solved", "#0072b2", "--", "s"),
    "bundle": ("baseline bundle", "#009e73", "-.", "D"),
    "nearest_training": ("nearest training sample", "#8c6bb1", (0, (5, 1.5)), "v"),
    RANDOM_NAME: (f"best of {RANDOM} random", FAINT, ":", "^"),
}
_SIZE = 7.5


def picture(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw a result of ``evaluate``, atomically; the suffix of ``path`` names the format.

    Raises:
        DataError: an unknown suffix, or a place that cannot be written.
        BackendError: matplotlib is not installed.
    """
    check(path)
    figure = draw(result)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def check(path: str | os.PathLike[str]) -> None:
    """Refuse before the work what would fail after it: a suffix without a format, a folder in the place, no matplotlib.

    Raises:
        DataError, BackendError: as :func:`picture`.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"the picture {path} has the suffix '{path.suffix}'; expected one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise DataError(f"the picture {path} is a folder; name a file")
    with matplotlib_needed():
        import matplotlib.figure  # noqa: F401


def draw(result: Mapping[str, Any]) -> Any:
    """The matplotlib Figure of :func:`picture`: six panels, in reading order; one without data says so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.2, 7.2), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, 3, gridspec_kw={"left": 0.055, "right": 0.985, "top": 0.83, "bottom": 0.075, "wspace": 0.27, "hspace": 0.42})
    figure.text(0.055, 0.955, _title(result), size=12, weight="bold", color=INK, family=FONT, parse_math=False)
    figure.text(0.055, 0.925, _subtitle(result), size=_SIZE, color=FAINT, family=FONT, parse_math=False)
    for axes, panel in zip(grid.flat, (_shares, _heights, _solves, _calibration, _noise, _protocol), strict=True):
        panel(axes, result)
        style(axes)
        axes.grid(color="#e4e4e4", linewidth=0.5)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    # The first two panels share their lines.
    drawn = {label: line for axes in grid[0, :2] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    place = {"loc": "upper left", "bbox_to_anchor": (0.05, 0.917), "ncols": len(drawn), "columnspacing": 1.8}
    _legend(figure, drawn.values(), drawn.keys(), **place)
    return figure


def _title(result: Mapping[str, Any]) -> str:
    ranked = result["ranked"]
    return f"Misrouted power {ranked['median']:.3f} in the median of {result['targets']} held-out targets"


def _subtitle(result: Mapping[str, Any]) -> str:
    settings, geometry = result["sampler"], result["geometry"]
    steps = "" if not settings.get("steps") else f", {settings.get('scheduler')} with {settings['steps']} steps"
    x, y = (period / 1000 for period in geometry["period_nm"])
    return (
        f"{result['n']} candidates a target{steps}; ranked: {result['ranked']['solves']:.3g} of them solved. Every score by RCWA "
        f"(rule {geometry['rule']}, {geometry['harmonics']} harmonics, {geometry['truncation']}), "
        f"wavelength {geometry['wavelength_nm']:g} nm, period {x:g} × {y:g} µm."
    )


def _shares(axes: Any, result: Mapping[str, Any]) -> None:
    """The cumulative distribution of scores: how many targets are met to within how much light."""
    _words(axes, "How many targets are met how well", "misrouted power", "share of targets at or below, %")
    highest = 0.05
    for name, (_, colour, dash, _) in _LINES.items():
        scores = np.sort(result["per_target"].get(name, []))
        if len(scores):
            highest = max(highest, scores[-1])
            x, y = np.concatenate([[0.0], scores, [1.0]]), np.concatenate([np.arange(len(scores) + 1) / len(scores), [1.0]])
            axes.step(x, 100 * y, where="post", color=colour, linestyle=dash, linewidth=1.4, label=_label(result, name))
    axes.set_xlim(0, 1.04 * highest)
    axes.set_ylim(0, 101)


def _label(result: Mapping[str, Any], name: str) -> str:
    """What a line is, and of how many targets where it is not all."""
    count = len(result["per_target"].get(name, []))
    return _LINES[name][0] + ("" if count == result["targets"] else f" (first {count} targets)")


def _heights(axes: Any, result: Mapping[str, Any]) -> None:
    """Medians in each band of height, and the surrogate's own error there."""
    _words(axes, "Medians by height", "pillar height, nm", "misrouted power")
    bands = result["by_height_nm"]
    middle = np.array([(band["lo"] + band["hi"]) / 2 for band in bands])
    lines = {name: [band.get(name) for band in bands] for name in _LINES}
    for name, (_, colour, dash, marker) in _LINES.items():
        _line(axes, middle, lines[name], _label(result, name), color=colour, linestyle=dash, marker=marker)
    if result["surrogate"] is not None:
        error = [band["median"] for band in result["surrogate"]["by_height_nm"]]
        _line(axes, middle, error, "surrogate's own error", color=INK, linestyle=(0, (1, 3)), marker="x")
    axes.set_xticks(middle, [f"{band['lo']:.0f} to {band['hi']:.0f}\nn = {band['count']}" for band in bands])
    axes.set_ylim(bottom=0)


def _solves(axes: Any, result: Mapping[str, Any]) -> None:
    """Median and quartiles against the number of solves a target takes, on the targets that have them all."""
    count = result["oracle"]["targets"]
    _words(axes, f"What solves buy (first {count} targets)", "solves a target", "misrouted power, quartiles")
    scores = result["per_target"]
    points = [(k, scores.get(f"best_of_{k}"), f"best_of_{ORACLES[-1]}", "any k, all solved") for k in ORACLES]
    points += [
        (result["ranked"]["solves"], scores["ranked"][:count], "ranked", "ranked"),
        (RANDOM, scores.get(RANDOM_NAME), RANDOM_NAME, "random"),
    ]
    drawn: list[tuple[float, float]] = []
    for solves, values, name, label in points:
        if values:
            low, median, high = np.percentile(values, (25, 50, 75))
            _, colour, _, marker = _LINES[name]
            # Beside each other where the number of solves is the same.
            x = solves * (1.12 if name == RANDOM_NAME else 1.0)
            known = axes.get_legend_handles_labels()[1]
            axes.errorbar(
                x,
                median,
                [[median - low], [high - median]],
                color=colour,
                marker=marker,
                markersize=4.5,
                capsize=2,
                linewidth=1.2,
                label=None if label in known else label,
            )
            if name.startswith("best_of"):
                drawn.append((x, median))
    if drawn:
        axes.plot(*np.transpose(drawn), color=_LINES[f"best_of_{ORACLES[-1]}"][1], linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_xticks([1, 4, 8, 64], ["1", "4", "8", "64"])
    axes.minorticks_off()
    axes.set_xlim(0.8, 90)
    axes.set_ylim(bottom=0)
    _legend(axes, loc="lower left")


def _calibration(axes: Any, result: Mapping[str, Any]) -> None:
    """What the surrogate expects of candidates, against what they do."""
    _words(axes, "Does the surrogate rank as RCWA does?", "misrouted power the surrogate expects", "misrouted power solved")
    found = result["calibration"]
    if found is None:
        _nothing(axes, "no surrogate")
        return
    pairs = found["pairs"]
    edges = [band["lo"] for band in result["by_height_nm"]] + [result["by_height_nm"][-1]["hi"]]
    points = axes.scatter(
        pairs["expected"], pairs["solved"], c=pairs["height_nm"], cmap=COLOURS, vmin=edges[0], vmax=edges[-1], s=7, linewidths=0, alpha=0.8
    )
    top = 1.04 * max([*pairs["expected"], *pairs["solved"], 0.01])
    axes.plot([0, top], [0, top], color=INK, linewidth=0.7)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    bar = axes.figure.colorbar(points, ax=axes, fraction=0.045, pad=0.02)
    bar.ax.set_title("nm", size=7, color=INK, family=FONT, pad=4)
    style(bar.ax)
    spearman = found["spearman"]
    lines = [] if spearman is None else [f"Spearman {spearman['median']:.2f}", f"({spearman['q25']:.2f} to {spearman['q75']:.2f})"]
    lines += [f"ranking loses {found['loss']:.4f},", f"at most {found['largest_loss']:.4f}"]
    axes.text(0.04, 0.96, "\n".join(lines), transform=axes.transAxes, va="top", size=7, color=INK, family=FONT)


def _noise(axes: Any, result: Mapping[str, Any]) -> None:
    """Scores against the clean target where a target with noise was asked for."""
    rows = result["noise_robustness"]
    of = "" if rows is None else f" (first {rows[0]['targets']} targets)"
    _words(axes, f"Targets with noise{of}", "noise on each efficiency, %", "misrouted power, clean target")
    if rows is None:
        _nothing(axes, "left out")
        return
    levels = [100 * row["level"] for row in rows]
    axes.fill_between(levels, [row["q25"] for row in rows], [row["q75"] for row in rows], color=ACCENT, alpha=0.15, linewidth=0)
    _line(axes, levels, [row["median"] for row in rows], "ranked, with quartiles", color=ACCENT, linestyle="-", marker="o")
    _line(axes, levels, [row["noise"] for row in rows], "the target with noise itself", color=FAINT, linestyle=":", marker="x")
    axes.set_xticks(levels)
    axes.set_ylim(bottom=0)
    _legend(axes, loc="best")


def _protocol(axes: Any, result: Mapping[str, Any]) -> None:
    """The seed's scores, which start from the answer, beside the same score of the designs, which do not."""
    _words(axes, "The seed's protocol: starts from the answer", "noise on the stored pattern, timestep over all", "unequal pixels")
    found = result["seed_protocol"]
    rows = [] if found is None else [row for row in found["levels"] if row["timestep"] is not None]
    if not rows:
        _nothing(axes, "left out" if found is None else "no step is low enough")
        return
    pixels = [row["unequal_pixels"] for row in rows]
    _line(axes, [row["level"] for row in rows], pixels, "from the stored pattern under noise", color=FAINT, linestyle="-", marker="o")
    scores = result["lab_scores"]
    if scores is not None:
        plain, modulo = (scores[name]["unequal_pixels"] for name in ("plain", "modulo_shift"))
        axes.axhline(plain, color=ACCENT, linewidth=1.0, linestyle=":", label="ranked design, from noise alone")
        axes.axhline(modulo, color=ACCENT, linewidth=1.0, label="the same modulo cyclic shift")
    axes.set_xlim(0.15, 1.05)
    axes.set_ylim(0, 1.35 * axes.dataLim.ymax)
    _legend(axes, loc="upper left")


def _line(axes: Any, x: Any, y: Any, label: str, **look: Any) -> None:
    """A line through the points there are; None is a gap."""
    values = np.array([np.nan if value is None else value for value in y], np.float64)
    if np.isfinite(values).any():
        axes.plot(x, values, label=label, linewidth=1.4, markersize=4.5, **look)


def _words(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, size=9, color=INK, family=FONT, loc="left", pad=6)
    axes.set_xlabel(x, size=_SIZE, color=INK, family=FONT, labelpad=2)
    axes.set_ylabel(y, size=_SIZE, color=INK, family=FONT, labelpad=2)


def _nothing(axes: Any, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", size=_SIZE, color=FAINT, family=FONT)


def _legend(where: Any, *entries: Any, **look: Any) -> None:
    where.legend(*entries, frameon=False, prop={"family": FONT, "size": 7}, labelcolor=INK, handlelength=2.6, **look)
