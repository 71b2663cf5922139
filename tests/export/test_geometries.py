"""Other cells than the tests' usual one, all prediction types, and odd batches, through every network of a bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import parity, yardsticks
from export.bundle import export
from runtime.data import DataSet
from runtime.files import write_npz
from runtime.geometry import Geometry
from runtime.sampler import load
from runtime.target import Target
from train.loop import train
from train.recipes import RECIPES

NETWORK = {"channels": 8, "components": 4, "hidden": 8, "blocks": 1, "tokens": 4, "embedding": 8}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "orders", "period_nm", "prediction_type"),
    [(10, 11, 4000.0, "epsilon"), (16, 15, 6400.0, "sample"), (16, 15, 6400.0, "v_prediction")],
)
def test_a_cell_from_training_to_designs(
    size: int, orders: int, period_nm: float, prediction_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order maps of 23 x 23 and 31 x 31. What the light does is made up: exporting does not ask whether it obeys Maxwell."""
    monkeypatch.setattr(parity, "ENGINES", ("onnxruntime",))
    monkeypatch.setattr(yardsticks, "CANDIDATES", 1)
    geometry = Geometry(wavelength_nm=1550.0, period_nm=(period_nm, period_nm), harmonics=3, truncation="square")
    rng = np.random.default_rng(0)
    maps = rng.random((40, 2, 2 * orders + 1, 2 * orders + 1)).astype(np.float32)
    maps *= np.hypot(*np.mgrid[-orders : orders + 1, -orders : orders + 1]) <= 2
    maps /= maps.sum(axis=(1, 2, 3), keepdims=True)
    patterns, heights = rng.integers(0, 2, (40, size, size)).astype(np.uint8), rng.uniform(100, 400, 40).astype(np.float32)
    write_npz(tmp_path / "data.npz", **DataSet(patterns, heights, maps[:, 0], maps[:, 1], geometry).arrays())
    common: dict[str, Any] = {"epochs": 1, "batch_size": 16, "precision": "fp32", "validation_fraction": 0.2, "network_arguments": NETWORK}
    scheduler = {**RECIPES["default"].scheduler, "prediction_type": prediction_type}
    train(tmp_path / "data.npz", tmp_path / "run", dataclasses.replace(RECIPES["default"], scheduler=scheduler, **common), progress=False)
    train(tmp_path / "data.npz", tmp_path / "judge", dataclasses.replace(RECIPES["surrogate"], **common), progress=False)
    bundle = export(
        tmp_path / "run",
        tmp_path / "bundle",
        precisions=("fp32", "fp16", "int8"),
        surrogate=tmp_path / "judge",
        fused=3,
        max_batch=40,
        force=True,
    )
    target = Target.from_arrays(maps[0, 0], maps[0, 1], float(heights[0]), geometry=geometry)
    with load(bundle, "onnxruntime", "cpu", "fp32", self_test=True) as sampler:
        assert sampler.batch_size() <= 40
        whole = sampler.sample(sampler.condition(target), 41, steps=3)
        assert whole.shape == (41, 1, size, size)
        for count in (1, 3, 17, 39):
            part = sampler.sample(sampler.condition(target), count, steps=3, batch_size=count)
            np.testing.assert_allclose(part, whole[:count], atol=1e-4)
        assert len(sampler.shortlist(sampler.patterns(whole), target)) == 4
    for precision in ("fp16", "int8"):
        with load(bundle, "onnxruntime", "cpu", precision) as sampler:
            assert np.isfinite(sampler.sample(sampler.condition(target), 5, steps=3)).all()
