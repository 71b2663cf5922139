"""Engines that evaluate a network. Each is one file with one door: ``open_network``.

A network is a callable from named arrays to named arrays; whoever holds it knows nothing else about the engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ..errors import BackendError

BACKENDS = {"onnxruntime": "cpu"}  # engine -> the extra that installs it
DEVICES = ("auto", "cpu", "cuda")


class Network(Protocol):
    """One network on one device; thread-safe."""

    device: str

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays in, arrays out, all with the batch as first axis.

        Raises:
            BackendError: an input is missing, unknown, or of the wrong shape or dtype.
        """

    def close(self) -> None:
        """Release the engine's memory; the network cannot be called afterwards."""


def open_network(model: bytes, name: str, backend: str = "auto", device: str = "auto", threads: int | None = None) -> Network:
    """Load the ONNX ``model`` (already checked against its hash) into an engine.

    Args:
        model: the file's bytes; weights inside.
        name: what error messages call it.
        backend: a word of ``BACKENDS``, or ``auto`` for the fastest installed.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU that answers and else the CPU.
        threads: CPU threads of one call; None leaves it to the engine.

    Raises:
        BackendError: the engine is not installed, the device does not answer, or the model is refused.
    """
    if backend == "auto":
        backend = "onnxruntime"
    if backend not in BACKENDS:
        raise BackendError(f"there is no backend '{backend}'; choose auto or {', '.join(BACKENDS)}")
    if device not in DEVICES:
        raise BackendError(f"there is no device '{device}'; choose {', '.join(DEVICES)}")
    engine = importlib.import_module(f".{backend}", __package__)
    return engine.open_network(model, name, device, threads)


def check_inputs(name: str, declared: Mapping[str, tuple[tuple[int | None, ...], str]], inputs: Mapping[str, np.ndarray]) -> None:
    """Compare ``inputs`` with what a model declares: per name its shape (None where free) and NumPy dtype name.

    Raises:
        BackendError: naming the input, what was found and what was expected.
    """
    for key in inputs:
        if key not in declared:
            raise BackendError(f"{name} has no input '{key}'; its inputs are {', '.join(declared)}")
    batches = set()
    for key, (shape, dtype) in declared.items():
        if key not in inputs:
            raise BackendError(f"{name} lacks its input '{key}'; expected {', '.join(declared)}")
        value = inputs[key]
        fits = value.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, value.shape, strict=True))
        if not fits:
            wanted = ", ".join("batch" if i == 0 and s is None else str(s) for i, s in enumerate(shape))
            raise BackendError(f"{name}: input '{key}' has shape {value.shape}; expected ({wanted})")
        if value.dtype.name != dtype:
            raise BackendError(f"{name}: input '{key}' has dtype {value.dtype.name}; expected {dtype}")
        batches.add(value.shape[0])
    if len(batches) > 1:
        raise BackendError(f"{name}: inputs have batches of {sorted(batches)}; expected one batch size")
