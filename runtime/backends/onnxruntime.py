"""ONNX Runtime, which never slides to another device than the one named.

ONNX Runtime by itself falls back to the CPU without a word when CUDA cannot be loaded. Here the fall-back is switched off
and the provider that answers is compared with the one asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import BackendError
from . import check_inputs

_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(float16)": "float16", "tensor(double)": "float64"}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_network(model: bytes, name: str, device: str, threads: int | None) -> OnnxRuntimeNetwork:
    """See :func:`runtime.backends.open_network`."""
    ort = _module()
    if device == "auto":
        refusal = why_not("cuda")
        if refusal is None:
            try:
                return OnnxRuntimeNetwork(ort, model, name, "cuda", threads)
            except BackendError:
                pass  # the doctor says why; auto means the best that works
        device = "cpu"
    refusal = why_not(device)
    if refusal is not None:
        raise BackendError(refusal)
    return OnnxRuntimeNetwork(ort, model, name, device, threads)


def why_not(device: str) -> str | None:
    """Why ONNX Runtime cannot use ``device`` here as far as can be told without a model, or None."""
    ort = _module()
    if _PROVIDERS[device] in ort.get_available_providers():
        return None
    return (
        f"this ONNX Runtime ({ort.__version__}) was built without {device}; uninstall onnxruntime and install metascatter[gpu] in its place"
    )


def _module() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise BackendError("ONNX Runtime is not installed; install metascatter[cpu], or metascatter[gpu] for an NVIDIA GPU") from None
    return onnxruntime


class OnnxRuntimeNetwork:
    """One ONNX model in one inference session."""

    def __init__(self, ort: Any, model: bytes, name: str, device: str, threads: int | None) -> None:
        self.name, self.device = name, device
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Idle threads that spin take the processor from the solver, which runs in turns with the network.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if device != "cpu":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(model, options, providers=[_PROVIDERS[device]], enable_fallback=0)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BackendError(f"ONNX Runtime cannot run {name} on {device}: {_first_line(error)}") from None
        answering = self._session.get_providers()[0]
        if answering != _PROVIDERS[device]:
            raise BackendError(
                f"{name} was to run on {_PROVIDERS[device]} and ONNX Runtime answers with {answering}; "
                "run 'metascatter doctor' to see what is missing"
            )
        self.inputs = {
            i.name: (tuple(s if isinstance(s, int) else None for s in i.shape), _DTYPES.get(i.type, i.type))
            for i in self._session.get_inputs()
        }
        self.outputs = [o.name for o in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._session is None:
            raise BackendError(f"{self.name} is closed; load the bundle again")
        check_inputs(self.name, self.inputs, inputs)
        try:
            return dict(zip(self.outputs, self._session.run(self.outputs, dict(inputs)), strict=True))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in {self.name}: {_first_line(error)}") from None

    def close(self) -> None:
        self._session = None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
