"""How long a training step takes here, so that a sweep can give every run the same time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel

from runtime.condition import Condition

from . import networks, optimizers, tasks
from .networks.surrogate import Surrogate
from .objective import objective
from .recipes import Recipe
from .sample_batches import batches

WARM, TIMED = 3, 10


@contextlib.contextmanager
def own_precision() -> Iterator[None]:
    """accelerate keeps the first precision of a process for good; what is trained inside has its own and leaves none behind."""
    AcceleratorState._reset_state(True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(True)


@own_precision()
def seconds_per_step(recipe: Recipe, training: tasks.Data) -> float:
    """The median time of a step of :func:`train.loop.train` on the training part, measured on throw-away weights."""
    recipe = tasks.fitted(recipe, training)
    accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(recipe.precision, recipe.precision))
    condition = tasks.measure(recipe, training)
    parts, goal = batches(training, condition, recipe), objective(recipe)
    network = networks.build(recipe.network, recipe.network_arguments)
    if isinstance(network, Surrogate):
        assert isinstance(condition, Condition)
        network.measure(condition)
    ema = EMAModel(network.parameters(), decay=recipe.ema_decay)
    model, optimizer = accelerator.prepare(network, optimizers.build(recipe, network))
    ema.to(accelerator.device)
    times = []
    for step in range(WARM + TIMED):
        started = time.perf_counter()
        batch = {key: torch.from_numpy(np.ascontiguousarray(a)).to(accelerator.device) for key, a in parts.training(step).items()}
        with accelerator.autocast():
            loss = goal(model, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), recipe.gradient_clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(network.parameters())
        loss.item()  # waits for a GPU
        times.append(time.perf_counter() - started)
    return float(np.median(times[WARM:]))
