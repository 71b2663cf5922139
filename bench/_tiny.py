"""A bundle small enough that a target takes milliseconds, and targets for it: 5 x 5 pixels, orders up to 3.

``python -m bench._tiny FOLDER`` makes ``FOLDER/cells.npz`` and ``FOLDER/bundle``.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from runtime.data import DataSet
from runtime.files import write_npz
from runtime.geometry import Geometry
from runtime.physics.simulate import simulate

GEOMETRY = Geometry(wavelength_nm=1550.0, period_nm=(2000.0, 2000.0), harmonics=3, dtype="complex128")
SIZE, ORDERS = 5, 3


def bundle(folder: Path) -> None:
    """160 solved cells, and a bundle of a network of a few thousand parameters trained on them for a moment."""
    from export.bundle import export
    from train.loop import train
    from train.recipes import RECIPES

    simulate(folder / "cells.npz", 160, 0, GEOMETRY, (100, 400), SIZE, ORDERS, workers=1, progress=False)
    network = {"size": SIZE, "orders": ORDERS, "channels": 16, "components": 8, "hidden": 16, "blocks": 2, "tokens": 8, "embedding": 16}
    short = {"epochs": 1, "batch_size": 32, "warmup_steps": 2, "precision": "fp32", "validation_fraction": 0.2}
    recipe = dataclasses.replace(RECIPES["default"], **short, network_arguments=network)  # type: ignore[arg-type]
    train(folder / "cells.npz", folder / "run", recipe, progress=False)
    export(folder / "run", folder / "bundle")


def targets(data: DataSet, count: int, path: Path) -> Path:
    """An ``.npz`` of ``count`` rows, those of ``data`` that any bundle trained on it can be asked for, over and over."""
    inner = np.flatnonzero((data.h > np.quantile(data.h, 0.2)) & (data.h < np.quantile(data.h, 0.8)))
    write_npz(path, **data.take(np.resize(inner, count)).arrays())
    return path


if __name__ == "__main__":
    bundle(Path(sys.argv[1]))
