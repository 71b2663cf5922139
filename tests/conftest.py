"""What several rooms' tests share: a small data set, a run trained on it for a few steps, and its bundle."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle import digest
from runtime.data import DataSet
from runtime.files import write_npz
from runtime.geometry import Geometry
from tests.fuzzing import FACTOR, tried

# A shell starts what it puts in the background with SIGINT ignored, and children inherit it: those that tests interrupt would never stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A cell small enough that a solve takes milliseconds: 5 x 5 pixels, orders up to 3.
SMALL = Geometry(wavelength_nm=1550.0, period_nm=(2000.0, 2000.0), harmonics=3, dtype="complex128")
SIZE, ORDERS = 5, 3


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 solved cells of 5 x 5 pixels in an ``.npz``."""
    from runtime.physics.rcwa import Solver

    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2, (160, SIZE, SIZE)).astype(np.uint8)
    heights = rng.integers(100, 400, 160).astype(np.float32)
    solver = Solver(SMALL, ORDERS)
    solved = [solver.solve(pattern, float(height)) for pattern, height in zip(patterns, heights, strict=True)]
    data = DataSet(patterns, heights, np.array([s[0] for s in solved], np.float32), np.array([s[1] for s in solved], np.float32), SMALL)
    path = tmp_path_factory.mktemp("data") / "small.npz"
    write_npz(path, **data.arrays())
    return path


@pytest.fixture(scope="session")
def small_surrogate():
    """The surrogate's recipe with a network of a few thousand parameters, quick to learn something."""
    pytest.importorskip("torch")
    from train.recipes import RECIPES

    return dataclasses.replace(
        RECIPES["surrogate"],
        network_arguments={"channels": 16, "components": 8, "hidden": 16, "blocks": 1, "tokens": 8, "embedding": 16},
        batch_size=32,
        precision="fp32",
        validation_fraction=0.2,
        warmup_steps=2,
        ema_decay=0.9,
    )


@pytest.fixture(scope="session")
def small_recipe():
    """The default recipe with a network of a few thousand parameters."""
    pytest.importorskip("torch")
    from train.recipes import RECIPES

    return dataclasses.replace(
        RECIPES["default"],
        epochs=2,
        batch_size=32,
        warmup_steps=2,
        precision="fp32",
        validation_fraction=0.2,
        sampling_scheduler="ddim",
        sampling_steps=32,
        network_arguments={
            "size": SIZE,
            "orders": ORDERS,
            "channels": 16,
            "components": 8,
            "hidden": 16,
            "blocks": 2,
            "tokens": 8,
            "embedding": 16,
        },
    )


@pytest.fixture(scope="session")
def small_run(small_data: Path, small_recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a few steps."""
    from train.loop import train

    run = tmp_path_factory.mktemp("run") / "small"
    train(small_data, run, small_recipe, progress=False)
    return run


@pytest.fixture(scope="session")
def small_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run exported; with METASCATTER_TEST_BUNDLE it is kept there, for environments without PyTorch (see noxfile.py)."""
    kept = os.environ.get("METASCATTER_TEST_BUNDLE")
    if kept and Path(kept).exists():
        return Path(kept)
    run = request.getfixturevalue("small_run")
    from export.bundle import export

    return export(run, Path(kept) if kept else tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture(scope="session")
def rewrite() -> Callable[[Path, Callable[[dict[str, Any]], object]], None]:
    """Change the manifest as somebody would who knows how the digest is made."""

    def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        manifest["digest"] = digest(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return rewrite


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many examples the fuzzing tests tried, with ``-vv`` or where more than the usual few were asked for."""
    if tried and (FACTOR > 1 or terminalreporter.verbosity > 0):
        terminalreporter.write_sep("=", f"fuzzing: {sum(tried.values())} examples")
        for name, many in sorted(tried.items()):
            terminalreporter.write_line(f"{many:8d}  {name}")
