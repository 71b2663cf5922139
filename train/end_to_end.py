"""Few-step models trained end to end: from noise through all calls to the pattern itself, the gradient going back through every one.

A few-step model samples as a network that is as deep as all its calls and whose input is noise, and may be trained as one (Garcia et al.,
arXiv 2409.11355, fine-tune denoisers so that sample in one step, with the loss of the task). It then learns from the truth, not from
what a teacher makes of it, and can come out ahead of its teacher.

Where many samples are right, such a loss asks for their mean. Here they are the cyclic shifts of a pattern, which scatter alike, and which
of them it becomes is the noise's to say. So the aim is that shift of the true pattern that lies nearest to where the model arrives.

Where it arrives nowhere near any of them, the nearest is chance and there is nothing to learn, and a lab is served by a pattern that is
right, not by one that is less wrong. So errors count by their logarithm: halving a small one gains as much as halving a large one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .few_steps import FewSteps, each
from .symmetry import nearest_shift, shift

_SMALL = 0.1  # an error below which halving it gains little more: the cut to two materials has made up for it


class EndToEnd(FewSteps):
    """How far a few-step model arrives from the pattern, up to a cyclic shift."""

    def __call__(self, network: Callable[..., torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean of log(1 + loss / 0.1) of what all calls make of the ``noise`` of a batch, whose rest is as for :class:`Denoising`."""
        condition = {k: v for k, v in batch.items() if k not in ("sample", "noise", "timestep")}
        x = batch["noise"]
        for now, begin, end in zip(self.called, self.ends[:-1], self.ends[1:], strict=True):
            output = network(x, each(now, x), **condition).float()
            x = self.arrive(self.estimate(output, x, begin), x, begin, end)
        errors = self.loss(x, nearest(batch["sample"], x), reduction="none").flatten(1).mean(1)
        return (errors / _SMALL).log1p().mean()


def nearest(sample: torch.Tensor, arrived: torch.Tensor) -> torch.Tensor:
    """Of each pattern (B, 1, N, N) the cyclic shift nearest to its own ``arrived`` (B, 1, N, N)."""
    patterns = sample[:, 0].cpu().numpy()
    shifted = shift(patterns, *nearest_shift(patterns, arrived[:, 0].detach().cpu().numpy()))
    return torch.from_numpy(shifted[:, None]).to(sample.device)
