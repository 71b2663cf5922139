"""What a network is asked to predict, and how far off it is: the noise in a pattern, an image under noise, the light of a pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch.nn import functional

from runtime.errors import DataError

from .recipes import Recipe

LOSSES: dict[str, Callable[..., torch.Tensor]] = {"mse": functional.mse_loss, "l1": functional.l1_loss, "huber": functional.huber_loss}
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Denoising:
    """Forward diffusion q(x_t | x_0) and the regression target of ``prediction_type`` (epsilon, v_prediction or sample).

    Args:
        scheduler: diffusers' scheduler settings.
        loss: a word of ``LOSSES``.
        min_snr_gamma: above 0, each sample's loss is weighted by its timestep; see :func:`min_snr_weights`.

    Raises:
        DataError: diffusers does not know the settings.
    """

    def __init__(self, scheduler: Mapping[str, Any], loss: str, min_snr_gamma: float = 0.0) -> None:
        self.prediction_type = scheduler.get("prediction_type", "epsilon")
        if self.prediction_type not in PREDICTIONS:
            raise DataError(f"the scheduler's prediction_type is {self.prediction_type!r}; choose {', '.join(PREDICTIONS)}")
        try:
            self.scheduler = DDPMScheduler.from_config(dict(scheduler))
        except (NotImplementedError, TypeError, ValueError) as error:
            raise DataError(f"diffusers refuses the recipe's scheduler ({error}); look at its fields") from None
        self.loss = LOSSES[loss]
        alphas = self.scheduler.alphas_cumprod
        self.weights = min_snr_weights(alphas, self.prediction_type, min_snr_gamma).float() if min_snr_gamma else None

    def __call__(self, network: Callable[..., torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a batch with keys ``sample``, ``noise``, ``timestep`` and the condition's arrays."""
        condition = {k: v for k, v in batch.items() if k not in ("sample", "noise", "timestep")}
        noisy = self.scheduler.add_noise(batch["sample"], batch["noise"], batch["timestep"])
        output = network(noisy, batch["timestep"], **condition)
        if self.weights is None:
            return self.loss(output.float(), self.wanted(batch))
        self.weights = self.weights.to(output.device)
        each = self.loss(output.float(), self.wanted(batch), reduction="none").flatten(1).mean(1)
        return (self.weights[batch["timestep"]] * each).mean()

    def wanted(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The regression target, shaped like ``sample``."""
        if self.prediction_type == "epsilon":
            return batch["noise"]
        if self.prediction_type == "sample":
            return batch["sample"]
        return self.scheduler.get_velocity(batch["sample"], batch["noise"], batch["timestep"])


def min_snr_weights(alphas_cumprod: torch.Tensor, prediction_type: str, gamma: float) -> torch.Tensor:
    """The weight of each timestep (num_train_timesteps,) in float64: Hang et al., arXiv 2303.09556, section 3.4.

    With SNR = alphas_cumprod / (1 - alphas_cumprod), every prediction is weighted as if the loss were min(SNR, gamma) times the error of
    the clean sample: min(SNR, gamma) for ``sample``, min(SNR, gamma) / SNR for ``epsilon``, min(SNR, gamma) / (SNR + 1) for
    ``v_prediction``. They are written here so that a timestep of pure noise (SNR = 0) divides nothing by zero.
    """
    alpha = alphas_cumprod.double()
    noise = 1 - alpha
    if prediction_type == "epsilon":
        return (gamma * noise / alpha).clamp(max=1)
    if prediction_type == "sample":
        return (alpha / noise).clamp(max=gamma)
    return torch.minimum(alpha, gamma * noise)


class Scattering:
    """Power per order of a pattern. With the loss ``l1`` it is the misrouted power between what is predicted and what is true."""

    def __init__(self, loss: str) -> None:
        self.loss = LOSSES[loss]

    def __call__(self, network: Callable[..., tuple[torch.Tensor, torch.Tensor]], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Loss of a batch with keys ``pattern``, ``height_nm``, ``R`` and ``T``: half the sum over all orders, mean over samples."""
        found = network(batch["pattern"], batch["height_nm"])
        total = sum(self.loss(maps.float(), batch[key], reduction="sum") for key, maps in zip("RT", found, strict=True))
        return torch.as_tensor(total / (2 * len(batch["pattern"])))


class Restoration:
    """An image from x + noise_sigma z, z standard normal, in one step and at one level of noise (Vincent et al., 2008)."""

    def __init__(self, noise_sigma: float, loss: str) -> None:
        self.noise_sigma, self.loss = noise_sigma, LOSSES[loss]

    def __call__(self, network: Callable[..., torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a batch with keys ``sample``, in the unit of ``noise_sigma``, and ``noise``."""
        return self.loss(network(batch["sample"] + self.noise_sigma * batch["noise"]).float(), batch["sample"])


def objective(recipe: Recipe) -> Denoising | Restoration | Scattering:
    """The objective a recipe names."""
    if recipe.objective == "restoration":
        return Restoration(recipe.noise_sigma, recipe.loss)
    if recipe.objective == "distillation":
        from .distillation import Distillation

        return Distillation(recipe)
    return Scattering(recipe.loss) if recipe.objective == "scattering" else Denoising(recipe.scheduler, recipe.loss, recipe.min_snr_gamma)
