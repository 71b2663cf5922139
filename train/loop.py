"""The training loop: one for every recipe, on one CPU or many GPUs through accelerate.

A step depends on the weights, the optimiser's state and its own number alone (see ``batches``), so a run that was
killed and resumed ends byte-identical to one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from runtime.data import load
from runtime.files import write_json

from . import checkpoint, networks, optimizers
from .batches import Batches
from .log import Log
from .networks.surrogate import Surrogate
from .objective import Denoising, Scattering, objective
from .recipes import Recipe
from .run import Run, fitted, open_run

__all__ = ["fitted", "learning_rate", "open_run", "train"]


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
    samples = load(data, convention, extra=recipe.channels)
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
    optimizer = optimizers.build(recipe, network)
    step = 0
    ema = EMAModel(network.parameters(), decay=recipe.ema_decay, use_ema_warmup=True, power=0.75)
    if resume and checkpoint.found(out):
        step = _restore(checkpoint.latest(out), network, ema, optimizer)
    model, optimizer = accelerator.prepare(network, optimizer)
    ema.to(accelerator.device)
    total = recipe.epochs * batches.per_epoch
    last = total if stop_after is None else min(total, step + stop_after)
    log = Log(out, step, accelerator.is_main_process)
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


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """Linear warm-up, then constant or a cosine down to a hundredth of the peak."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    if recipe.lr_schedule == "constant":
        return recipe.lr * warm
    return recipe.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))


def batches_of(run: Run, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The fixed validation batch on the accelerator's device."""
    return _to_device(Batches(run.data.take(run.validation), run.condition, run.recipe).validation(), accelerator)


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
