"""A feed-forward network for points: the Swiss roll's denoiser."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn


class FeedForward(nn.Module):
    """Residual layers on a point, the time joined to it as sines and cosines.

    Args:
        shape: (channels, 1, 1) of a sample; flattened.
        classes: K of the one-hot label, 0 for none.
        hidden, layers, embedding: width, number of hidden layers, and width of the time embedding.
    """

    def __init__(self, shape: Sequence[int], classes: int = 0, hidden: int = 128, layers: int = 4, embedding: int = 64) -> None:
        super().__init__()
        size = math.prod(shape)
        self.shape, self.embedding = tuple(shape), embedding
        self.time = nn.Sequential(nn.Linear(embedding + classes, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.first = nn.Linear(size, hidden)
        self.layers = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden)) for _ in range(layers))
        self.last = nn.Sequential(nn.SiLU(), nn.Linear(hidden, size))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """The prediction (B, *shape) for sample (B, *shape), timestep (B,) int64 and label (B, classes)."""
        moment = get_timestep_embedding(timestep, self.embedding)
        time = self.time(moment if label is None else torch.cat([moment, label], dim=1))
        x = self.first(sample.flatten(1))
        for layer in self.layers:
            x = x + layer(x + time)
        return self.last(x).reshape(-1, *self.shape)
