"""A denoiser that runs several times in one call: its own deterministic steps along the sampling path, as one deeper network.

A call goes from x_t to x_(t - reach) in ``passes`` steps of DDIM (arXiv 2010.02502, eq. 12), each with the denoiser's weights, and says
the v that one step over the whole way would have needed. A sampler that takes just such steps, ddim with as many calls as the network is
made for, so follows the path through every pass, and knows of none of them.

With the angle phi of a timestep, cos(phi) = sqrt(alphas_cumprod) and sin(phi) = sqrt(1 - alphas_cumprod), a step from phi to phi - d is

    x' = cos(d) x - sin(d) v        (Salimans & Ho, arXiv 2202.00512, appendix D)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import nn

ARGUMENT = "unrolled"  # the network's argument that says how it is called


def passes(arguments: Mapping[str, Any]) -> int:
    """How many passes a network with these ``network_arguments`` makes in a call."""
    return int(arguments.get(ARGUMENT, {}).get("passes", 1))


def angles(scheduler: Mapping[str, Any]) -> np.ndarray:
    """phi of the clean sample, which is 0, and then of every timestep of diffusers' settings: (num_train_timesteps + 1,) float64."""
    kept = DDPMScheduler.from_config(dict(scheduler)).alphas_cumprod.double().numpy()
    return np.concatenate([[0.0], np.arctan2(np.sqrt(1 - kept), np.sqrt(kept))])


def descent(timesteps: int, calls: int, parts: int) -> list[int]:
    """How many timesteps a call has gone down at the start of each of its parts, and at its end: parts + 1 numbers.

    Args:
        timesteps: of the schedule, all of which so many ``calls`` go down.
    """
    return [round(k * timesteps / (calls * parts)) for k in range(parts + 1)]


class Unrolled(nn.Module):
    """The constants of such calls, one row a timestep. Where fewer timesteps than ``reach`` are left, a call ends at the clean sample.

    Args:
        scheduler: diffusers' settings of the noise schedule.
        calls: how many calls go all the way down; a call reaches over as many timesteps.
        passes: of the denoiser in a call.
    """

    table: torch.Tensor

    def __init__(self, scheduler: Mapping[str, Any], calls: int, passes: int) -> None:
        super().__init__()
        angle = angles(scheduler)
        count = len(angle) - 1
        self.offsets = descent(count, calls, passes)
        level = np.maximum(np.arange(1, count + 1)[:, None] - self.offsets, 0)
        turns = -np.diff(angle[level], axis=1)
        cosine, sine = np.cos(turns), np.sin(turns)
        whole = angle[level[:, 0]] - angle[level[:, -1]]
        # x_end = prod(cosine) x - sum_k sine_k prod_(j > k)(cosine_j) v_k, and is to be cos(whole) x - sin(whole) v.
        later = np.cumprod(cosine[:, ::-1], axis=1)[:, ::-1]
        weights = sine * np.concatenate([later[:, 1:], np.ones((count, 1))], axis=1)
        own = np.cos(whole) - later[:, 0]
        table = np.concatenate([cosine, sine, weights / np.sin(whole)[:, None], (own / np.sin(whole))[:, None]], axis=1)
        self.register_buffer("table", torch.from_numpy(table).float(), persistent=False)
        self.passes = passes

    def forward(
        self, denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], sample: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """v of the whole call, like ``sample`` (B, 1, N, N); ``denoise`` says v of a sample at timesteps (B,)."""
        row = self.table[timestep][:, :, None, None, None]
        cosine, sine, weights = (row[:, k * self.passes : (k + 1) * self.passes] for k in range(3))
        x, total = sample, row[:, -1] * sample
        for k, offset in enumerate(self.offsets[:-1]):
            v = denoise(x, (timestep - offset).clamp(min=0)).to(row.dtype)
            x = cosine[:, k] * x - sine[:, k] * v
            total = total + weights[:, k] * v
        return total
