"""How misrouted power changes with every pixel and with the height: one solve and its adjoint, beside the solver of ``rcwa.py``.

    score, by_pixel, by_height_nm = gradient(Solver(geometry, target.orders), pattern, height_nm, target)

With the fields e and g of ``layer.py``, e' = P g and g' = Q e, the derivative of any function f(r, t) of the scattered fields is

    df = Re integral over the layer of  v^T dP g - u^T dQ e,     u' = P^T v,  v' = Q^T u,

where (u, v) is the field that sources df/dr and df/dt send into the layer from its two sides. Its value on the near face comes from the
transpose of the linear system that gave t, already factored; the cell is lossless, so that conj(u), conj(v) obey the very equations
of e and g and all are carried through the layer together, by Chebyshev series of the operators that act on a few vectors. The integral
is Gauss's. No matrix product is differentiated, so the derivative costs little beside the solve.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from ..score import misrouted_power
from ..target import Target
from .fourier import RealBasis, interval_coefficients
from .layer import Operators, propagator
from .rcwa import Solver, _height

__all__ = ["gradient", "trusted"]

# Largest evanescent growth exponent d max Re sqrt(A) whose rounding leaves six digits; see ``rcwa._PRECISIONS``.
_GROWTH = 20.0
# Half the step of the differences that give the score's slope by every order: it is piecewise linear, so they are exact to rounding.
_STEP = 1e-6


class _Cell(NamedTuple):
    """Closed-form series of a cell whose pixels may be grey: ``along_x``, ``along_y`` of the pixels' indicator functions, and the inverses
    (strips, 2H+1, 2H+1) of Li's Toeplitz matrices of 1/eps across x and across y (None under Laurent's rule)."""

    along_x: np.ndarray
    along_y: np.ndarray
    across_x: np.ndarray | None
    across_y: np.ndarray | None


def trusted(solver: Solver, height_nm: float) -> bool:
    """Whether the layer is thin enough for :func:`gradient`: beyond some 1200 nm in the lab's geometry rounding takes over."""
    return solver.k0 * float(height_nm) * math.sqrt(_spectrum(solver)[1]) <= _GROWTH


def gradient(solver: Solver, pattern: Any, height_nm: float, target: Target) -> tuple[float, np.ndarray, float]:
    """Misrouted power of one cell and its derivatives, in complex128 whatever the geometry's dtype.

    A pixel p between 0 and 1 means eps_gap + p (eps_pillar - eps_gap) where Laurent's product is taken and 1/eps_gap + p (1/eps_pillar -
    1/eps_gap) in Li's inverse rule, as in ``train/rcwa.py``: exact at 0 and 1, so the derivative is that of the discretised problem.

    Args:
        solver: for the geometry and the target's number of orders.
        pattern: (n1, n2), every pixel from 0 (gap) to 1 (pillar).
        height_nm: nm, from 0 up.
        target: full or partial.

    Returns:
        score, by_pixel (n1, n2) float64, by_height_nm per nm. Where the score has a kink, such as at an order met exactly, the mean of its
        two slopes counts.

    Raises:
        DataError: a pattern or height out of range, a layer too thick (see :func:`trusted`), maps of another size than the target's.
    """
    height = _height(height_nm)
    pixels = np.asarray(pattern, np.float64)
    if pixels.ndim != 2 or not pixels.size or not np.all((pixels >= 0) & (pixels <= 1)):
        raise DataError(f"the pattern has shape {pixels.shape}; it must be 2-D with every pixel from 0 (gap) to 1 (pillar)")
    if not trusted(solver, height):
        raise DataError(f"a layer of {height:g} nm is too thick for the gradient in this geometry; search without it")
    import scipy.linalg

    thickness, spectrum = solver.k0 * height, _spectrum(solver)
    cell, matrices = _matrices(solver, pixels)
    operators = Operators.build(matrices, solver.frame, np.complex128)
    c, s = propagator(operators.a, thickness, spectrum, 1e-13)
    half = len(solver.m)
    diagonal = np.arange(2 * half)
    c[diagonal, diagonal] += 1
    qs = operators.q @ s
    sp = s
    sp[:, :half] = s[:, :half] @ operators.p
    # As in ``scatter_by_propagator``: near e = forward t, near g + Y_in e = system t.
    forward = c - sp * solver.y_out
    system = c.conj().T * solver.y_out - qs + solver.y_in[:, None] * forward
    factors = scipy.linalg.lu_factor(system, overwrite_a=True, check_finite=False)
    t = scipy.linalg.lu_solve(factors, 2 * solver.y_in * solver.source, check_finite=False)
    e = forward @ t
    r = e - solver.source
    g = solver.y_in * (solver.source - r)

    score, slope_r, slope_t = _slopes(solver, r, t, target)
    u = -scipy.linalg.lu_solve(factors, slope_t + forward.T @ slope_r, trans=1, check_finite=False)
    v = -slope_r - solver.y_in * u
    # The adjoint field conjugated, as a second column.
    fields = _through(operators, np.stack([e, u.conj()], 1), np.stack([g, v.conj()], 1), thickness, spectrum)
    by_pixel = _by_pixel(solver, cell, matrices[0], *fields)
    pg = np.concatenate([operators.p @ g[:half], g[half:]])
    by_height = float((v @ pg - u @ (operators.q @ e)).real) * solver.k0
    return score, by_pixel, by_height


def _spectrum(solver: Solver) -> tuple[float, float]:
    """The interval A's eigenvalues lie in, whatever the pattern."""
    indices = solver.geometry.index_pillar, solver.geometry.index_gap
    return -(max(indices) ** 2), max(solver.longest**2 - min(indices) ** 2, 0.0)


def _matrices(solver: Solver, pixels: np.ndarray) -> tuple[_Cell, tuple[np.ndarray, ...]]:
    """The series of a cell of grey pixels, and [[eps]], eps_x, eps_y in the working basis as ``Solver._permittivities``."""
    geometry, tables = solver.geometry, solver.factorisation
    gap, pillar = geometry.index_gap**2, geometry.index_pillar**2
    along_x, along_y = (interval_coefficients(np.linspace(0, 1, count + 1), 2 * tables.highest) for count in pixels.shape)
    laurent = (along_x @ (gap + (pillar - gap) * pixels) @ along_y.T).ravel()[tables.plane]
    if tables.rule == "laurent":
        cell, matrices = _Cell(along_x, along_y, None, None), (laurent,) * 3
    else:
        inverse = 1 / gap + (1 / pillar - 1 / gap) * pixels
        across_x = np.linalg.inv((along_x @ inverse).T[:, tables.toeplitz])
        across_y = np.linalg.inv((along_y @ inverse.T).T[:, tables.toeplitz])
        cell = _Cell(along_x, along_y, across_x, across_y)
        epsilon_x = (along_y @ across_x.reshape(len(across_x), -1)).ravel()[tables.along_x]
        epsilon_y = (along_x @ across_y.reshape(len(across_y), -1)).ravel()[tables.along_y]
        matrices = laurent, epsilon_x, epsilon_y
    return cell, tuple(RealBasis.operator(matrix) if solver.paired else matrix for matrix in matrices)


def _slopes(solver: Solver, r: np.ndarray, t: np.ndarray, target: Target) -> tuple[float, np.ndarray, np.ndarray]:
    """The score, and row vectors (2N,) complex with d score = Re(slope_r dr + slope_t dt)."""
    powers = solver._powers(r, t)
    maps = [solver._map(power) for power in powers]
    score = float(misrouted_power(maps[0], maps[1], target))
    shown = (np.abs(solver.m) <= solver.orders) & (np.abs(solver.n) <= solver.orders)
    slopes = []
    for side, (field, weight) in enumerate(((r, solver.weight_in), (t, solver.weight_out))):
        weight = weight.reshape(2, -1) / solver.incident
        by_order = np.zeros(len(solver.m))
        for k in np.array_split(np.flatnonzero(shown & (weight.max(axis=0) > 0)), 8):
            steps = np.zeros((2, len(k), *maps[side].shape))
            steps[:, np.arange(len(k)), solver.m[k] + solver.orders, solver.n[k] + solver.orders] = [[_STEP], [-_STEP]]
            moved = [np.broadcast_to(values, steps.shape) for values in maps]
            moved[side] = moved[side] + steps
            above, below = misrouted_power(moved[0], moved[1], target)  # type: ignore[misc]
            by_order[k] = (above - below) / (2 * _STEP)
        amplitudes = field.reshape(2, -1)
        if solver.paired:
            amplitudes = RealBasis.to_plane_waves(amplitudes)
        slope = 2 * by_order * weight * amplitudes  # conjugated
        if solver.paired:
            size = len(solver.m) // 2
            plus, minus = slope[:, 1 : size + 1], slope[:, size + 1 :]
            slope = np.concatenate([slope[:, :1], (plus + minus) / math.sqrt(2), 1j * (plus - minus) / math.sqrt(2)], axis=1)
        slopes.append(slope.conj().ravel())
    return score, slopes[0], slopes[1]


def _through(
    operators: Operators, e: np.ndarray, g: np.ndarray, thickness: float, spectrum: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fields across the layer from those on its near face, both (2N, columns) complex.

    Returns Gauss's weights (K,) for integrals over z' = k0 z, and at his points e (K, 2N, columns) and the
    upper half g_p (K, N, columns).
    With a_j = T_j(A) e and b_j = T_j(Q P) g of the near face, e(z) = sum c_j(z) a_j + s_j(z) P b_j and g(z) = sum c_j b_j + s_j Q a_j,
    c and s the Chebyshev coefficients of cosh(sqrt(x) z) and sinh(sqrt(x) z) / sqrt(x).
    """
    low, high = spectrum
    centre, radius = (low + high) / 2, (high - low) / 2
    half = len(e) // 2
    # Both fall off faster than geometrically beyond these numbers of points and terms; the margins reach double precision.
    points, weights = np.polynomial.legendre.leggauss(math.ceil(thickness * math.sqrt(max(-low, high))) + 14)
    z, weights = thickness * (points + 1) / 2, thickness * weights / 2
    reach = thickness * math.sqrt(2 * radius)
    terms = math.ceil(reach / 2 + 3 * reach ** (1 / 3)) + 12
    angles = np.pi * (np.arange(2 * terms) + 0.5) / (2 * terms)
    root = np.sqrt(centre + radius * np.cos(angles) + 0j)
    values = np.stack([np.cosh(z[:, None] * root), np.sinh(z[:, None] * root) / np.where(root == 0, 1, root)]).real
    values[1][:, root == 0] = z[:, None]
    series = values @ np.cos(np.arange(terms)[:, None] * angles).T / terms
    series[..., 0] /= 2

    real = not np.iscomplexobj(operators.a)
    both = np.stack([e, g])  # (2, 2N, columns): a_j and b_j
    if real:
        both = np.ascontiguousarray(both).view(np.float64)

    def p(x: np.ndarray) -> np.ndarray:
        return np.concatenate([operators.p @ x[:half], x[half:]])

    before, e_terms, g_terms = both, [], []
    for term in range(terms):
        pb = p(both[1])
        product = operators.q @ np.concatenate([both[0], pb], axis=1)
        qa, qpb = np.split(product, 2, axis=1)
        e_terms.append((both[0], pb))
        g_terms.append((both[1][:half], qa[:half]))
        after = (np.stack([p(qa), qpb]) - centre * both) / radius
        before, both = both, after if term == 0 else 2 * after - before
    sums = []
    for kept in (e_terms, g_terms):
        flat = [np.stack([pair[i] for pair in kept]).reshape(terms, -1) for i in (0, 1)]
        total = series[0] @ flat[0] + series[1] @ flat[1]
        total = total.reshape(len(z), -1, both.shape[2])
        sums.append(np.ascontiguousarray(total).view(np.complex128) if real else total)
    return weights, sums[0], sums[1]


def _by_pixel(solver: Solver, cell: _Cell, epsilon: np.ndarray, weights: np.ndarray, e: np.ndarray, g: np.ndarray) -> np.ndarray:
    """(n1, n2): the integral of v^T dP g - u^T dQ e for every pixel; the second column of e and g is the adjoint field conjugated."""
    frame, tables, half = solver.frame, solver.factorisation, len(solver.m)
    e_p, e_s = np.moveaxis(e[:, :half], 2, 0), np.moveaxis(e[:, half:], 2, 0)
    # (2, K, N): the field and its adjoint, E_x, E_y, and what dP takes as E_z.
    e_x, e_y = frame.cos * e_p - frame.sin * e_s, frame.sin * e_p + frame.cos * e_s
    turned = np.zeros_like(e_x)
    turned[..., frame.swap] = frame.factor * np.moveaxis(g, 2, 0)
    e_z = np.linalg.solve(epsilon, turned.reshape(-1, half).T).T.reshape(turned.shape)

    def grids(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Adjoint, weighted, and field as plane waves on the (2H+1)-square of orders: (K, 2H+1, 2H+1) each."""
        waves = RealBasis.to_plane_waves(field) if solver.paired else field
        square = np.zeros((*waves.shape[:2], 2 * tables.highest + 1, 2 * tables.highest + 1), np.complex128)
        square[..., solver.m + tables.highest, solver.n + tables.highest] = waves
        return weights[:, None, None] * square[1], square[0]

    gap, pillar = solver.geometry.index_gap**2, solver.geometry.index_pillar**2
    plane = np.fft.fftshift(_plane(*grids(e_z)))
    if cell.across_x is None or cell.across_y is None:
        plane += np.fft.fftshift(_plane(*grids(e_x)) + _plane(*grids(e_y)))
        return (pillar - gap) * (cell.along_x.T @ plane @ cell.along_y).real
    result = (pillar - gap) * (cell.along_x.T @ plane @ cell.along_y).real
    inverse = 1 / pillar - 1 / gap
    # u^T d(eps_x) e, where d(T^-1) = -T^-1 dT T^-1.
    result -= inverse * _strips(*grids(e_x), cell.across_x, cell.along_x, cell.along_y, tables.toeplitz)
    adjoint, field = grids(e_y)
    across = _strips(adjoint.mT, field.mT, cell.across_y, cell.along_y, cell.along_x, tables.toeplitz)
    return np.asarray(result - inverse * across.T)


def _plane(adjoint: np.ndarray, field: np.ndarray) -> np.ndarray:
    """sum conj(adjoint[G]) field[G'] over pairs of orders by their difference G - G', (4H+1, 4H+1), 0 first; both (K, 2H+1, 2H+1)."""
    shape = (2 * field.shape[1] - 1,) * 2
    return np.fft.ifft2((np.fft.ifft2(adjoint, shape).conj() * np.fft.ifft2(field, shape)).sum(axis=0)) * (shape[0] * shape[1]) ** 2


def _strips(
    adjoint: np.ndarray, field: np.ndarray, inverses: np.ndarray, normal: np.ndarray, along: np.ndarray, toeplitz: np.ndarray
) -> np.ndarray:
    """Re sum conj(adjoint[G]) T^-1 dT T^-1 field[G'] by the pixel whose 1/eps changes, (pixels along the normal, strips).

    adjoint, field: (K, 2H+1, 2H+1), orders along the normal first. inverses: T^-1 of each strip.
    """
    wide = 2 * field.shape[1] - 1
    u, v = (np.fft.ifft(values, wide, axis=2).transpose(2, 1, 0) * wide for values in (adjoint, field))
    pairs = u.conj() @ v.transpose(0, 2, 1)
    by_strip = np.fft.ifft(np.fft.ifftshift(along, axes=0), axis=0).T @ pairs.reshape(wide, -1)
    product = inverses.mT @ by_strip.reshape(inverses.shape) @ inverses.mT
    diagonals = np.zeros((len(inverses), wide), np.complex128)
    for strip, values in zip(diagonals, product, strict=True):
        np.add.at(strip, toeplitz, values)
    return (normal.T @ diagonals.T).real
