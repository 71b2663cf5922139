"""The solver in PyTorch against the NumPy one, and its derivatives against central differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from runtime import score
from runtime.errors import BackendError, DataError, GeometryError
from runtime.geometry import Geometry
from runtime.physics.rcwa import Cell, Solver
from runtime.target import Target
from train.rcwa import TorchSolver, gradient, misrouted_power

# Other periods along x and y, other pixels along x and y: nothing that is exchanged between the axes goes unseen.
CELL = Geometry(period_nm=(2300.0, 1900.0), index_pillar=2.4, index_substrate=1.5, harmonics=3, truncation="square", dtype="complex128")
SHAPE = (5, 4)
HEIGHTS = np.array([0.0, 60.0, 350.0, 800.0])
TILTED = {"theta_deg": 25.0, "phi_deg": 40.0}


def patterns(count: int, seed: int = 0, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (count, *shape))


def by_numpy(cells: np.ndarray, heights: Sequence[float] | np.ndarray, geometry: Geometry, orders: int) -> tuple[np.ndarray, np.ndarray]:
    solver = Solver(geometry, orders)
    R, T = zip(*(solver.solve(cell, float(height)) for cell, height in zip(cells, heights, strict=True)), strict=True)
    return np.stack(R), np.stack(T)


def random_target(orders: int, asked: float, seed: int = 0) -> Target:
    """Random efficiencies, of which about the share ``asked`` is asked for."""
    rng = np.random.default_rng(seed)
    side = 2 * orders + 1
    wanted = rng.random((2, side, side))
    masks = rng.random((2, side, side)) <= asked
    R, T = wanted / wanted.sum()
    return Target.from_arrays(R, T, 300.0, *masks)


@pytest.mark.parametrize("rule", ["li", "laurent"])
@pytest.mark.parametrize("truncation", ["circle", "square"])
@pytest.mark.parametrize("polarisation", ["x", "y"])
@pytest.mark.parametrize("angles", [{}, TILTED], ids=["normal", "oblique"])
@pytest.mark.parametrize("incidence", ["substrate", "cover"])
def test_it_agrees_with_the_numpy_solver(rule: str, truncation: str, polarisation: str, angles: dict[str, float], incidence: str) -> None:
    """Cells of four heights in one batch, in every order. Measured: 3e-10 in complex128, 1e-5 in complex64."""
    geometry = dataclasses.replace(
        CELL,
        rule=rule,
        truncation=truncation,
        polarisation=polarisation,
        incidence=incidence,
        **angles,  # type: ignore[arg-type]
    )
    cells = patterns(len(HEIGHTS))
    expected = by_numpy(cells, HEIGHTS, geometry, 3)
    for dtype, tolerance in ((torch.complex128, 1e-8), (torch.complex64, 1e-4)):
        for ours, theirs in zip(TorchSolver(geometry, 3, dtype=dtype).solve(cells, HEIGHTS), expected, strict=True):
            assert (ours.dtype, tuple(ours.shape)) == (torch.float64, (4, 7, 7))
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=tolerance)
            assert np.array_equal(ours.numpy() != 0, theirs != 0), "other orders carry power"


def test_at_the_labs_settings() -> None:
    geometry = Geometry(dtype="complex128", harmonics=8)
    cells, heights = patterns(2, 1, (10, 10)), [90.0, 600.0]
    for ours, theirs in zip(TorchSolver(geometry).solve(cells, heights), by_numpy(cells, heights, geometry, 11), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("angles", [{}, TILTED], ids=["normal", "oblique"])
def test_tall_cells_need_no_eigenmodes(angles: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Evanescent waves grow by e^60 over 4 um; the NumPy solver asks its eigenmodes, this one cuts the layer into sheets."""
    geometry = dataclasses.replace(CELL, **angles)  # type: ignore[arg-type]
    cells, heights = patterns(3), [40.0, 1500.0, 4000.0]
    expected = by_numpy(cells, heights, geometry, 3)
    monkeypatch.setattr(Solver, "_solve", None)
    for ours, theirs in zip(TorchSolver(geometry, 3).solve(cells, heights), expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-8)


def test_a_grey_pixel_mixes_permittivities_under_laurents_rule() -> None:
    geometry = dataclasses.replace(CELL, rule="laurent", **TILTED)  # type: ignore[arg-type]
    grey = np.random.default_rng(1).random(SHAPE)
    index = np.sqrt(1 + grey * (2.4**2 - 1))
    cell = Cell(np.linspace(0, 2300, SHAPE[0] + 1), np.linspace(0, 1900, SHAPE[1] + 1), index)
    for ours, theirs in zip(TorchSolver(geometry, 3).solve(grey[None], [400.0]), Solver(geometry, 3).solve(cell, 400.0), strict=True):
        np.testing.assert_allclose(ours[0].numpy(), theirs, rtol=0, atol=1e-9)


def test_a_grey_pixel_mixes_inverse_permittivities_under_lis_rule() -> None:
    """A uniform film at normal incidence has no E_z, so the inverse mix is all that is left."""
    index = 1 / np.sqrt(1 + 0.3 * (1 / 2.4**2 - 1))
    film = Cell(np.array([0.0, 2300.0]), np.array([0.0, 1900.0]), np.array([[index]]))
    for ours, theirs in zip(
        TorchSolver(CELL, 3).solve(np.full((1, *SHAPE), 0.3), [400.0]), Solver(CELL, 3).solve(film, 400.0), strict=True
    ):
        np.testing.assert_allclose(ours[0].numpy(), theirs, rtol=0, atol=1e-9)


def test_orders_and_harmonics_are_independent() -> None:
    wide, narrow = (TorchSolver(CELL, orders).solve(patterns(1), [300.0]) for orders in (5, 1))
    for large, small in zip(wide, narrow, strict=True):
        assert torch.equal(large[:, 4:7, 4:7], small)
        assert not large[:, 0].any(), "orders that the truncation left out"


def test_the_score_is_the_runtimes() -> None:
    R, T = TorchSolver(CELL, 3).solve(patterns(2), [200.0, 300.0])
    for asked in (0.1, 0.5, 1.0):
        targets = [random_target(3, asked, seed) for seed in (1, 2)]
        expected = [float(score.misrouted_power(R[i].numpy(), T[i].numpy(), targets[i])) for i in (0, 1)]
        np.testing.assert_allclose(misrouted_power(R, T, targets), expected, rtol=0, atol=1e-14)
        np.testing.assert_allclose(misrouted_power(R, T, targets[0])[0], expected[0], rtol=0, atol=1e-14)
    with pytest.raises(DataError, match="3 targets for 2 cells"):
        misrouted_power(R, T, targets[:1] * 3)
    with pytest.raises(DataError, match="resize the target"):
        misrouted_power(R, T, random_target(2, 1.0))


def test_misrouted_power_of_ranges_slopes_only_outside_them() -> None:
    orders = {"T(1,0)": [0.1, 0.3], "T(0,0)": {"max": 0.2}, "R(0,0)": 0.3}
    target = Target.from_dict({"height_nm": 300, "orders": orders}).resized(2)
    R, T = (torch.zeros((1, 5, 5), dtype=torch.float64) for _ in "RT")
    R[0, 2, 2], T[0, 3, 2], T[0, 2, 2] = 0.32, 0.2, 0.25
    found = misrouted_power(R.requires_grad_(), T.requires_grad_(), target)
    assert found.item() == pytest.approx(score.misrouted_power(R[0].detach().numpy(), T[0].detach().numpy(), target)) == pytest.approx(0.07)
    found.sum().backward()
    assert T.grad is not None
    assert R.grad is not None
    assert (T.grad[0, 3, 2], T.grad[0, 2, 2], R.grad[0, 2, 2]) == (0, 1, 1)


@pytest.mark.parametrize("rule", ["li", "laurent"])
@pytest.mark.parametrize("angles", [{}, TILTED], ids=["normal", "oblique"])
@pytest.mark.parametrize("asked", [1.0, 0.3], ids=["full", "partial"])
def test_derivatives_are_those_of_central_differences(rule: str, angles: dict[str, float], asked: float) -> None:
    """Of every pixel, grey ones and those at 0 and 1, and of the height, also where the layer is cut into sheets."""
    solver = TorchSolver(dataclasses.replace(CELL, harmonics=2, rule=rule, **angles), 2)  # type: ignore[arg-type]
    cells, heights = patterns(3).astype(np.float64), np.array([130.0, 420.0, 3000.0])
    cells[0] = np.random.default_rng(3).uniform(0.2, 0.8, SHAPE)
    targets = [random_target(2, asked, seed) for seed in range(3)]
    found, by_pixel, by_height = gradient(solver, cells, heights, targets)
    assert not any(tensor.requires_grad for tensor in (found, by_pixel, by_height))

    def scored(cells: np.ndarray, heights: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return misrouted_power(*solver._solve(torch.as_tensor(cells), torch.as_tensor(heights))[:2], targets).numpy()

    np.testing.assert_allclose(found, scored(cells, heights), rtol=0, atol=1e-12)
    step = 1e-2  # nm
    expected = (scored(cells, heights + step) - scored(cells, heights - step)) / (2 * step)
    np.testing.assert_allclose(by_height, expected, rtol=1e-4)
    step = 2e-5  # 0 and 1 are crossed, which the formulae allow; tall cells have sharp resonances
    slopes = np.empty_like(cells)
    for at in np.ndindex(SHAPE):
        moved = np.zeros(SHAPE)
        moved[at] = step
        slopes[:, *at] = (scored(cells + moved, heights) - scored(cells - moved, heights)) / (2 * step)
    largest = np.abs(slopes).max(axis=(1, 2))
    assert largest.min() > 1e-3
    assert (np.abs(by_pixel.numpy() - slopes).max(axis=(1, 2)) < 1e-4 * largest).all()


def test_a_height_of_zero_has_a_derivative() -> None:
    """At 0 nm the pattern cannot matter, and a little above it the slope is what it is at 0."""
    cells = patterns(1)
    target = random_target(3, 1.0)
    _, by_pixel, at_zero = gradient(TorchSolver(CELL, 3), cells, [0.0], target)
    _, _, above = gradient(TorchSolver(CELL, 3), cells, [1e-3], target)
    assert by_pixel.abs().max() < 1e-12
    assert at_zero.isfinite().all()
    assert at_zero.item() == pytest.approx(above.item(), abs=1e-5)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven cells in batches of 3, of which the first does not fit: 1, then one by one."""
    solver, cells, heights, target = TorchSolver(CELL, 3), patterns(7), np.linspace(100, 400, 7), random_target(3, 0.5)
    whole, slopes = solver.solve(cells, heights), gradient(solver, cells, heights, target)
    sizes: list[int] = []
    solve = TorchSolver._solve

    def crowded(self: TorchSolver, pixels: torch.Tensor, heights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError
        return solve(self, pixels, heights)

    monkeypatch.setattr(TorchSolver, "_solve", crowded)
    monkeypatch.setattr(TorchSolver, "batch_size", lambda *a, **k: 5)
    for ours, expected in zip(solver.solve_many(cells, heights), whole, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)
    assert sizes == [5, 2, 2, 2, 1]
    for slope, expected in zip(gradient(solver, cells, heights, [target] * 7), slopes, strict=True):
        np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-9)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(TorchSolver, "_solve", full)
    with pytest.raises(BackendError, match="does not hold even one cell"):
        solver.solve_many(cells, heights)


def test_a_batch_fits_the_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = TorchSolver(Geometry())
    solver.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**29)
    sizes = []
    for free in (2**20, 4 * 2**30, 16 * 2**30, 140 * 2**30):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2 * free))
        sizes.append((solver.batch_size((10, 10)), solver.batch_size((10, 10), gradient=True)))
    assert sizes[0] == (2, 1), "what PyTorch holds and does not use counts as free"
    assert all(one > with_gradient for one, with_gradient in sizes[:3])
    assert sizes[0][0] < sizes[1][0] < sizes[2][0] < sizes[3][0] == 256


def test_lost_energy_is_found_and_the_cell_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an interval that misses most of the spectrum the series is nonsense."""
    cells, heights = patterns(3), [300.0, 500.0, 700.0]
    solver = TorchSolver(CELL, 3)
    solver._spectrum = (-1.0, 0.1)
    assert not np.allclose(solver.solve(cells, heights)[1].sum(dim=(1, 2)), 1, atol=0.1)
    for ours, theirs in zip(solver.solve_many(cells, heights), by_numpy(cells, heights, CELL, 3), strict=True):
        assert np.array_equal(ours, theirs)


def test_wrong_input_is_refused_in_words() -> None:
    solver = TorchSolver(CELL, 1)
    wrong: list[tuple[object, object, str]] = [
        (np.zeros((4, 4)), [100.0], "expected"),
        (np.zeros((0, 4, 4)), [], "expected"),
        (np.full((1, 4, 4), 1.5), [100.0], "from 0"),
        (np.full((1, 4, 4), np.nan), [100.0], "from 0"),
        ("pillars", [100.0], "not an array"),
        (np.zeros((2, 4, 4)), [100.0], "one per pattern"),
        (np.zeros((1, 4, 4)), [-1.0], "negative or not finite"),
        (np.zeros((1, 4, 4)), [np.inf], "negative or not finite"),
        (np.zeros((1, 4, 4)), None, "not an array"),
    ]
    for cells, heights, says in wrong:
        with pytest.raises(DataError, match=says):
            solver.solve(cells, heights)
    with pytest.raises(DataError, match="between 0 and 1"):
        solver.solve_many(np.full((1, 4, 4), 0.5), [100.0])
    with pytest.raises(DataError, match="2 targets for 1 cells"):
        gradient(solver, np.zeros((1, 4, 4)), [100.0], [random_target(1, 1.0)] * 2)
    with pytest.raises(DataError, match=r"must be torch\.complex128"):
        TorchSolver(CELL, dtype=torch.float64)
    with pytest.raises(GeometryError, match="orders"):
        TorchSolver(CELL, -1)
    for device in ("abacus", "meta"):
        with pytest.raises(BackendError, match="name cpu or cuda"):
            TorchSolver(CELL, device=device)


@pytest.mark.gpu
def test_on_a_gpu_it_agrees_with_the_numpy_solver() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no NVIDIA GPU")
    for geometry in (Geometry(dtype="complex128", harmonics=8), dataclasses.replace(CELL, **TILTED)):  # type: ignore[arg-type]
        cells, heights = patterns(6, 2, (10, 10)), np.array([50.0, 200.0, 350.0, 500.0, 600.0, 3000.0])
        for dtype, tolerance in ((torch.complex128, 1e-8), (torch.complex64, 1e-4)):
            solver = TorchSolver(geometry, 6, "cuda", dtype)
            for ours, theirs in zip(solver.solve_many(cells, heights), by_numpy(cells, heights, geometry, 6), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
        target = random_target(6, 0.5)
        there, here = (gradient(TorchSolver(geometry, 6, device), cells, heights, target) for device in ("cuda", "cpu"))
        for slope, expected in zip(there, here, strict=True):
            assert slope.device.type == "cuda"
            np.testing.assert_allclose(slope.cpu(), expected, rtol=1e-6, atol=1e-9)
