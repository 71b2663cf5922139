"""The seed document's UNet for images of a class: double convolutions, and self-attention after each change of resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn
from torch.nn import functional


class AttentionUNet(nn.Module):
    """Three levels down and three up, widths 1, 2, 4, 4 times ``width`` and 8 times at the bottom: 23.3 M parameters at a width of 64.

    Args:
        shape: (channels, height, width) of a sample; height and width are divisible by 8.
        classes: K of the one-hot label, 0 for none; its embedding is a linear map of it, so zeros are the null condition.
        width: channels of the finest level, divisible by ``heads``.
        embedding: numbers that tell time and class, even.
        attention: whether each level attends to itself.
        heads: of the attention.

    Raises:
        ValueError: sizes that do not divide.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, width: int = 64, embedding: int = 256, attention: bool = True, heads: int = 4
    ) -> None:
        super().__init__()
        if shape[1] % 8 or shape[2] % 8:
            raise ValueError(f"images of {shape[1]} x {shape[2]} cannot be halved 3 times")
        if width % heads or embedding % 2:
            raise ValueError(f"the width of {width} must be divisible by {heads} heads, and the embedding of {embedding} by 2")
        self.embedding = embedding
        self.label = nn.Linear(classes, embedding, bias=False) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight)  # as an embedding has it: a class is heard as loud as the time
        fine, middle, coarse, bottom = width, 2 * width, 4 * width, 8 * width

        def attends(channels: int) -> nn.Module:
            return SelfAttention(channels, heads) if attention else nn.Identity()

        self.first = DoubleConvolution(shape[0], fine)
        down, up = ((fine, middle), (middle, coarse), (coarse, coarse)), ((2 * coarse, middle), (2 * middle, fine), (2 * fine, fine))
        self.down = nn.ModuleList(Level(a, b, embedding) for a, b in down)
        self.down_attention = nn.ModuleList(attends(b) for _, b in down)
        self.bottom = nn.Sequential(DoubleConvolution(coarse, bottom), DoubleConvolution(bottom, bottom), DoubleConvolution(bottom, coarse))
        # The first of the two convolutions up narrows by half what a skip connection has doubled.
        self.up = nn.ModuleList(Level(a, b, embedding, a // 2) for a, b in up)
        self.up_attention = nn.ModuleList(attends(b) for _, b in up)
        self.last = nn.Conv2d(fine, shape[0], 1)
        # Normalised at once, a sample's scale is lost to all these layers, and with it that of the noise in it; where a sample has few
        # pixels that scale varies. The document leaves it at that. Here the sample also goes to the output, by a share told by the time.
        self.share = nn.Linear(embedding, 1)
        nn.init.zeros_(self.share.weight)
        nn.init.zeros_(self.share.bias)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """The prediction (B, C, H, W) for sample (B, C, H, W), timestep (B,) int64 and label (B, classes)."""
        told = get_timestep_embedding(timestep, self.embedding).to(sample.dtype)
        if self.label is not None and label is not None:
            told = told + self.label(label)
        x = self.first(sample)
        skips = []
        for level, attention in zip(self.down, self.down_attention, strict=True):
            skips.append(x)
            x = attention(level(functional.max_pool2d(x, 2), told))
        x = self.bottom(x)
        for level, attention in zip(self.up, self.up_attention, strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
            x = attention(level(torch.cat([skips.pop(), x], dim=1), told))
        return self.last(x) + sample * self.share(told)[:, :, None, None]


class DoubleConvolution(nn.Module):
    """Convolution, GroupNorm and GELU, then convolution and GroupNorm; with ``residual`` added to what came in."""

    def __init__(self, before: int, after: int, between: int = 0, residual: bool = False) -> None:
        super().__init__()
        between = between or after
        self.residual = residual
        self.layers = nn.Sequential(
            nn.Conv2d(before, between, 3, padding=1, bias=False),
            nn.GroupNorm(1, between),
            nn.GELU(),
            nn.Conv2d(between, after, 3, padding=1, bias=False),
            nn.GroupNorm(1, after),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, before, H, W) to (B, after, H, W)."""
        return functional.gelu(x + self.layers(x)) if self.residual else self.layers(x)


class Level(nn.Module):
    """Two double convolutions, then time and class added to every pixel."""

    def __init__(self, before: int, after: int, embedding: int, between: int = 0) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(DoubleConvolution(before, before, residual=True), DoubleConvolution(before, after, between))
        self.told = nn.Sequential(nn.SiLU(), nn.Linear(embedding, after))

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """(B, before, H, W) and (B, embedding) to (B, after, H, W)."""
        return self.convolutions(x) + self.told(told)[:, :, None, None]


class SelfAttention(nn.Module):
    """Every pixel attends to every other, then a feed-forward layer; both added to what came in."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.normal = nn.LayerNorm(channels)
        # One product for the three together comes out of OpenVINO 2026.4 off by 0.3 for four pixels and a fixed batch.
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.output = nn.Linear(channels, channels)
        self.forward_layers = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        channels, high, wide = x.shape[1:]
        pixels = x.flatten(2).transpose(1, 2)
        normal = self.normal(pixels)
        query, key, value = (
            layer(normal).unflatten(2, (self.heads, channels // self.heads)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        pixels = pixels + self.output(seen)
        pixels = pixels + self.forward_layers(pixels)
        return pixels.transpose(1, 2).unflatten(2, (high, wide))
