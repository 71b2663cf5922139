"""The training loop: one for every recipe, on one CPU or many GPUs through accelerate.

A step depends on the weights, the optimiser's state and its own number alone (see ``batches``), so a run that was
killed and resumed ends byte-identical to one that was not. Several processes share each batch, and their losses and
gradients are those of one process with the whole of it:

    torchrun --nproc_per_node 4 cli.py train --data data.npz --out runs/first
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from runtime.condition import Condition
from runtime.errors import BackendError, Cancelled, DataError
from runtime.files import write_json
from runtime.schedulers import plan

from . import checkpoint, networks, optimizers, processes, samples, tasks
from .distillation import Distillation
from .finetune import load_into, taught, teacher_weights
from .interrupt import Interrupts
from .log import Log
from .networks.surrogate import Surrogate
from .objective import Denoising, Restoration, Scattering, objective
from .recipes import Recipe
from .run import Run, hold, open_run
from .sample_batches import batches


def train(
    data: str | Path,
    out: Path,
    recipe: Recipe,
    *,
    convention: str = "lab",
    resume: bool = False,
    init: Path | None = None,
    mix: str | Path | None = None,
    checkpoint_every: int = 500,
    keep: int = 2,
    pictures_every: int = 10,
    progress: bool = True,
    stop_after: int | None = None,
) -> Path:
    """Train ``recipe`` on ``data`` into the folder ``out`` and return the last checkpoint.

    Args:
        data: an ``.npz``, a folder of shards, or the lab's folder of ``.mat`` files in ``convention``.
        resume: go on from the last checkpoint of ``out``; a fresh run where there is none yet.
        init: another run whose EMA weights, condition constants and geometry to start from.
        mix: a second data set, of which every batch takes the recipe's ``mix_share``, so that fine-tuning does not forget it.
        checkpoint_every: steps between checkpoints (one is also written at the end).
        keep: how many checkpoints stay.
        pictures_every: epochs between pictures of samples; 0 for none. Epoch 50, the seed paper's, and the last have one as well, and
            of a network that denoises in one step 1 and 5.
        progress: a bar on a terminal's stderr; on another a line an epoch, to ``logging``.
        stop_after: end after this many steps with a checkpoint, as a kill would between two of them.

    Raises:
        DataError: unusable data, or an ``out`` that holds another run or where another training is at work.
        BackendError: this computer cannot compute as the recipe asks.
        Cancelled: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    samples_in = tasks.load(data, recipe, convention)
    mixed = None if mix is None else tasks.load(mix, recipe, convention)
    recipe = tasks.fitted(recipe, samples_in)
    goal = objective(recipe)
    if recipe.scheduled:
        plan(recipe.scheduler, recipe.sampling_steps, recipe.sampling_scheduler)  # what a bundle would refuse is refused before the work
    accelerator = processes.accelerator(recipe)
    run = open_run(out, recipe, Path(data), samples_in, resume, init, mixed, None if mix is None else Path(mix))
    mixed_in = None if run.mix is None else run.mix.take(run.mix_training)
    parts = batches(run.data.take(run.training), run.condition, recipe, mixed_in)
    torch.manual_seed(recipe.seed)
    network = _network(run)
    if init is not None:
        load_into(network, init)
    if isinstance(goal, Distillation):
        # The teacher stays with the run: resuming must not depend on what became of the run it came from.
        goal.teacher = _network(run, teacher=True).eval().requires_grad_(False).to(accelerator.device)
        goal.teacher.load_state_dict(checkpoint.load_weights(out, "teacher") if init is None else teacher_weights(init))
    optimizer = optimizers.build(recipe, network)
    ema = EMAModel(network.parameters(), decay=recipe.ema_decay, use_ema_warmup=True, power=0.75)
    step, state = 0, dict[str, Any]()
    if resume and checkpoint.found(out):
        step, state = _restore(checkpoint.latest(out), network, ema, optimizer, accelerator)
    # Everything was read; now the main process may write.
    accelerator.wait_for_everyone()
    held_run = hold(out, accelerator)
    if accelerator.is_main_process:
        run.write(accelerator.num_processes)
        if isinstance(goal, Denoising):
            config = dict(goal.scheduler.config)
            further = {key: value for key, value in recipe.scheduler.items() if key not in config}
            # diffusers keeps this in a set, whose order changes from process to process.
            defaults = sorted(config.get("_use_default_values", []))
            write_json(out / "scheduler_config.json", {**config, "_use_default_values": defaults, **further})
        if isinstance(goal, Distillation):
            checkpoint.save_weights(out, "teacher", goal.teacher.state_dict())
    model, optimizer = accelerator.prepare(network, optimizer)
    if recipe.compile:
        model = torch.compile(model)
    ema.to(accelerator.device)
    start, end, weight = processes.share(recipe.batch_size, accelerator)
    total = recipe.epochs * parts.per_epoch
    last = total if stop_after is None else min(total, step + stop_after)
    held = held_out(run, accelerator)
    visible = progress and accelerator.is_main_process
    bar = tqdm(total=total, initial=step, unit="step", desc=recipe.name, disable=None if visible else True)
    log = Log(out, step, total, recipe.epochs, accelerator.is_main_process, visible and bar.disable, state.get("log", {}))

    def save() -> None:
        if accelerator.is_main_process:
            weights = network.state_dict()
            shadow = dict(zip((n for n, _ in network.named_parameters()), ema.shadow_params, strict=True))
            more = {"log": log.state(), **({} if accelerator.scaler is None else {"scaler": accelerator.scaler.state_dict()})}
            checkpoint.save(out, step, weights, {**weights, **shadow}, optimizer.state_dict(), keep, more)

    with held_run, contextlib.closing(log), bar, _compiling(recipe), ThreadPoolExecutor(1) as ahead, Interrupts() as interrupts:
        following = ahead.submit(parts.training, step, start, end)
        while step < last:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step, total)
            batch = following.result()
            if step + 1 < last:  # put together while this one is worked on
                following = ahead.submit(parts.training, step + 1, start, end)
            # Whatever the network draws depends on the step alone, like all the rest.
            torch.manual_seed(processes.step_seed(recipe.seed, step, accelerator.process_index))
            with accelerator.autocast():
                loss = goal(model, processes.to_device(batch, accelerator))
            if weight != 1:
                loss = loss * weight
            accelerator.backward(loss)
            if recipe.gradient_clip > 0:
                accelerator.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.step(network.parameters())
            step += 1
            bar.update()
            value, stop = processes.agree(loss, interrupts.asked, accelerator)
            mean = log.add(value)
            if not math.isfinite(mean):
                raise DataError(f"the loss is {mean} at step {step}; lower --lr, or look for damaged samples")
            if step % parts.per_epoch == 0 or step == total:
                epoch = step / parts.per_epoch
                with _averaged(network, ema):
                    losses = {name: _validate(network, goal, part) for name, part in held.items()}
                    if accelerator.is_main_process and _pictured(
                        epoch, recipe.epochs, pictures_every, samples.EARLY.get(recipe.objective, ())
                    ):
                        samples.picture(out / "samples" / f"epoch-{round(epoch):03d}.png", epoch, run, network, accelerator.device)
                log.write(step, epoch, mean, losses, learning_rate(recipe, step - 1, total))
                bar.set_postfix(loss=f"{mean:.4f}", val=f"{losses['validation_loss']:.4f}")
            if step % checkpoint_every == 0 or step == last or stop:
                save()
            if stop and step < last:
                kept = checkpoint.path_of(out, step)
                raise Cancelled(f"interrupted after {step} of {total} steps, kept in {kept}; the same command with --resume goes on")
    # The others must not leave, or look for the checkpoint, before the main process has written it.
    accelerator.wait_for_everyone()
    return checkpoint.latest(out)


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """Linear warm-up, then constant or a cosine down to a hundredth of the peak."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    if recipe.lr_schedule == "constant":
        return recipe.lr * warm
    return recipe.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))


def held_out(run: Run, accelerator: Accelerator) -> dict[str, dict[str, torch.Tensor]]:
    """The fixed validation batches on the accelerator's device, by the name of their loss."""
    parts: dict[str, tasks.Data] = {"validation_loss": run.data.take(run.validation)}
    if run.mix is not None:
        parts["validation_loss_mix"] = run.mix.take(run.mix_validation)
    return {name: processes.to_device(batches(part, run.condition, run.recipe).validation(), accelerator) for name, part in parts.items()}


def _network(run: Run, teacher: bool = False) -> nn.Module:
    """The recipe's network, or its teacher's, freshly initialised.

    Raises:
        DataError: it cannot be made with these arguments, or is for another objective or layout.
    """
    recipe = run.recipe
    try:
        network = networks.build(recipe.network, taught(recipe.network_arguments) if teacher else recipe.network_arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise DataError(f"the network '{recipe.network}' cannot be made with the recipe's network_arguments ({error})") from None
    given = tasks.inputs(recipe)
    taken = list(inspect.signature(network.forward).parameters)
    if taken != given:
        raise DataError(
            f"the network '{recipe.network}' takes {', '.join(taken)}, and the objective '{recipe.objective}' with the layout "
            f"'{recipe.layout}' gives {', '.join(given)}; change one of the three"
        )
    if isinstance(network, Surrogate):
        assert isinstance(run.condition, Condition)
        network.measure(run.condition)
    return network


def _restore(
    path: Path, network: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[int, dict[str, Any]]:
    network.load_state_dict(checkpoint.load_weights(path, "model"))
    weights = checkpoint.load_weights(path, "ema")
    ema.shadow_params = [weights[name].clone() for name, _ in network.named_parameters()]
    step, moments = checkpoint.load_optimizer(path)
    if not moments["param_groups"]:
        raise DataError(
            f"{path} was unpacked from a bundle, which holds no optimiser's state; start from it with --init in place of --resume"
        )
    optimizer.load_state_dict(moments)
    ema.optimization_step = step
    state = checkpoint.state_of(path)
    if accelerator.scaler is not None and "scaler" in state:
        accelerator.scaler.load_state_dict(state["scaler"])
    return step, state


def _pictured(epoch: float, epochs: int, every: int, early: Sequence[int] = ()) -> bool:
    return every > 0 and (epoch % every == 0 or epoch in (50, epochs, *early))


@contextlib.contextmanager
def _compiling(recipe: Recipe) -> Iterator[None]:
    """What torch.compile lacks, in one sentence."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackendError(f"torch.compile failed ({reason}); install a C++ compiler, or set 'compile' to false") from None


@contextlib.contextmanager
def _averaged(network: nn.Module, ema: EMAModel) -> Iterator[None]:
    """The network with its EMA weights, evaluating; afterwards as it was."""
    network.eval()
    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    try:
        yield
    finally:
        ema.restore(network.parameters())
        network.train()


@torch.no_grad()
def _validate(network: nn.Module, goal: Denoising | Restoration | Scattering, batch: dict[str, torch.Tensor]) -> float:
    """Mean loss of a fixed batch."""
    total, count = 0.0, processes.rows(batch)
    for start in range(0, count, 256):
        part = {key: value[start : start + 256] for key, value in batch.items()}
        total += goal(network, part).item() * processes.rows(part)
    return total / count
