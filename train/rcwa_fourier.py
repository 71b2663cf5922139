"""Permittivity matrices of a batch of cells in PyTorch: ``Factorisation`` and ``RealBasis`` of ``runtime/physics/fourier.py``."""

from __future__ import annotations

import numpy as np
import torch

from runtime.physics.fourier import interval_coefficients
from runtime.physics.rcwa import Solver


class Permittivities:
    """[[eps]], eps_x and eps_y of patterns (B, n1, n2), pixels from 0 to 1; see ``TorchSolver`` for what lies between.

    solver: whose geometry, orders and basis these are. dtype: of the matrices, complex128 or complex64, or the real type of the
    same precision where orders are paired; what comes before is in complex128.
    """

    def __init__(self, solver: Solver, device: torch.device, dtype: torch.dtype) -> None:
        self._gap, self._pillar = solver.geometry.index_gap**2, solver.geometry.index_pillar**2
        self._laurent, self._paired, self._highest = solver.geometry.rule == "laurent", solver.paired, solver.factorisation.highest
        self._dtype = dtype.to_real() if solver.paired else dtype
        tables = solver.factorisation
        self._plane, self._along_x, self._along_y, self._toeplitz = (
            torch.as_tensor(table, device=device) for table in (tables.plane, tables.along_x, tables.along_y, tables.toeplitz)
        )

    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[[eps]], eps_x, eps_y in the working basis: (B, N, N), real where orders are paired; as ``Factorisation.matrices``."""
        gap, pillar = self._gap, self._pillar
        permittivity = (gap + (pillar - gap) * pixels).to(torch.complex128)
        inverse = (1 / gap + (1 / pillar - 1 / gap) * pixels).to(torch.complex128)
        highest = 2 * self._highest
        along_x, along_y = (
            torch.as_tensor(interval_coefficients(np.linspace(0.0, 1.0, count + 1), highest), device=pixels.device)
            for count in pixels.shape[1:]
        )
        laurent = self._in_basis((along_x @ permittivity @ along_y.T).flatten(1)[:, self._plane])
        if self._laurent:
            return laurent, laurent, laurent
        epsilon_x = self._inverse_rule(inverse, along_x, along_y).flatten(1)[:, self._along_x]
        epsilon_y = self._inverse_rule(inverse.mT, along_y, along_x).flatten(1)[:, self._along_y]
        return laurent, self._in_basis(epsilon_x), self._in_basis(epsilon_y)

    def _inverse_rule(self, impermittivity: torch.Tensor, normal: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
        """(B, 4H+1, (2H+1)^2): Fourier series along one axis of each strip's inverted Toeplitz matrix across the other."""
        strips = (normal @ impermittivity).mT[:, :, self._toeplitz]
        return along @ torch.linalg.inv(strips).flatten(2)

    def _in_basis(self, rows: torch.Tensor) -> torch.Tensor:
        """An operator (B, N, N) from its rows in plane waves, as ``RealBasis.operator`` where orders are paired."""
        if not self._paired:
            return rows.to(self._dtype)
        half, root = rows.shape[1] - 1, 2**0.5
        zeroth, first, plus, minus = rows[:, :1, 1 : half + 1], rows[:, 1:, :1], rows[:, 1:, 1 : half + 1], rows[:, 1:, half + 1 :]
        both, odd = plus + minus, plus - minus
        top = torch.cat([rows[:, :1, :1].real, root * zeroth.real, root * zeroth.imag], dim=2)
        cosines = torch.cat([root * first.real, both.real, odd.imag], dim=2)
        sines = torch.cat([-root * first.imag, -both.imag, odd.real], dim=2)
        return torch.cat([top, cosines, sines], dim=1).to(self._dtype)
