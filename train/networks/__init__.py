"""The networks a recipe can name. Each one is a ``torch.nn.Module`` whose constructor arguments are plain JSON values."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from runtime.errors import DataError

from .attention_unet import AttentionUNet
from .feedforward import FeedForward
from .lab2023 import Lab2023UNet
from .spectral import SpectralDenoiser
from .surrogate import Surrogate
from .unet import ImageUNet, RestorationUNet

NETWORKS: dict[str, type[nn.Module]] = {
    "lab2023": Lab2023UNet,
    "spectral": SpectralDenoiser,
    "surrogate": Surrogate,
    "feedforward": FeedForward,
    "unet": ImageUNet,
    "restoration_unet": RestorationUNet,
    "attention_unet": AttentionUNet,
}


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    """The network called ``name`` with these constructor arguments, freshly initialised.

    Raises:
        DataError: there is no such network, or it has no such argument.
    """
    if name not in NETWORKS:
        raise DataError(f"there is no network '{name}'; choose {', '.join(NETWORKS)}")
    known = list(inspect.signature(NETWORKS[name]).parameters)
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise DataError(f"the network {name} has no argument '{unknown[0]}' (network_arguments); it has {', '.join(known)}")
    return NETWORKS[name](**arguments)
