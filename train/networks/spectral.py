"""The ``default`` denoiser: a periodic network that works in pixel space and in the pattern's Fourier space.

A diffraction order (m, n) is tied to the Fourier component (m mod N, n mod N) of the N x N pattern and knows nothing
of where the cell begins. So the light enters where it lives: as one token per Fourier component, which gates that
component of the network's features. Gates depend only on the light and on shift-invariant products of components;
with circular convolutions in pixel space the whole network commutes with cyclic shifts of the cell by construction.

The gates act on a component and on its bare phase: ``magnitude x phase`` is the Gerchberg–Saxton projection onto the
target's magnitudes (Optik 35, 237 (1972)), which the network thus has at hand in every block. The transforms are
products with constant cosine and sine matrices, which every inference engine runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .unrolled import Unrolled


def sinusoid(position: torch.Tensor, width: int, longest: float = 10_000.0) -> torch.Tensor:
    """Sines and cosines of ``position`` (B,) at ``width`` / 2 geometric periods: (B, width) float32."""
    half = width // 2
    rates = torch.exp(-math.log(longest) / half * torch.arange(half, dtype=torch.float32, device=position.device))
    angle = position.float()[:, None] * rates[None]
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def height_features(height: torch.Tensor) -> torch.Tensor:
    """height (B, 1) from -1 to 1, and its sinusoids: (B, 33)."""
    return torch.cat([height, sinusoid(height[:, 0] * 20.0, 32, 100.0)], dim=1)


def aliases(size: int, orders: int) -> tuple[int, int]:
    """How many whole patterns of N components the orders -M..M reach below 0, and how many they touch in all."""
    below = -(-orders // size)
    return below, below + orders // size + 1


def invariants(real: torch.Tensor, imaginary: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Magnitude, phase (real and imaginary part) and relative phase (the same) of neighbouring channels' Fourier components (B, C, N*N).

    Magnitudes and relative phases do not change under cyclic shifts of the cell.
    """
    magnitude = (real * real + imaginary * imaginary + 1e-3).sqrt()
    real_phase, imaginary_phase = real / magnitude, imaginary / magnitude
    next_real, next_imaginary = real_phase.roll(1, 1), imaginary_phase.roll(1, 1)
    cross_real = real_phase * next_real + imaginary_phase * next_imaginary
    cross_imaginary = imaginary_phase * next_real - real_phase * next_imaginary
    return magnitude, real_phase, imaginary_phase, cross_real, cross_imaginary


class Fourier(nn.Module):
    """Orthonormal two-dimensional DFT of real (B, C, N*N) features as two constant matrices."""

    cosine: torch.Tensor
    sine: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        index = torch.arange(size, dtype=torch.float64)
        row, column = (a.reshape(-1) for a in torch.meshgrid(index, index, indexing="ij"))
        angle = 2 * math.pi * ((row[:, None] * row[None] + column[:, None] * column[None]) % size) / size
        self.register_buffer("cosine", (angle.cos() / size).float(), persistent=False)
        self.register_buffer("sine", (angle.sin() / size).float(), persistent=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Real and imaginary part of sum_r x[r] exp(-i k r) / N, each (B, C, N*N)."""
        return x @ self.cosine, -(x @ self.sine)

    def inverse(self, real: torch.Tensor, imaginary: torch.Tensor) -> torch.Tensor:
        """Real part of sum_k X[k] exp(+i k r) / N; a gate need not be Hermitian, its other part drops out here."""
        return real @ self.cosine - imaginary @ self.sine


class CircularConv(nn.Module):
    """3 x 3 convolution of a periodic (B, C, N, N) field."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x[:, :, -1:], x, x[:, :, :1]], dim=2)
        return self.conv(torch.cat([x[:, :, :, -1:], x, x[:, :, :, :1]], dim=3))


class SpectralGate(nn.Module):
    """Multiplies the Fourier components of the features by gates computed from the light and from their own invariants."""

    def __init__(self, channels: int, components: int, tokens: int, hidden: int, embedding: int, fourier: Fourier) -> None:
        super().__init__()
        self.fourier = fourier
        self.norm = nn.GroupNorm(8, channels)
        self.project_in = nn.Conv1d(channels, components, 1)
        self.invariants = nn.Conv1d(3 * components, hidden, 1)
        self.light = nn.Conv1d(tokens, hidden, 1, bias=False)
        self.film = nn.Linear(embedding, 2 * hidden)
        self.gates = nn.Conv1d(hidden, 4 * components, 1)
        self.project_out = nn.Conv1d(components, channels, 1)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, context: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """x (B, C, N*N), context (B, tokens, N*N), embedding (B, E) -> (B, C, N*N)."""
        real, imaginary = self.fourier(self.project_in(self.norm(x)))
        magnitude, real_phase, imaginary_phase, cross_real, cross_imaginary = invariants(real, imaginary)
        hidden = self.invariants(torch.cat([magnitude, cross_real, cross_imaginary], dim=1)) + self.light(context)
        scale, shift = self.film(embedding)[:, :, None].chunk(2, dim=1)
        gate_real, gate_imaginary, phase_real, phase_imaginary = self.gates(functional.silu(hidden * (1 + scale) + shift)).chunk(4, dim=1)
        out_real = gate_real * real - gate_imaginary * imaginary + phase_real * real_phase - phase_imaginary * imaginary_phase
        out_imaginary = gate_real * imaginary + gate_imaginary * real + phase_real * imaginary_phase + phase_imaginary * real_phase
        return x + self.project_out(self.fourier.inverse(out_real, out_imaginary))


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, circular 3 x 3 convolution, modulated by the embedding, GroupNorm, SiLU, circular 3 x 3 convolution."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(8, channels)
        self.conv_1 = CircularConv(channels, channels)
        self.film = nn.Linear(embedding, 2 * channels)
        self.norm_2 = nn.GroupNorm(8, channels)
        self.conv_2 = CircularConv(channels, channels)
        nn.init.zeros_(self.conv_2.conv.weight)
        nn.init.zeros_(self.conv_2.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        hidden = self.norm_2(self.conv_1(functional.silu(self.norm_1(x))))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        return x + self.conv_2(functional.silu(hidden * (1 + scale) + shift))


class LightEncoder(nn.Module):
    """Order maps and height -> one token per Fourier component of the pattern, and one embedding for the whole cell.

    Orders that differ by a multiple of N fall on the same component (aliasing), so they share a token. ``maps`` is the number of order
    maps: R, T and further ones, each with its mask.
    """

    def __init__(self, size: int, orders: int, tokens: int, embedding: int, maps: int = 2) -> None:
        super().__init__()
        self.size, self.orders, self.tokens, self.planes = size, orders, tokens, 2 * maps
        self.blocks_below, self.blocks = aliases(size, orders)
        index = torch.arange(size)
        mirrored = ((-index % size)[:, None] * size + (-index % size)[None]).reshape(-1)
        self.register_buffer("mirrored", mirrored, persistent=False)
        width = 2 * tokens
        self.position = nn.Parameter(torch.zeros(1, width, size * size))
        self.fold_in = nn.Conv1d(2 * self.planes * self.blocks**2, width, 1)
        self.height = nn.Sequential(nn.Linear(33, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.film_1 = nn.Linear(embedding, 2 * width)
        self.mix_1 = nn.Conv1d(width, width, 1)
        self.pool = nn.Linear(width, embedding)
        self.film_2 = nn.Linear(embedding, 2 * width)
        self.mix_2 = nn.Conv1d(width, width, 1)
        self.out = nn.Conv1d(width, tokens, 1)
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding, embedding))

    mirrored: torch.Tensor

    def fold(self, light: torch.Tensor) -> torch.Tensor:
        """(B, planes, 2M+1, 2M+1) -> (B, planes * blocks**2, N*N): order (m, n) at component (m mod N, n mod N)."""
        below = self.blocks_below * self.size - self.orders
        above = self.blocks * self.size - below - (2 * self.orders + 1)
        padded = functional.pad(light, (below, above, below, above))
        split = padded.reshape(-1, self.planes, self.blocks, self.size, self.blocks, self.size)
        return split.permute(0, 1, 2, 4, 3, 5).reshape(-1, self.planes * self.blocks**2, self.size * self.size)

    def forward(self, light: torch.Tensor, height: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """light (B, planes, 2M+1, 2M+1), height (B, 1) in [-1, 1] -> context (B, tokens, N*N), embedding (B, E)."""
        folded = self.fold(light)
        tokens = self.fold_in(torch.cat([folded, folded[:, :, self.mirrored]], dim=1)) + self.position
        embedding = self.height(height_features(height))
        scale, shift = self.film_1(embedding)[:, :, None].chunk(2, dim=1)
        tokens = tokens + self.mix_1(functional.silu(tokens * (1 + scale) + shift))
        embedding = embedding + self.pool(functional.silu(tokens).mean(dim=2))
        scale, shift = self.film_2(functional.silu(embedding))[:, :, None].chunk(2, dim=1)
        tokens = tokens + self.mix_2(functional.silu(tokens * (1 + scale) + shift))
        return self.out(functional.silu(tokens)), self.embed(embedding)


class SpectralDenoiser(nn.Module):
    """Noisy pattern, timestep, light and height -> the quantity the objective asks for; commutes with cyclic shifts.

    Args:
        size: N, pixels along one side of the square pattern.
        orders: M, half-width of the order maps (2M+1, 2M+1).
        channels, components, hidden, blocks, tokens, embedding: widths and depth.
        maps: order maps the light consists of; 2 are R and T.
        unrolled: arguments of :class:`unrolled.Unrolled`, for a network that runs several times in a call; it then predicts v.
    """

    def __init__(
        self,
        size: int = 10,
        orders: int = 11,
        channels: int = 64,
        components: int = 32,
        hidden: int = 96,
        blocks: int = 8,
        tokens: int = 64,
        embedding: int = 192,
        maps: int = 2,
        unrolled: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.path = None if unrolled is None else Unrolled(**unrolled)
        self.encoder = LightEncoder(size, orders, tokens, embedding, maps)
        self.time = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.conv_in = CircularConv(1, channels)
        fourier = Fourier(size)
        self.gates = nn.ModuleList([SpectralGate(channels, components, tokens, hidden, embedding, fourier) for _ in range(blocks)])
        self.residuals = nn.ModuleList([ResidualBlock(channels, embedding) for _ in range(blocks)])
        self.norm_out = nn.GroupNorm(8, channels)
        self.conv_out = nn.Conv2d(channels, 1, 1)

    def encode(self, light: torch.Tensor, height: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The part that depends on the target alone; see :class:`LightEncoder`."""
        return self.encoder(light, height)

    def denoise(self, sample: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """sample (B, 1, N, N), timestep (B,), context (B, tokens, N*N), embedding (B, E) -> (B, 1, N, N)."""
        if self.path is not None:
            return self.path(lambda x, t: self._once(x, t, context, embedding), sample, timestep)
        return self._once(sample, timestep, context, embedding)

    def _once(self, sample: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        embedding = functional.silu(embedding + self.time(sinusoid(timestep, 64)))
        x = self.conv_in(sample)
        for gate, residual in zip(self.gates, self.residuals, strict=True):
            x = gate(x.flatten(2), context, embedding).unflatten(2, sample.shape[2:])
            x = residual(x, embedding)
        return self.conv_out(functional.silu(self.norm_out(x)))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, light: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        return self.denoise(sample, timestep, *self.encode(light, height))
