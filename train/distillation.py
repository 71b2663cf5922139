"""Few-step models: the guided sampling path of a trained model, learnt in a few calls, each of which goes a whole part of it.

Progressive distillation (Salimans & Ho, arXiv 2202.00512) of a guided teacher (Meng et al., arXiv 2210.03142), in one stage in place of
many: the path from noise to pattern is cut into as many parts as the student has calls. Each begins where the student itself arrived, the
first at noise, as it will when it samples. From there the teacher goes down with DPM-Solver++ of second order (arXiv 2211.01095),
classifier-free guidance included, and the student's one step over the part should arrive where it did. So the student needs neither many
steps nor the second network call of guidance. It stays a deterministic path: a jump from noise straight to a pattern has to say the mean
of all patterns it may become, and they are many here, since every cyclic shift of a pattern scatters alike.

What a pattern becomes is decided early, amid much noise, so the parts may be made to grow towards the clean sample (see
``networks.unrolled.descent``). The estimates are not clipped on the way, as with the sampler dpmsolver++; what arrives at the clean
sample is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from runtime.schedulers import plan

from .networks.unrolled import ARGUMENT, angles, descent, power
from .objective import Denoising
from .recipes import Recipe


class Distillation(Denoising):
    """How far one call arrives from where the teacher does, as an error of the network's own kind of prediction.

    Args:
        recipe: of the student.
    """

    teacher: nn.Module

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe.scheduler, recipe.loss)
        self.guidance_scale = recipe.guidance_scale
        # Angles of the teacher's levels, as of ``networks.unrolled``; that of timestep t stands at t + 1, and at 0 the clean sample's.
        self.angles = angles(taught_schedule(recipe)).tolist()
        # The teacher's timesteps in each part of the path with those it ends at, and the student's own where it begins.
        at, calls = descent(len(self.angles) - 1, recipe.teacher_steps, power(recipe.network_arguments)), recipe.sampling_steps
        steps = recipe.teacher_steps // calls
        self.parts = [at[k * steps : (k + 1) * steps + 1] for k in range(calls)]
        self.called = plan(recipe.scheduler, calls, "ddim").timesteps.tolist()

    def __call__(self, network: Callable[..., torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of all calls from the ``noise`` of a batch, the rest of which is as for :class:`Denoising`."""
        condition = {k: v for k, v in batch.items() if k not in ("sample", "noise", "timestep")}
        x, losses = batch["noise"], []
        for now, part in zip(self.called, self.parts, strict=True):
            output = network(x, _each(now, x), **condition).float()
            with torch.no_grad():
                wanted = self.output(self.clean(self.arrived(x, part, condition), x, part), x, part[0])
                following = self.arrive(self.estimate(output, x, part[0]), x, part[0], part[-1])
            losses.append(self.loss(output, wanted))
            x = following
        return torch.stack(losses).mean()

    def arrived(self, noisy: torch.Tensor, part: Sequence[int], condition: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Where the teacher's path from x_t leads, down all the timesteps of ``part``; -1 is the clean sample."""
        x, before = noisy, noisy
        for k, (now, then) in enumerate(itertools.pairwise(part)):
            clean = self.estimate(self.guided(x, now, condition), x, now)
            straight = clean
            if k and then >= 0:
                # Half the slope of the last two estimates over log(signal / noise); none towards the clean sample, where that is infinite.
                levels = [-math.log(math.tan(self.angle(t))) for t in (part[k - 1], now, then)]
                straight = clean + 0.5 * (levels[2] - levels[1]) / (levels[1] - levels[0]) * (clean - before)
            x, before = self.arrive(straight, x, now, then), clean
        return x.clamp(-1, 1) if part[-1] < 0 else x

    def clean(self, arrived: torch.Tensor, noisy: torch.Tensor, part: Sequence[int]) -> torch.Tensor:
        """The estimate of the clean sample with which one step down the whole part goes from ``noisy`` to ``arrived``."""
        start, end = self.angle(part[0]), self.angle(part[-1])
        return (arrived * math.sin(start) - noisy * math.sin(end)) / math.sin(start - end)

    def guided(self, noisy: torch.Tensor, timestep: int, condition: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The teacher's output at x_t with classifier-free guidance; see ``Condition.unconditional`` for what nothing asked looks like."""
        now = _each(timestep, noisy)
        conditional = self.teacher(noisy, now, **condition)
        if self.guidance_scale == 1:
            return conditional.float()
        free = self.teacher(noisy, now, **{**condition, "light": torch.zeros_like(condition["light"])}).float()
        return free + self.guidance_scale * (conditional.float() - free)

    def estimate(self, output: torch.Tensor, noisy: torch.Tensor, timestep: int) -> torch.Tensor:
        """The clean sample that a network's output at x_t stands for, t being the teacher's timestep."""
        signal, noise = math.cos(self.angle(timestep)), math.sin(self.angle(timestep))
        if self.prediction_type == "epsilon":
            return (noisy - noise * output) / signal
        return signal * noisy - noise * output if self.prediction_type == "v_prediction" else output

    def output(self, clean: torch.Tensor, noisy: torch.Tensor, timestep: int) -> torch.Tensor:
        """The network's output at x_t that stands for this clean sample."""
        signal, noise = math.cos(self.angle(timestep)), math.sin(self.angle(timestep))
        if self.prediction_type == "epsilon":
            return (noisy - signal * clean) / noise
        return (signal * noisy - clean) / noise if self.prediction_type == "v_prediction" else clean

    def arrive(self, clean: torch.Tensor, noisy: torch.Tensor, timestep: int, then: int) -> torch.Tensor:
        """DDIM's deterministic step (arXiv 2010.02502, eq. 12) from x_t at ``timestep`` to ``then``."""
        start, end = self.angle(timestep), self.angle(then)
        return (noisy * math.sin(end) + clean * math.sin(start - end)) / math.sin(start)

    def angle(self, timestep: int) -> float:
        """Of a timestep of the teacher's, or of -1, the clean sample."""
        return float(self.angles[timestep + 1])


def taught_schedule(recipe: Recipe) -> dict[str, Any]:
    """diffusers' settings of the noise schedule that the teacher of a few-step model knows."""
    return dict(recipe.network_arguments.get(ARGUMENT, {}).get("scheduler", recipe.scheduler))


def _each(timestep: int, samples: torch.Tensor) -> torch.Tensor:
    """A timestep for each sample: (B,) int64."""
    return torch.full((len(samples),), timestep, device=samples.device)
