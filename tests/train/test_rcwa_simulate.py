"""simulate with the solver in PyTorch, from Python and from the command line; a CPU stands in for the GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from cli import group
from runtime.data import load
from runtime.errors import DataError
from runtime.geometry import Geometry
from runtime.physics.shards import Parts
from runtime.physics.simulate import draw, simulate
from train import rcwa
from train.rcwa import TorchSolver

CELL = Geometry(period_nm=(2300.0, 1900.0), index_pillar=2.4, index_substrate=1.5, harmonics=2, dtype="complex128")


def torch_solver(geometry: Geometry, orders: int) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    return TorchSolver(geometry, orders).solve_many


def test_simulate_makes_the_same_data_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a run that the other solver began; the file is then half of each."""

    def run(name: str, **settings: object) -> Path:
        return simulate(tmp_path / name, 70, 5, CELL, size=4, orders=2, progress=False, **settings)  # type: ignore[arg-type]

    ours, theirs = load(run("torch.npz", solver=torch_solver)), load(run("numpy.npz", workers=1))
    assert ours.geometry == theirs.geometry == CELL
    assert np.array_equal(ours.xx, theirs.xx)
    assert np.array_equal(ours.h, theirs.h)
    assert np.array_equal(ours.xx, draw(5, 0, 70, 4, (50, 600))[0])
    for key in ("Rm", "Tm"):
        np.testing.assert_allclose(getattr(ours, key), getattr(theirs, key), rtol=0, atol=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "clear", lambda self: None)
        run("mixed.npz", workers=1)
    shards = sorted((tmp_path / "mixed.npz.parts").glob("shard-*.npz"))
    assert len(shards) == 35
    for shard in [tmp_path / "mixed.npz", *shards[10:]]:
        shard.unlink()
    solved: list[int] = []

    def counting(geometry: Geometry, orders: int) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        def solve(patterns: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            solved.append(len(patterns))
            return torch_solver(geometry, orders)(patterns, heights)

        return solve

    mixed = load(run("mixed.npz", solver=counting))
    assert solved == [50], "small shards are solved together"
    np.testing.assert_allclose(mixed.Tm, theirs.Tm, rtol=0, atol=1e-6)
    assert not (tmp_path / "mixed.npz.parts").exists()
    with pytest.raises(DataError, match="workers is 2"):
        run("other.npz", workers=2, solver=torch_solver)


def test_an_interrupt_keeps_the_shards(tmp_path: Path) -> None:
    calls = 0

    def stopping(geometry: Geometry, orders: int) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        def solve(patterns: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return torch_solver(geometry, orders)(patterns, heights)

        return solve

    geometry = dataclasses.replace(CELL, harmonics=1)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "data.npz", 100, 1, geometry, size=3, orders=1, progress=False, solver=stopping)
    assert len(list((tmp_path / "data.npz.parts").glob("shard-*.npz"))) == 32
    assert len(load(simulate(tmp_path / "data.npz", 100, 1, geometry, size=3, orders=1, progress=False, solver=stopping))) == 100
    assert calls == 3, "36 samples were left"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments], prog_name="cli.py")


def test_without_a_gpu_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("simulate", "--count", 2, "--out", tmp_path / "x.npz", "--device", "cuda")
    assert result.exit_code == 2
    assert "no NVIDIA GPU answers to PyTorch" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_hands_its_solver_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CPU in the GPU's place; ``--device cpu`` is the NumPy solver and takes workers."""
    monkeypatch.setattr(rcwa, "usable", lambda device: torch.device("cpu"))
    small = ("--harmonics", 2, "--period-nm", 2000, "--count", 3, "--seed", 4)
    result = run("simulate", "--device", "cuda", "--out", tmp_path / "a.npz", *small)
    assert result.exit_code == 0, result.stderr
    assert run("simulate", "--device", "cpu", "--workers", 1, "--out", tmp_path / "b.npz", *small).exit_code == 0
    ours, theirs = load(tmp_path / "a.npz"), load(tmp_path / "b.npz")
    assert np.array_equal(ours.xx, theirs.xx)
    np.testing.assert_allclose(ours.Tm, theirs.Tm, rtol=0, atol=1e-5)  # the CPU's are complex64
    result = run("simulate", "--device", "cuda", "--workers", 2, "--out", tmp_path / "c.npz", *small)
    assert result.exit_code == 2
    assert "workers is 2" in result.stderr
