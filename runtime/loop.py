"""The denoising loop of one batch: noise -> steps -> samples, in any engine, for one condition or for several at once.

Classifier-free guidance follows diffusers' convention: ``unconditional + guidance_scale * (conditional - unconditional)``. The paper
(Ho & Salimans, arXiv 2207.12598) writes (1 + w) conditional - w unconditional, so guidance_scale = 1 + w and 1 is no guidance.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .backends import Network
from .errors import BackendError
from .inpaint import Known, jump_back
from .schedulers import Plan

Arrays = Mapping[str, np.ndarray]


class Guidance(NamedTuple):
    """How strongly the condition is followed, and at which noise levels.

    ``interval``: guidance acts where lowest <= sigma <= highest, sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod), and the network
    is followed as it is elsewhere, at half the cost (Kynkäänniemi et al., arXiv 2404.07724).
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, math.inf)


class NotFinite(BackendError):
    """A network returned numbers that are not finite."""


def denoise(
    network: Network,
    plan: Plan,
    shape: tuple[int, ...],
    conditional: Arrays,
    unconditional: Arrays | None,
    guidance: Guidance,
    seed: int | Sequence[int],
    candidates: Sequence[int],
    step_done: Callable[[int, np.ndarray], None],
    clean: np.ndarray | None = None,
    noised: bool = False,
    known: Known | None = None,
) -> np.ndarray:
    """The samples (len(candidates), *shape) float32 of some candidates of a run, or of several runs that share the calls of the network.

    Args:
        shape: (channels, height, width) of a sample.
        conditional: what the network sees beside sample and timestep: a batch of 1 for all candidates, or a row for each.
        unconditional: the same with nothing asked for; None does without guidance.
        seed, candidates: each candidate has a counter-based generator of its own, Philox with the key (seed, candidate), so its noise
            depends on nobody who shares the batch. One seed for all candidates, or one for each.
        step_done: called with (k, estimate of the clean samples) after the k-th step taken, and with -1 before the first. What it raises
            stops the loop and reaches the caller.
        clean: a finished sample, of ``shape`` or one for each candidate, to begin from under the noise of the plan's first timestep; None
            begins with noise alone.
        noised: ``clean`` holds noise of that level already, x + sigma z, and no more is added.
        known: what every candidate is held to; its steps are then those of :meth:`Known.steps`, some of them repeated.

    Raises:
        BackendError: the engine failed, or returned numbers that are not finite.
    """
    count = len(candidates)
    seeds = [seed] * count if isinstance(seed, int) else seed
    generators = [np.random.Generator(np.random.Philox(key=list(key))) for key in zip(seeds, candidates, strict=True)]
    noise = np.empty((count, *shape), np.float32)

    def draw() -> np.ndarray:
        for row, generator in zip(noise, generators, strict=True):
            generator.standard_normal(out=row, dtype=np.float32)
        return noise

    low, high = guidance.interval
    guided = (low <= plan.sigmas) & (plan.sigmas <= high) if unconditional is not None else np.zeros(plan.num_steps, bool)
    sample = plan.start(draw().copy()) if clean is None else plan.noised(clean, np.zeros_like(noise) if noised else draw())
    history = plan.new_history(sample.shape)
    order = range(plan.num_steps) if known is None else known.steps(plan)
    alone = None if known is None else plan.first_order()
    with contextlib.ExitStack() as stack:
        if not guided.all():
            single = stack.enter_context(network.bind(conditional, count))
        if guided.any():
            assert unconditional is not None
            both = {
                key: np.concatenate([np.broadcast_to(part, (count, *part.shape[1:])) for part in (unconditional[key], value)])
                for key, value in conditional.items()
            }
            double = stack.enter_context(network.bind(both, 2 * count))
            doubled, mixed = np.empty((2, count, *shape), np.float32), np.empty_like(sample)
        timesteps = np.empty(2 * count, np.int64)
        step_done(-1, sample)
        for i, k in enumerate(order):
            table = plan
            if known is not None:
                if i and order[i - 1] == k:
                    assert alone is not None
                    table = alone
                    jump_back(sample, plan.sigmas[k + 1], plan.sigmas[k], draw())
                known.hold(sample, plan.sigmas[k], draw())
            timesteps.fill(plan.timesteps[k])
            if guided[k]:
                doubled[:] = sample
                output = double({"sample": doubled.reshape(2 * count, *shape), "timestep": timesteps})["output"]
                np.subtract(output[count:], output[:count], out=mixed)
                mixed *= guidance.scale
                mixed += output[:count]
                output = mixed
            else:
                output = single({"sample": sample, "timestep": timesteps[:count]})["output"]
            estimate = table.step(k, output, sample, draw() if plan.needs_noise[k] else None, history)
            if known is not None:
                known.settle(estimate)
            step_done(i, estimate)
    if known is not None:
        known.settle(sample)
    require_finite(sample, network)
    return sample


def require_finite(values: np.ndarray, network: Network) -> None:
    """Raises NotFinite where ``values``, which a network made, are not all finite."""
    if not np.isfinite(values).all():
        raise NotFinite(f"the network returned numbers that are not finite on {network.device}; run 'metascatter doctor'")
