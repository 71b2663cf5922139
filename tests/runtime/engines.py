"""The engines, devices and precisions that answer on this computer, and how near their results must be to one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import BACKENDS, PRECISIONS, Choice, Load, Network, candidates, open_networks
from runtime.bundle import Bundle
from runtime.engine import models

FILES = ("fp32",)  # the precisions that the bundles of these tests hold
REFERENCE = Choice("onnxruntime", "cpu", "fp32")
SIZES = (1, 7, 64, 65, 300)
# Largest difference of two evaluations of the same rows, over the root mean square of the outputs. Measured against ONNX Runtime over
# all noise levels: 7e-6 in fp32; 0.06 in bf16, whose mantissa has 8 bits.
LARGEST = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 2e-1, "int8": 1.0}
# The root mean square of such differences. Measured: 2e-6 in fp32, 2.3e-2 in bf16.
TYPICAL = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2, "int8": 3e-1}

Arrays = dict[str, np.ndarray]


def offers() -> tuple[list[Any], list[Any]]:
    """What the engines compute in here, and for each device that does not answer the reason to skip it."""
    answering, absent = [], []
    for backend, described in BACKENDS.items():
        for device in described.devices:
            marks = [pytest.mark.gpu] if device == "cuda" else []
            asked = [candidates(backend, device, precision, FILES) for precision in PRECISIONS[1:]]
            found = [choice for choices, _ in asked for choice in choices]
            answering += [pytest.param(choice, marks=marks, id=f"{backend}-{device}-{choice.precision}") for choice in found]
            if not found:
                marks.append(pytest.mark.skip(reason=asked[0][1][0]))
                absent.append(pytest.param(None, marks=marks, id=f"{backend}-{device}"))
    return answering, absent


ANSWERING, ABSENT = offers()


def opened(bundle: Path, name: str, choice: Choice, load: Load = Load(threads=1)) -> Network:  # noqa: B008
    found = open_networks({name: models(Bundle.open(bundle))[name]}, *choice, load)
    assert found.choice == choice
    return found.networks[name]


def assert_close(found: np.ndarray, expected: np.ndarray, precision: str, message: str = "") -> None:
    """Equal to what the precision allows, relative to the size of the outputs (at least 0.1, where they are near nothing)."""
    assert found.shape == expected.shape, message
    assert found.dtype == expected.dtype == np.float32, message
    scale = max(0.1, float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))))
    apart = np.abs(found.astype(np.float64) - expected) / scale
    assert apart.max() <= LARGEST[precision], message
    assert np.sqrt(np.mean(apart**2)) <= TYPICAL[precision], message


def rows(arrays: Arrays, which: slice | np.ndarray) -> Arrays:
    return {key: value[which] for key, value in arrays.items()}
