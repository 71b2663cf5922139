"""The networks a recipe can name. Each one is a ``torch.nn.Module`` whose constructor arguments are plain JSON values."""

from __future__ import annotations

from typing import Any

from torch import nn

from .lab2023 import Lab2023UNet
from .spectral import SpectralDenoiser
from .surrogate import Surrogate

NETWORKS: dict[str, type[nn.Module]] = {"lab2023": Lab2023UNet, "spectral": SpectralDenoiser, "surrogate": Surrogate}


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    """The network called ``name`` with these constructor arguments, freshly initialised."""
    return NETWORKS[name](**arguments)
