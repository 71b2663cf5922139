"""Noise schedules and samplers as plain NumPy arithmetic, configured by diffusers' own ``scheduler_config.json``.

A sampler is a table. Whatever the method, one step turns the sample x, the network's output m, earlier estimates of the
clean sample and fresh noise z into the next sample by a linear combination whose coefficients depend on the step alone, so
all of them are computed once, in float64, when the :class:`Plan` is built. What is left for the loop is a handful of
in-place array operations::

    run = plan(load_config(path), num_steps=20, scheduler="dpmsolver++")
    sample = run.start(noise)                                   # (B, ...) float32, overwritten in place from here on
    history = run.new_history(sample.shape)                     # the only state, owned by the caller
    for k, t in enumerate(run.timesteps):
        z = fresh_noise() if run.needs_noise[k] else None
        estimate = run.step(k, network(sample, t), sample, z, history)

``config.py`` says which options are read and which are refused, ``noise.py`` holds the schedules, ``steps.py`` the arithmetic
of one step. The methods: ``samplers.py`` those of the discrete chain, ``multistep.py`` those in log-SNR, ``karras.py`` those in
sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import BundleError
from . import karras, multistep, noise, samplers
from .config import (
    DDIMOptions,
    DDPMOptions,
    DPMSolverOptions,
    EulerAncestralOptions,
    EulerOptions,
    HeunOptions,
    LCMOptions,
    Options,
    UniPCOptions,
    load_config,
    read_options,
)
from .steps import Plan

__all__ = ["SCHEDULERS", "Plan", "Scheduler", "load_config", "plan", "schedule"]

# No useful schedule comes near: 1 / sqrt(alphas_cumprod) is 2e4 at the end of squaredcos_cap_v2.
_LARGEST_COEFFICIENT = 1e12


class Scheduler(NamedTuple):
    """One sampling method: diffusers' class, the options it reads, how its table is built, its customary steps."""

    class_name: str
    options: type[Options]
    build: Callable[[Any, int, float], Plan]
    default_steps: int | None  # None: every training timestep


SCHEDULERS: dict[str, Scheduler] = {
    "ddpm": Scheduler("DDPMScheduler", DDPMOptions, samplers.ddpm, None),
    "ddim": Scheduler("DDIMScheduler", DDIMOptions, samplers.ddim, 50),
    "dpmsolver++": Scheduler("DPMSolverMultistepScheduler", DPMSolverOptions, multistep.dpmsolver_pp, 20),
    "sde-dpmsolver++": Scheduler("DPMSolverMultistepScheduler", DPMSolverOptions, multistep.sde_dpmsolver_pp, 20),
    "unipc": Scheduler("UniPCMultistepScheduler", UniPCOptions, multistep.unipc, 20),
    "euler": Scheduler("EulerDiscreteScheduler", EulerOptions, karras.euler, 30),
    "euler-ancestral": Scheduler("EulerAncestralDiscreteScheduler", EulerAncestralOptions, karras.euler_ancestral, 30),
    "heun": Scheduler("HeunDiscreteScheduler", HeunOptions, karras.heun, 20),
    "lcm": Scheduler("LCMScheduler", LCMOptions, samplers.lcm, 4),
}


def schedule(config: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The noise schedule of a ``scheduler_config.json``: betas and alphas_cumprod, (num_train_timesteps,) float64 each.

    Raises ``BundleError``, naming the option, for whatever is missing, malformed or not supported.
    """
    entry = next((entry for entry in SCHEDULERS.values() if entry.class_name == config.get("_class_name")), SCHEDULERS["ddpm"])
    options = read_options(entry.options, config, foreign=config.get("_class_name") != entry.class_name)
    signal = noise.alphas_cumprod(options, getattr(options, "rescale_betas_zero_snr", False))
    return 1.0 - signal / np.append(1.0, signal[:-1]), signal


def plan(config: Mapping[str, Any], num_steps: int | None = None, scheduler: str | None = None, eta: float = 0.0) -> Plan:
    """Build the table of one sampling run; it may be shared by any number of threads.

    ``config`` is diffusers' ``scheduler_config.json`` (see :func:`load_config`). ``num_steps`` is diffusers'
    ``num_inference_steps``; None takes the method's customary number (``Scheduler.default_steps``). The network is evaluated
    ``plan.num_steps`` = ``len(plan.timesteps)`` times, which is the same but for heun, 2 num_steps - 1, and for
    ``lambda_min_clipped``, which may leave fewer.
    ``scheduler`` is a word of ``SCHEDULERS``; it overrides the config's ``_class_name`` and keeps every option that the
    new class knows, as diffusers' ``from_config`` does. dpmsolver++ and sde-dpmsolver++ are one class of diffusers; where
    neither is named, the config's ``algorithm_type`` decides. ``eta`` in [0, 1] is DDIM's share of fresh noise.

    Raises ``BundleError``, naming the option, for whatever is missing, malformed or not supported.
    """
    class_name = config.get("_class_name")
    if scheduler is None:
        words = [word for word, entry in SCHEDULERS.items() if entry.class_name == class_name]
        if not words:
            known = ", ".join(dict.fromkeys(entry.class_name for entry in SCHEDULERS.values()))
            raise BundleError(
                f"scheduler config: _class_name {class_name!r} is not supported; "
                f"expected one of {known}, or name a scheduler: {', '.join(SCHEDULERS)}"
            )
        word = next((word for word in words if word == config.get("algorithm_type")), words[0])
    elif scheduler in SCHEDULERS:
        word = scheduler
    else:
        raise BundleError(f"unknown scheduler {scheduler!r}; choose one of {', '.join(SCHEDULERS)}")

    entry = SCHEDULERS[word]
    options = read_options(entry.options, config, foreign=class_name != entry.class_name)
    most = getattr(options, options.most_steps)
    if num_steps is None:
        num_steps = min(entry.default_steps or most, most)
    if not isinstance(num_steps, (int, np.integer)) or not 1 <= num_steps <= most:
        raise BundleError(f"num_steps is {num_steps!r}; expected a whole number from 1 to {options.most_steps} = {most}")
    if not 0.0 <= eta <= 1.0:
        raise BundleError(f"eta is {eta!r}; expected a number from 0 (deterministic) to 1 (as much noise as DDPM)")
    if eta and word != "ddim":
        raise BundleError(f"eta is {eta!r}, but only the scheduler ddim has an eta; leave it at 0 for {word}")
    with np.errstate(all="ignore"):  # a degenerate schedule is reported below, in words
        built = entry.build(options, int(num_steps), float(eta))
    if not np.all(np.abs(built.table.view(np.float64)) < _LARGEST_COEFFICIENT):
        raise BundleError(
            f"scheduler config: the noise schedule (beta_schedule, beta_start, beta_end, trained_betas) is too steep or too flat "
            f"for {num_steps} steps of {word}: a step's coefficients are not finite"
        )
    return built
