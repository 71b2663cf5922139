"""A denoiser that runs several times in one call: its own deterministic steps along the sampling path, as one deeper network.

The path from noise to pattern is cut into parts, one a pass, and the noise schedule of such a network has one timestep for each of them.
A call goes from x_t to x_(t - passes) by steps of DDIM (arXiv 2010.02502, eq. 12), each with the denoiser's weights, and says the v that
one step over the whole way would have needed. A sampler that takes just such steps, ddim with as many calls as the network is made for,
so follows the path through every pass, and knows of none of them.

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


def power(arguments: Mapping[str, Any]) -> float:
    """How unevenly the path is cut for a network with these ``network_arguments``; see :func:`descent`."""
    return float(arguments.get(ARGUMENT, {}).get("power", 1))


def angles(scheduler: Mapping[str, Any]) -> np.ndarray:
    """phi of the clean sample, which is 0, and then of every timestep of diffusers' settings: (num_train_timesteps + 1,) float64."""
    kept = DDPMScheduler.from_config(dict(scheduler)).alphas_cumprod.double().numpy()
    return np.concatenate([[0.0], np.arctan2(np.sqrt(1 - kept), np.sqrt(kept))])


def descent(timesteps: int, parts: int, power: float) -> list[int]:
    """The timestep at which each of so many parts of the path begins, the noisiest first, and -1, the clean sample: parts + 1 numbers.

    Args:
        timesteps: of the schedule.
        power: 1 cuts them evenly. With more the parts grow towards the clean sample: k of n parts go down (k / n)**power of them.
    """
    return [round(timesteps * (1 - (k / parts) ** power)) - 1 for k in range(parts + 1)]


def retimed(scheduler: Mapping[str, Any], parts: int, power: float) -> dict[str, Any]:
    """diffusers' settings of the noise schedule whose timesteps are where the parts of another's path begin; see :func:`descent`."""
    angle = angles(scheduler)
    kept = np.cos(angle[np.array(descent(len(angle) - 1, parts, power)) + 1]) ** 2
    betas = (1 - kept[:-1] / kept[1:])[::-1]
    named = {key: value for key, value in scheduler.items() if not key.startswith("beta_")}
    return {**named, "num_train_timesteps": parts, "trained_betas": betas.tolist()}


class Unrolled(nn.Module):
    """The constants of such calls, one row a timestep. Where fewer timesteps than ``passes`` are left, a call ends at the clean sample.

    Args:
        scheduler: diffusers' settings of the noise schedule that the denoiser knows, from before it was taught this.
        calls: how many calls go all the way down.
        passes: of the denoiser in a call.
        power: of :func:`descent`.
    """

    table: torch.Tensor
    known: torch.Tensor

    def __init__(self, scheduler: Mapping[str, Any], calls: int, passes: int, power: float) -> None:
        super().__init__()
        angle = angles(scheduler)
        at = np.array(descent(len(angle) - 1, calls * passes, power)[::-1])  # the clean sample, then each timestep
        level = np.maximum(np.arange(1, len(at))[:, None] - np.arange(passes + 1), 0)
        reached = angle[at[level] + 1]
        turns = -np.diff(reached, axis=1)
        cosine, sine = np.cos(turns), np.sin(turns)
        whole = reached[:, 0] - reached[:, -1]
        # x_end = prod(cosine) x - sum_k sine_k prod_(j > k)(cosine_j) v_k, and is to be cos(whole) x - sin(whole) v.
        later = np.cumprod(cosine[:, ::-1], axis=1)[:, ::-1]
        weights = sine * np.concatenate([later[:, 1:], np.ones((len(level), 1))], axis=1)
        own = np.cos(whole) - later[:, 0]
        table = np.concatenate([cosine, sine, weights / np.sin(whole)[:, None], (own / np.sin(whole))[:, None]], axis=1)
        self.register_buffer("table", torch.from_numpy(table).float(), persistent=False)
        self.register_buffer("known", torch.from_numpy(at[level][:, :-1].clip(min=0)), persistent=False)
        self.passes = passes

    def forward(
        self, denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], sample: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """v of the whole call, like ``sample`` (B, 1, N, N); ``denoise`` says v of a sample at the timesteps (B,) that it knows."""
        row, known = self.table[timestep][:, :, None, None, None], self.known[timestep]
        cosine, sine, weights = (row[:, k * self.passes : (k + 1) * self.passes] for k in range(3))
        x, total = sample, row[:, -1] * sample
        for k in range(self.passes):
            v = denoise(x, known[:, k]).to(row.dtype)
            x = cosine[:, k] * x - sine[:, k] * v
            total = total + weights[:, k] * v
        return total
