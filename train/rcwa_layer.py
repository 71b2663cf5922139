"""A batch of patterned layers in PyTorch: the equations of ``runtime/physics/layer.py``, for many cells and heights at once.

Units, axes and symbols are that module's: e' = P g, g' = Q e, A = P Q. Every function is differentiable and writes to no
tensor that a derivative needs. Leading axis B: the cells of the batch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from runtime.physics.layer import MONOMIALS, NODES, TRANSFORM, plan


@dataclasses.dataclass(frozen=True)
class Frame:
    """``runtime.physics.layer.Frame`` as tensors on one device: cos, sin, k, factor (N,) real and swap (N,) int64."""

    cos: torch.Tensor
    sin: torch.Tensor
    k: torch.Tensor
    swap: torch.Tensor
    factor: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Operators:
    """P's block ``p`` (B, N, N), ``q`` (B, 2N, 2N) and ``a`` = P Q (B, 2N, 2N); e'' = A e."""

    p: torch.Tensor
    q: torch.Tensor
    a: torch.Tensor

    @classmethod
    def build(cls, epsilon: torch.Tensor, epsilon_x: torch.Tensor, epsilon_y: torch.Tensor, frame: Frame) -> Operators:
        """From [[eps]], eps_x and eps_y, each (B, N, N) in the frame's basis; real matrices give real operators."""
        c, s, size = frame.cos, frame.sin, len(frame.cos)
        cx, sx = c[:, None] * epsilon_x, s[:, None] * epsilon_x
        cy, sy = c[:, None] * epsilon_y, s[:, None] * epsilon_y
        top = torch.cat([-(cx * c + sy * s), cx * s - sy * c], dim=2)
        bottom = torch.cat([sx * c - cy * s, -(sx * s + cy * c)], dim=2)
        bottom.diagonal(size, 1, 2).add_(frame.k**2)
        # K [[eps]]^-1 K^H by permutation and scaling.
        inverse = torch.linalg.inv(epsilon)[:, frame.swap[:, None], frame.swap]
        p = -inverse * frame.factor[:, None] * frame.factor
        p.diagonal(0, 1, 2).add_(1)
        return cls(p, torch.cat([top, bottom], dim=1), torch.cat([p @ top, bottom], dim=1))


def propagator(
    a: torch.Tensor, thickness: torch.Tensor, spectrum: tuple[float, float], tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """C - 1 and S, with C = cosh(sqrt(A) d) and S = sinh(sqrt(A) d) / sqrt(A): (B, n, n) of A's dtype.

    a: (B, n, n). thickness: (B,) float64, d = k0 h. spectrum: the interval all eigenvalues lie near. tolerance: truncation
    error of the series relative to its largest value. One polynomial degree and one number of doublings, those of the
    thickest layer, serve the batch; the coefficients are each layer's own, and differentiable in its thickness.
    """
    degree, stored, doublings, _ = plan(float(thickness.detach().max()), spectrum, tolerance)
    count, size, _ = a.shape
    series = _series(thickness / 2**doublings, spectrum, degree).to(a.dtype)
    centre, radius = (spectrum[0] + spectrum[1]) / 2, (spectrum[1] - spectrum[0]) / 2
    scaled = a / radius
    scaled.diagonal(0, 1, 2).sub_(centre / radius)
    powers = [scaled]
    for _ in range(1, stored):
        powers.append(powers[-1] @ scaled)
    stack = torch.stack(powers, dim=1).reshape(count, stored, size * size)

    def block(first: int, terms: int) -> torch.Tensor:
        """sum_j series[:, :, first + j] B^j, j = 0 ... terms, of both polynomials, one below the other: (B, 2n, n)."""
        both = (series[:, :, first + 1 : first + 1 + terms] @ stack[:, :terms]).reshape(count, 2, size, size)
        both.diagonal(0, 2, 3).add_(series[:, :, first, None])
        return both.reshape(count, 2 * size, size)

    # Paterson-Stockmeyer: Horner in the highest power stored; the first block has one term more.
    blocks = degree // stored
    both = block((blocks - 1) * stored, stored)
    for index in range(blocks - 2, -1, -1):
        both = torch.baddbmm(block(index * stored, stored - 1), both, powers[-1])
    c, s = both[:, :size], both[:, size:]
    for _ in range(doublings):
        # C - 1 <- 2 (C - 1)^2 + 4 (C - 1);  S / (2 step) <- (S / step) C
        c, s = torch.baddbmm(c, c, c, beta=4, alpha=2), torch.baddbmm(s, s, c)
    return c, s * thickness.to(a.real.dtype)[:, None, None]


def _series(step: torch.Tensor, spectrum: tuple[float, float], degree: int) -> torch.Tensor:
    """(B, 2, degree + 1) float64: cosh(sqrt(x) step) - 1 and sinh(sqrt(x) step) / (sqrt(x) step) in powers of (x - centre) / radius."""
    centre, radius = (spectrum[0] + spectrum[1]) / 2, (spectrum[1] - spectrum[0]) / 2
    x = centre + radius * NODES
    grows = torch.as_tensor(x > 0, device=step.device)
    root = step[:, None] * torch.as_tensor(np.sqrt(np.abs(x)), device=step.device)
    # Where nothing is divided by zero the derivative is finite too; at 0 the quotient is 1 with derivative 0.
    safe = torch.where(root == 0, 1.0, root)
    less_one = torch.where(grows, 2 * torch.sinh(root / 2) ** 2, -2 * torch.sin(root / 2) ** 2)
    quotient = torch.where(root == 0, 1.0, torch.where(grows, torch.sinh(safe), torch.sin(safe)) / safe)
    to_monomials = torch.as_tensor(TRANSFORM[: degree + 1].T @ MONOMIALS[: degree + 1, : degree + 1], device=step.device)
    return torch.stack([less_one, quotient], dim=1) @ to_monomials


def scatter(
    operators: Operators,
    y_in: torch.Tensor,
    y_out: torch.Tensor,
    source: torch.Tensor,
    thickness: torch.Tensor,
    spectrum: tuple[float, float],
    tolerance: float,
    sheets: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reflected and transmitted transverse fields (r, t), each (B, 2N) complex128, without an eigenproblem.

    y_in, y_out: (2N,) complex128 admittances of the half-spaces. source: (2N,) complex128 incident field. thickness: (B,)
    float64. The layer is cut into ``sheets`` equal ones, each crossed by its propagator: rounding grows with the evanescent
    waves of one sheet. On a sheet's far face g = Y e, where Y is Y_out on the last and else what the sheets behind it show; run
    backwards, as in ``scatter_by_propagator``, its near face has

        e = (C - S P Y) e_far,   g = (C^H Y - Q S) e_far,   hence Y_near = (C^H Y - Q S) (C - S P Y)^-1

    and on the first face e = s + r, g = Y_in (s - r). All this is in complex128, whatever the operators' dtype.
    """
    c, s = propagator(operators.a, thickness / sheets, spectrum, tolerance)
    half = s.shape[-1] // 2
    qs = _double(operators.q @ s)
    sp = _double(torch.cat([s[:, :, :half] @ operators.p, s[:, :, half:]], dim=2))
    c = _double(c) + torch.eye(2 * half, dtype=torch.float64, device=c.device)
    forward, backward = c - sp * y_out, c.mH * y_out - qs
    crossings = []
    for _ in range(sheets - 1):
        crossings.append(torch.linalg.inv(forward))
        admittance = backward @ crossings[-1]
        forward, backward = c - sp.to(torch.complex128) @ admittance, c.mH.to(torch.complex128) @ admittance - qs
    t = torch.linalg.solve(backward + y_in[:, None] * forward, 2 * y_in * source)
    r = (forward @ t[:, :, None])[:, :, 0] - source
    for crossing in reversed(crossings):
        t = (crossing @ t[:, :, None])[:, :, 0]
    return r, t


def _double(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.to(torch.promote_types(matrix.dtype, torch.float64))
