"""Few-step models: the guided sampling path of a trained model, learnt in a few calls, each of which goes a whole part of it.

Progressive distillation (Salimans & Ho, arXiv 2202.00512) of a guided teacher (Meng et al., arXiv 2210.03142), in one stage in place of
many: the path from noise to pattern is cut into as many equal parts as the student has calls. From the start of one the teacher goes
down with DPM-Solver++ of second order (arXiv 2211.01095), classifier-free guidance included, and the student's one step over the part
should arrive where it did. So the student needs neither many steps nor the second network call of guidance. It stays a deterministic
path: a jump from noise straight to a pattern has to say the mean of all patterns it may become, and they are many here, since every
cyclic shift of a pattern scatters alike.

The estimates are not clipped on the way, as with the sampler dpmsolver++; what arrives at the clean sample is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from runtime.schedulers import plan

from .networks.unrolled import angles, descent
from .objective import Denoising


class Distillation(Denoising):
    """How far one call arrives from where the teacher does, as an error of the network's own kind of prediction.

    Args:
        scheduler: settings of the teacher.
        loss: of ``objective.LOSSES``.
        guidance_scale: of the teacher's path, in diffusers' convention (1 is none).
        calls: parts of the path.
        teacher_steps: of the whole path; as many in each part.
    """

    teacher: nn.Module

    def __init__(self, scheduler: Mapping[str, Any], loss: str, guidance_scale: float, calls: int, teacher_steps: int) -> None:
        super().__init__(scheduler, loss)
        self.guidance_scale, self.calls = guidance_scale, calls
        self.timesteps = int(scheduler["num_train_timesteps"])
        # Angles of the levels, as of ``networks.unrolled``; that of timestep t stands at t + 1, and at 0 the clean sample's.
        self.angles = torch.from_numpy(angles(self.scheduler.config)).float()
        # The timesteps that the sampler calls a network at, the lowest first, and those of the teacher's steps from each of them.
        first = plan(scheduler, calls, "ddim").timesteps[::-1, None]
        self.ladder = torch.from_numpy(np.maximum(first - descent(self.timesteps, calls, teacher_steps // calls), -1))

    def __call__(self, network: Callable[..., torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a batch as for :class:`Denoising`; its timesteps are taken to the start of the part they lie in."""
        condition = {k: v for k, v in batch.items() if k not in ("sample", "noise", "timestep")}
        ladder = self.ladder.to(batch["timestep"].device)[batch["timestep"] * self.calls // self.timesteps]
        start = ladder[:, 0]
        noisy = self.scheduler.add_noise(batch["sample"], batch["noise"], start)
        output = network(noisy, start, **condition).float()
        with torch.no_grad():
            wanted = self.output(self.clean(self.arrived(noisy, ladder, condition), noisy, ladder), noisy, start)
        return self.loss(output, wanted)

    def arrived(self, noisy: torch.Tensor, ladder: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Where the teacher's path from x_t leads, down all the timesteps of ``ladder`` (B, steps + 1); -1 is the clean sample."""
        x, before = noisy, noisy
        for k in range(ladder.shape[1] - 1):
            now, then = ladder[:, k], ladder[:, k + 1]
            clean = self.estimate(self.guided(x, now, condition), x, now)
            straight = clean
            if k:
                # Half the slope of the last two estimates over log(signal / noise); none towards the clean sample, where that is infinite.
                levels = [-torch.log(torch.tan(self.angle(t).clamp(min=1e-4))) for t in (ladder[:, k - 1], now, then)]
                bend = 0.5 * (levels[2] - levels[1]) / (levels[1] - levels[0])
                straight = clean + torch.where((then < 0)[:, None, None, None], 0.0, bend * (clean - before))
            x, before = self.arrive(straight, x, now, then), clean
        return torch.where((ladder[:, -1] < 0)[:, None, None, None], x.clamp(-1, 1), x)

    def clean(self, arrived: torch.Tensor, noisy: torch.Tensor, ladder: torch.Tensor) -> torch.Tensor:
        """The estimate of the clean sample with which one step down the whole ladder goes from ``noisy`` to ``arrived``."""
        start, end = self.angle(ladder[:, 0]), self.angle(ladder[:, -1])
        return (arrived * torch.sin(start) - noisy * torch.sin(end)) / torch.sin(start - end)

    def guided(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The teacher's output at x_t with classifier-free guidance; see ``Condition.unconditional`` for what nothing asked looks like."""
        conditional = self.teacher(noisy, timestep, **condition)
        if self.guidance_scale == 1:
            return conditional.float()
        free = self.teacher(noisy, timestep, **{**condition, "light": torch.zeros_like(condition["light"])}).float()
        return free + self.guidance_scale * (conditional.float() - free)

    def estimate(self, output: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The clean sample that a network's output at x_t stands for."""
        signal, noise = torch.cos(self.angle(timestep)), torch.sin(self.angle(timestep))
        if self.prediction_type == "epsilon":
            return (noisy - noise * output) / signal
        return signal * noisy - noise * output if self.prediction_type == "v_prediction" else output

    def output(self, clean: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The network's output at x_t that stands for this clean sample."""
        signal, noise = torch.cos(self.angle(timestep)), torch.sin(self.angle(timestep))
        if self.prediction_type == "epsilon":
            return (noisy - signal * clean) / noise
        return (signal * noisy - clean) / noise if self.prediction_type == "v_prediction" else clean

    def arrive(self, clean: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
        """DDIM's deterministic step (arXiv 2010.02502, eq. 12) from x_t at ``timestep`` to ``then``."""
        start, end = self.angle(timestep), self.angle(then)
        return (noisy * torch.sin(end) + clean * torch.sin(start - end)) / torch.sin(start)

    def angle(self, timestep: torch.Tensor) -> torch.Tensor:
        """Of timesteps (B,) from -1, the clean sample: (B, 1, 1, 1)."""
        self.angles = self.angles.to(timestep.device)
        return self.angles[timestep + 1][:, None, None, None]
