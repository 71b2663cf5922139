"""One process of several that train together: what device it has, which part of a batch is its own, and what all have to agree on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sized

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from runtime.errors import BackendError, DataError

from .recipes import Recipe


def accelerator(recipe: Recipe) -> Accelerator:
    """accelerate's view of this process and its fellows.

    Raises:
        BackendError: the recipe's precision needs a GPU.
        DataError: there are more processes than samples in a batch.
    """
    if recipe.precision == "fp16" and not torch.cuda.is_available():
        raise BackendError("the precision fp16 needs an NVIDIA GPU, which was not found; train with the precision bf16 or fp32")
    # accelerate keeps the precision of the first run of a process for all others.
    AcceleratorState._reset_state()
    # Buffers are the same constants in every process. Sending them around would also touch them between two passes of one step.
    # torch has a new name for that, which accelerate does not pass on.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    same_buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
    found = Accelerator(
        mixed_precision={"fp32": "no"}.get(recipe.precision, recipe.precision),
        cpu=not torch.cuda.is_available(),  # without a GPU it has to be told, or processes would not find each other
        kwargs_handlers=[same_buffers],
    )
    if recipe.batch_size < found.num_processes:
        raise DataError(
            f"a batch of {recipe.batch_size} cannot be shared by {found.num_processes} processes; raise --batch-size or start fewer"
        )
    return found


def rows(batch: Mapping[str, Sized]) -> int:
    """How many samples a batch holds."""
    return len(next(iter(batch.values())))


def share(count: int, accelerator: Accelerator) -> tuple[int, int, float]:
    """This process's part of a global batch of ``count`` rows, from one row to before another, and the factor of its loss.

    Gradients are averaged over processes, so a part's loss counts by how much larger than the average part it is: the mean over
    processes is then the mean over the global batch, whether or not the batch can be divided evenly.
    """
    processes, index = accelerator.num_processes, accelerator.process_index
    start, end = count * index // processes, count * (index + 1) // processes
    return start, end, processes * (end - start) / count


def agree(loss: torch.Tensor, asked: bool, accelerator: Accelerator) -> tuple[float, bool]:
    """The loss of the global batch, and whether any process was asked to stop: all have to at the same step."""
    if accelerator.num_processes == 1:
        return loss.item(), asked
    value, stop = accelerator.reduce(torch.stack([loss.detach().float(), torch.tensor(float(asked), device=loss.device)]), "mean").tolist()
    return value, stop > 0


def step_seed(seed: int, step: int, process: int) -> int:
    """A seed for what the network draws in a step, different in each process."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0])


def to_device(batch: dict[str, np.ndarray], accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """A batch as tensors on this process's device."""
    return {key: torch.from_numpy(np.ascontiguousarray(value)).to(accelerator.device) for key, value in batch.items()}
