"""Checkpoints as safetensors and JSON: nothing in them can run code, and each appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from runtime.errors import DataError
from runtime.files import atomic_directory


def save(
    run: Path, step: int, model: dict[str, torch.Tensor], ema: dict[str, torch.Tensor], optimizer: dict[str, Any], keep: int = 2
) -> None:
    """Write ``run/checkpoints/step-XXXXXXXX`` and remove all but the newest ``keep``."""
    tensors: dict[str, torch.Tensor] = {}
    for index, state in optimizer["state"].items():
        for name, value in state.items():
            tensors[f"{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    with atomic_directory(run / "checkpoints" / f"step-{step:08d}") as work:
        for name, part in (("model", model), ("ema", ema)):
            save_file({k: v.detach().cpu().contiguous() for k, v in part.items()}, work / f"{name}.safetensors")
        save_file(tensors, work / "optimizer.safetensors")
        (work / "state.json").write_text(json.dumps({"step": step, "param_groups": optimizer["param_groups"]}) + "\n", encoding="utf-8")
    for old in found(run)[:-keep]:
        shutil.rmtree(old)


def found(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def latest(run: Path) -> Path:
    """The newest checkpoint.

    Raises:
        DataError: there is none.
    """
    checkpoints = found(run)
    if not checkpoints:
        raise DataError(f"{run} holds no checkpoint; name the folder that 'cli.py train --out' wrote")
    return checkpoints[-1]


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was written."""
    return int(json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"])


def load_weights(checkpoint: Path, name: str = "ema") -> dict[str, torch.Tensor]:
    """The weights ``ema`` or ``model`` of a checkpoint.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = checkpoint / f"{name}.safetensors"
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own untyped error for a damaged header
        raise DataError(f"{path} cannot be read ({error}); remove that checkpoint to go on from the one before") from None


def load_optimizer(checkpoint: Path) -> tuple[int, dict[str, Any]]:
    """Step and optimiser state of a checkpoint."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_weights(checkpoint, "optimizer").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    return state["step"], {"state": moments, "param_groups": state["param_groups"]}
