"""Closed-form Fourier series of a rectilinear cell and Li's factorisation of its permittivity.

Conventions of the whole solver: fields vary as exp(-i omega t), and a function of the cell is
f(x, y) = sum_mn f_mn exp(+i 2 pi (m x / Lx + n y / Ly)), so order (m, n) has the transverse wavevector
(+2 pi m / Lx, +2 pi n / Ly) relative to the incident one. Nothing is sampled on a grid: every rectangle's
coefficients are the exact integrals.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    from ..geometry import Geometry


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """A rectilinear unit cell: rectangle (i, j) fills x_edges_nm[i:i+2] by y_edges_nm[j:j+2].

    x_edges_nm: (a+1,) float64, nm, ascending from 0 to the period along x.
    y_edges_nm: (b+1,) float64, nm, ascending from 0 to the period along y.
    index: (a, b) float64, the real refractive index of each rectangle.

    Raises:
        DataError: edges that do not ascend from 0, or an index of the wrong shape, not finite or not above 0.
    """

    x_edges_nm: np.ndarray
    y_edges_nm: np.ndarray
    index: np.ndarray

    def __post_init__(self) -> None:
        for name in ("x_edges_nm", "y_edges_nm"):
            edges = _floats(f"cell field '{name}'", getattr(self, name))
            if edges.ndim != 1 or edges.size < 2 or edges[0] != 0 or not np.all(np.diff(edges) > 0):
                raise DataError(f"cell field '{name}' must be a list of at least two edges in nm ascending from 0 to the period")
            object.__setattr__(self, name, edges)
        index = _floats("cell field 'index'", self.index)
        expected = (self.x_edges_nm.size - 1, self.y_edges_nm.size - 1)
        if index.shape != expected:
            raise DataError(f"cell field 'index' has shape {index.shape}; its edges make {expected} rectangles")
        if not np.all(index > 0):
            raise DataError(f"cell field 'index' holds {index.min()}; refractive indices must be above 0")
        object.__setattr__(self, "index", index)

    @classmethod
    def from_pattern(cls, pattern: Any, geometry: Geometry, grow_nm: float = 0.0) -> Cell:
        """The cell of a binary pattern, its pillars grown by ``grow_nm`` along x and y.

        pattern: (n1, n2) of 0 and 1 (any numeric or boolean dtype); pixel [i, j] fills x in [i, i+1] Lx/n1 and
        y in [j, j+1] Ly/n2. grow_nm: nm by which each pillar edge moves outwards, negative to shrink. Grown, the pillars are
        the union of their pixels widened on every side: those that touch merge, across the cell's border too, and corners stay
        square. Shrinking does the same to the gaps.

        Raises:
            DataError: a pattern that is not 2-D and binary, or a growth that is not a finite number.
        """
        pillars = binary_pattern(pattern)
        grow = _floats("the growth in nm", grow_nm)
        if grow.ndim != 0:
            raise DataError(f"the growth in nm has shape {grow.shape}; it must be one number")
        axes = [np.linspace(0.0, geometry.period_nm[axis], pillars.shape[axis] + 1) for axis in (0, 1)]
        if grow != 0:
            # Widening by a square is separable: a rectangle belongs to every pixel within |grow| of it along x and along y.
            solid = pillars if grow > 0 else 1 - pillars
            (axes[0], x), (axes[1], y) = (_widened(grid, abs(float(grow))) for grid in axes)
            covered = x @ solid @ y.T > 0
            pillars = covered if grow > 0 else ~covered
        return cls(axes[0], axes[1], np.where(pillars, geometry.index_pillar, geometry.index_gap))


def _widened(grid: np.ndarray, by: float) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels of one axis end once they reach ``by`` nm further on both sides, and which pixel covers which interval.

    grid: (n+1,) pixel edges from 0 to the period. Returns (a+1,) edges in nm, from 0 to the period as well, and (a, n) float64,
    1 where interval and pixel overlap; the cell is periodic.
    """
    period, half = grid[-1], grid[1] / 2 + by
    ends = np.sort(np.concatenate([[0.0], (grid[:-1] - by) % period, (grid[:-1] + by) % period, [period]]))
    # Edges that meet, such as those of a shift by whole pixels, differ by rounding; the last is the period itself.
    edges = np.append(ends[:-1][np.diff(ends) > 1e-9 * period], period)
    edges[0] = 0.0
    apart = np.abs((edges[:-1] + edges[1:])[:, None] / 2 - (grid[:-1] + grid[1:])[None] / 2)
    return edges, (np.minimum(apart, period - apart) < half).astype(np.float64)


def binary_pattern(pattern: Any) -> np.ndarray:
    """``pattern`` as a (n1, n2) float64 array of 0 and 1. Raises DataError when it is anything else."""
    array = _floats("the pattern", pattern)
    if array.ndim != 2 or array.size == 0:
        raise DataError(f"the pattern has shape {array.shape}; it must be a 2-D array of 0 and 1")
    if not np.all((array == 0) | (array == 1)):
        other = array[(array != 0) & (array != 1)][0]
        raise DataError(f"the pattern holds {other:g}; every pixel must be 0 (gap) or 1 (pillar)")
    return array


def _floats(name: str, value: Any) -> np.ndarray:
    """``value`` as a new, finite float64 array. Raises DataError naming ``name``."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name} is not an array of real numbers") from None
    if not np.all(np.isfinite(array)):
        raise DataError(f"{name} holds a value that is not finite; every value must be a finite number")
    return array


def harmonics_kept(harmonics: int, truncation: str) -> tuple[np.ndarray, np.ndarray]:
    """The orders (m, n) a truncation keeps: two (N,) int arrays laid out as [(0, 0), half, the half negated].

    'circle' keeps m^2 + n^2 <= H^2, 'square' |m|, |n| <= H. The layout is what :class:`RealBasis` relies on.
    """
    m, n = (grid.ravel() for grid in np.mgrid[-harmonics : harmonics + 1, -harmonics : harmonics + 1])
    half = (m > 0) | ((m == 0) & (n > 0))
    if truncation == "circle":
        half &= m * m + n * n <= harmonics * harmonics
    zero = np.zeros(1, dtype=m.dtype)
    return np.concatenate([zero, m[half], -m[half]]), np.concatenate([zero, n[half], -n[half]])


def interval_coefficients(edges: np.ndarray, highest: int) -> np.ndarray:
    """Fourier coefficients of the indicator functions of the intervals between ``edges``.

    edges: (a+1,) from 0 to the period. Returns (2 highest + 1, a) complex128 with row m + highest holding
    (1/L) integral over the interval of exp(-i 2 pi m x / L) dx, in closed form.
    """
    order = np.arange(-highest, highest + 1)[:, None]
    relative = edges / edges[-1]
    divisor = np.where(order == 0, 1, -2j * np.pi * order)
    series = np.diff(np.exp(-2j * np.pi * order * relative), axis=1) / divisor
    series[highest] = np.diff(relative)
    return series


class Factorisation:
    """Permittivity matrices of cells for one set of orders; holds only index tables, so threads may share it.

    Attributes: into flattened series, ``plane`` (rows, N) for [[eps]] and ``along_x``, ``along_y`` (rows, N) for the inverse rule;
    ``toeplitz`` (2H+1, 2H+1) into a series of one axis.

    m, n: (N,) int, the orders. rule: 'li' or 'laurent'. rows: how many of the leading orders to return rows for
    (the first half suffices for :class:`RealBasis`, whose operators satisfy O[-G, -G'] = conj O[G, G']).
    """

    def __init__(self, m: np.ndarray, n: np.ndarray, rule: str, rows: int) -> None:
        self.rule, self.highest = rule, int(max(np.abs(m).max(), np.abs(n).max()))
        top, side, wide = self.highest, 2 * self.highest + 1, 4 * self.highest + 1
        delta_m, delta_n = m[:rows, None] - m[None] + 2 * top, n[:rows, None] - n[None] + 2 * top
        self.plane = delta_m * wide + delta_n
        self.along_x = (delta_n * side + m[:rows, None] + top) * side + m[None] + top
        self.along_y = (delta_m * side + n[:rows, None] + top) * side + n[None] + top
        line = np.arange(side)
        self.toeplitz = line[:, None] - line[None] + 2 * top

    def matrices(self, cell: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """([[eps]], eps_x, eps_y): (rows, N) complex128 each, with D_z = [[eps]] E_z, D_x = eps_x E_x, D_y = eps_y E_y.

        'laurent' uses the Toeplitz matrix [[eps]] for all three. 'li' takes the inverse rule across the faces a field
        component is normal to and Laurent's along the other axis: L. Li, JOSA A 14, 2758 (1997), eqs. (8)-(13).
        """
        permittivity = cell.index**2
        along_x = interval_coefficients(cell.x_edges_nm, 2 * self.highest)
        along_y = interval_coefficients(cell.y_edges_nm, 2 * self.highest)
        laurent = (along_x @ permittivity @ along_y.T).ravel()[self.plane]
        if self.rule == "laurent":
            return laurent, laurent, laurent
        epsilon_x = self._inverse_rule(1 / permittivity, along_x, along_y).ravel()[self.along_x]
        epsilon_y = self._inverse_rule(1 / permittivity.T, along_y, along_x).ravel()[self.along_y]
        return laurent, epsilon_x, epsilon_y

    def _inverse_rule(self, impermittivity: np.ndarray, normal: np.ndarray, along: np.ndarray) -> np.ndarray:
        """(4H+1, 2H+1, 2H+1): Fourier series along one axis of each strip's inverted Toeplitz matrix across the other."""
        strips = (normal @ impermittivity).T[:, self.toeplitz]
        inverted = np.linalg.inv(strips)
        return (along @ inverted.reshape(len(inverted), -1)).reshape(-1, *inverted.shape[1:])


class RealBasis:
    """Cosines and sines in place of exp(+-i G r), in which every real operator of the cell is a real matrix.

    Layout [0, cosines, sines] for orders laid out as [0, half, -half]. With f(-G) = conj f(G) for real functions:
    c = (f(G) + f(-G)) / sqrt 2, s = i (f(G) - f(-G)) / sqrt 2, a unitary change of basis.
    """

    @staticmethod
    def operator(rows: np.ndarray) -> np.ndarray:
        """The real (N, N) float64 matrix of the operator whose leading (N+1)/2 rows in plane waves are ``rows``."""
        half = rows.shape[0] - 1
        size = 2 * half + 1
        real = np.empty((size, size))
        root = np.sqrt(2.0)
        plus, minus = rows[1:, 1 : half + 1], rows[1:, half + 1 :]
        both, odd = plus + minus, plus - minus
        real[0, 0] = rows[0, 0].real
        real[0, 1 : half + 1], real[0, half + 1 :] = root * rows[0, 1 : half + 1].real, root * rows[0, 1 : half + 1].imag
        real[1 : half + 1, 0], real[half + 1 :, 0] = root * rows[1:, 0].real, -root * rows[1:, 0].imag
        real[1 : half + 1, 1 : half + 1], real[1 : half + 1, half + 1 :] = both.real, odd.imag
        real[half + 1 :, 1 : half + 1], real[half + 1 :, half + 1 :] = -both.imag, odd.real
        return real

    @staticmethod
    def to_plane_waves(vector: np.ndarray) -> np.ndarray:
        """Plane-wave amplitudes (..., N) complex of a vector (..., N) in the cosine and sine basis."""
        half = (vector.shape[-1] - 1) // 2
        cosine, sine = vector[..., 1 : half + 1], 1j * vector[..., half + 1 :]
        return np.concatenate([vector[..., :1], (cosine - sine) / np.sqrt(2), (cosine + sine) / np.sqrt(2)], axis=-1)
