"""A run folder, opened: what was trained, on what, and its newest averaged weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from runtime.condition import Condition
from runtime.data import open_npz
from runtime.errors import DataError
from train import checkpoint, networks, tasks
from train.finetune import read_json, recipe_of
from train.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class Run:
    """What export needs of a run: ``facts`` is its data.json; ``calibration``, training samples, and ``tests`` are a denoiser's."""

    path: Path
    newest: Path
    facts: dict[str, Any]
    recipe: Recipe
    condition: tasks.Conditioning
    network: nn.Module
    calibration: tasks.Data | None
    tests: tasks.Data | None

    @classmethod
    def open(cls, path: Path, objective: str, step: int | None = None) -> Run:
        """Read a run folder whose recipe has this objective; a few-step model (``distillation``) is a denoiser like others.

        Args:
            step: of the checkpoint to take; None is the newest.

        Raises:
            DataError: it is none, is damaged, or was trained for something else.
        """
        facts, recipe, condition_fields = read_json(path / "data.json"), recipe_of(path), read_json(path / "condition.json")
        if (recipe.objective == "scattering") != (objective == "scattering"):
            what, instead = (
                ("a denoiser", "name a surrogate's run") if objective == "scattering" else ("a surrogate", "name it with --surrogate")
            )
            raise DataError(f"{path} holds {what} (its recipe's objective is '{recipe.objective}'); {instead}")
        condition = tasks.conditioning(condition_fields)
        newest = checkpoint.latest(path) if step is None else checkpoint.of_step(path, step)
        network = networks.build(recipe.network, recipe.network_arguments)
        try:
            network.load_state_dict(checkpoint.load_weights(newest))
        except RuntimeError as error:
            reason = checkpoint.misfit(error)
            raise DataError(f"{newest} does not fit its recipe ({reason}); remove that checkpoint to go on from the one before") from None
        broken = [name for name, value in network.state_dict().items() if value.is_floating_point() and not value.isfinite().all()]
        if broken:
            raise DataError(
                f"{newest} holds weights that are not finite ('{broken[0]}'); remove that checkpoint to go on from the one before"
            )
        network.eval()
        if objective == "scattering":  # it is held to the denoiser's samples
            return cls(path, newest, facts, recipe, condition, network, None, None)
        held = path / "calibration.npz"
        if not held.exists():
            raise DataError(f"{held} does not exist, without which nothing can be compared; a run from 'unpack' has to be trained on first")
        samples, test = tasks.load(held, dataclasses.replace(recipe, classes=[])), open_npz(held).get("test")
        if test is None or test.shape != (len(samples),) or test.all() or not test.any():
            raise DataError(f"{held} does not say which of its samples are for testing; train again with --resume to write it anew")
        return cls(path, newest, facts, recipe, condition, network, samples.take(np.flatnonzero(~test)), samples.take(np.flatnonzero(test)))

    def history(self) -> dict[str, Any]:
        """Data, steps, time and losses of the run, from its metrics."""
        step = checkpoint.step_of(self.newest)
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        # A kill leaves half a line, or rows of steps after the last checkpoint.
        every = [json.loads(line) for line in lines if line.endswith("}")]
        rows = [row for row in every if row["step"] <= step]
        last = rows[-1] if rows else {}
        return {
            **{key: value for key, value in self.facts.items() if key != "geometry"},
            "steps": step,
            "epochs": every[0]["epoch"] * step / every[0]["step"] if every else None,
            "seconds": last.get("seconds"),
            "loss": last.get("loss"),
            "validation_loss": last.get("validation_loss"),
            "machine": read_json(self.path / "machine.json"),
        }


def fits(surrogate: Run, denoiser: Run) -> None:
    """See that a surrogate can judge what a denoiser proposes.

    Raises:
        DataError: they were trained for different cells.
    """
    judging, proposing = surrogate.condition, denoiser.condition
    if not isinstance(judging, Condition) or not isinstance(proposing, Condition):
        raise DataError(f"{denoiser.path} samples images or points, which no surrogate ranks; leave --surrogate out")
    for what, mine, theirs in (
        ("geometry", surrogate.facts["geometry"], denoiser.facts["geometry"]),
        ("pattern size", surrogate.facts["pattern_size"], denoiser.facts["pattern_size"]),
        ("number of orders", judging.orders, proposing.orders),
    ):
        if mine != theirs:
            raise DataError(f"the surrogate {surrogate.path} has another {what} than {denoiser.path}; train both on the same data")
    (low, high), (least, most) = judging.height_range_nm, proposing.height_range_nm
    if low > least or high < most:
        raise DataError(
            f"the surrogate {surrogate.path} knows heights of {low:g} to {high:g} nm and {denoiser.path} {least:g} to {most:g} nm; "
            "train both on the same data"
        )
