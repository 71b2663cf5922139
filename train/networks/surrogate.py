"""The forward ``surrogate``: what a pattern of some height scatters into each order, in place of solving Maxwell's equations.

Power comes out as the softmax over all reflected and transmitted orders together, so it is conserved by construction. The features
commute with cyclic shifts of the cell and what is read from them are invariants, so shifted copies of a cell, which scatter alike,
are the same to it. Each order (m, n) is read at the Fourier component (m mod N, n mod N) that drives it first; how well the
component's power alone tells the order's is scalar diffraction (Goodman, Introduction to Fourier Optics, section 4.4), and the blocks
between add what scatters more than once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from .spectral import CircularConv, Fourier, ResidualBlock, SpectralGate, aliases, height_features, invariants

if TYPE_CHECKING:
    from runtime.condition import Condition

_DARK = -30.0  # logit of an order that carries no light: 1e-13 of the brightest


class Surrogate(nn.Module):
    """pattern (B, 1, N, N) of 0 and 1, height_nm (B, 1) -> R, T (B, 2M+1, 2M+1), all of them together 1.

    Args:
        size: N, pixels along one side of the square pattern.
        orders: M, half-width of the order maps.
        channels, components, hidden, blocks, tokens, embedding: widths and depth.
    """

    prior: torch.Tensor
    height_range_nm: torch.Tensor

    def __init__(
        self,
        size: int = 10,
        orders: int = 11,
        channels: int = 64,
        components: int = 48,
        hidden: int = 128,
        blocks: int = 6,
        tokens: int = 32,
        embedding: int = 128,
    ) -> None:
        super().__init__()
        self.size, self.orders = size, orders
        self.blocks_below, self.aliases = aliases(size, orders)
        side = 2 * orders + 1
        # Logarithms of the mean efficiencies, from which the network has to tell the difference; and the heights it was shown.
        self.register_buffer("prior", torch.zeros(2, side, side))
        self.register_buffer("height_range_nm", torch.tensor([0.0, 1.0]))
        self.height = nn.Sequential(nn.Linear(33, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, size * size))
        self.conv_in = CircularConv(1, channels)
        fourier = self.fourier = Fourier(size)
        self.gates = nn.ModuleList([SpectralGate(channels, components, tokens, hidden, embedding, fourier) for _ in range(blocks)])
        self.residuals = nn.ModuleList([ResidualBlock(channels, embedding) for _ in range(blocks)])
        self.norm_out = nn.GroupNorm(8, channels)
        self.project_out = nn.Conv1d(channels, components, 1)
        self.invariants = nn.Conv1d(3 * components + 1, 2 * hidden, 1)
        self.place = nn.Conv1d(tokens, 2 * hidden, 1, bias=False)
        self.film = nn.Linear(embedding, 4 * hidden)
        self.mix = nn.Conv1d(2 * hidden, 2 * hidden, 1)
        self.logits = nn.Conv1d(2 * hidden, 2 * self.aliases**2, 1)

    @torch.no_grad()
    def measure(self, condition: Condition) -> None:
        """Take over what the training part looks like: mean efficiencies and heights."""
        means = torch.stack([torch.from_numpy(condition.mean_R), torch.from_numpy(condition.mean_T)])
        self.prior.copy_(torch.where(means > 0, means.clamp(min=1e-12).log(), torch.full_like(means, _DARK)))
        self.height_range_nm.copy_(torch.tensor(condition.height_range_nm))

    def unfold(self, components: torch.Tensor) -> torch.Tensor:
        """(B, 2 * aliases**2, N*N) -> (B, 2, 2M+1, 2M+1): component (m mod N, n mod N) and the right alias at order (m, n)."""
        n = self.size
        first = self.blocks_below * n - self.orders
        split = components.reshape(-1, 2, self.aliases, self.aliases, n, n).permute(0, 1, 2, 4, 3, 5)
        last = first + 2 * self.orders + 1
        return split.reshape(-1, 2, self.aliases * n, self.aliases * n)[:, :, first:last, first:last]

    def forward(self, pattern: torch.Tensor, height_nm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = self.height_range_nm[0], self.height_range_nm[1]
        height = 2 * (height_nm - low) / (high - low) - 1
        embedding = self.height(height_features(height))
        cell = 2 * pattern - 1
        x = self.conv_in(cell)
        for gate, residual in zip(self.gates, self.residuals, strict=True):
            x = gate(x.flatten(2), self.position, embedding).unflatten(2, pattern.shape[2:])
            x = residual(x, embedding)
        real, imaginary = self.fourier(self.project_out(functional.silu(self.norm_out(x)).flatten(2)))
        magnitude, _, _, cross_real, cross_imaginary = invariants(real, imaginary)
        cell_real, cell_imaginary = self.fourier(cell.flatten(2))
        power = (cell_real * cell_real + cell_imaginary * cell_imaginary + 1e-2).log()
        hidden = self.invariants(torch.cat([power, magnitude.log(), cross_real, cross_imaginary], dim=1)) + self.place(self.position)
        scale, shift = self.film(embedding)[:, :, None].chunk(2, dim=1)
        hidden = functional.silu(hidden * (1 + scale) + shift)
        logits = self.unfold(self.logits(hidden + functional.silu(self.mix(hidden)))).float() + self.prior
        efficiency = logits.flatten(1).softmax(dim=1).reshape(logits.shape)
        return efficiency[:, 0], efficiency[:, 1]
