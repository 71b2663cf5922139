"""What a network is asked to predict, and how far off it is: the noise in a pattern, or the light a pattern scatters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch.nn import functional

from .recipes import Recipe

LOSSES: dict[str, Callable[..., torch.Tensor]] = {"mse": functional.mse_loss, "l1": functional.l1_loss, "huber": functional.huber_loss}


class Denoising:
    """Forward diffusion q(x_t | x_0) and the regression target of ``prediction_type`` (epsilon, v_prediction or sample)."""

    def __init__(self, scheduler: Mapping[str, Any], loss: str) -> None:
        self.scheduler = DDPMScheduler.from_config(dict(scheduler))
        self.prediction_type = scheduler["prediction_type"]
        self.loss = LOSSES[loss]

    def __call__(self, network: Callable[..., torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a batch with keys ``sample``, ``noise``, ``timestep`` and the condition's arrays."""
        condition = {k: v for k, v in batch.items() if k not in ("sample", "noise", "timestep")}
        noisy = self.scheduler.add_noise(batch["sample"], batch["noise"], batch["timestep"])
        output = network(noisy, batch["timestep"], **condition)
        return self.loss(output.float(), self.wanted(batch))

    def wanted(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The regression target, shaped like ``sample``."""
        if self.prediction_type == "epsilon":
            return batch["noise"]
        if self.prediction_type == "sample":
            return batch["sample"]
        return self.scheduler.get_velocity(batch["sample"], batch["noise"], batch["timestep"])


class Scattering:
    """Power per order of a pattern. With the loss ``l1`` it is the misrouted power between what is predicted and what is true."""

    def __init__(self, loss: str) -> None:
        self.loss = LOSSES[loss]

    def __call__(self, network: Callable[..., tuple[torch.Tensor, torch.Tensor]], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Loss of a batch with keys ``pattern``, ``height_nm``, ``R`` and ``T``: half the sum over all orders, mean over samples."""
        found = network(batch["pattern"], batch["height_nm"])
        total = sum(self.loss(maps.float(), batch[key], reduction="sum") for key, maps in zip("RT", found, strict=True))
        return torch.as_tensor(total / (2 * len(batch["pattern"])))


def objective(recipe: Recipe) -> Denoising | Scattering:
    """The objective a recipe names."""
    return Scattering(recipe.loss) if recipe.objective == "scattering" else Denoising(recipe.scheduler, recipe.loss)
