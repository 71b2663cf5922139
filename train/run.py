"""A run folder: what of it stays the same while it trains, and what export and people find in it."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.condition import Condition
from runtime.data import DataSet
from runtime.errors import DataError
from runtime.files import write_json, write_npz

from . import checkpoint
from .batches import split
from .recipes import Recipe, from_dict

CALIBRATION = (256, 32)  # training and test samples left in RUN/calibration.npz for export


@dataclasses.dataclass
class Run:
    """Everything of a run folder that does not change while it trains."""

    path: Path
    recipe: Recipe
    condition: Condition
    data: DataSet
    training: np.ndarray
    validation: np.ndarray


def fitted(recipe: Recipe, data: DataSet) -> Recipe:
    """The recipe with its network made for the data's patterns (n x n) and order maps (2M+1 x 2M+1).

    Raises:
        DataError: the recipe states another size, or its canvas is too small.
    """
    n, side = data.xx.shape[-1], data.Rm.shape[-1]
    if recipe.layout == "planes":
        if max(n, side) > recipe.canvas:
            raise DataError(
                f"patterns of {n} x {n} with order maps of {side} x {side} do not fit the canvas of {recipe.canvas}; raise 'canvas'"
            )
        return recipe
    maps = {"maps": 2 + len(recipe.channels)} if recipe.channels or "maps" in recipe.network_arguments else {}
    for name, value in {"size": n, "orders": side // 2, **maps}.items():
        stated = recipe.network_arguments.get(name, value)
        if stated != value:
            raise DataError(f"the recipe's network has {name} {stated} and the data have {value}; leave '{name}' out of network_arguments")
    return dataclasses.replace(recipe, network_arguments={**recipe.network_arguments, "size": n, "orders": side // 2, **maps})


def open_run(path: Path, recipe: Recipe, source: Path, data: DataSet, resume: bool, init: Path | None = None) -> Run:
    """Prepare a new run folder, or take up an old one whose recipe and data must be the same. ``init`` is the run it starts from.

    Raises:
        DataError: the folder already holds a run and ``resume`` was not asked for, or its recipe differs.
    """
    training, validation = split(data, recipe.validation_fraction)
    part = data.take(training)
    conditioning = recipe.network_arguments.get("conditioning", "concatenated")
    condition = Condition.measure(recipe.layout, part.Rm, part.Tm, part.h, recipe.canvas, conditioning, part.extra)
    start = None if init is None else {"run": init.resolve().name, "steps": checkpoint.step_of(checkpoint.latest(init))}
    if (path / "recipe.json").exists():
        if not resume:
            raise DataError(f"{path} already holds a run; add --resume to go on with it, or name another folder with --out")
        old = from_dict(json.loads((path / "recipe.json").read_text(encoding="utf-8")), str(path / "recipe.json"))
        # A longer or shorter run of the same recipe is a legitimate wish; anything else would mix two experiments.
        changed = [f.name for f in dataclasses.fields(Recipe) if getattr(old, f.name) != getattr(recipe, f.name) and f.name != "epochs"]
        if changed:
            raise DataError(f"{path} was trained with another '{changed[0]}' ({getattr(old, changed[0])!r}); name a new folder with --out")
        facts = json.loads((path / "data.json").read_text(encoding="utf-8"))
        if facts["training_samples"] != len(training) or facts["validation_samples"] != len(validation):
            raise DataError(
                f"{path} was trained on {facts['training_samples']} samples and the data now gives {len(training)}; "
                "name a new folder with --out"
            )
        start = facts.get("init")
    write_json(path / "condition.json", condition.to_dict())
    write_json(
        path / "data.json",
        {
            "data": source.name,
            "training_samples": len(training),
            "validation_samples": len(validation),
            "pattern_size": int(data.xx.shape[-1]),
            "init": start,
            "geometry": data.geometry.to_dict(),
            **({"channels": data.channel_geometries()} if data.extra else {}),
        },
    )
    pick = np.concatenate([training[: CALIBRATION[0]], validation[: CALIBRATION[1]]])
    write_npz(path / "calibration.npz", **data.take(pick).arrays(), test=np.isin(pick, validation))
    write_json(path / "machine.json", machine())
    write_json(path / "recipe.json", recipe.to_dict())
    return Run(path, recipe, condition, data, training, validation)


def machine() -> dict[str, Any]:
    """What the run trains on, for the model card."""
    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(0), "threads": torch.get_num_threads()}
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return {"device": names[0] if names else platform.processor() or "an unknown processor", "threads": torch.get_num_threads()}
