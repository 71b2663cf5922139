"""The training loop: one for every recipe, on one CPU or many GPUs through accelerate.

A step depends on the weights, the optimiser's state and its own number alone (see ``batches``), so a run that was
killed and resumed ends byte-identical to one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from runtime.condition import Condition
from runtime.data import DataSet, load
from runtime.errors import DataError
from runtime.files import write_json, write_npz
from runtime.version import __version__

from . import checkpoint, networks
from .batches import Batches, split
from .networks.surrogate import Surrogate
from .objective import Denoising, Scattering, objective
from .pictures import loss_curve
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
    for name, value in (("size", n), ("orders", side // 2)):
        stated = recipe.network_arguments.get(name, value)
        if stated != value:
            raise DataError(f"the recipe's network has {name} {stated} and the data have {value}; leave '{name}' out of network_arguments")
    return dataclasses.replace(recipe, network_arguments={**recipe.network_arguments, "size": n, "orders": side // 2})


def open_run(path: Path, recipe: Recipe, source: Path, data: DataSet, resume: bool, init: Path | None = None) -> Run:
    """Prepare a new run folder, or take up an old one whose recipe and data must be the same. ``init`` is the run it starts from.

    Raises:
        DataError: the folder already holds a run and ``resume`` was not asked for, or its recipe differs.
    """
    training, validation = split(data, recipe.validation_fraction)
    part = data.take(training)
    condition = Condition.measure(recipe.layout, part.Rm, part.Tm, part.h, recipe.canvas)
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
        },
    )
    pick = np.concatenate([training[: CALIBRATION[0]], validation[: CALIBRATION[1]]])
    write_npz(path / "calibration.npz", **data.take(pick).arrays(), test=np.isin(pick, validation))
    write_json(path / "machine.json", machine())
    write_json(path / "recipe.json", recipe.to_dict())
    return Run(path, recipe, condition, data, training, validation)


def train(
    data: str | Path,
    out: Path,
    recipe: Recipe,
    *,
    convention: str = "lab",
    resume: bool = False,
    init: Path | None = None,
    checkpoint_every: int = 500,
    progress: bool = True,
    stop_after: int | None = None,
) -> Path:
    """Train ``recipe`` on ``data`` into the folder ``out`` and return the last checkpoint.

    Args:
        data: an ``.npz``, a folder of shards, or the lab's folder of ``.mat`` files in ``convention``.
        resume: go on from the last checkpoint of ``out``; a fresh run where there is none yet.
        init: another run whose EMA weights to start from.
        checkpoint_every: steps between checkpoints (one is also written at the end).
        stop_after: end after this many steps with a checkpoint, as a kill would between two of them.

    Raises:
        DataError: unusable data, or an ``out`` that holds another run.
    """
    samples = load(data, convention)
    recipe = fitted(recipe, samples)
    run = open_run(out, recipe, Path(data), samples, resume, init)
    accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(recipe.precision, recipe.precision))
    torch.manual_seed(recipe.seed)
    batches = Batches(run.data.take(run.training), run.condition, recipe)
    network = networks.build(recipe.network, recipe.network_arguments)
    if isinstance(network, Surrogate):
        network.measure(run.condition)
    goal = objective(recipe)
    if isinstance(goal, Denoising):
        config = dict(goal.scheduler.config)
        # diffusers keeps this in a set, whose order changes from process to process.
        write_json(out / "scheduler_config.json", {**config, "_use_default_values": sorted(config.get("_use_default_values", []))})
    if init is not None:
        network.load_state_dict(checkpoint.load_weights(checkpoint.latest(init)))
    optimizer = _optimizer(recipe, network)
    step = 0
    ema = EMAModel(network.parameters(), decay=recipe.ema_decay, use_ema_warmup=True, power=0.75)
    if resume and checkpoint.found(out):
        step = _restore(checkpoint.latest(out), network, ema, optimizer)
    model, optimizer = accelerator.prepare(network, optimizer)
    ema.to(accelerator.device)
    total = recipe.epochs * batches.per_epoch
    last = total if stop_after is None else min(total, step + stop_after)
    log = _Log(out, step, accelerator.is_main_process)
    held = batches_of(run, accelerator)

    def save() -> None:
        if accelerator.is_main_process:
            state = network.state_dict()
            shadow = dict(zip((n for n, _ in network.named_parameters()), ema.shadow_params, strict=True))
            checkpoint.save(out, step, state, {**state, **shadow}, optimizer.state_dict())

    bar = tqdm(total=total, initial=step, unit="step", desc=recipe.name, disable=None if progress and accelerator.is_main_process else True)
    with bar:
        while step < last:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step, total)
            batch = _to_device(_share(batches.training(step), accelerator), accelerator)
            with accelerator.autocast():
                loss = goal(model, batch)
            accelerator.backward(loss)
            if recipe.gradient_clip > 0:
                accelerator.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.step(network.parameters())
            step += 1
            bar.update()
            mean = log.add(accelerator.reduce(loss.detach(), "mean").item())
            if step % batches.per_epoch == 0 or step == total:
                validation = _validate(network, ema, goal, held, accelerator)
                log.write(step, step / batches.per_epoch, mean, validation, learning_rate(recipe, step - 1, total))
                bar.set_postfix(loss=f"{mean:.4f}", val=f"{validation:.4f}")
            if step % checkpoint_every == 0 or step == last:
                save()
    log.close()
    return checkpoint.latest(out)


def machine() -> dict[str, Any]:
    """What the run trains on, for the model card."""
    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(0), "threads": torch.get_num_threads()}
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return {"device": names[0] if names else platform.processor() or "an unknown processor", "threads": torch.get_num_threads()}


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """Linear warm-up, then constant or a cosine down to a hundredth of the peak."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    if recipe.lr_schedule == "constant":
        return recipe.lr * warm
    return recipe.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))


def batches_of(run: Run, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The fixed validation batch on the accelerator's device."""
    return _to_device(Batches(run.data.take(run.validation), run.condition, run.recipe).validation(), accelerator)


def _optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    kind: Callable[..., torch.optim.Optimizer] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(network.parameters(), lr=recipe.lr)


def _restore(path: Path, network: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer) -> int:
    network.load_state_dict(checkpoint.load_weights(path, "model"))
    weights = checkpoint.load_weights(path, "ema")
    ema.shadow_params = [weights[name].clone() for name, _ in network.named_parameters()]
    step, state = checkpoint.load_optimizer(path)
    optimizer.load_state_dict(state)
    ema.optimization_step = step
    return step


def _rows(batch: Mapping[str, Sized]) -> int:
    return len(next(iter(batch.values())))


def _share(batch: dict[str, np.ndarray], accelerator: Accelerator) -> dict[str, np.ndarray]:
    """This process's equal part of a global batch."""
    if accelerator.num_processes == 1:
        return batch
    each = _rows(batch) // accelerator.num_processes
    start = accelerator.process_index * each
    return {key: value[start : start + each] for key, value in batch.items()}


def _to_device(batch: dict[str, np.ndarray], accelerator: Accelerator) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.ascontiguousarray(value)).to(accelerator.device) for key, value in batch.items()}


@torch.no_grad()
def _validate(
    network: nn.Module, ema: EMAModel, goal: Denoising | Scattering, batch: dict[str, torch.Tensor], accelerator: Accelerator
) -> float:
    """Loss of the EMA weights on the fixed validation batch."""
    network.eval()
    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    total, count = 0.0, _rows(batch)
    for start in range(0, count, 256):
        part = {key: value[start : start + 256] for key, value in batch.items()}
        total += goal(network, part).item() * _rows(part)
    ema.restore(network.parameters())
    network.train()
    return total / count


class _Log:
    """``metrics.jsonl``, its picture, and TensorBoard's event files; rows after the step we resume from are dropped."""

    def __init__(self, out: Path, step: int, main: bool) -> None:
        self.out, self.main = out, main
        self.path = out / "metrics.jsonl"
        self.sum, self.count, self.started = 0.0, 0, time.time()
        self.board: Any = None
        if main:
            rows = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")] if self.path.exists() else []
            rows = [row for row in rows if row["step"] <= step]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.replace(temporary, self.path)
            self.before = rows[-1]["seconds"] if rows else 0.0
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def add(self, loss: float) -> float:
        """Take in one step's loss and return the mean since the last row."""
        self.sum, self.count = self.sum + loss, self.count + 1
        return self.sum / self.count

    def write(self, step: int, epoch: float, loss: float, validation: float, lr: float) -> None:
        self.sum, self.count = 0.0, 0
        if not self.main:
            return
        if not math.isfinite(loss):
            raise DataError(f"the loss is {loss} at step {step}; lower --lr, or look for damaged samples")
        row = {
            "step": step,
            "epoch": epoch,
            "loss": loss,
            "validation_loss": validation,
            "lr": lr,
            "seconds": round(self.before + time.time() - self.started, 1),
            "version": __version__,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name in ("loss", "validation_loss", "lr"):
            self.board.add_scalar(name, row[name], step)
        loss_curve(self.path, self.out / "loss.png")

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
