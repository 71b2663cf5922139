"""Rigorous coupled-wave analysis in PyTorch: many cells in one batch, on a GPU, and differentiable.

    solver = TorchSolver(geometry, orders=11, device="cuda")
    R, T = solver.solve(patterns, heights_nm)
    score, by_pixel, by_height_nm = gradient(solver, patterns, heights_nm, target)

The equations, orders, truncations and factorisation are those of ``runtime/physics/rcwa.py``, from which all constants are
taken, and no eigenproblem is solved at any height. In complex128, the default, R and T agree with it to 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from runtime.errors import BackendError, DataError
from runtime.geometry import Geometry
from runtime.physics.rcwa import Solver
from runtime.target import Target

from .rcwa_fourier import Permittivities
from .rcwa_layer import Frame, Operators, scatter

__all__ = ["TorchSolver", "gradient", "misrouted_power"]

# Per dtype: error allowed in the series, and the growth exponent d max Re sqrt(A) of evanescent waves trusted to one sheet.
_PRECISIONS = {torch.complex128: (1e-15, 14.0), torch.complex64: (1e-9, 6.0)}
# A solution whose energy is off by more is solved again by the eigenmodes of the NumPy solver.
_ENERGY = 1e-6
# Cells at once at most: no device this was made for gains from more.
_LARGEST_BATCH = 256
_Result = TypeVar("_Result")


class TorchSolver:
    """:class:`runtime.physics.rcwa.Solver` for batches of cells, differentiable in every pixel and every height.

    Grey pixels: a pixel p between 0 and 1 means eps_gap + p (eps_pillar - eps_gap) wherever Laurent's product is taken (all
    three components under 'laurent', E_z under 'li'), and 1/eps_gap + p (1/eps_pillar - 1/eps_gap) in the inverse rule that
    'li' takes for E_x and E_y. Both are linear in p and exact at 0 and 1, so the derivative at a binary pattern is that of the
    discretised problem; a grey pixel under 'li' is no isotropic material.

    complex64 computes the propagators in single precision, for GPUs whose float64 is slow, and the linear systems in double.
    Its sheets are thinner for it: the L1 error of R and T is 2e-6 in the median and was 1.3e-5 at worst over 96 random cells of
    30 to 900 nm (both truncations, normal and oblique incidence).

    Raises:
        BackendError: no such device answers here.
        DataError: a dtype that is neither torch.complex128 nor torch.complex64.
        GeometryError: orders that is not a whole number from 0 up.
    """

    def __init__(
        self, geometry: Geometry, orders: int = 11, device: str | torch.device = "cpu", dtype: torch.dtype = torch.complex128
    ) -> None:
        if dtype not in _PRECISIONS:
            raise DataError(f"dtype is {dtype}; it must be torch.complex128 or torch.complex64")
        self.geometry, self.dtype, self.device = geometry, dtype, usable(device)
        self._numpy = numpy = Solver(geometry, orders)
        self.orders = numpy.orders
        real = dtype.to_real()
        cos, sin, k, factor = (self._constant(getattr(numpy.frame, name), real) for name in ("cos", "sin", "k", "factor"))
        self._frame = Frame(cos, sin, k, self._constant(numpy.frame.swap, torch.int64), factor)
        self._permittivities = Permittivities(numpy, self.device, dtype)
        self._y_in, self._y_out, self._source = (
            self._constant(vector, torch.complex128) for vector in (numpy.y_in, numpy.y_out, numpy.source)
        )
        self._weights = [
            self._constant(weight.reshape(2, -1) / numpy.incident, torch.float64) for weight in (numpy.weight_in, numpy.weight_out)
        ]
        indices = geometry.index_pillar, geometry.index_gap
        self._spectrum = -(max(indices) ** 2), max(numpy.longest**2 - min(indices) ** 2, 0.0)
        shown = np.flatnonzero((np.abs(numpy.m) <= self.orders) & (np.abs(numpy.n) <= self.orders))
        self._shown, self._row, self._column = (
            self._constant(index, torch.int64) for index in (shown, numpy.m[shown] + self.orders, numpy.n[shown] + self.orders)
        )

    def solve(self, patterns: Any, heights_nm: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Efficiencies of the reflected and transmitted orders of B cells, as one batch; differentiable in both arguments.

        Args:
            patterns: (B, n1, n2) array or tensor, every pixel from 0 (gap) to 1 (pillar).
            heights_nm: (B,) nm, from 0 up, all different if need be.

        Returns:
            R, T: (B, 2M+1, 2M+1) float64 tensors on the solver's device, order (m, n) at ``[:, m + M, n + M]``; evanescent
            orders and those the truncation leaves out are 0.

        Raises:
            DataError: patterns or heights of another shape, or a value out of range.
        """
        R, T, _ = self._solve(*self._checked(patterns, heights_nm))
        return R, T

    def solve_many(self, patterns: Any, heights_nm: Any) -> tuple[np.ndarray, np.ndarray]:
        """Efficiencies of N cells, N as large as one likes, in batches that fit the device's memory.

        A cell whose energy shows that precision was lost is solved again by the NumPy solver's eigenmodes, so patterns
        are binary here. Takes (N, n1, n2) and (N,) nm; returns R, T: (N, 2M+1, 2M+1) float64 arrays.

        Raises:
            DataError: as :meth:`solve`, or a pattern that is not binary.
            BackendError: not even one cell fits the GPU's memory.
        """
        pixels, heights = self._checked(patterns, heights_nm)
        if not bool(((pixels == 0) | (pixels == 1)).all()):
            raise DataError("the patterns hold values between 0 and 1; every pixel must be 0 (gap) or 1 (pillar)")

        def work(part: slice) -> tuple[np.ndarray, np.ndarray]:
            with torch.no_grad():
                R, T, error = (tensor.cpu().numpy() for tensor in self._solve(pixels[part], heights[part]))
            for row in np.flatnonzero(~(error <= _ENERGY)):  # not a number counts as lost
                R[row], T[row] = self._numpy.solve(pixels[part][row].cpu().numpy(), float(heights[part][row]))
            return R, T

        parts = _in_batches(work, len(pixels), self.batch_size(pixels.shape[1:]))
        return np.concatenate([R for R, _ in parts]), np.concatenate([T for _, T in parts])

    def batch_size(self, pixels: Sequence[int], gradient: bool = False) -> int:
        """How many cells of (n1, n2) ``pixels`` to solve at once: on a GPU as many as fit its free memory, on a CPU a few.

        With ``gradient`` everything that the derivative needs is kept.
        """
        if self.device.type != "cuda":
            return 4
        free = torch.cuda.mem_get_info(self.device)[0]
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)  # PyTorch's own, to be used again
        return max(1, min(_LARGEST_BATCH, int(0.7 * free / self._bytes(pixels, gradient))))

    def _bytes(self, pixels: Sequence[int], gradient: bool) -> int:
        """Memory one cell takes at its peak, measured on a CPU at 197 to 529 orders and rounded up."""
        size = 2 * len(self._numpy.m)
        matrix = size * size * (torch.finfo(self.dtype).bits // 8 * (1 if self._numpy.paired else 2))
        systems = size * size * 16
        series = (2 * self._numpy.factorisation.highest + 1) ** 2 * 16 * (sum(pixels) + 8 * self._numpy.factorisation.highest)
        return (40 if gradient else 16) * matrix + (12 if gradient else 6) * systems + (8 if gradient else 4) * series

    def _solve(self, pixels: torch.Tensor, heights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """R, T as :meth:`solve`, and (B,) by how much all orders' energy misses 1."""
        tolerance, trusted = _PRECISIONS[self.dtype]
        thickness = self._numpy.k0 * heights
        sheets = max(1, int(np.ceil(float(thickness.detach().max()) * np.sqrt(self._spectrum[1]) / trusted)))
        operators = Operators.build(*self._permittivities(pixels), self._frame)
        fields = scatter(operators, self._y_in, self._y_out, self._source, thickness, self._spectrum, tolerance, sheets)
        powers = [self._power(field, weight) for field, weight in zip(fields, self._weights, strict=True)]
        energy = (powers[0] + powers[1]).detach().sum(dim=1)
        R, T = (self._map(power) for power in powers)
        return R, T, (energy - 1).abs()

    def _power(self, field: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """(B, N) float64 power over incident power of every order kept, from transverse fields (B, 2N)."""
        amplitudes = field.reshape(len(field), 2, -1)
        if self._numpy.paired:
            half = (amplitudes.shape[2] - 1) // 2
            cosine, sine = amplitudes[:, :, 1 : half + 1], 1j * amplitudes[:, :, half + 1 :]
            amplitudes = torch.cat([amplitudes[:, :, :1], (cosine - sine) / 2**0.5, (cosine + sine) / 2**0.5], dim=2)
        return ((amplitudes.real**2 + amplitudes.imag**2) * weight).sum(dim=1)

    def _map(self, power: torch.Tensor) -> torch.Tensor:
        """(B, 2M+1, 2M+1) map of the orders' powers (B, N)."""
        result = power.new_zeros((len(power), 2 * self.orders + 1, 2 * self.orders + 1))
        result[:, self._row, self._column] = power[:, self._shown]
        return result

    def _checked(self, patterns: Any, heights_nm: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Both as float64 tensors on the device. Raises DataError as :meth:`solve`."""
        pixels, heights = self._float64("the patterns", patterns), self._float64("the heights", heights_nm)
        if pixels.ndim != 3 or not pixels.numel():
            raise DataError(f"the patterns have shape {tuple(pixels.shape)}; expected (B, n1, n2) with nothing of it 0")
        if heights.shape != pixels.shape[:1]:
            raise DataError(f"the heights have shape {tuple(heights.shape)}; expected ({len(pixels)},), one per pattern")
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise DataError("the patterns hold values out of range; every pixel must be from 0 (gap) to 1 (pillar)")
        if not bool((torch.isfinite(heights) & (heights >= 0)).all()):
            raise DataError("the heights hold a value that is negative or not finite; every height must be a number of nm from 0 up")
        return pixels, heights

    def _float64(self, name: str, values: Any) -> torch.Tensor:
        try:
            return torch.as_tensor(values).to(self.device, torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise DataError(f"{name} are not an array of real numbers") from None

    def _constant(self, array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(array).to(self.device, dtype)


def usable(device: str | torch.device) -> torch.device:
    """``device``, if it is a CPU or an NVIDIA GPU that answers. Raises BackendError with what is in the way."""
    try:
        found = torch.device(device)
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise BackendError(f"'{device}' is no device this solver runs on; name cpu or cuda")
    if found.type == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda is not None
        raise BackendError(
            f"no NVIDIA GPU answers to PyTorch {torch.__version__} here; "
            + (
                "look at nvidia-smi, or leave --device out"
                if built
                else "this build of PyTorch has no CUDA: install one that has, or use the CPU"
            )
        )
    return found


def misrouted_power(R: torch.Tensor, T: torch.Tensor, targets: Target | Sequence[Target]) -> torch.Tensor:
    """``runtime.score.misrouted_power`` for tensors: differentiable, with 0 taken as the derivative of abs at 0, and within a range.

    Args:
        R, T: (B, 2M+1, 2M+1) achieved efficiencies.
        targets: one for all, or B of them, each of the same M and possibly partial.

    Returns:
        (B,) of R's dtype, from 0 (exact) to 1.

    Raises:
        DataError: as many targets as neither 1 nor B, or maps of another size than theirs.
    """
    wanted = [targets] if isinstance(targets, Target) else list(targets)
    if len(wanted) not in (1, len(R)):
        raise DataError(f"there are {len(wanted)} targets for {len(R)} cells; give one for all, or one for each")
    for target in wanted:
        if R.shape != T.shape or R.shape[1:] != target.R.shape:
            raise DataError(
                f"the achieved maps have shapes {tuple(R.shape)} and {tuple(T.shape)} and the target's {target.R.shape}; "
                "resize the target to their number of orders"
            )
    difference = []
    for achieved, name in ((R, "R"), (T, "T")):
        low, high = (torch.as_tensor(np.stack([getattr(target.limits, f"{end}_{name}") for target in wanted])) for end in ("low", "high"))
        values = torch.clamp(achieved, low.to(achieved), high.to(achieved))
        mask = torch.as_tensor(np.stack([getattr(target, f"mask_{name}") for target in wanted])).to(achieved.device)
        difference.append(torch.where(mask, achieved - values, 0).flatten(1))
    every = torch.cat(difference, dim=1)
    return (every.abs().sum(dim=1) + every.sum(dim=1).abs()) / 2


def gradient(
    solver: TorchSolver, patterns: Any, heights_nm: Any, targets: Target | Sequence[Target]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Misrouted power of B cells, and its derivatives, in batches that fit the device's memory.

    Args:
        solver: on any device; its docstring says what a pixel between 0 and 1 means.
        patterns: (B, n1, n2), every pixel from 0 to 1.
        heights_nm: (B,) nm.
        targets: one for all, or B of them; partial ones too.

    Returns:
        score (B,), by_pixel (B, n1, n2), and by_height_nm (B,) per nm: float64 on the solver's device, without a graph.

    Raises:
        DataError: as :meth:`TorchSolver.solve` and :func:`misrouted_power`.
        BackendError: not even one cell fits the GPU's memory.
    """
    pixels, heights = (tensor.detach() for tensor in solver._checked(patterns, heights_nm))
    wanted = [targets] * len(pixels) if isinstance(targets, Target) else list(targets)
    if len(wanted) != len(pixels):
        raise DataError(f"there are {len(wanted)} targets for {len(pixels)} cells; give one for all, or one for each")

    def work(part: slice) -> tuple[torch.Tensor, ...]:
        leaves = pixels[part].clone().requires_grad_(), heights[part].clone().requires_grad_()
        with torch.enable_grad():
            score = misrouted_power(*solver.solve(*leaves), wanted[part])
            # Cells do not see each other, so the gradient of the sum holds everyone's own.
            return score.detach(), *torch.autograd.grad(score.sum(), leaves)

    parts = _in_batches(work, len(pixels), solver.batch_size(pixels.shape[1:], gradient=True))
    score, by_pixel, by_height_nm = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return score, by_pixel, by_height_nm


def _in_batches(work: Callable[[slice], _Result], count: int, size: int) -> list[_Result]:
    """What ``work`` gives for each slice of ``count`` cells, ``size`` at once and half as many whenever the GPU's memory runs out."""
    results: list[_Result] = []
    first = 0
    while first < count:
        try:
            results.append(work(slice(first, min(first + size, count))))
            first += size
        except torch.OutOfMemoryError:
            if size == 1:
                raise BackendError("the GPU's memory does not hold even one cell; keep fewer harmonics, or free some memory") from None
            size //= 2
    return results
