"""Curves: losses of training runs, and scores of bundles against epochs and guidance."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .drawing import FAINT, matplotlib_needed
from .errors import DataError
from .files import atomic_file

FROM_EPOCH = 5  # where the second panel of losses begins: the first epochs dwarf all that comes later
_LINES = ("-", "--", ":", "-.")  # of one recipe after the other
_MARKERS = "os^Dv"


def read_losses(path: Path) -> list[dict[str, Any]]:
    """The rows of a run folder's, or a file's, ``metrics.jsonl``: ``epoch``, ``loss`` and ``validation_loss``.

    Raises:
        DataError: it is none, or has no row yet.
    """
    file = path / "metrics.jsonl" if path.is_dir() else path
    try:
        # A kill leaves half a line.
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        whole = bool(rows) and all(isinstance(row[key], int | float) for row in rows for key in ("epoch", "loss", "validation_loss"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({error}); name a folder that 'cli.py train --out' wrote") from None
    if not whole:
        raise DataError(f"{file} holds no losses; name the folder of a run that has trained for an epoch")
    return rows


def losses(runs: Mapping[str, Sequence[Mapping[str, Any]]], out: Path, from_epoch: float | None = None) -> None:
    """Draw training and validation losses of runs by name against epochs, atomically; with ``from_epoch`` those from there on beside it.

    Raises:
        BackendError: matplotlib is not installed.
        DataError: a place that cannot be written.
    """
    figure = _losses(runs, from_epoch)
    with atomic_file(out) as temporary:
        figure.savefig(temporary, dpi=120)


def _losses(runs: Mapping[str, Sequence[Mapping[str, Any]]], from_epoch: float | None) -> Any:
    with matplotlib_needed():
        from matplotlib.figure import Figure

    most = max(row["epoch"] for rows in runs.values() for row in rows)
    starts = [0.0, from_epoch] if from_epoch is not None and 0 < from_epoch < most else [0.0]
    figure = Figure(figsize=(6 * len(starts), 3.6), layout="constrained")
    for axes, start in zip(figure.subplots(1, len(starts), squeeze=False)[0], starts, strict=True):
        for k, (name, rows) in enumerate(runs.items()):
            shown = [row for row in rows if row["epoch"] >= start]
            words = f"{name}, " if len(runs) > 1 else ""
            epochs = [row["epoch"] for row in shown]
            faint = {"color": f"C{k}", "alpha": 0.35} if len(runs) > 1 else {}
            full = {"color": f"C{k}"} if len(runs) > 1 else {}
            axes.plot(epochs, [row["loss"] for row in shown], label=f"{words}training (mean of the epoch)", **faint)
            axes.plot(epochs, [row["validation_loss"] for row in shown], label=f"{words}validation (EMA weights)", **full)
        axes.set(xlabel="epoch", ylabel="loss", title=f"Loss from epoch {start:g} on" if start else "Training loss")
        axes.grid(True, alpha=0.3)
    figure.axes[0].legend(frameon=False, fontsize=8 if len(runs) > 1 else None)
    return figure


class Evaluation(NamedTuple):
    """What ``evaluate --json`` said of a bundle of images: a score by metric for each guidance scale, and of real images."""

    name: str
    epoch: float | None
    words: dict[str, str]
    rows: list[dict[str, Any]]
    real: dict[str, Any]


def read_evaluation(path: Path) -> Evaluation:
    """Raises DataError where the file is no output of ``evaluate --json`` for a bundle of images."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        words = {"frechet": "Fréchet distance of pixels", "class_accuracy": "taken for their class"}
        words |= fields.get("features", {}).get("words", {})
        rows = sorted(fields["by_guidance_scale"], key=lambda row: row["guidance_scale"])
        real = fields["baselines"]["real"]
        return Evaluation(str(fields["recipe"]), fields.get("epoch"), words, [{**row} for row in rows], {**real})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); name what 'evaluate --json' said of a bundle of images") from None


def scores(found: Sequence[Evaluation], out: Path) -> None:
    """Draw every score against epochs, a line a guidance, and against guidance, a line an epoch; atomically.

    Guidance is w of the papers, the guidance scale less 1. A dashed line is the score of other real images.

    Raises:
        BackendError: matplotlib is not installed.
        DataError: a place that cannot be written.
    """
    figure = _scores(found)
    with atomic_file(out) as temporary:
        figure.savefig(temporary, dpi=120)


def _scores(found: Sequence[Evaluation]) -> Any:
    with matplotlib_needed():
        from matplotlib import colormaps
        from matplotlib.figure import Figure

    words: dict[str, str] = {}
    for one in found:
        words |= one.words
    metrics = [key for key in words if any(row.get(key) is not None for one in found for row in one.rows)]
    names = list(dict.fromkeys(one.name for one in found))
    epochs = sorted({one.epoch for one in found if one.epoch is not None})
    guidances = sorted({row["guidance_scale"] - 1 for one in found for row in one.rows})
    views: list[Callable[[Any, str], None]] = []

    def colour(place: int, of: int) -> Any:
        return colormaps["viridis"](0.9 * place / max(1, of - 1))

    def line(axes: Any, name: str, points: list[tuple[float, float]], shade: Any, label: str) -> None:
        if points:
            kind = names.index(name)
            style, marker = _LINES[kind % len(_LINES)], _MARKERS[kind % len(_MARKERS)]  # a lone point has no line to tell it by
            axes.plot(*zip(*sorted(points), strict=True), style, marker=marker, markersize=4, color=shade, label=label)

    def against_epochs(axes: Any, key: str) -> None:
        for name in names:
            for k, w in enumerate(guidances):
                mine = [(one.epoch, row) for one in found for row in one.rows if one.name == name and row["guidance_scale"] - 1 == w]
                points = [(float(epoch), row[key]) for epoch, row in mine if epoch is not None and row.get(key) is not None]
                line(axes, name, points, colour(k, len(guidances)), f"{name}, w = {w:g}" if len(names) > 1 else f"w = {w:g}")
        axes.set_xlabel("epoch")

    def against_guidance(axes: Any, key: str) -> None:
        for one in found:
            points = [(row["guidance_scale"] - 1, row[key]) for row in one.rows if row.get(key) is not None]
            shade = colour(epochs.index(one.epoch), len(epochs)) if one.epoch in epochs else colour(0, 1)
            if len(epochs) < 2:
                shade = colour(names.index(one.name), len(names))
            at = "" if one.epoch is None else f"epoch {one.epoch:g}"
            label = ", ".join(filter(None, [one.name if len(names) > 1 or not at else "", at]))
            line(axes, one.name, points, shade, label)
        axes.set_xlabel("w (the guidance scale is 1 + w)")

    if len(epochs) > 1:
        views.append(against_epochs)
    if len(guidances) > 1 or not views:
        views.append(against_guidance)
    figure = Figure(figsize=(5.2 * len(views), 2.9 * len(metrics)), layout="constrained")
    panels = figure.subplots(len(metrics), len(views), squeeze=False)
    for key, row_of in zip(metrics, panels, strict=True):
        for axes, view in zip(row_of, views, strict=True):
            view(axes, key)
            real = found[-1].real.get(key)
            if real is not None:
                axes.axhline(real, color=FAINT, linewidth=1, linestyle=(0, (5, 3)), label="other real images")
            axes.set_ylabel(words[key])
            axes.grid(True, alpha=0.3)
    for axes in panels[0]:
        axes.legend(frameon=False, fontsize=7)
    return figure
