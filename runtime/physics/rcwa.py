"""Rigorous coupled-wave analysis of one patterned layer between two half-spaces.

    reflection, transmission = Solver(geometry).solve(pattern, height_nm)

Fields vary as exp(-i omega t + i k r); order (m, n) has the transverse wavevector (+2 pi m / Lx, +2 pi n / Ly)
relative to the incident one, and ``R[m + M, n + M]`` is its efficiency. The method is Li's factorisation
(JOSA A 14, 2758 (1997)) with closed-form Fourier coefficients; the layer is crossed without an eigenproblem, in real
arithmetic at normal incidence, and by its eigenmodes where evanescent growth would cost the precision.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import DataError, GeometryError
from ..geometry import Geometry
from .fourier import Cell, Factorisation, RealBasis, harmonics_kept
from .layer import Frame, Operators, scatter_by_eigenmodes, scatter_by_propagator

__all__ = ["Cell", "Solver", "solve"]

# Precisions to try in turn per Geometry.dtype: (complex dtype, error allowed in the series, largest evanescent growth
# exponent d max Re sqrt(A) trusted to it, largest energy error). Measured on the lab's geometry, L1 error of R and T against
# the eigenmodes: complex64 7e-6 in the median and 1.2e-4 at worst up to exponent 9 (535 nm); complex128 2e-12 at 10,
# 4e-11 at 14, 4e-9 at 20, 7e-8 at 24. Beyond the last limit the eigenmodes are asked.
_PRECISIONS = {
    "complex64": ((np.complex64, 1e-9, 9.0, 3e-5), (np.complex128, 1e-12, 24.0, 1e-6)),
    "complex128": ((np.complex128, 1e-15, 14.0, 1e-10),),
}
# An order exactly at grazing has no admittance; |kz| / k0 below this counts as this.
_GRAZING = 1e-5


class Solver:
    """RCWA for one :class:`Geometry`; everything that does not depend on the pattern is computed once.

    Thread-safe: ``solve`` changes nothing. ``orders`` is M, the half-width of the maps returned, which may differ
    from ``geometry.harmonics``: orders the truncation left out are 0, propagating orders beyond M are not shown.

    Polarisation: with the propagation direction at (theta, phi), p = (cos theta cos phi, cos theta sin phi, -+ sin theta)
    in the plane of incidence and s = (-sin phi, cos phi, 0), 'x' means E = cos phi p - sin phi s and
    'y' means E = sin phi p + cos phi s. So 'x' is TM (p) and 'y' TE (s) at phi = 0, the other way round at
    phi = 90, and both tend to E along x or y as theta tends to 0 at any phi.

    The attributes are the constants of that geometry, which the solver in ``train/rcwa.py`` takes from here: the orders
    ``m``, ``n``, their ``factorisation`` and ``frame``, and of the half-spaces the admittances ``y_in``, ``y_out``, the power
    weights ``weight_in``, ``weight_out``, the incident field ``source`` and its power ``incident``. ``paired`` says that the
    working basis is cosines and sines.

    Raises:
        GeometryError: orders that is not a whole number from 0 up.
    """

    def __init__(self, geometry: Geometry, orders: int = 11) -> None:
        if isinstance(orders, bool) or not isinstance(orders, int | np.integer) or orders < 0:
            raise GeometryError(f"orders is {orders!r}; it must be a whole number from 0 up, the half-width of the order maps")
        self.geometry, self.orders = geometry, int(orders)
        self.k0 = 2 * math.pi / geometry.wavelength_nm
        m, n = harmonics_kept(geometry.harmonics, geometry.truncation)
        self.m, self.n = m, n
        index_in = geometry.index_incident
        index_out = geometry.index_cover if geometry.incidence == "substrate" else geometry.index_substrate
        theta, phi = math.radians(geometry.theta_deg), math.radians(geometry.phi_deg)
        kx0, ky0 = index_in * math.sin(theta) * math.cos(phi), index_in * math.sin(theta) * math.sin(phi)
        kx = kx0 + m * geometry.wavelength_nm / geometry.period_nm[0]
        ky = ky0 + n * geometry.wavelength_nm / geometry.period_nm[1]
        # At normal incidence orders come in pairs +-G and the whole problem is real in cosines and sines.
        self.paired = geometry.theta_deg == 0
        half = (len(m) + 1) // 2
        self.factorisation = Factorisation(m, n, geometry.rule, half if self.paired else len(m))
        length = np.hypot(kx, ky)
        cos, sin = np.where(length > 0, kx, 1) / np.where(length > 0, length, 1), ky / np.where(length > 0, length, 1)
        swap, factor = np.arange(len(m)), length
        if self.paired:
            cos, sin = np.r_[cos[:half], cos[1:half]], np.r_[sin[:half], sin[1:half]]
            swap = np.r_[0, np.arange(half, len(m)), np.arange(1, half)]
            factor = np.r_[0.0, -length[1:half], length[1:half]]
        self.frame = Frame(cos, sin, length, swap, factor)
        self.y_in, self.weight_in = _half_space(index_in, length)
        self.y_out, self.weight_out = _half_space(index_out, length)
        self.longest = float(length.max())
        # Transverse incident field, then along and across order 0's own axis.
        p, s = (math.cos(phi), -math.sin(phi)) if geometry.polarisation == "x" else (math.sin(phi), math.cos(phi))
        ex = p * math.cos(theta) * math.cos(phi) - s * math.sin(phi)
        ey = p * math.cos(theta) * math.sin(phi) + s * math.cos(phi)
        self.source = np.zeros(2 * len(m))
        self.source[0], self.source[len(m)] = cos[0] * ex + sin[0] * ey, -sin[0] * ex + cos[0] * ey
        self.incident = float(self.weight_in @ self.source**2)

    def solve(self, pattern_or_cell: Any, height_nm: float) -> tuple[np.ndarray, np.ndarray]:
        """Efficiencies of the reflected and transmitted orders of a pattern or :class:`Cell` of this height.

        pattern_or_cell: (n1, n2) of 0 and 1, or a Cell with this geometry's periods. height_nm: nm, from 0 up.
        Returns R, T: (2M+1, 2M+1) float64, order (m, n) at [m + M, n + M]; evanescent orders are exactly 0.

        Raises:
            DataError: a pattern that is not binary, a cell of another period, a height that is negative or not finite.
        """
        return self._solve(pattern_or_cell, height_nm, eigenmodes=None)

    def _solve(self, pattern_or_cell: Any, height_nm: float, eigenmodes: bool | None) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`solve`; eigenmodes True or False forces the method, None picks it and checks the energy."""
        thickness = self.k0 * _height(height_nm)
        cell = self._cell(pattern_or_cell)
        matrices = self._permittivities(cell)
        # Waves in the layer run no slower than in its densest rectangle and decay no faster than the highest order.
        lowest, highest = -(float(cell.index.max()) ** 2), max(self.longest**2 - float(cell.index.min()) ** 2, 0.0)
        growth = thickness * math.sqrt(highest)
        for dtype, tolerance, growth_limit, energy_limit in _PRECISIONS[self.geometry.dtype]:
            if eigenmodes or (eigenmodes is None and growth > growth_limit):
                continue
            operators = Operators.build(matrices, self.frame, dtype)
            r, t = self._powers(
                *scatter_by_propagator(operators, self.y_in, self.y_out, self.source, thickness, (lowest, highest), tolerance)
            )
            # A lossless cell keeps its energy, so what is missing measures the precision lost.
            if eigenmodes is False or abs(r.sum() + t.sum() - 1) <= energy_limit:
                return self._map(r), self._map(t)
        operators = Operators.build(matrices, self.frame, np.complex128)
        r, t = self._powers(*scatter_by_eigenmodes(operators, self.y_in, self.y_out, self.source, thickness))
        return self._map(r), self._map(t)

    def _permittivities(self, cell: Cell) -> tuple[np.ndarray, ...]:
        """[[eps]], eps_x, eps_y in the working basis: (N, N) float64 where orders are paired, else complex128."""
        matrices = self.factorisation.matrices(cell)
        return tuple(RealBasis.operator(matrix) if self.paired else matrix for matrix in matrices)

    def _powers(self, reflected: np.ndarray, transmitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Power over incident power of every order kept: two (N,) float64."""
        powers = []
        for field, weight in ((reflected, self.weight_in), (transmitted, self.weight_out)):
            amplitudes = field.reshape(2, -1)
            if self.paired:
                amplitudes = RealBasis.to_plane_waves(amplitudes)
            powers.append((np.abs(amplitudes) ** 2 * weight.reshape(2, -1)).sum(axis=0) / self.incident)
        return powers[0], powers[1]

    def _map(self, power: np.ndarray) -> np.ndarray:
        """(2M+1, 2M+1) float64 map of the orders' powers."""
        shown = (np.abs(self.m) <= self.orders) & (np.abs(self.n) <= self.orders)
        result = np.zeros((2 * self.orders + 1, 2 * self.orders + 1))
        result[self.m[shown] + self.orders, self.n[shown] + self.orders] = power[shown]
        return result

    def _cell(self, pattern_or_cell: Any) -> Cell:
        if not isinstance(pattern_or_cell, Cell):
            return Cell.from_pattern(pattern_or_cell, self.geometry)
        ends = (pattern_or_cell.x_edges_nm[-1], pattern_or_cell.y_edges_nm[-1])
        if not np.allclose(ends, self.geometry.period_nm, rtol=1e-9, atol=0):
            raise DataError(
                f"the cell ends at {ends[0]:g} x {ends[1]:g} nm; the geometry's period is "
                f"{self.geometry.period_nm[0]:g} x {self.geometry.period_nm[1]:g} nm"
            )
        return pattern_or_cell


def solve(pattern: Any, height_nm: float, geometry: Geometry, orders: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """R and T of one pattern or cell, as :meth:`Solver.solve`; make a Solver to solve many."""
    return Solver(geometry, orders).solve(pattern, height_nm)


def _half_space(index: float, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Admittances (2N,) complex128 of waves leaving along +z, and power weights (2N,) float64, 0 for evanescent orders.

    length: (N,) transverse wavevectors over k0. kz = sqrt(index^2 - length^2) on the branch that decays; s: Y = i kz,
    power kz |E_s|^2; p: Y = i index^2 / kz, power index^2 / kz |E_p|^2 (E_p transverse).
    """
    squared = index**2 - length**2
    squared = np.where(np.abs(squared) < _GRAZING**2, np.where(squared < 0, -1, 1) * _GRAZING**2, squared)
    kz = np.sqrt(squared.astype(np.complex128))
    admittance = np.concatenate([1j * index**2 / kz, 1j * kz])
    return admittance, np.where(np.tile(squared > 0, 2), admittance.imag, 0.0)


def _height(height_nm: Any) -> float:
    """``height_nm`` as a float. Raises DataError unless it is a finite number from 0 up."""
    try:
        height = float(height_nm)
    except (TypeError, ValueError):
        raise DataError(f"the height is {height_nm!r}; it must be a number of nm from 0 up") from None
    if not math.isfinite(height) or height < 0:
        raise DataError(f"the height is {height} nm; it must be a finite number from 0 up")
    return height
