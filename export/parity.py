"""How far an engine's network is from PyTorch's, measured on the run's own calibration samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from runtime.backends import Model, open_networks

from .onnx import Part

BATCHES = (1, 7, 64)
BOUND = 1e-4  # max abs difference of fp32 graphs from PyTorch


def measure(name: str, part: Part, model: bytes, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Max and mean absolute difference of each output from PyTorch fp32, per batch size.

    Args:
        inputs: arrays with at least ``max(BATCHES)`` rows.
    """
    network = open_networks({name: Model(f"{name}.onnx", ("fp32",), lambda _: model)}, "onnxruntime", "cpu", "fp32").networks[name]
    rows: dict[str, Any] = {}
    for batch in BATCHES:
        arrays = {key: np.ascontiguousarray(value[:batch]) for key, value in inputs.items()}
        reference = part({key: torch.from_numpy(value) for key, value in arrays.items()})
        found = network(arrays)
        rows[str(batch)] = {
            output: {
                "max_abs": float(np.abs(found[output] - value.numpy()).max()),
                "mean_abs": float(np.abs(found[output] - value.numpy()).mean()),
                "finite": bool(np.isfinite(found[output]).all()),
            }
            for output, value in reference.items()
        }
    network.close()
    return rows


def worst(rows: Mapping[str, Any]) -> float:
    """The largest difference in :func:`measure`'s result; infinite where anything was not finite."""
    return max((o["max_abs"] if o["finite"] else float("inf")) for outputs in rows.values() for o in outputs.values())
