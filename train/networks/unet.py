"""diffusers' UNet for images: told the time and the class, as an embedding beside that of the time, or the image alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn


class ImageUNet(nn.Module):
    """``UNet2DModel`` of diffusers.

    Args:
        shape: (channels, height, width) of a sample.
        classes: K of the one-hot label, 0 for none; its embedding is a linear map of it, so zeros are the null condition.
        channels: widths of the levels, each half as fine as the one before.
        attention: for each level whether it attends to itself.
        layers, groups, dropout: residual blocks a level, groups of the normalisation, and dropout in the blocks.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 0,
        channels: Sequence[int] = (64, 128, 128),
        attention: Sequence[bool] = (False, True, True),
        layers: int = 2,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        settings: dict[str, Any] = {"class_embed_type": "identity"} if classes else {}
        self.label = nn.Linear(classes, 4 * channels[0], bias=False) if classes else None
        self.unet = _unet(shape, channels, attention, layers, groups, dropout, **settings)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """The prediction (B, C, H, W) for sample (B, C, H, W), timestep (B,) int64 and label (B, classes)."""
        embedded = None if self.label is None else self.label(label)
        return self.unet(sample, timestep, class_labels=embedded).sample


class RestorationUNet(nn.Module):
    """The same for a network that is told neither time nor class: diffusers' time is 0 for every image, a bias that is learnt.

    Args:
        shape, channels, attention, layers, groups, dropout: as for :class:`ImageUNet`.
        classes: 0.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 0,
        channels: Sequence[int] = (64, 128),
        attention: Sequence[bool] = (False, False),
        layers: int = 2,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if classes:
            raise ValueError("it is told no class")
        self.unet = _unet(shape, channels, attention, layers, groups, dropout)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """The clean image (B, C, H, W) that a noisy one is taken for."""
        return self.unet(sample, sample.new_zeros(sample.shape[0])).sample


def _unet(
    shape: Sequence[int], channels: Sequence[int], attention: Sequence[bool], layers: int, groups: int, dropout: float, **settings: Any
) -> UNet2DModel:
    """diffusers' network. Raises ValueError where the levels do not fit the images or their words on attention."""
    if len(channels) != len(attention):
        raise ValueError(f"there are {len(channels)} levels and {len(attention)} words on attention")
    if shape[1] % 2 ** (len(channels) - 1) or shape[2] % 2 ** (len(channels) - 1):
        raise ValueError(f"images of {shape[1]} x {shape[2]} cannot be halved {len(channels) - 1} times")
    return UNet2DModel(
        sample_size=tuple(shape[1:]),
        in_channels=shape[0],
        out_channels=shape[0],
        block_out_channels=tuple(channels),
        down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in attention),
        up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)),
        layers_per_block=layers,
        norm_num_groups=groups,
        dropout=dropout,
        **settings,
    )
