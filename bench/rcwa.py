"""What one RCWA solve costs, beside the eigenproblem it avoids and meent, and how accurate each is; then the solver in PyTorch.

    OMP_NUM_THREADS=1 python bench/rcwa.py [--height-nm 300] [--repeats 5] [--seed 0] [--no-meent]
    OMP_NUM_THREADS=1 python bench/rcwa.py --torch-only [--device cpu|cuda] [--batches 1 4 64]

All rows solve one random 10 x 10 cell of the lab's geometry, in turn, in one process; times are the fastest of the repeats.
Accuracy is the L1 distance of (R, T) to our solver at +-15 harmonics, square, complex128: it is the error of the
truncation and factorisation; rounding is far below it. meent (NumPy, complex64) has no circular truncation: it takes
+-9 x +-9 = 361 orders, and orders x and y of its series differently (see tests/runtime/physics/test_fourier.py).

The second table, with --torch-only, is of the same cell repeated: seconds a cell of ``train/rcwa.py`` at several batch sizes, with and
without the gradient, over the NumPy solver in complex128, and its L1 distance to that; on an NVIDIA GPU where PyTorch finds one.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def meent_solve(pattern: np.ndarray, height_nm: float, geometry: Any) -> tuple[np.ndarray, np.ndarray]:
    """(R, T), each (2H+1, 2H+1), by meent; its rows are y from the top, its columns x."""
    import meent

    h = geometry.harmonics
    cell = np.where(pattern.T[::-1], geometry.index_pillar, geometry.index_gap)[None]
    mee = meent.call_mee(
        backend=0,
        pol=1,
        n_top=geometry.index_substrate,
        n_bot=geometry.index_cover,
        theta=0.0,
        phi=0.0,
        wavelength=geometry.wavelength_nm,
        period=list(geometry.period_nm),
        thickness=[height_nm],
        ucell=cell,
        fto=[h, h],
        fourier_type=1,
        type_complex=1,
    )
    result = mee.conv_solve()
    return result.de_ri.T, result.de_ti.T


def centred(array: np.ndarray, half: int) -> np.ndarray:
    """The (2 half + 1)-square map with the same centre, cut or padded with zeros."""
    pad = max(0, half - array.shape[0] // 2)
    array = np.pad(array, pad)
    cut = array.shape[0] // 2 - half
    return array[cut : array.shape[0] - cut, cut : array.shape[1] - cut]


def torch_table(geometry: Any, pattern: np.ndarray, height_nm: float, repeats: int, device: str | None, batches: list[int]) -> None:
    """Print the second table."""
    import torch

    from runtime.physics.rcwa import Solver
    from runtime.target import Target
    from train.rcwa import TorchSolver, gradient

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    solver = Solver(geometry)
    R, T = solver.solve(pattern, height_nm)
    target = Target.from_arrays(T, R, height_nm)  # any other scattering than the cell's own

    def clock(call: Callable[[], Any], cells: int) -> tuple[float, Any]:
        """Fastest seconds a cell, after one call to warm up, and the last answer."""
        fastest = np.inf
        for repeat in range(repeats + 1):
            start = time.perf_counter()
            answer = call()
            if device == "cuda":
                torch.cuda.synchronize()
            fastest = min(fastest, time.perf_counter() - start if repeat else np.inf)
        return fastest / cells, answer

    numpy_seconds, _ = clock(lambda: solver.solve(pattern, height_nm), 1)
    print(f"\n{'PyTorch ' + torch.__version__ + ' on ' + where:48s} {'batch':>5s} {'s/cell':>8s} {'ratio':>7s} {'L1':>8s}")
    print(f"{'NumPy solver, complex128':48s} {1:5d} {numpy_seconds:8.4f} {1:7.2f}")
    for dtype in (torch.complex128, torch.complex64):
        ours = TorchSolver(geometry, 11, device, dtype)
        for batch in batches:
            cells, heights = np.tile(pattern, (batch, 1, 1)), np.full(batch, height_nm)
            seconds, maps = clock(partial(ours.solve, cells, heights), batch)
            error = sum(float(np.abs(ours_map[0].cpu().numpy() - full).sum()) for ours_map, full in zip(maps, (R, T), strict=True))
            name = str(dtype).removeprefix("torch.")
            print(f"{'ours in PyTorch, ' + name:48s} {batch:5d} {seconds:8.4f} {seconds / numpy_seconds:7.2f} {error:8.1e}")
            if dtype == torch.complex128:
                seconds, _ = clock(partial(gradient, ours, cells, heights, target), batch)
                print(f"{'  with the gradient by pixels and height':48s} {batch:5d} {seconds:8.4f} {seconds / numpy_seconds:7.2f}")


def main() -> None:
    import scipy.linalg

    from runtime.geometry import Geometry
    from runtime.physics.adjoint import gradient
    from runtime.physics.layer import Operators
    from runtime.physics.rcwa import Cell, Solver
    from runtime.target import Target

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height-nm", type=float, default=300.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-meent", action="store_true")
    parser.add_argument("--torch-only", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()

    lab = Geometry()
    nine = dataclasses.replace(lab, harmonics=9, truncation="square")
    pattern, height = np.random.default_rng(options.seed).integers(0, 2, (10, 10)), options.height_nm
    if options.torch_only:
        return torch_table(dataclasses.replace(lab, dtype="complex128"), pattern, height, options.repeats, options.device, options.batches)
    single, double, square = Solver(lab), Solver(dataclasses.replace(lab, dtype="complex128")), Solver(nine)
    laurent = Solver(dataclasses.replace(lab, rule="laurent"))
    # A tilt far below rounding makes the solver keep plane waves, whose layer matrix is the complex one of the textbooks.
    waves = Solver(dataclasses.replace(lab, theta_deg=1e-9))
    layer = Operators.build(waves._permittivities(Cell.from_pattern(pattern, lab)), waves.frame, np.complex64).a
    reference = Solver(dataclasses.replace(lab, harmonics=15, truncation="square", dtype="complex128")).solve(pattern, height)

    size = f"{layer.shape[0]}x{layer.shape[1]}"
    rows: list[tuple[str, Callable[[], Any]]] = [
        (f"eigenproblem alone: scipy.linalg.eig, {size} complex64", lambda: scipy.linalg.eig(layer, check_finite=False)),
        ("our solve, 377 orders, complex64", lambda: single.solve(pattern, height)),
        ("our solve, 377 orders, complex128", lambda: double.solve(pattern, height)),
        ("our solve, 377 orders, complex64, oblique (plane waves)", lambda: waves.solve(pattern, height)),
        ("our eigenmode path, 377 orders, complex128", lambda: double._solve(pattern, height, True)),
        ("our solve, 377 orders, complex64, Laurent", lambda: laurent.solve(pattern, height)),
        ("our solve, 361 orders (+-9 square), complex64", lambda: square.solve(pattern, height)),
    ]
    target = Target.from_arrays(*single.solve(1 - pattern, height), height)  # any other scattering than the cell's own
    rows.append(("our adjoint gradient by pixels and height, complex128", lambda: gradient(single, pattern, height, target)))
    if not options.no_meent:
        rows.append(("meent, 361 orders (+-9 square), complex64", lambda: meent_solve(pattern, height, nine)))

    fastest, answers = [np.inf] * len(rows), [None] * len(rows)
    for _ in range(options.repeats):
        for index, (_, call) in enumerate(rows):
            start = time.perf_counter()
            answers[index] = call()
            fastest[index] = min(fastest[index], time.perf_counter() - start)

    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    print(f"height {height:g} nm, seed {options.seed}, fastest of {options.repeats}, OMP_NUM_THREADS={threads}")
    print(f"{'':58s} {'s':>7s} {'ratio':>6s} {'L1 to +-15':>11s}")
    for index, (name, _) in enumerate(rows):
        answer: Any = answers[index]
        maps = index > 0 and len(answer) == 2  # neither eigenvalues nor a gradient
        error = sum(np.abs(centred(part, 11) - full).sum() for part, full in zip(answer, reference, strict=True)) if maps else None
        print(f"{name:58s} {fastest[index]:7.3f} {fastest[index] / fastest[0]:6.2f} {'' if error is None else f'{error:11.4f}':>11s}")


if __name__ == "__main__":
    main()
