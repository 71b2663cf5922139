"""Misrouted power against RCWA solves and against time: ours beside the ways a lab would search without a model.

    python cli.py simulate --count 512 --seed 7 --out test.npz
    python bench/design.py --data test.npz --train-data si1550.npz --out design-bench [--targets 16] [--solves 500] [--methods NAME ...]

Every method searches for the same held-out targets, the first of the test set, at their heights, on one core. A solve is one run of the
Maxwell solver, a gradient counts as two; a score counts only where it was solved with the data's own truncation. Methods marked
'+-8' search with 8 harmonics, in a sixth of the time, and solve again what is best by them. Seconds are of the processor, from the
target to the design: sampling and the surrogate are in them, opening the bundle is not.

Each result is a file in ``--out`` as soon as it is there: a run that was stopped goes on, and several may share the work by ``--methods``.
At the end, a table of medians, ``design.json`` and ``design.png``.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this file's own folder would make it the module 'runtime'

from bench import _rivals  # noqa: E402
from bench._rivals import COARSE, Method, Problem  # noqa: E402
from runtime.data import DataSet  # noqa: E402
from runtime.data import load as load_data  # noqa: E402
from runtime.files import write_json  # noqa: E402
from runtime.sampler import load  # noqa: E402
from runtime.target import Target  # noqa: E402

OURS, PLAIN = "ours", "ours, not refined"
CLIMBING, TOPOLOGY, COARSELY = "hill climbing from the nearest sample", "topology optimisation", f", +-{COARSE}"
RIVALS = ("random", CLIMBING, CLIMBING + COARSELY, "genetic algorithm", "genetic algorithm" + COARSELY, TOPOLOGY + COARSELY)
METHODS = (OURS, PLAIN, *RIVALS)
AT_SOLVES = (1, 4, 8, 16, 32, 64, 128, 250, 500)
AT_SECONDS = (2, 5, 10, 20, 40, 80)
BUDGET = 32  # solves of ours, as `infer` has them
LONGER = 128  # solves of ours for the curve


def targets(data: DataSet, count: int) -> list[Target]:
    """The first targets of a test set: what its cells scatter, every order asked for."""
    return [Target.from_arrays(data.Rm[i], data.Tm[i], float(data.h[i]), geometry=data.geometry) for i in range(count)]


def nearest(wanted: list[Target], data: DataSet, train: DataSet) -> np.ndarray:
    """Patterns (K, n, n) of the training samples that scatter most alike."""
    from runtime.baselines import nearest_training

    return train.xx[nearest_training(wanted, train, data.geometry)[1]]


def best_at(history: list[list[float]], place: int, limit: float) -> float:
    """The best misrouted power by then; nothing found yet counts as 1, the worst there is."""
    return min((row[2] for row in history if row[place] <= limit), default=1.0)


def medians(records: list[dict[str, Any]], place: int, limits: tuple[int, ...]) -> list[float | None]:
    """Over targets, at each limit that every search has reached or ended before."""
    last = max(record[("solves", "seconds")[place]] for record in records)
    return [
        float(np.median([best_at(record["history"], place, limit) for record in records])) if limit <= last or limit == limits[0] else None
        for limit in limits
    ]


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Both tables, and the sentence that compares ours with the best rival."""
    lines = []
    for title, place, limits in (("after so many solves", 0, AT_SOLVES), ("after so many seconds of one core", 1, AT_SECONDS)):
        lines += [f"median misrouted power {title}", f"{'':44s}" + "".join(f"{limit:8d}" for limit in limits)]
        for method, records in results.items():
            cells = ["" if value is None else f"{value:.3f}" for value in medians(records, place, limits)]
            lines.append(f"{method:44s}" + "".join(f"{cell:>8s}" for cell in cells))
        lines.append("")
    found = {method: medians(records, 0, (AT_SOLVES[-1],))[0] for method, records in results.items()}
    rivals = {method: value for method, value in found.items() if method in RIVALS and value is not None}
    if OURS in results and rivals:
        rival = min(rivals, key=lambda method: rivals[method])
        needed = [k for k in range(1, LONGER + 1) if np.median([best_at(r["history"], 0, k) for r in results[OURS]]) <= rivals[rival]]
        most = max(record["solves"] for record in results[rival])
        reached = f"after {needed[0]} solves" if needed else f"not within {LONGER} solves"
        lines.append(f"best rival: {rival}, {rivals[rival]:.3f} after {most} solves; ours reaches that {reached}")
    return "\n".join(lines)


def picture(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Medians and quartiles as steps, against solves and against seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    colours = {method: f"C{i}" for i, method in enumerate(METHODS)}
    for axis, place, name in zip(axes, (0, 1), ("RCWA solves", "seconds on one core"), strict=True):
        for method, records in results.items():
            last = max(record[("solves", "seconds")[place]] for record in records)
            first = 1.0 if place == 0 else min(record["history"][0][1] for record in records)
            at = np.geomspace(first, max(last, first * 1.01), 300)
            values = np.array([[best_at(record["history"], place, limit) for limit in at] for record in records])
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
            there = (values < 1).all(axis=0)
            mine = method in (OURS, PLAIN)
            axis.plot(at[there], middle[there], color=colours[method], label=method, lw=2.4 if mine else 1.3)
            if method == OURS:
                axis.fill_between(at[there], low[there], high[there], color=colours[method], alpha=0.15, lw=0)
        axis.set_xscale("log")
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].axvline(BUDGET, color="0.5", lw=1, ls=":")
    axes[0].set_ylim(0)
    axes[0].set_ylabel("misrouted power, median of the targets")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train-data", type=Path, required=True, help="Where hill climbing begins.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle")
    parser.add_argument("--targets", type=int, default=16)
    parser.add_argument("--solves", type=int, default=AT_SOLVES[-1], help="Budget of the rivals.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help=f"Of: {'; '.join(METHODS)}.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("-n", type=int, default=64, help="Candidates of ours.")
    options = parser.parse_args()

    if TOPOLOGY + COARSELY in options.methods:
        import torch

        torch.set_num_threads(1)  # one core for everybody

    data = load_data(options.data)
    wanted = targets(data, options.targets)
    options.out.mkdir(parents=True, exist_ok=True)

    with load(options.bundle, backend=options.backend, threads=1) as sampler:
        starts = nearest(wanted, data, load_data(options.train_data))
        results: dict[str, list[dict[str, Any]]] = {}
        for method in options.methods:
            for i, target in enumerate(wanted):
                path = options.out / f"{method.replace(' ', '-').replace(',', '')}.{i}.json"
                if not path.exists():
                    name = method.removesuffix(COARSELY)
                    ways: dict[str, Method] = {
                        OURS: functools.partial(_rivals.ours, sampler=sampler, n=options.n, refine=True),
                        PLAIN: functools.partial(_rivals.ours, sampler=sampler, n=options.n, refine=False),
                        "random": _rivals.random_search,
                        CLIMBING: functools.partial(_rivals.hill_climbing, start=starts[i]),
                        "genetic algorithm": _rivals.genetic_algorithm,
                        TOPOLOGY: _rivals.topology_optimisation,
                    }
                    # Topology optimisation takes its gradients coarsely by itself, and all that it solves counts.
                    coarse = COARSE if name != method and name != TOPOLOGY else None
                    budget = min(options.solves, LONGER) if method in (OURS, PLAIN) else options.solves
                    problem = Problem(target, data.geometry, data.xx.shape[-1], budget, coarse)
                    record = _rivals.run(problem, ways[name], options.seed * 1000 + i)
                    write_json(path, {"method": method, "target": i, "height_nm": target.height_nm, "seed": options.seed, **record})
                record = json.loads(path.read_text(encoding="utf-8"))
                results.setdefault(method, []).append(record)
                best = record["history"][-1]
                print(
                    f"{method}, target {i} at {target.height_nm:g} nm: {best[2]:.3f} after {best[0]} of {record['solves']} solves, "
                    f"{record['seconds']:.1f} s",
                    file=sys.stderr,
                )
    print(table(results))
    write_json(options.out / "design.json", results)
    picture(results, options.out / "design.png")


if __name__ == "__main__":
    main()
