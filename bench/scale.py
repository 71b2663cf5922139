"""What one cell, one candidate, one target and one training sample cost on one core: the unit costs that docs/scale.md multiplies.

    OMP_NUM_THREADS=1 python bench/scale.py [--cells 24] [--targets 6] [--steps 10] [--no-training] [--json]

Cells and targets are drawn as `cli.py simulate` draws them, heights from 50 to 600 nm, so the times are means over what a large run sees.
A training step is timed by the training loop itself, as the difference between a longer run and a shorter one, over the same start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from runtime import data as cells
from runtime.files import write_npz
from runtime.physics.simulate import simulate
from runtime.physics.verify import solve_many
from runtime.sampler import load
from runtime.search import shortlist
from runtime.target import Target


def timed(work: Callable[..., Any], *arguments: Any, **settings: Any) -> tuple[float, Any]:
    """Seconds, and what the work returns."""
    start = time.perf_counter()
    result = work(*arguments, **settings)
    return time.perf_counter() - start, result


def simulation(folder: Path, count: int, geometry: Any) -> dict[str, float]:
    """Seconds and bytes of a solved cell, start of the worker process included in neither."""
    path = folder / "cells.npz"
    simulate(path, count, 5, geometry, workers=1, progress=False)
    solved = cells.load(path)
    seconds, _ = timed(solve_many, solved.xx, solved.h, solved.geometry, solved.Rm.shape[-1] // 2, 1)
    in_memory = sum(array.nbytes for array in (solved.xx, solved.h, solved.Rm, solved.Tm))
    return {"cell_s": seconds / count, "cell_bytes": path.stat().st_size / count, "cell_bytes_in_memory": in_memory / count}


def sampling(sampler: Any, solved: cells.DataSet, count: int) -> dict[str, float]:
    """Means over targets: 64 candidates, their ranking, the four solves, and what a search adds."""
    rows: dict[str, list[float]] = {"candidates_64_s": [], "ranking_64_s": [], "verification_4_s": [], "refined_target_s": []}
    sampler.warmup()
    for k in range(count):
        target = Target.from_arrays(solved.Rm[k], solved.Tm[k], float(solved.h[k]), name=f"cell {k}", geometry=solved.geometry)
        seconds, patterns = timed(sampler.propose, target, 64, seed=k)
        rows["candidates_64_s"].append(seconds)
        seconds, picked = timed(shortlist, patterns, target, sampler.surrogate)
        rows["ranking_64_s"].append(seconds)
        seconds, _ = timed(solve_many, patterns[picked], target.height_nm, solved.geometry, target.orders, 1)
        rows["verification_4_s"].append(seconds)
        seconds, _ = timed(sampler.design, target, seed=k, workers=1, refine=True)
        rows["refined_target_s"].append(seconds)
    # Heights differ by an order of magnitude in what a solve costs: a large run pays the mean.
    return {name: statistics.fmean(values) for name, values in rows.items()}


def training(folder: Path, steps: int) -> dict[str, float]:
    """Seconds a sample of the recipe `default`, of them those for putting the batch together, and what a process sends others in a step:
    its gradients, four bytes each."""
    from safetensors import safe_open

    from train import tasks
    from train.loop import train
    from train.recipes import RECIPES
    from train.sample_batches import batches

    recipe, data = RECIPES["default"], folder / "many.npz"
    few = cells.load(folder / "cells.npz")
    rows = np.arange(2 * recipe.batch_size) % len(few)  # a step costs what it costs, whatever the cells are
    geometry = np.array(json.dumps(few.geometry.to_dict()))
    write_npz(data, xx=_different(len(rows)), h=few.h[rows], Rm=few.Rm[rows], Tm=few.Tm[rows], geometry=geometry)
    short, long = 2, 2 + steps

    source = tasks.load(data, recipe)
    parts = batches(source, tasks.measure(recipe, source), recipe)
    together, _ = timed(lambda: [parts.training(step) for step in range(20)])

    def run(name: str, stop: int) -> tuple[float, Path]:
        return timed(train, data, folder / name, recipe, stop_after=stop, pictures_every=0, progress=False)

    first, _ = run("short", short)
    second, last = run("long", long)
    with safe_open(next(last.glob("*model*.safetensors")), "np") as weights:
        parameters = sum(int(np.prod(weights.get_slice(key).get_shape())) for key in weights.keys())  # noqa: SIM118
    return {
        "sample_s": (second - first) / steps / recipe.batch_size,
        "batch_s": together / 20 / recipe.batch_size,
        "batch": recipe.batch_size,
        "gradient_bytes": 4.0 * parameters,
    }


def _different(count: int) -> np.ndarray:
    """Patterns of which none is another shifted, or the loop would call them one."""
    return np.random.default_rng(0).integers(0, 2, (count, 10, 10), np.uint8)


def table(found: dict[str, float]) -> str:
    """The costs for people."""
    words = {
        "cell_s": ("a cell simulated", "s"),
        "cell_bytes": ("a cell on disk", "bytes"),
        "cell_bytes_in_memory": ("a cell in a trainer's memory", "bytes"),
        "candidates_64_s": ("a target: 64 candidates sampled", "s"),
        "ranking_64_s": ("a target: ranked by the surrogate", "s"),
        "verification_4_s": ("a target: 4 candidates solved", "s"),
        "refined_target_s": ("a target: all that, and the search", "s"),
        "sample_s": ("a training sample of `default`", "s"),
        "batch_s": ("the same, put into a batch", "s"),
        "batch": ("samples a training step", ""),
        "gradient_bytes": ("gradients a step", "bytes"),
    }
    return "\n".join(f"{words[key][0]:<40}{value:>14.4g} {words[key][1]}" for key, value in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24, help="cells simulated (default 24)")
    parser.add_argument("--targets", type=int, default=6, help="targets designed (default 6)")
    parser.add_argument("--steps", type=int, default=10, help="training steps timed (default 10)")
    parser.add_argument("--no-training", action="store_true", help="leave out what needs PyTorch")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.targets > options.cells:
        parser.error(f"--targets is {options.targets}; at most --cells, {options.cells}")
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("unit costs are of one core: set OMP_NUM_THREADS=1")
    with tempfile.TemporaryDirectory() as name, load() as sampler:
        folder = Path(name)
        found = simulation(folder, options.cells, sampler.bundle.geometry)
        found |= sampling(sampler, cells.load(folder / "cells.npz"), options.targets)
        if not options.no_training:
            found |= training(folder, options.steps)
    print(json.dumps(found) if options.json else table(found))


if __name__ == "__main__":
    main()
