"""ONNX Runtime: the CPU, CUDA, TensorRT and OpenVINO execution providers, none of which slides to another one.

ONNX Runtime by itself falls back to the CPU without a word when a provider cannot be loaded. Here the fall-back is switched off, and
the provider that answers is compared with the one asked for.

On the CPU one session serves every thread and every batch. On an NVIDIA GPU each context is a session of its own with the batch
fixed: shapes then fold to constants, the inputs and outputs keep their addresses on the device, and the provider captures the whole
network as one CUDA graph, which no two threads ever share.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..errors import BackendError
from ..files import cache_directory
from . import Choice, Load
from .network import Arrays, Network, Signature

_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(float16)": "float16", "tensor(double)": "float64"}
_PROVIDERS = {
    ("onnxruntime", "cpu"): "CPUExecutionProvider",
    ("onnxruntime", "cuda"): "CUDAExecutionProvider",
    ("onnxruntime-tensorrt", "cuda"): "TensorrtExecutionProvider",
    ("onnxruntime-openvino", "cpu"): "OpenVINOExecutionProvider",
    ("onnxruntime-openvino", "gpu"): "OpenVINOExecutionProvider",
    ("onnxruntime-openvino", "npu"): "OpenVINOExecutionProvider",
}
_PRECISIONS = {"cpu": ("fp32", "int8", "fp16"), "cuda": ("fp16", "fp32", "int8"), "gpu": ("fp16", "fp32", "int8"), "npu": ("fp16", "int8")}


def why_not(backend: str, device: str) -> str | None:
    """Why ONNX Runtime cannot use ``device`` here as far as can be told without a model, or None."""
    ort = _module()
    provider = _PROVIDERS[backend, device]
    if provider in ort.get_available_providers():
        return _absent(ort, device) if provider == "OpenVINOExecutionProvider" else None
    built = f"this ONNX Runtime ({ort.__version__}) was built without {provider}"
    if provider == "OpenVINOExecutionProvider":
        return f"{built}; install the package onnxruntime-openvino in its place, or metascatter[openvino] and the backend openvino"
    return f"{built}; uninstall onnxruntime and install metascatter[gpu] in its place"


def precisions(backend: str, device: str) -> tuple[str, ...]:
    """What is computed in on a device, what it does best first."""
    if (backend, device) == ("onnxruntime-openvino", "cpu"):
        return ("fp32", "int8")  # its provider takes no FP16 there
    return _PRECISIONS[device]


def open_network(content: bytes, name: str, choice: Choice, load: Load) -> OnnxRuntimeNetwork:
    """See :mod:`runtime.backends`."""
    refusal = why_not(choice.backend, choice.device)
    if refusal is not None:
        raise BackendError(refusal)
    return OnnxRuntimeNetwork(_module(), content, name, choice, load)


def _absent(ort: Any, device: str) -> str | None:
    """Why OpenVINO has no such device; asked of one that is not there, its provider also writes to stderr, past every setting."""
    found = [name.partition(".")[0].lower() for name in ort.capi._pybind_state.get_available_openvino_device_ids()]
    if device in found:
        return None
    return f"its OpenVINO finds {', '.join(found) or 'no device'} here and no {device}; install Intel's driver for it"


def _module() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise BackendError("ONNX Runtime is not installed; install metascatter[cpu], or metascatter[gpu] for an NVIDIA GPU") from None
    return onnxruntime


class OnnxRuntimeNetwork(Network):
    """One ONNX model in ONNX Runtime."""

    def __init__(self, ort: Any, content: bytes, name: str, choice: Choice, load: Load) -> None:
        self._ort, self._content, self._load, self._choice = ort, content, load, choice
        # Named before there is anything to describe, because opening a session already speaks of it.
        self.name = name
        fixed = choice.device != "cpu"
        if choice.device == "cuda":
            _preload(ort)
        session = self._open(load.buckets[0] if fixed else 0)
        super().__init__(
            name,
            *choice,
            inputs=_signatures(name, session.get_inputs()),
            outputs=_signatures(name, session.get_outputs()),
            buckets=load.buckets if fixed else (),
            batch_size=load.buckets[-1] if fixed else 32,  # as fast as 64 on two cores, in half the memory
        )
        self._shared = None if fixed else session
        if fixed:
            self._idle.append((load.buckets[0], self._wrap(session)))

    def _open(self, bucket: int) -> Any:
        """A session for batches of ``bucket`` rows, 0 for any, on the provider that was asked for and no other."""
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        # Idle threads that spin take the processor from the solver, which runs in turns with the network.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = _PROVIDERS[self._choice.backend, self._choice.device]
        if wanted != "CPUExecutionProvider":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if bucket:
            options.add_free_dimension_override_by_name("batch", bucket)
        options.intra_op_num_threads = _threads(self._load)
        # What a call needs is given back after it: a network this small is no slower for it, and a design peaks 25 MB lower.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        try:
            session = self._ort.InferenceSession(
                self._content, options, providers=_providers(self._choice, _threads(self._load)), enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BackendError(f"ONNX Runtime cannot run {self.name} on {self._choice.device}: {_first_line(error)}") from None
        answering = session.get_providers()[0]
        if answering != wanted:
            raise BackendError(
                f"{self.name} was to run on {wanted} and ONNX Runtime answers with {answering}; "
                "run 'metascatter doctor' to see what is missing"
            )
        return session

    def _context(self, bucket: int) -> _OnnxRuntimeContext:
        return self._wrap(self._shared if self._shared is not None else self._open(bucket))

    def _wrap(self, session: Any) -> _OnnxRuntimeContext:
        # Only NVIDIA's providers keep tensors of their own; the others read the host's memory.
        return _OnnxRuntimeContext(self._ort, session, self.name, "cuda" if self._choice.device == "cuda" else "cpu")

    def _release(self) -> None:
        self._shared = None
        self._content = b""


class _OnnxRuntimeContext:
    """Buffers bound to a session: written in place, so that their addresses stay what a captured graph was told."""

    def __init__(self, ort: Any, session: Any, name: str, memory: str) -> None:
        self._ort, self._session, self._name, self._memory = ort, session, name, memory
        self._binding = session.io_binding()
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}

    def load(self, fixed: Arrays) -> None:
        for key, value in fixed.items():
            self._put(key, value)

    def run(self, varying: Arrays) -> dict[str, np.ndarray]:
        for key, value in varying.items():
            self._put(key, value)
        batch = next(iter(self._inputs.values())).shape()[0]
        for output in self._session.get_outputs():
            shape = [batch, *output.shape[1:]]
            held = self._outputs.get(output.name)
            if held is None or held.shape() != shape:
                value = self._ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(_DTYPES[output.type]), self._memory, 0)
                self._outputs[output.name] = value
                self._binding.bind_ortvalue_output(output.name, value)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in {self._name}: {_first_line(error)}") from None
        return {key: value.numpy() for key, value in self._outputs.items()}

    def close(self) -> None:
        self._inputs, self._outputs = {}, {}
        self._binding = self._session = None

    def _put(self, key: str, value: np.ndarray) -> None:
        held = self._inputs.get(key)
        if held is not None and tuple(held.shape()) == value.shape:
            held.update_inplace(value)
            return
        # On the CPU the tensor lies in the array it is made from, and is written to: so in a copy.
        self._inputs[key] = self._ort.OrtValue.ortvalue_from_numpy(value.copy(), self._memory, 0)
        self._binding.bind_ortvalue_input(key, self._inputs[key])


def _signatures(name: str, declared: Any) -> dict[str, Signature]:
    signatures = {}
    for entry in declared:
        shape = tuple(entry.shape[1:])
        if not all(isinstance(side, int) for side in shape) or entry.type not in _DTYPES:
            raise BackendError(f"{name}: '{entry.name}' is {entry.type} {entry.shape}; expected only the batch to be free, export it again")
        signatures[entry.name] = Signature(shape, _DTYPES[entry.type])
    return signatures


def _providers(choice: Choice, threads: int) -> list[Any]:
    """The execution provider of a choice with its options; TensorRT hands what it does not know to CUDA, never to the CPU."""
    provider = _PROVIDERS[choice.backend, choice.device]
    cuda = ("CUDAExecutionProvider", {"enable_cuda_graph": "1", "cudnn_conv_algo_search": "HEURISTIC"})
    if choice.backend == "onnxruntime-tensorrt":
        folder = str(cache_directory() / "onnxruntime-tensorrt")
        options = {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
            "trt_cuda_graph_enable": "1",
        }
        return [(provider, options), cuda]
    if provider == "CUDAExecutionProvider":
        return [cuda]
    if provider == "OpenVINOExecutionProvider":
        # On an NPU there is no FP32, not even for what an int8 file leaves open.
        half = choice.precision == "fp16" or choice.device == "npu"
        options = {"device_type": choice.device.upper(), "precision": "FP16" if half else "FP32"}
        return [(provider, options | ({"num_of_threads": str(threads)} if threads else {}))]
    return [provider]


def _threads(load: Load) -> int:
    """CPU threads of one call, 0 for as many as ONNX Runtime likes: callers that come at once share the cores."""
    if load.threads is not None:
        return load.threads
    return 0 if load.concurrency == 1 else max(1, (os.cpu_count() or 1) // load.concurrency)


def _preload(ort: Any) -> None:
    """Find the CUDA libraries that pip installed; they lie where no dynamic linker looks."""
    if hasattr(ort, "preload_dlls"):
        ort.print = lambda *text: None  # it prints what it cannot load; the session that follows says it in an error
        ort.preload_dlls()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
