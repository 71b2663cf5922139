"""Checkpoints as safetensors and JSON: nothing in them can run code, and each appears whole or not at all."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as packed

from runtime.errors import DataError
from runtime.files import atomic_directory, atomic_file


def save(
    run: Path,
    step: int,
    model: dict[str, torch.Tensor],
    ema: dict[str, torch.Tensor],
    optimizer: dict[str, Any],
    keep: int = 2,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write ``run/checkpoints/step-XXXXXXXX`` and remove all but the newest ``keep``. ``more`` are JSON values to find again."""
    tensors: dict[str, torch.Tensor] = {}
    for index, state in optimizer["state"].items():
        for name, value in state.items():
            tensors[f"{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    facts = {"step": step, "param_groups": optimizer["param_groups"], **(more or {})}
    with atomic_directory(path_of(run, step)) as work:
        for name, part in (("model", model), ("ema", ema)):
            _write(work / f"{name}.safetensors", part)
        _write(work / "optimizer.safetensors", tensors)
        (work / "state.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    for old in found(run)[:-keep]:
        # Out of sight first: a kill in the middle must not leave half a checkpoint under a whole one's name.
        gone = old.with_name(f".{old.name}.{secrets.token_hex(6)}")
        old.rename(gone)
        shutil.rmtree(gone)


def sweep(run: Path) -> None:
    """Remove what killed processes left half-written in a run folder (see ``runtime.files``), so that it does not pile up."""
    for folder in (run, run / "checkpoints", run / "samples"):
        for path in folder.glob(".*"):
            if re.fullmatch(r"\..+\.[0-9a-f]{12}(\.\w+)?", path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def path_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step belongs."""
    return run / "checkpoints" / f"step-{step:08d}"


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


def of_step(run: Path, step: int) -> Path:
    """The checkpoint of a step. Raises DataError where there is none."""
    if path_of(run, step) not in found(run):
        steps = ", ".join(str(int(path.name.removeprefix("step-"))) for path in found(run))
        raise DataError(f"{run} holds no checkpoint of step {step}; it has {steps or 'none'} (train with --checkpoint-every and --keep)")
    return path_of(run, step)


def state_of(checkpoint: Path) -> dict[str, Any]:
    """The facts of a checkpoint: ``step``, the optimiser's ``param_groups`` and what else was saved with it.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = checkpoint / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return {**state, "step": int(state["step"]), "param_groups": list(state["param_groups"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); remove that checkpoint to go on from the one before") from None


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was written. Raises DataError as :func:`state_of` does."""
    return state_of(checkpoint)["step"]


def misfit(error: RuntimeError) -> str:
    """What ``load_state_dict`` found first, of all that its error lists below a heading."""
    return str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)


def save_weights(folder: Path, name: str, weights: Mapping[str, torch.Tensor]) -> None:
    """Write ``folder/name.safetensors``, for :func:`load_weights` to read."""
    with atomic_file(folder / f"{name}.safetensors") as temporary:
        _write(temporary, weights)


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Not by safetensors' own ``save_file``, whose error for a full disk is no OSError."""
    path.write_bytes(packed({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))


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
    """Step and optimiser state of a checkpoint. Raises DataError as :func:`state_of` and :func:`load_weights` do."""
    state = state_of(checkpoint)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_weights(checkpoint, "optimizer").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    return state["step"], {"state": moments, "param_groups": state["param_groups"]}
