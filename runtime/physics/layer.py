"""One patterned layer: its Maxwell operators, its propagator without an eigenproblem, and its eigenmodes.

Units: lengths times k0, magnetic field times the impedance of free space. With e = (E_p, E_s), each order's
transverse field along and across its own transverse wavevector, and g = i (H_y, -H_x) in the same axes, Maxwell's
equations for exp(-i omega t) read e' = P g and g' = Q e, where

    P = [[1 - K [[eps]]^-1 K, 0], [0, 1]],    Q = [[0, 0], [0, K^2]] - R diag(eps_x, eps_y) R^T.

P and Q are Hermitian for a lossless cell, and real symmetric at normal incidence in the cosine and sine basis, where
products cost a quarter of the complex ones. In a uniform half-space a wave
leaving along +z has g = Y e with Y diagonal: i kz for s, i eps / kz for p; real where the order is evanescent.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Frame:
    """What the orders alone decide, in the working basis (plane waves, or cosines and sines).

    cos, sin: (N,) direction of each order's p axis. k: (N,) signed transverse wavevector over k0 along it.
    swap, factor: (N,) int and float; K has the entries K[i, swap[i]] = factor[i] and no others (in the real basis
    up to a factor i that cancels, because P holds K only on both sides of [[eps]]^-1).
    """

    cos: np.ndarray
    sin: np.ndarray
    k: np.ndarray
    swap: np.ndarray
    factor: np.ndarray


@dataclasses.dataclass(frozen=True)
class Operators:
    """P's block ``p`` (N, N), ``q`` (2N, 2N) and ``a`` = P Q (2N, 2N) of one cell; e'' = A e."""

    p: np.ndarray
    q: np.ndarray
    a: np.ndarray

    @classmethod
    def build(cls, permittivities: tuple[np.ndarray, ...], frame: Frame, dtype: Any) -> Operators:
        """From [[eps]], eps_x and eps_y, each (N, N) in the frame's basis; dtype: complex64 or complex128.

        Real matrices give real operators of the same precision.
        """
        size = len(frame.k)
        kind = np.dtype(dtype) if np.iscomplexobj(permittivities[0]) else np.empty(0, dtype).real.dtype
        epsilon, epsilon_x, epsilon_y = (matrix.astype(kind, copy=False) for matrix in permittivities)
        c, s, factor = (vector.astype(kind).real for vector in (frame.cos, frame.sin, frame.factor))
        q = np.empty((2 * size, 2 * size), dtype=kind)
        cx, sx = c[:, None] * epsilon_x, s[:, None] * epsilon_x
        cy, sy = c[:, None] * epsilon_y, s[:, None] * epsilon_y
        q[:size, :size] = -(cx * c + sy * s)
        q[:size, size:] = cx * s - sy * c
        q[size:, :size] = sx * c - cy * s
        q[size:, size:] = -(sx * s + cy * c)
        diagonal = np.arange(size, 2 * size)
        q[diagonal, diagonal] += frame.k**2
        # K [[eps]]^-1 K^H by permutation and scaling.
        p = -(np.linalg.inv(epsilon)[np.ix_(frame.swap, frame.swap)] * factor[:, None]) * factor
        p[np.arange(size), np.arange(size)] += 1
        a = q.copy()
        np.matmul(p, q[:size], out=a[:size])
        return cls(p, q, a)


# Ways to evaluate two polynomials of one matrix: (degree, powers stored, products needed), Paterson-Stockmeyer,
# SIAM J. Comput. 2, 60 (1973); the degree is a multiple of the powers stored.
_SCHEMES = ((3, 3, 2), (4, 4, 3), (6, 3, 4), (8, 4, 5), (10, 5, 6), (12, 4, 7), (15, 5, 8))


def propagator(a: np.ndarray, thickness: float, spectrum: tuple[float, float], tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """C - 1 and S, with C = cosh(sqrt(A) d) and S = sinh(sqrt(A) d) / sqrt(A): (n, n) of A's dtype.

    a: (n, n) real or complex floating. thickness: d = k0 h. spectrum: the interval A's eigenvalues lie near.
    tolerance: truncation error relative to the largest value on it. Chebyshev polynomials at d / 2^k, then k doublings
    S <- 2 S C, C <- 2 C^2 - 1, in C - 1 so that nothing cancels. A wide interval costs products; one that misses an
    eigenvalue costs accuracy, which shows as energy lost.
    """
    degree, stored, doublings, series = plan(thickness, spectrum, tolerance)
    size = len(a)
    centre, radius = (spectrum[0] + spectrum[1]) / 2, (spectrum[1] - spectrum[0]) / 2
    powers = np.empty((stored, size, size), dtype=a.dtype)
    np.multiply(a, 1 / radius, out=powers[0])
    powers[0, np.arange(size), np.arange(size)] -= centre / radius
    for index in range(1, stored):
        np.matmul(powers[index - 1], powers[0], out=powers[index])
    blocks = degree // stored
    both = _combine(series[:, (blocks - 1) * stored :], powers)
    for block in range(blocks - 2, -1, -1):
        both = np.matmul(both.reshape(2 * size, size), powers[-1]).reshape(2, size, size)
        both += _combine(series[:, block * stored : (block + 1) * stored], powers)
    for _ in range(doublings):
        product = np.matmul(both.reshape(2 * size, size), both[0]).reshape(2, size, size)
        # C - 1 <- 2 (C - 1)^2 + 4 (C - 1);  S / (2 step) <- (S / step) C
        both *= np.array([2.0, 1.0], dtype=both.dtype)[:, None, None]
        both += product
        both[0] *= 2
    both[1] *= thickness
    return both[0], both[1]


def plan(thickness: float, spectrum: tuple[float, float], tolerance: float) -> tuple[int, int, int, np.ndarray]:
    """(degree, powers stored, doublings, series) with the fewest products.

    series: (2, degree + 1) float64, rows cosh(sqrt(x) step) - 1 and sinh(sqrt(x) step) / (sqrt(x) step) in powers of
    (x - centre) / radius, step = thickness / 2^doublings.
    """
    centre, radius = (spectrum[0] + spectrum[1]) / 2, (spectrum[1] - spectrum[0]) / 2
    # Fewer doublings than this and no polynomial of the table reaches double precision.
    fewest = max(0, math.ceil(math.log(max(thickness**2 * radius, 1e-300) / 100, 4)))
    best: tuple[int, int, int, int, np.ndarray] | None = None
    for doublings in range(fewest, fewest + 8):
        step = thickness / 2**doublings
        root = step * np.sqrt(centre + radius * NODES + 0j)
        values = np.stack([2 * np.sinh(root / 2) ** 2, np.sinh(root) / np.where(root == 0, 1, root)]).real
        coefficients = TRANSFORM @ values[:, :, None]
        # The coefficients fall faster than geometrically, so the next two stand for the tail; later ones are rounding.
        tails = np.abs(coefficients[:, :-1, 0]) + np.abs(coefficients[:, 1:, 0])
        allowed = tolerance * np.abs(values).max(axis=1)
        for degree, stored, products in _SCHEMES:
            if np.all(tails[:, degree + 1] <= allowed):
                if best is None or products + 2 * doublings < best[0]:
                    series = coefficients[:, : degree + 1, 0] @ MONOMIALS[: degree + 1, : degree + 1]
                    best = (products + 2 * doublings, degree, stored, doublings, series)
                break
    assert best is not None
    return best[1:]


# Chebyshev points, the matrix from values there to Chebyshev coefficients, and T_0 .. T_15 in powers of x.
_ANGLES = np.pi * (np.arange(32) + 0.5) / 32
NODES = np.cos(_ANGLES)
TRANSFORM = np.where(np.arange(32)[:, None] == 0, 1, 2) / 32 * np.cos(np.arange(32)[:, None] * _ANGLES)
MONOMIALS = np.eye(16)
for _row in range(2, 16):
    MONOMIALS[_row] = 2 * np.roll(MONOMIALS[_row - 1], 1) - MONOMIALS[_row - 2]


def _combine(series: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """sum_j series[:, j] B^j as (2, n, n), one pass over memory; ``powers`` holds B, B^2 ..."""
    size, terms = powers.shape[1], series.shape[1] - 1
    result = np.matmul(series[:, 1:].astype(powers.dtype), powers[:terms].reshape(terms, -1)).reshape(2, size, size)
    result[:, np.arange(size), np.arange(size)] += series[:, :1].astype(powers.dtype)
    return result


def scatter_by_propagator(
    operators: Operators,
    y_in: np.ndarray,
    y_out: np.ndarray,
    source: np.ndarray,
    thickness: float,
    spectrum: tuple[float, float],
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Reflected and transmitted transverse fields (r, t), each (2N,) complex, without an eigenproblem.

    y_in, y_out: (2N,) complex admittances of the half-spaces. source: (2N,) incident field. With e = s + r,
    g = Y_in (s - r) on the near face and e = t, g = Y_out t on the far one, the layer run backwards gives
    e = C t - S P Y_out t, g = C^H Y_out t - Q S t, hence one linear system for t. Rounding grows with the evanescent
    waves, as exp(d max Re sqrt(A)); the system itself is solved in complex128, without which complex64 labels lose a digit.
    """
    c, s = propagator(operators.a, thickness, spectrum, tolerance)
    size = len(c)
    half = size // 2
    c[np.arange(size), np.arange(size)] += 1
    qs = operators.q @ s
    sp = s
    sp[:, :half] = s[:, :half] @ operators.p
    system = (c.conj().T - y_in[:, None] * sp) * y_out
    system += y_in[:, None] * c
    system -= qs
    t = np.linalg.solve(system, 2 * y_in * source)
    return c @ t - sp @ (y_out * t) - source, t


def scatter_by_eigenmodes(
    operators: Operators, y_in: np.ndarray, y_out: np.ndarray, source: np.ndarray, thickness: float
) -> tuple[np.ndarray, np.ndarray]:
    """The same (r, t) from the layer's eigenmodes, stable at any thickness: only decaying exponentials appear.

    Modes: A V = V gamma^2, e = V (exp(-gamma z) a + exp(gamma (z - d)) b), g = W (-exp(-gamma z) a + ...),
    W = Q V / gamma; Moharam et al., JOSA A 12, 1068 (1995), with b eliminated as in scattering-matrix form.
    """
    import scipy.linalg

    squared, v = scipy.linalg.eig(operators.a, check_finite=False)
    gamma = np.sqrt(squared.astype(np.result_type(v, np.complex64)))
    # A mode at cut-off has gamma = 0 and no W; moving it by the rounding of A costs nothing.
    floor = np.sqrt(np.finfo(gamma.real.dtype).eps)
    gamma = np.where(np.abs(gamma) < floor, floor, gamma)
    v = v.astype(gamma.dtype)
    w = (operators.q @ v) / gamma
    decay = np.exp(-gamma * thickness)
    near, far = y_in[:, None] * v, y_out[:, None] * v
    # (far - w) b = -(far + w) X a;   (near - w) a + (near + w) X b = 2 Y_in s
    back = -np.linalg.solve(far - w, (far + w) * decay)
    a = np.linalg.solve(near - w + (near + w) @ (decay[:, None] * back), 2 * y_in * source)
    b = back @ a
    return v @ (a + decay * b) - source, v @ (decay * a + b)
