"""Few-step models: the guided sampling path of a trained model, learnt as one jump from any point of it to its end.

Latent consistency distillation (Luo et al., arXiv 2310.04378, section 4.2, after Song et al., arXiv 2303.01469). The path is the
teacher's deterministic DDIM path over ``levels`` noise levels, with classifier-free guidance already in it, so the student needs
neither many steps nor the second network call of guidance. The teacher makes one step of the path from x_t to x_r, and the student's
jump from x_t should land where its own jump from x_r does; the last jump should land where the teacher does. As in later work (Song &
Dhariwal, arXiv 2310.14189, section 3.2) the second jump is the student's own without gradient, no running mean of it.

Sampling is ``lcm``'s: jump, noise again to the next level, jump (algorithm 3). Training on the data alone, with no teacher's step
(consistency tuning, arXiv 2406.14548), would aim at one sample of all patterns that a noisy one may stand for, and they are many here:
every cyclic shift of a pattern scatters alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .objective import Denoising


class Consistency(Denoising):
    """Distance between a jump from x_t and one from where the teacher's next step arrives, both estimates of the clean sample.

    Args:
        scheduler: settings of the teacher; ``original_inference_steps`` is the number of levels of its path.
        loss: of ``objective.LOSSES``.
        guidance_scale: of the teacher's path, in diffusers' convention (1 is none).
    """

    teacher: nn.Module

    def __init__(self, scheduler: Mapping[str, Any], loss: str, guidance_scale: float) -> None:
        super().__init__(scheduler, loss)
        self.guidance_scale = guidance_scale
        timesteps = int(scheduler["num_train_timesteps"])
        levels = int(scheduler["original_inference_steps"])
        # The levels that the sampler lcm chooses from.
        self.levels = torch.arange(1, levels + 1) * (timesteps // levels) - 1

    def __call__(self, network: Callable[..., torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a batch as for :class:`Denoising`; its timesteps are taken to the level of the path they lie nearest to."""
        condition = {k: v for k, v in batch.items() if k not in ("sample", "noise", "timestep")}
        levels = self.levels.to(batch["timestep"].device)
        index = batch["timestep"] * len(levels) // int(self.scheduler.config["num_train_timesteps"])
        timestep = levels[index]
        noisy = self.scheduler.add_noise(batch["sample"], batch["noise"], timestep)
        jump = self.estimate(network(noisy, timestep, **condition), noisy, timestep)
        with torch.no_grad():
            end = self.estimate(self.guided(noisy, timestep, condition), noisy, timestep)
            before = levels[(index - 1).clamp(min=0)]
            arrived = self.arrive(end, noisy, timestep, before)
            wanted = self.estimate(network(arrived, before, **condition), arrived, before)
            wanted = torch.where((index == 0)[:, None, None, None], end, wanted)
        return self.loss(jump, wanted)

    def guided(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The teacher's output at x_t with classifier-free guidance; see ``Condition.unconditional`` for what nothing asked looks like."""
        conditional = self.teacher(noisy, timestep, **condition)
        if self.guidance_scale == 1:
            return conditional
        free = self.teacher(noisy, timestep, **{**condition, "light": torch.zeros_like(condition["light"])})
        return free + self.guidance_scale * (conditional - free)

    def estimate(self, output: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The clean sample in [-1, 1] that a network's output at x_t stands for."""
        signal, noise = self.scales(timestep)
        output = output.float()
        if self.prediction_type == "epsilon":
            clean = (noisy - noise * output) / signal
        elif self.prediction_type == "v_prediction":
            clean = signal * noisy - noise * output
        else:
            clean = output
        return clean.clamp(-1, 1)

    def arrive(self, clean: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """DDIM's deterministic step (arXiv 2010.02502, eq. 12) from x_t at ``timestep`` to ``before``."""
        signal, noise = self.scales(timestep)
        signal_before, noise_before = self.scales(before)
        return signal_before * clean + noise_before * (noisy - signal * clean) / noise

    def scales(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod), each (B, 1, 1, 1)."""
        kept = self.scheduler.alphas_cumprod.to(timestep.device)[timestep][:, None, None, None]
        return kept.sqrt(), (1 - kept).sqrt()
