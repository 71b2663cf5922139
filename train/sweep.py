"""A grid of runs of one recipe: which settings learn best at equal compute, as tables, pictures and files.

A sweep is a TOML file:

    recipe = "lab2023"                      # a recipe's name, or a .toml or .json file beside this one
    [settings]                              # recipe fields that all runs share
    lr_schedule = "constant"
    [grid]                                  # recipe fields and the values they take; a dot leads into a table of the recipe
    lr = [1e-4, 3e-4, 1e-3]
    "network_arguments.conditioning" = ["concatenated", "class"]
    recipe = ["cifar5", "cifar5-simple"]    # whole recipes, in place of the one above
    [options]
    budget = "epochs"                       # or "steps" or "seconds", with steps = N or seconds = S: what every run may spend
    quick = true                            # the quick settings of the recipes, as --quick takes them

Every run is an ordinary run folder ``OUT/<its settings>``. A sweep that was killed goes on with ``resume``: finished runs stay as they
are, and the one that was broken off ends byte-identical to an unbroken one.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.errors import DataError
from runtime.files import write_json

from . import checkpoint, networks, sweep_report, tasks
from .batches import split
from .loop import train
from .objective import Denoising, Restoration, Scattering
from .recipes import Recipe, from_dict, load_recipe, override, quick
from .sample_batches import batches
from .sweep_time import own_precision, seconds_per_step

BUDGETS = ("epochs", "steps", "seconds")
YARDSTICKS = {
    "denoising": "validation MSE of the prediction",
    "restoration": "validation MSE of the image",
    "scattering": "validation misrouted power",
}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep's file says. ``amount`` is how many steps or seconds a run may take, 0 where its epochs decide."""

    recipe: Recipe
    axes: dict[str, list[Any]]
    budget: str
    amount: float
    runs: dict[str, tuple[dict[str, Any], Recipe]]  # by folder: the values of the grid's fields, and the recipe

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Sweep:
        """The sweep in a TOML file, with recipe fields overridden for all its runs.

        Raises:
            DataError: naming what is missing, unknown, or out of its choices; every run's recipe is checked.
        """
        try:
            fields = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"the sweep {path} cannot be read ({error})") from None
        _known(fields, ("recipe", "settings", "grid", "options"), str(path))
        for name, kind in (("recipe", str), ("settings", dict), ("grid", dict), ("options", dict)):
            if not isinstance(fields.get(name, kind()), kind):
                raise DataError(f"{path}: '{name}' is {fields[name]!r}; expected {'a name' if kind is str else f'a table [{name}]'}")
        name, options, axes = fields.get("recipe", ""), fields.get("options", {}), _flat(fields.get("grid", {}))
        bases = axes.get("recipe", [name])
        if "recipe" in axes and isinstance(bases, list) and bases:
            if name or not all(isinstance(base, str) for base in bases):
                raise DataError(f"{path}: [grid] varies 'recipe'; write names of recipes there, and no 'recipe' above it")
            name = bases[0]
        if not name or not axes:
            lacking, example = ("[grid]", "lr = [1e-4, 1e-3] under it") if name else ("a recipe", 'recipe = "default"')
            raise DataError(f"{path} lacks {lacking}; write {example}")
        for axis, values in axes.items():
            if not isinstance(values, list) or not values:
                raise DataError(f"{path}: [grid] '{axis}' is {values!r}; expected a list of values such as [1e-4, 1e-3]")
        given = {key: value for key, value in (overrides or {}).items() if value is not None}
        budget, amount = _budget(options, path)
        for key in given:
            if key in axes or (key == "epochs" and budget != "epochs"):
                where = "its [grid] varies it" if key in axes else f"its budget is {budget}"
                raise DataError(f"{path} decides '{key}' itself ({where}); leave --{key.replace('_', '-')} out")
        if "channels" in axes:
            raise DataError(
                f"{path}: [grid] varies 'channels', which changes the data; write a sweep for each, with 'channels' in [settings]"
            )
        if budget != "epochs" and "epochs" in axes:
            raise DataError(f"{path}: [grid] varies 'epochs' and the budget is {budget}; choose one of them")
        shared = _nested(_flat(fields.get("settings", {})))
        hurry = options.get("quick", False)
        if not isinstance(hurry, bool):
            raise DataError(f"{path}: [options] 'quick' is {hurry!r}; expected true or false")
        made = {base: _based(path, base, shared, given, hurry) for base in bases}
        recipe = made[name]
        runs: dict[str, tuple[dict[str, Any], Recipe]] = {}
        for values in itertools.product(*axes.values()):
            settings = dict(zip(axes, values, strict=True))
            folder = slug(settings)
            if folder in runs:
                raise DataError(f"{path}: two runs of the grid have the same settings ({folder}); write each value once")
            own = {key: value for key, value in settings.items() if key != "recipe"}
            runs[folder] = settings, override(made[settings.get("recipe", name)], _nested(own), f"{path}: [grid]")
        if len({(run.objective, run.layout, tuple(run.channels), tuple(run.classes)) for _, run in runs.values()}) > 1:
            raise DataError(f"{path}: the recipes of [grid] are not for the same data; leave out those that differ")
        return cls(recipe, axes, budget, amount, runs)


def sweep(
    path: Path,
    data: str | Path,
    out: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    convention: str = "lab",
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
    **training: Any,
) -> dict[str, Any]:
    """Train every run of the sweep in ``path`` and return what stands in ``out/sweep.json``.

    Beside the runs' folders it leaves ``sweep.json``, ``sweep.csv``, ``sweep.png`` and ``loss_curves.png``. A run whose loss is no longer
    finite is marked as failed, with the reason, and the sweep goes on.

    Args:
        data, convention, training: as for :func:`train.loop.train`.
        overrides: recipe fields of the command line, for all runs.
        resume: go on with the sweep in ``out``.
        say: called with a line per run.

    Raises:
        DataError: a faulty sweep file, unusable data, or an ``out`` that holds another sweep.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DataError("a sweep trains one run after the other in one process; start it without accelerate launch or torchrun")
    plan = Sweep.read(path, overrides)
    samples = tasks.load(data, plan.recipe, convention)
    for _, recipe in plan.runs.values():
        _check_network(recipe, samples)
    results = _taken_up(out, plan, Path(data).name, len(samples), resume)
    parts: dict[tuple[float, int], tuple[np.ndarray, np.ndarray]] = {}
    for number, (folder, (settings, recipe)) in enumerate(plan.runs.items(), 1):
        part = recipe.validation_fraction, recipe.training_samples
        if part not in parts:
            parts[part] = split(samples, *part)
        row = results["runs"].get(folder, {})
        recipe = dataclasses.replace(recipe, epochs=row.get("epochs") or _epochs(plan, recipe, samples, parts[part][0]))
        label = f"run {number} of {len(plan.runs)}: {folder}"
        if row.get("status") == "done":
            say(f"{label}: done before")
            continue
        say(label)
        row = {"settings": settings, "recipe": recipe.to_dict(), "epochs": recipe.epochs, "status": "started"}
        results["runs"][folder] = row
        write_json(out / "sweep.json", results)
        try:
            with own_precision():
                train(data, out / folder, recipe, convention=convention, resume=resume, **training)
            row |= {"status": "done", **_measured(out / folder, samples, parts[part][1])}
        except DataError as error:
            if "the loss is" not in str(error):  # anything else would meet the next run too
                raise
            row |= {"status": "failed", "reason": str(error)}
            say(f"{label}: failed, {error}")
        write_json(out / "sweep.json", results)
        sweep_report.write_csv(out / "sweep.csv", results)
    sweep_report.heat_maps(out / "sweep.png", results)
    sweep_report.loss_curves(out / "loss_curves.png", out, results)
    return results


def slug(settings: Mapping[str, Any]) -> str:
    """A folder's name for a run of the grid, such as ``lr=0.001_loss=mse``; the last part of a dotted name stands for it."""
    words = "_".join(
        f"{name.rpartition('.')[2]}={value:g}" if isinstance(value, float) else f"{name.rpartition('.')[2]}={value}"
        for name, value in settings.items()
    )
    return re.sub(r"[^A-Za-z0-9.+=_-]+", "-", words)[:120]


def _taken_up(out: Path, plan: Sweep, data: str, count: int, resume: bool) -> dict[str, Any]:
    """The results so far: none, or those of the same sweep that ``out`` holds already."""
    kind = plan.recipe.objective
    fresh: dict[str, Any] = {
        "recipe": ", ".join(dict.fromkeys(recipe.name for _, recipe in plan.runs.values())),
        "data": {"name": data, "samples": count},
        "axes": plan.axes,
        "budget": plan.budget,
        "amount": plan.amount,
        "yardstick": YARDSTICKS[kind],
        "runs": {},
    }
    path = out / "sweep.json"
    if (out / "recipe.json").exists():
        raise DataError(f"{out} holds a single run; name another folder with --out")
    if not path.exists():
        return fresh
    if not resume:
        raise DataError(f"{out} already holds a sweep; add --resume to go on with it, or name another folder with --out")
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in ("recipe", "data", "budget", "amount") if old[key] != fresh[key]]
        rows = {folder: old["runs"][folder] for folder in plan.runs if folder in old["runs"]}
        for folder, row in rows.items():
            # Read as a recipe, so that fields which came later have their defaults.
            was, wanted = from_dict(row["recipe"], str(path)).to_dict(), plan.runs[folder][1].to_dict()
            changed += [key for key in wanted if was[key] != wanted[key] and (key != "epochs" or plan.budget == "epochs")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); name another folder with --out") from None
    if changed:
        raise DataError(f"{out} was swept with another '{changed[0]}'; name a new folder with --out")
    return {**fresh, "runs": rows}


def _epochs(plan: Sweep, recipe: Recipe, samples: tasks.Data, training: np.ndarray) -> int:
    """How long a run trains: as its recipe says, or the whole number of epochs nearest to the budget, at least one."""
    if plan.budget == "epochs":
        return recipe.epochs
    steps = plan.amount
    if plan.budget == "seconds":
        steps /= seconds_per_step(recipe, samples.take(training))
    return max(1, round(steps / math.ceil(len(training) / recipe.batch_size)))


def _check_network(recipe: Recipe, samples: tasks.Data) -> None:
    """Build the network without weights: a name or an argument that it does not have is refused before hours of training."""
    if recipe.objective not in YARDSTICKS:
        raise DataError(f"a sweep compares the objectives {', '.join(YARDSTICKS)}; the recipe's is '{recipe.objective}'")
    with torch.device("meta"):
        networks.build(recipe.network, tasks.fitted(recipe, samples).network_arguments)


@torch.no_grad()
def _measured(run: Path, samples: tasks.Data, validation: np.ndarray) -> dict[str, Any]:
    """Losses, steps and time of a finished run, and the yardstick that does not depend on the loss it was trained with."""
    last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    recipe = from_dict(json.loads((run / "recipe.json").read_text(encoding="utf-8")), str(run))
    condition = tasks.conditioning(json.loads((run / "condition.json").read_text(encoding="utf-8")))
    batch = {key: torch.from_numpy(value) for key, value in batches(samples.take(validation), condition, recipe).validation().items()}
    network = networks.build(recipe.network, recipe.network_arguments)
    network.load_state_dict(checkpoint.load_weights(checkpoint.latest(run)))
    goal: Any = Scattering("l1") if recipe.objective == "scattering" else Denoising(recipe.scheduler, "mse") if recipe.scheduled else None
    goal = goal or Restoration(recipe.noise_sigma, "mse")
    total, count = 0.0, len(next(iter(batch.values())))
    for start in range(0, count, 256):
        part = {key: value[start : start + 256] for key, value in batch.items()}
        total += goal(network.eval(), part).item() * len(next(iter(part.values())))
    return {
        "loss": last["loss"],
        "validation_loss": last["validation_loss"],
        "yardstick": total / count,
        "steps": last["step"],
        "seconds": last["seconds"],
    }


# --- The file -------------------------------------------------------------------------------------------------------


def _budget(options: Mapping[str, Any], path: Path) -> tuple[str, float]:
    where = f"{path}: [options]"
    _known(options, ("budget", "steps", "seconds", "quick"), where)
    budget = options.get("budget", "epochs")
    if budget not in BUDGETS:
        raise DataError(f"{where} 'budget' is {budget!r}; choose {', '.join(BUDGETS)}")
    stray = [key for key in ("steps", "seconds") if key in options and key != budget]
    if stray:
        raise DataError(f"{where} has '{stray[0]}' and the budget is {budget}; write budget = \"{stray[0]}\" or leave it out")
    if budget == "epochs":
        return budget, 0
    amount: Any = options.get(budget)
    if type(amount) not in (int, float) or not 0 < amount < math.inf:
        raise DataError(f"{where} '{budget}' is {amount!r}; expected what each run may take, above 0")
    return budget, amount


def _based(path: Path, name: str, shared: Mapping[str, Any], given: Mapping[str, Any], hurry: bool) -> Recipe:
    """A recipe by name, or by a file beside the sweep's, with what all runs share and what the command line says; or its quick settings."""
    beside = path.parent / name
    recipe = load_recipe(str(beside) if beside.suffix in (".json", ".toml") else name)
    recipe = quick(recipe) if hurry else recipe
    return override(override(recipe, shared, f"{path}: [settings]"), given, "the command line")


def _known(fields: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(fields) - set(names))
    if unknown:
        raise DataError(f"{where} has the unknown field '{unknown[0]}'; it may have {', '.join(names)}")


def _flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A table's fields under dotted names, as TOML lets them be written either way."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's fields and tables of dotted names."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        key, _, inner = name.partition(".")
        if inner:
            nested[key] = {**nested.get(key, {}), inner: value}
        else:
            nested[key] = value
    return nested
