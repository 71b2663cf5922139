"""A sweep's results for people: the seed paper's two tables, a CSV, and pictures."""

from __future__ import annotations

import csv
import itertools
import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.files import atomic_file

WIDTH = 100  # characters of a table
COLUMNS = ("status", "validation_loss", "loss", "yardstick", "steps", "seconds", "epochs")

Results = Mapping[str, Any]


class Grid:
    """The results as rows and columns: the learning rate, where it varies, or else the first axis goes down, the others go across."""

    def __init__(self, results: Results) -> None:
        axes = results["axes"]
        self.down = "lr" if "lr" in axes else next(iter(axes))
        self.across = [name for name in axes if name != self.down]
        self.rows: list[Any] = axes[self.down]
        self.columns: list[tuple[Any, ...]] = list(itertools.product(*(axes[name] for name in self.across)))
        self._runs = {self._key(run["settings"]): run for run in results["runs"].values()}

    def _key(self, settings: Mapping[str, Any]) -> str:
        return json.dumps([settings[self.down], [settings[name] for name in self.across]])

    def run(self, row: Any, column: tuple[Any, ...]) -> Mapping[str, Any]:
        """The run of a cell; an empty one where there is none yet."""
        return self._runs.get(json.dumps([row, list(column)]), {})

    def value(self, row: Any, column: tuple[Any, ...], name: str) -> float | None:
        """A finished run's number, None where there is none."""
        run = self.run(row, column)
        return float(run[name]) if run.get("status") == "done" and math.isfinite(run[name]) else None

    def best(self, column: tuple[Any, ...], name: str) -> Any:
        """The row with the least value in a column, None where no run finished."""
        found = [(value, place) for place, row in enumerate(self.rows) if (value := self.value(row, column, name)) is not None]
        return self.rows[min(found)[1]] if found else None


def tables(results: Results) -> str:
    """Table 1, what every run came to, and Table 2, the best of every column, as text."""
    grid, yardstick = Grid(results), results["yardstick"]
    down, across = _short(grid.down), [_short(name) for name in grid.across]
    names = {"validation_loss": "validation loss", "loss": "training loss", "yardstick": yardstick}
    if _alike(results):
        del names["yardstick"]
    lines = [f"Table 1: loss by {_listed([down, *across])} at the end of each run ({results['recipe']}, {results['data']['name']})"]
    if grid.across:
        for name, words in names.items():
            lines += ["", f"{words}, * least of its column", *_blocks(grid, name)]
    else:
        head = [down, *(_brief(words) for words in names.values()), "epochs", "steps", "seconds"]
        lines += ["", *_aligned([head, *([_word(row), *_numbers(grid, row, (), names)] for row in grid.rows)])]
    best = [[*across, f"best {down}", *(_brief(words) for words in names.values()), "epochs", "steps", "seconds"]]
    for column in grid.columns:
        row = grid.best(column, "validation_loss")
        cells = ["-"] * (len(names) + 4) if row is None else [_word(row), *_numbers(grid, row, column, names)]
        best.append([*(_word(value) for value in column), *cells])
    which = f" by {_listed(across)}" if across else ""
    lines += [
        "",
        f"Table 2: minimum of the validation loss{which}",
        "",
        *_aligned(best),
        "",
        *(line for words in _caption(results) for line in textwrap.wrap(words, WIDTH)),
    ]
    failed = {folder: run["reason"] for folder, run in results["runs"].items() if run["status"] == "failed"}
    lines += [f"failed: {folder}: {reason}" for folder, reason in failed.items()]
    return "\n".join(lines)


def _caption(results: Results) -> Iterator[str]:
    amount = f"{results['amount']:g}"
    yield {
        "epochs": "Budget: epochs. Every run sees the training part equally often; with a larger batch it takes fewer steps.",
        "steps": f"Budget: {amount} steps a run, to the nearest whole epoch.",
        "seconds": f"Budget: {amount} s of training steps a run at the speed measured before it, to the nearest whole epoch.",
    }[results["budget"]]
    yield "Validation is on held-out samples with the averaged (EMA) weights; training loss is the mean over the last epoch."
    if _alike(results):
        yield f"The validation loss is the {results['yardstick']}."
    if "loss" in results["axes"]:
        yield f"Losses of different loss functions cannot be compared; the {results['yardstick']} is of all runs alike."
    if "scheduler.prediction_type" in results["axes"]:
        yield "Nor can predictions of different types: each is an error of another quantity."


def _blocks(grid: Grid, name: str) -> Iterator[str]:
    """One number of every run, in as many blocks of columns as the width asks for."""
    width = max(9, *(len(_word(value)) + 2 for column in grid.columns for value in column), *(0,))
    first = max(len(_short(axis)) for axis in (grid.down, *grid.across)) + 2
    first = max(first, *(len(_word(row)) + 2 for row in grid.rows))
    fit = max(1, (WIDTH - first) // width)
    for start in range(0, len(grid.columns), fit):
        columns = grid.columns[start : start + fit]
        for place, axis in enumerate(grid.across):
            yield f"{_short(axis):<{first}}" + "".join(f"{_word(column[place]):>{width}}" for column in columns)
        yield _short(grid.down)
        for row in grid.rows:
            cells = []
            for column in columns:
                least = grid.best(column, name) == row and grid.value(row, column, name) is not None and len(grid.rows) > 1
                cells.append(f"{_cell(grid, row, column, name) + ('*' if least else ' '):>{width}}")
            yield f"{_word(row):<{first}}" + "".join(cells).rstrip()


def _cell(grid: Grid, row: Any, column: tuple[Any, ...], name: str) -> str:
    value = grid.value(row, column, name)
    return f"{value:.4f}" if value is not None else grid.run(row, column).get("status", "-")


def _alike(results: Results) -> bool:
    """Whether the runs were trained with the yardstick itself, which then says nothing more than their loss."""
    done = [run for run in results["runs"].values() if run["status"] == "done"]
    return all(math.isclose(run["validation_loss"], run["yardstick"], rel_tol=1e-5) for run in done)


def _numbers(grid: Grid, row: Any, column: tuple[Any, ...], names: Iterable[str]) -> list[str]:
    run = grid.run(row, column)
    cells = [_cell(grid, row, column, name) for name in names]
    return [*cells, *(f"{run[name]:g}" if run.get("status") == "done" else "-" for name in ("epochs", "steps", "seconds"))]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest word, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{word:<{w}}" if i == 0 else f"{word:>{w}}" for i, (word, w) in enumerate(zip(r, widths, strict=True))) for r in rows
    ]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _brief(words: str) -> str:
    return words.removesuffix(" of the prediction")


def _short(axis: str) -> str:
    return axis.rpartition(".")[2]


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def write_csv(path: Path, results: Results) -> None:
    """A line per run: its folder, the values of the grid's fields, and its results; atomically."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["run", *results["axes"], *COLUMNS])
        for folder, run in results["runs"].items():
            writer.writerow([folder, *(run["settings"][axis] for axis in results["axes"]), *(run.get(name, "") for name in COLUMNS)])


# --- Pictures -------------------------------------------------------------------------------------------------------


def heat_maps(path: Path, results: Results) -> None:
    """The yardstick of every run, and where the loss function varies the validation loss of each by itself, as a PNG."""
    from matplotlib.figure import Figure

    grid = Grid(results)
    panels: list[tuple[str, str, list[tuple[Any, ...]]]] = [(results["yardstick"], "yardstick", grid.columns)]
    if "loss" in grid.across:
        place = grid.across.index("loss")
        for loss in results["axes"]["loss"]:
            if results["yardstick"].startswith(f"validation {loss.upper()}"):  # the first panel shows it
                continue
            columns = [column for column in grid.columns if column[place] == loss]
            panels.append((f"validation loss, {loss}", "validation_loss", columns))
    elif grid.down != "loss" and not _alike(results):
        panels.append(("validation loss", "validation_loss", grid.columns))
    wide = [max(1.9, 0.62 * len(columns) + 1.3) for _, _, columns in panels]
    figure = Figure(figsize=(sum(wide) + 0.4, 0.42 * len(grid.rows) + 1.9), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"width_ratios": wide})[0]
    for axes, (title, name, columns) in zip(all_axes, panels, strict=True):
        values = [[grid.value(row, column, name) for column in columns] for row in grid.rows]
        numbers = [[math.nan if value is None else value for value in line] for line in values]
        axes.imshow(numbers, cmap="viridis_r", aspect="auto")
        known = [value for line in values for value in line if value is not None]
        middle = (min(known) + max(known)) / 2 if known else 0.0
        for y, x in itertools.product(range(len(grid.rows)), range(len(columns))):
            value = values[y][x]
            word = f"{value:.4f}" if value is not None else grid.run(grid.rows[y], columns[x]).get("status", "-")
            axes.text(x, y, word, ha="center", va="center", size=7, color="white" if value is not None and value > middle else "black")
        axes.set_yticks(range(len(grid.rows)), [_word(row) for row in grid.rows])
        axes.set_xticks(range(len(columns)), ["\n".join(_word(value) for value in column) for column in columns], size=8)
        axes.set_ylabel(_short(grid.down))
        axes.set_xlabel(", ".join(_short(axis) for axis in grid.across))
        axes.set_title(textwrap.fill(title, max(16, 9 * len(columns))), size=9)  # no wider than its columns, or it would be cut off
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130)


def loss_curves(path: Path, out: Path, results: Results) -> None:
    """The validation loss of every run, and faintly the training loss, as it fell: a panel a column of the table, as a PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    grid = Grid(results)
    x_axis = {"epochs": "epoch", "steps": "step", "seconds": "seconds"}[results["budget"]]
    # A row of panels holds what only the last axis tells apart.
    across = min(len(results["axes"][grid.across[-1]]), 4) if grid.across else 1
    down = -(-len(grid.columns) // across)
    figure = Figure(figsize=(3.6 * across + 1.2, 2.8 * down + 0.6), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)

    def colour(place: int) -> Any:
        return colormaps["viridis"](0.92 * place / max(1, len(grid.rows) - 1))

    limits: dict[Any, list[Any]] = {}
    place_of_loss = grid.across.index("loss") if "loss" in grid.across else None
    for panel, column in zip(panels.flat, grid.columns, strict=False):
        for place, row in enumerate(grid.rows):
            folder = next((name for name, run in results["runs"].items() if run is grid.run(row, column)), None)
            metrics = out / folder / "metrics.jsonl" if folder else None
            if metrics is None or not metrics.exists():
                continue
            points = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
            x = [point[x_axis] for point in points]
            mark = "o" if len(points) == 1 else None
            panel.plot(x, [point["loss"] for point in points], color=colour(place), alpha=0.3, linewidth=1, marker=mark)
            label = f"{_short(grid.down)} {_word(row)}"
            panel.plot(x, [point["validation_loss"] for point in points], color=colour(place), linewidth=1.6, marker=mark, label=label)
        panel.set(xlabel=x_axis, ylabel="loss", yscale="log")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        for formatter in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        panel.tick_params(axis="y", which="both", labelsize=8)
        panel.set_title(", ".join(f"{_short(axis)} {_word(value)}" for axis, value in zip(grid.across, column, strict=True)), size=9)
        panel.grid(True, which="both", alpha=0.25)
        limits.setdefault(None if place_of_loss is None else column[place_of_loss], []).append(panel)
    for panel in list(panels.flat)[len(grid.columns) :]:
        panel.set_visible(False)
    for alike in limits.values():  # of one loss function, on one scale
        low, high = min(panel.get_ylim()[0] for panel in alike), max(panel.get_ylim()[1] for panel in alike)
        for panel in alike:
            panel.set_ylim(low, high)
    panels.flat[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Validation loss (EMA weights); faint: training loss, mean of the epoch", size=10)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130)
