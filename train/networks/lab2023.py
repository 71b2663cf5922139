"""The seed's denoiser: diffusers' ``UNet2DModel`` on a padded 32 x 32 canvas, and the seed's three ways to tell it the light."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import nn

from runtime.condition import CONDITIONINGS
from runtime.errors import DataError


class Lab2023UNet(nn.Module):
    """Noisy canvas (B, 1, 32, 32), timestep (B,), planes (B, 3, 32, 32) holding R, T and height -> (B, 1, 32, 32).

    The architecture is the seed paper's, unchanged; see ``runtime.condition`` for where things lie on the canvas.

    Args:
        conditioning: ``concatenated``, the seed's choice, and ``shared_range`` lay the planes beside the sample, four channels in; they
            differ in the planes alone, which ``runtime.condition`` makes. ``class`` shows the UNet the sample alone and the light as
            a class condition: both order maps and the height, flattened, through one linear layer, added to the embedding of time.

    Raises:
        DataError: another ``conditioning``.
    """

    SIDE = 32

    def __init__(self, conditioning: str = "concatenated") -> None:
        super().__init__()
        if conditioning not in CONDITIONINGS:
            raise DataError(f"lab2023 has no conditioning {conditioning!r}; choose {', '.join(CONDITIONINGS)}")
        by_class = conditioning == "class"
        self.unet = UNet2DModel(
            sample_size=self.SIDE,
            in_channels=1 if by_class else 4,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(32, 64, 64, 128),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            class_embed_type="identity" if by_class else None,
        )
        # Whole planes, so that any number of orders that the canvas holds will do: what surrounds the maps is 0 and teaches nothing.
        # 128 is the width of the UNet's time embedding, four times its first channels.
        self.light = nn.Linear(2 * self.SIDE**2 + 1, 128) if by_class else None

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
        if self.light is None:
            return self.unet(torch.cat([sample, planes], dim=1), timestep, return_dict=False)[0]
        middle = self.SIDE // 2
        light = torch.cat([planes[:, :2].flatten(1), planes[:, 2, middle, middle, None]], dim=1)
        return self.unet(sample, timestep, class_labels=self.light(light), return_dict=False)[0]
