"""A run folder: what of it stays the same while it trains, and what export and people find in it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from runtime.data import DataSet
from runtime.errors import DataError
from runtime.files import refusal, write_json, write_npz

from . import checkpoint, processes, tasks
from .batches import split
from .channels import geometry_difference
from .finetune import Start, read_json, recipe_of
from .recipes import Recipe

CALIBRATION = (256, 32)  # training and test samples left in RUN/calibration.npz for export


@dataclasses.dataclass
class Run:
    """Everything of a run folder that does not change while it trains.

    ``training`` and ``validation`` are indices into ``data``, ``mix_training`` and ``mix_validation`` into ``mix``, the data mixed in.
    ``facts`` is its data.json.
    """

    path: Path
    recipe: Recipe
    condition: tasks.Conditioning
    data: tasks.Data
    training: np.ndarray
    validation: np.ndarray
    facts: dict[str, Any]
    mix: DataSet | None = None
    mix_training: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    mix_validation: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    def write(self, processes: int = 1) -> None:
        """Leave in the folder what resuming, exporting and people need, and clear away what a kill left half-written."""
        checkpoint.sweep(self.path)
        write_json(self.path / "condition.json", self.condition.to_dict())
        write_json(self.path / "data.json", self.facts)
        pick = np.concatenate([self.training[: CALIBRATION[0]], self.validation[: CALIBRATION[1]]])
        kept = tasks.whole(self.recipe, self.data.take(pick))
        write_npz(self.path / "calibration.npz", **kept.arrays(), test=np.isin(pick, self.validation))
        write_json(self.path / "machine.json", {**machine(), "processes": processes})
        # Last: a folder with a recipe is one that --resume can take up.
        write_json(self.path / "recipe.json", self.recipe.to_dict())


def open_run(
    path: Path,
    recipe: Recipe,
    source: Path,
    data: tasks.Data,
    resume: bool,
    init: Path | None = None,
    mix: tasks.Data | None = None,
    mix_source: Path | None = None,
) -> Run:
    """See that a run can begin in ``path`` or, with ``resume``, go on; writes nothing.

    A run that starts from another, ``init``, keeps that one's condition constants and geometry: the same network has to see the same
    numbers, and its solver settings are what designs are verified with, since measured data have none.

    Raises:
        DataError: the folder already holds a run and ``resume`` was not asked for, its recipe or data differ, or the run, the data and
            what it starts from do not go together.
    """
    resumed = (path / "recipe.json").exists()
    if resumed and not resume:
        raise DataError(f"{path} already holds a run; add --resume to go on with it, or name another folder with --out")
    old = read_json(path / "data.json") if resumed else {}
    start = None if init is None else Start.open(init)
    # A run that is resumed stays with what it began with, which stands in its own folder.
    before = Start.read(path) if resumed else start
    if start is not None and not resumed:
        start.check(recipe, data, str(source))
    if before is not None and (old.get("init") or not resumed):
        data = _placed(data, before)
    training, validation = split(data, recipe.validation_fraction, recipe.training_samples)
    if before is not None:
        condition = before.condition
    else:
        condition = tasks.measure(recipe, data.take(training))
    facts = {
        "data": source.name,
        "training_samples": len(training),
        "validation_samples": len(validation),
        "digest": _digest(data),
        "init": None if start is None else start.facts(),
        "mix": None,
        **tasks.facts(recipe, data),
    }
    run = Run(path, recipe, condition, data, training, validation, facts)
    if mix is not None and mix_source is not None:
        if start is None and not old.get("mix"):
            raise DataError("--mix is for fine-tuning; name the run to start from with --init")
        fraction = old["mix"]["validation_fraction"] if old.get("mix") else start.recipe.validation_fraction  # type: ignore[union-attr]
        _mix(run, mix, mix_source, fraction)
    if resumed:
        _same(run, old, start)
    return run


def hold(path: Path, accelerator: Accelerator) -> contextlib.AbstractContextManager[object]:
    """Keep a run folder to one training until the block ends or the process does, however it does.

    Raises:
        DataError: another training is at work there, or nothing can be written.
    """
    held: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    taken = False
    if accelerator.is_main_process:
        with refusal(path):
            path.mkdir(parents=True, exist_ok=True)
            try:
                held = FileLock(path / "lock").acquire(blocking=False)
            except Timeout:
                taken = True
    if processes.agree(torch.zeros((), device=accelerator.device), taken, accelerator)[1]:
        raise DataError(f"another training is at work in {path}; wait for its end or stop it, or name another folder with --out")
    return held


def _mix(run: Run, mix: tasks.Data, source: Path, fraction: float) -> None:
    """Take in the data mixed in. What the first run held back is held back again, so that forgetting is measured on unseen samples."""
    if not isinstance(mix, DataSet) or not isinstance(run.data, DataSet):
        raise DataError("--mix is for metasurfaces; put images of two sources into one folder")
    if mix.xx.shape[1:] != run.data.xx.shape[1:] or mix.Rm.shape[1:] != run.data.Rm.shape[1:]:
        raise DataError(f"{source} and {run.facts['data']} differ in the size of their patterns or order maps; mix data of the same cells")
    difference = geometry_difference(mix, run.data.geometry, run.data.geometries)
    if difference:
        raise DataError(f"{source} was made for another geometry ({difference}); mix data of the same cells")
    run.mix = dataclasses.replace(mix, geometry=run.data.geometry, geometries=run.data.geometries)
    run.mix_training, run.mix_validation = split(mix, fraction)
    run.facts["mix"] = {
        "data": source.name,
        "training_samples": len(run.mix_training),
        "validation_samples": len(run.mix_validation),
        "validation_fraction": fraction,
        "digest": _digest(mix),
    }


def _same(run: Run, old: dict[str, Any], start: Start | None) -> None:
    """See that a run is resumed as it was begun, and keep what the folder knows of its start."""
    path, recipe, before = run.path, run.recipe, recipe_of(run.path)
    # A longer or shorter run of the same recipe is a legitimate wish; anything else would mix two experiments.
    changed = [f.name for f in dataclasses.fields(Recipe) if getattr(before, f.name) != getattr(recipe, f.name) and f.name != "epochs"]
    if changed:
        raise DataError(f"{path} was trained with another '{changed[0]}' ({getattr(before, changed[0])!r}); name a new folder with --out")
    if bool(old.get("mix")) != (run.mix is not None):
        raise DataError(
            f"{path} was begun with {old['mix']['data']} mixed in; name it with --mix"
            if old.get("mix")
            else f"{path} was begun with nothing mixed in; leave --mix out, or name a new folder with --out"
        )
    for new, known in ((run.facts, old), (run.facts["mix"] or {}, old.get("mix") or {})):
        # Runs of earlier versions have no digest.
        if any(known.get(key, new[key]) != new[key] for key in ("training_samples", "validation_samples", "digest") if key in new):
            raise DataError(
                f"{path} was trained on {known['training_samples']} samples of {known['data']}, and {new['data']} holds other samples "
                f"({new['training_samples']} to train on); name a new folder with --out"
            )
    begun = (old.get("init") or {}).get("run")
    named = None if start is None else start.facts()["run"]
    if named is not None and named != begun:
        raise DataError(f"{path} was begun from {begun or 'nothing'}, not from {named}; leave --init out, or name a new folder with --out")
    if begun and named is None and not checkpoint.found(path):
        raise DataError(f"{path} has no checkpoint yet and was to start from {begun}; name that run with --init again")
    run.facts["init"] = old.get("init")


def _placed(data: tasks.Data, start: Start) -> tasks.Data:
    """Data with the geometries of the run it goes on from."""
    if not isinstance(data, DataSet) or start.geometry is None:
        return data
    return dataclasses.replace(data, geometry=start.geometry, geometries=start.geometries)


def _digest(data: tasks.Data) -> str:
    """A few characters that tell one data set from another."""
    total = hashlib.sha256()
    for array in tasks.contents(data):
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]


def machine() -> dict[str, Any]:
    """What the run trains on, for the model card."""
    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(0), "threads": torch.get_num_threads()}
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return {"device": names[0] if names else platform.processor() or "an unknown processor", "threads": torch.get_num_threads()}
