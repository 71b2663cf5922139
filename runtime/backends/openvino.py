"""OpenVINO: Intel's engine for any x86 or Arm CPU, and for Intel's GPUs and NPUs.

It computes a fixed batch a third faster than a free one, so a model is compiled once for every bucket that is used, and all contexts
share what was compiled. The device and the precision are always spelled out: by itself OpenVINO would choose a device, and take bf16
where fp32 was meant.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError, DataError
from ..files import atomic_file, cache_directory
from . import Choice, Load
from .network import Arrays, Network, Signature

_DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
_MISSING = {
    "cpu": "reinstall the package openvino, which brings its CPU plugin",
    "gpu": "install the OpenCL driver of Intel's GPUs (intel-opencl-icd on Debian and Ubuntu, the graphics driver on Windows)",
    "npu": "install Intel's NPU driver",
}
# Our words with the capability that a device must state, the best first.
_PRECISIONS = {
    "cpu": {"bf16": "BF16", "fp32": "FP32", "int8": "INT8"},
    "gpu": {"fp16": "FP16", "fp32": "FP32", "int8": "INT8"},
    "npu": {"fp16": "FP16", "int8": "INT8"},
}
_DTYPES = {"f32": "float32", "i64": "int64", "f16": "float16", "f64": "float64"}
# On a CPU a sample costs about the same in any batch from 16 on, and a bucket costs 0.4 s and 50 MB once it is used: so none beyond
# 64, and steps of two below, which waste less than half.
_CPU_BUCKETS = (1, 8, 16, 32, 64)
_importing = threading.Lock()


def why_not(backend: str, device: str) -> str | None:
    """Why OpenVINO cannot use ``device`` here as far as can be told without a model, or None."""
    found = _module().Core().available_devices
    if _answers(device, found):
        return None
    return f"OpenVINO finds {', '.join(found) or 'no device'} here and no {_DEVICES[device]}; {_MISSING[device]}"


def precisions(backend: str, device: str) -> tuple[str, ...]:
    """What is computed in on a device, what it does best first: bf16 and fp16 only where the hardware has them."""
    capabilities = _capabilities(_module().Core(), device)
    return tuple(word for word, capability in _PRECISIONS[device].items() if capability in capabilities)


def open_network(content: bytes, name: str, choice: Choice, load: Load) -> OpenVinoNetwork:
    """See :mod:`runtime.backends`."""
    refusal = why_not(choice.backend, choice.device)
    if refusal is not None:
        raise BackendError(refusal)
    return OpenVinoNetwork(_module(), content, name, choice, load)


def _module() -> Any:
    """OpenVINO, imported as if its package for telemetry were not installed.

    With it, the import alone reports to Google Analytics and writes into the user's home, unasked. It is an optional part: without it
    OpenVINO takes a stub of its own and lacks nothing else.
    """
    with _importing:
        telemetry = "openvino_telemetry"
        hide = "openvino" not in sys.modules and telemetry not in sys.modules
        try:
            if hide:
                sys.modules[telemetry] = None  # type: ignore[assignment]
            return importlib.import_module("openvino")
        except ImportError:
            raise BackendError("OpenVINO is not installed; install metascatter[openvino]") from None
        finally:
            if hide:
                del sys.modules[telemetry]


class OpenVinoNetwork(Network):
    """One ONNX model in OpenVINO."""

    def __init__(self, ov: Any, content: bytes, name: str, choice: Choice, load: Load) -> None:
        self._core = ov.Core()
        try:
            self._model = self._core.read_model(io.BytesIO(content))
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot run {name} on {choice.device}: {_last_line(error)}") from None
        super().__init__(
            name,
            *choice,
            inputs=_signatures(name, self._model.inputs),
            outputs=_signatures(name, self._model.outputs),
            buckets=_CPU_BUCKETS if choice.device == "cpu" else load.buckets,
        )
        capabilities = _capabilities(self._core, choice.device)
        self._config = _config(self._core, choice, load)
        self._digest = hashlib.sha256(content).hexdigest()
        self._caches = "EXPORT_IMPORT" in capabilities
        self._compiled: dict[int, Any] = {}
        self._compiling = threading.Lock()
        if choice.device != "cpu":
            # Whether a driver takes the model is to be known now, while another engine can still be taken. The CPU's plugin takes all
            # that could be read, and a first design should not wait for a bucket it does not use.
            self._compile(self.batch_size)

    def _context(self, bucket: int) -> _OpenVinoContext:
        compiled = self._compile(bucket)
        try:
            return _OpenVinoContext(compiled, self.name, self.inputs, self.outputs)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO has no room for {self.name} in batches of {bucket}: {_last_line(error)}") from None

    def _release(self) -> None:
        with self._compiling:
            self._model, self._compiled = None, {}

    def _compile(self, bucket: int) -> Any:
        """The model compiled for batches of ``bucket``, on the device that was asked for and no other."""
        with self._compiling:
            self._check_open()
            if bucket not in self._compiled:
                try:
                    self._model.reshape({key: [bucket, *shape] for key, (shape, _) in self.inputs.items()})
                    compiled = self._from_cache(bucket) if self._caches else None
                    if compiled is None:
                        compiled = self._core.compile_model(self._model, _DEVICES[self.device], self._config)
                    answering = compiled.get_property("EXECUTION_DEVICES")
                except RuntimeError as error:
                    raise BackendError(f"OpenVINO cannot run {self.name} on {self.device}: {_last_line(error)}") from None
                if not answering or not all(_answers(self.device, [word]) for word in answering):
                    raise BackendError(
                        f"{self.name} was to run on {_DEVICES[self.device]} and OpenVINO answers with {', '.join(answering) or 'nothing'}; "
                        "run 'metascatter doctor' to see what is missing"
                    )
                self._compiled[bucket] = compiled
            return self._compiled[bucket]

    def _from_cache(self, bucket: int) -> Any:
        """The same by way of OpenVINO's cache of compiled models; None where that cannot be had."""
        with contextlib.suppress(RuntimeError), _cache(f"{self._digest[:32]}-{self.device}-{self.precision}-{bucket}") as folder:
            if folder is not None:
                return self._core.compile_model(self._model, _DEVICES[self.device], {**self._config, "CACHE_DIR": str(folder)})
        return None


class _OpenVinoContext:
    """An inference request and its own tensors, which are written in place."""

    def __init__(self, compiled: Any, name: str, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        self._name, self._outputs = name, tuple(outputs)
        self._request = compiled.create_infer_request()
        self._inputs: dict[str, np.ndarray] = {key: self._request.get_tensor(key).data for key in inputs}

    def load(self, fixed: Arrays) -> None:
        for key, value in fixed.items():
            self._inputs[key][...] = value

    def run(self, varying: Arrays) -> dict[str, np.ndarray]:
        self.load(varying)
        try:
            self._request.infer(share_outputs=True)
            return {key: self._request.get_tensor(key).data for key in self._outputs}
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed in {self._name}: {_last_line(error)}") from None

    def close(self) -> None:
        self._inputs = {}
        self._request = None


def _config(core: Any, choice: Choice, load: Load) -> dict[str, Any]:
    """What a model is compiled with."""
    rounded = {"bf16": "bf16", "fp16": "f16", "fp32": "f32"}
    # An int8 file says itself what is in int8; the rest is computed in what the device has at its best.
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": rounded.get(choice.precision, "f32" if choice.device == "cpu" else "f16")}
    if load.concurrency == 1:
        config["PERFORMANCE_HINT"] = "LATENCY"
    else:
        # The batch is chosen here: OpenVINO would otherwise collect the calls of several threads into a larger one.
        config |= {"PERFORMANCE_HINT": "THROUGHPUT", "ALLOW_AUTO_BATCHING": False}
        if choice.device != "npu":
            config["NUM_STREAMS"] = min(load.concurrency, core.get_property(_DEVICES[choice.device], "RANGE_FOR_STREAMS")[1])
    if choice.device == "cpu":
        # Pinned threads of two networks, or of two processes, all sit on the first cores and wait for each other.
        config["ENABLE_CPU_PINNING"] = False
        if load.threads is not None:
            config["INFERENCE_NUM_THREADS"] = load.threads * load.concurrency  # OpenVINO counts those of all streams together
    return config


def _signatures(name: str, ports: Any) -> dict[str, Signature]:
    signatures = {}
    for port in ports:
        shape, kind = port.get_partial_shape(), port.get_element_type().get_type_name()
        sides = [] if shape.rank.is_dynamic else list(shape)
        if not sides or any(side.is_dynamic for side in sides[1:]) or kind not in _DTYPES:
            found = f"'{port.get_any_name()}' is {kind} {shape}"
            raise BackendError(f"{name}: {found}; expected only the batch to be free, export it again")
        signatures[port.get_any_name()] = Signature(tuple(side.get_length() for side in sides[1:]), _DTYPES[kind])
    return signatures


def _answers(device: str, found: Iterable[str]) -> bool:
    """Whether ``device`` is among OpenVINO's names: several of a kind are called GPU.0 and GPU.1."""
    return _DEVICES[device] in {word.partition(".")[0] for word in found}


def _capabilities(core: Any, device: str) -> list[str]:
    try:
        return list(core.get_property(_DEVICES[device], "OPTIMIZATION_CAPABILITIES"))
    except RuntimeError as error:
        raise BackendError(f"OpenVINO cannot use {_DEVICES[device]}: {_last_line(error)}") from None


@contextlib.contextmanager
def _cache(key: str) -> Iterator[Path | None]:
    """A folder for OpenVINO to keep one compiled model in, or None where it cannot be written.

    OpenVINO sees that a file is of another version or driver, but computes with one whose weights were damaged. So the sha256 of each
    file is kept beside it, and what does not match is deleted before OpenVINO reads it.
    """
    folder = cache_directory() / "openvino" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for blob in folder.glob("*.blob"):
            if not _seal(blob).exists() or _seal(blob).read_bytes() != _sha256(blob):
                blob.unlink()
    except OSError:
        yield None
        return
    yield folder
    with contextlib.suppress(OSError, DataError):
        for blob in folder.glob("*.blob"):
            with atomic_file(_seal(blob)) as temporary:
                temporary.write_bytes(_sha256(blob))


def _seal(blob: Path) -> Path:
    return blob.with_suffix(".sha256")


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().encode()


def _last_line(error: Exception) -> str:
    """OpenVINO's messages begin with places in its own sources; the last line says what is wrong."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
