"""What the objectives of few-step models have in common: the sampling path cut into as many parts as the model makes calls."""

from __future__ import annotations

import math
from typing import Any

import torch

from runtime.schedulers import plan

from .networks.unrolled import ARGUMENT, angles, descent, power
from .objective import Denoising
from .recipes import Recipe


class FewSteps(Denoising):
    """The path of a few-step model, in the timesteps of the run it started from, which this module calls the teacher's.

    Args:
        recipe: of the few-step model.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe.scheduler, recipe.loss)
        # Angles of the teacher's levels, as of ``networks.unrolled``; that of timestep t stands at t + 1, and at 0 the clean sample's.
        self.angles = angles(taught_schedule(recipe)).tolist()
        # The teacher's timesteps between which the calls go, and the model's own where they begin.
        self.ends = descent(len(self.angles) - 1, recipe.sampling_steps, power(recipe.network_arguments))
        self.called = plan(recipe.scheduler, recipe.sampling_steps, "ddim").timesteps.tolist()

    def estimate(self, output: torch.Tensor, noisy: torch.Tensor, timestep: int) -> torch.Tensor:
        """The clean sample that a network's output at x_t stands for, t being the teacher's timestep."""
        signal, noise = math.cos(self.angle(timestep)), math.sin(self.angle(timestep))
        if self.prediction_type == "epsilon":
            return (noisy - noise * output) / signal
        return signal * noisy - noise * output if self.prediction_type == "v_prediction" else output

    def arrive(self, clean: torch.Tensor, noisy: torch.Tensor, timestep: int, then: int) -> torch.Tensor:
        """DDIM's deterministic step (arXiv 2010.02502, eq. 12) from x_t at ``timestep`` to ``then``."""
        start, end = self.angle(timestep), self.angle(then)
        return (noisy * math.sin(end) + clean * math.sin(start - end)) / math.sin(start)

    def angle(self, timestep: int) -> float:
        """Of a timestep of the teacher's, or of -1, the clean sample."""
        return float(self.angles[timestep + 1])


def taught_schedule(recipe: Recipe) -> dict[str, Any]:
    """diffusers' settings of the noise schedule that the run a few-step model started from knows."""
    return dict(recipe.network_arguments.get(ARGUMENT, {}).get("scheduler", recipe.scheduler))


def each(timestep: int, samples: torch.Tensor) -> torch.Tensor:
    """A timestep for each sample: (B,) int64."""
    return torch.full((len(samples),), timestep, device=samples.device)
