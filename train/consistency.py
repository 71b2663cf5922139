"""Few-step models: the guided sampling path of a trained model, learnt as a few jumps, each from any point of its part to that part's end.

Multistep consistency models (Heek et al., arXiv 2403.06807), distilled with classifier-free guidance in the path as latent consistency
models are (Luo et al., arXiv 2310.04378, section 4.2). The path is the teacher's deterministic DDIM path over ``levels`` noise levels, cut
into as many segments as the student will have steps. The teacher makes one step of the path from x_t to x_r, and the student's jump from
x_t should land where its own jump from x_r does, at the segment's end; the jump from next to that end should land where the teacher does.
As in later work (Song & Dhariwal, arXiv 2310.14189, section 3.2) the second jump is the student's own without gradient, no running mean
of it. With one segment, whose end is the data, this is consistency distillation (Song et al., arXiv 2303.01469).

Guidance makes estimates that lie outside the data, and a path that clips them ends in worse patterns, so nothing is clipped.
Sampling is ``ddim``'s with that many steps, deterministic: a jump keeps the noise that it was not taught to remove, and so stays on its
path. Training on the data alone, with no teacher's step (consistency tuning, arXiv 2406.14548), would aim at one sample of all patterns
that a noisy one may stand for, and they are many here: every cyclic shift of a pattern scatters alike.
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
        segments: into how many the path is cut, each of as many levels.
    """

    teacher: nn.Module

    def __init__(self, scheduler: Mapping[str, Any], loss: str, guidance_scale: float, segments: int) -> None:
        super().__init__(scheduler, loss)
        self.guidance_scale = guidance_scale
        timesteps = int(scheduler["num_train_timesteps"])
        levels = int(scheduler["original_inference_steps"])
        # Of ddim in so many steps with trailing spacing; the sampler's own, in fewer, are among them.
        self.levels = torch.arange(1, levels + 1) * (timesteps // levels) - 1
        self.each = levels // segments
        self.limit = float(scheduler.get("clip_sample_range", 1.0)) if scheduler.get("clip_sample", True) else None

    def __call__(self, network: Callable[..., torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a batch as for :class:`Denoising`; its timesteps are taken to the level of the path they lie nearest to."""
        condition = {k: v for k, v in batch.items() if k not in ("sample", "noise", "timestep")}
        levels = self.levels.to(batch["timestep"].device)
        index = batch["timestep"] * len(levels) // int(self.scheduler.config["num_train_timesteps"])
        timestep = levels[index]
        noisy = self.scheduler.add_noise(batch["sample"], batch["noise"], timestep)
        jump = self.estimate(network(noisy, timestep, **condition), noisy, timestep)
        with torch.no_grad():
            taught = self.estimate(self.guided(noisy, timestep, condition), noisy, timestep)
            before = levels[(index - 1).clamp(min=0)]
            arrived = self.arrive(taught, noisy, timestep, before)
            onward = self.estimate(network(arrived, before, **condition), arrived, before)
            share = self.share(index)[:, None, None, None]
            wanted = share * taught + (1 - share) * onward
        return self.loss(jump, wanted)

    def share(self, index: torch.Tensor) -> torch.Tensor:
        """How much of a jump the teacher's step is, (B,) float32: two steps of DDIM with estimates x0 and x0' are one with their mean.

        In x / sqrt(1 - a) a step moves by x0 times the rise of sqrt(a / (1 - a)), which at the data is infinite. ``index`` (B,) are levels.
        """
        kept = self.scheduler.alphas_cumprod.double().to(index.device)[self.levels.to(index.device)]
        rise = (kept / (1 - kept)).sqrt()
        first = index // self.each * self.each  # the lowest level of the segment
        step = rise[(index - 1).clamp(min=0)] - rise[index]
        whole = rise[(first - 1).clamp(min=0)] - rise[index]
        share = torch.where(first > 0, step / whole.clamp(min=1e-30), 0.0)
        return torch.where(index == first, 1.0, share).float()

    def guided(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The teacher's output at x_t with classifier-free guidance; see ``Condition.unconditional`` for what nothing asked looks like."""
        conditional = self.teacher(noisy, timestep, **condition)
        if self.guidance_scale == 1:
            return conditional
        free = self.teacher(noisy, timestep, **{**condition, "light": torch.zeros_like(condition["light"])})
        return free + self.guidance_scale * (conditional - free)

    def estimate(self, output: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The clean sample that a network's output at x_t stands for, clipped where the scheduler clips."""
        signal, noise = self.scales(timestep)
        output = output.float()
        if self.prediction_type == "epsilon":
            clean = (noisy - noise * output) / signal
        elif self.prediction_type == "v_prediction":
            clean = signal * noisy - noise * output
        else:
            clean = output
        return clean if self.limit is None else clean.clamp(-self.limit, self.limit)

    def arrive(self, clean: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """DDIM's deterministic step (arXiv 2010.02502, eq. 12) from x_t at ``timestep`` to ``before``."""
        signal, noise = self.scales(timestep)
        signal_before, noise_before = self.scales(before)
        return signal_before * clean + noise_before * (noisy - signal * clean) / noise

    def scales(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod), each (B, 1, 1, 1)."""
        kept = self.scheduler.alphas_cumprod.to(timestep.device)[timestep][:, None, None, None]
        return kept.sqrt(), (1 - kept).sqrt()
