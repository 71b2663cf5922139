"""The seed's denoiser: diffusers' ``UNet2DModel`` on a padded 32 x 32 canvas with the light laid beside the pattern."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import nn


class Lab2023UNet(nn.Module):
    """Noisy canvas (B, 1, 32, 32), timestep (B,), planes (B, 3, 32, 32) holding R, T and height -> (B, 1, 32, 32).

    The architecture is the seed paper's, unchanged; see ``runtime.condition`` for where things lie on the canvas.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DModel(
            sample_size=32,
            in_channels=4,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(32, 64, 64, 128),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        )

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
        return self.unet(torch.cat([sample, planes], dim=1), timestep, return_dict=False)[0]
