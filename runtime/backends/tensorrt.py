"""TensorRT 10.x, 11.x and TensorRT-RTX on NVIDIA GPUs, without PyTorch.

A plan is built from the bundle's ONNX on first use and kept in the user's cache directory with a sidecar that says what it was built
with; a plan whose sidecar says anything else is built again, because TensorRT has no way to ask whether a plan fits. Each context has
an execution context of its own on the profile of its bucket, a stream, fixed buffers, and the whole call captured as one CUDA graph; so
threads never wait for one another. Making a context, and capturing, happen one at a time under a lock.

Never executed on a GPU by us: plans are built for real, and the calls are checked against TensorRT's signatures.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError, DataError
from ..files import cache_directory, write_json
from . import BUCKETS, Choice, Load, kept, tensorrt_build
from .cuda import Buffer, Device, Stream, device
from .network import Arrays, Network, Signature
from .tensorrt_build import trt

# What TensorRT-RTX runs on; a data-centre GPU or a Jetson takes TensorRT.
RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))

_log = logging.getLogger(__name__)


def why_not(backend: str, device_word: str) -> str | None:
    """Why TensorRT cannot be used here as far as can be told without a model, or None."""
    gpu = device()  # before TensorRT is imported, which takes a tenth of a second where there is no GPU to use it on
    if tensorrt_build.module().__name__ == "tensorrt_rtx" and gpu.capability not in RTX_CAPABILITIES:
        words = ".".join(map(str, gpu.capability))
        return f"TensorRT-RTX does not run on {gpu.name} (compute capability {words}); install metascatter[tensorrt] in its place"
    return None


def precisions(backend: str, device_word: str) -> tuple[str, ...]:
    """What is computed in, best first; the precision is in the ONNX file."""
    return ("fp16", "fp32", "int8")


def open_network(content: bytes, name: str, choice: Choice, load: Load) -> TensorRtNetwork:
    """See :mod:`runtime.backends`."""
    refusal = why_not(choice.backend, choice.device)
    if refusal is not None:
        raise BackendError(refusal)
    return TensorRtNetwork(content, name, choice, device())


def sidecar(content: bytes, gpu: Device) -> dict[str, Any]:
    """What a plan depends on: another value of any of these wants another plan."""
    return {
        "flavour": trt.__name__,
        "version": trt.__version__,
        "gpu": gpu.name,
        "compute_capability": list(gpu.capability),
        "onnx_sha256": hashlib.sha256(content).hexdigest(),
        "buckets": list(BUCKETS),
        "workspace_bytes": tensorrt_build.WORKSPACE_BYTES,
        "flags": ["STRONGLY_TYPED", "no TF32"],
    }


def engine(content: bytes, name: str, gpu: Device) -> trt.ICudaEngine:
    """A deserialised engine, from the plan that was kept where there is one and it fits, else built and kept.

    Raises:
        BackendError: TensorRT cannot build it, or cannot load what it has just built.
    """
    runtime = trt.Runtime(tensorrt_build.logger())
    facts = sidecar(content, gpu)
    path = kept.place("tensorrt", facts)
    plan = kept.fetch(path)
    if plan is not None:
        loaded = runtime.deserialize_cuda_engine(plan)
        if loaded is not None:
            return loaded
        _log.warning("TensorRT will not load %s, which is built again", path)
    _log.info("building the TensorRT engine of %s for %s: this takes minutes, once", name, gpu.name)
    progress = _Progress(name)
    plan = tensorrt_build.build(content, name, BUCKETS, timing_cache=_timings(gpu), progress=progress)
    kept.keep(path, plan)
    try:
        write_json(path.with_suffix(".json"), {**facts, "plan_sha256": hashlib.sha256(plan).hexdigest()})
    except DataError as error:
        _log.info("no sidecar for people: %s", error)
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        raise BackendError(f"TensorRT cannot load the engine it has just built of {name}; its reason is in the log")
    return loaded


class _Progress:
    """A line in the log for every tenth of a phase."""

    def __init__(self, name: str) -> None:
        self.name, self.told = name, ""

    def __call__(self, phase: str, step: int, steps: int) -> None:
        words = f"{phase}: {10 * step // max(steps, 1) * 10} %"
        if words != self.told:
            self.told = words
            _log.debug("%s, %s", self.name, words)


def _timings(gpu: Device) -> Path:
    words = "".join(c if c.isalnum() else "-" for c in f"{trt.__name__}-{trt.__version__}-{gpu.name}")
    return cache_directory() / "tensorrt" / f"{words}.timings"


class TensorRtNetwork(Network):
    """One ONNX model in one TensorRT engine."""

    def __init__(self, content: bytes, name: str, choice: Choice, gpu: Device) -> None:
        self._engine: trt.ICudaEngine | None = engine(content, name, gpu)
        plan = self._engine
        self._making = threading.Lock()
        signatures: dict[bool, dict[str, Signature]] = {True: {}, False: {}}
        for i in range(plan.num_io_tensors):
            tensor = plan.get_tensor_name(i)
            entering = plan.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT
            shape = tuple(plan.get_tensor_shape(tensor))[1:]
            dtype = np.dtype(trt.nptype(plan.get_tensor_dtype(tensor))).name
            signatures[entering][tensor] = Signature(tuple(int(side) for side in shape), dtype)
        super().__init__(name, *choice, inputs=signatures[True], outputs=signatures[False], buckets=BUCKETS, batch_size=BUCKETS[-1])
        self._idle.append((BUCKETS[0], self._context(BUCKETS[0])))  # whether the GPU has room for it shows now

    def _context(self, bucket: int) -> _TensorRtContext:
        with self._making:
            if self._engine is None:
                raise BackendError(f"{self.name} is closed; load the bundle again")
            return _TensorRtContext(self._engine, self.name, self.inputs, self.outputs, bucket, self._making)

    def _release(self) -> None:
        self._engine = None


class _TensorRtContext:
    """An execution context with its stream and its buffers, whose addresses never change."""

    def __init__(
        self,
        engine: trt.ICudaEngine,
        name: str,
        inputs: dict[str, Signature],
        outputs: dict[str, Signature],
        bucket: int,
        capturing: threading.Lock,
    ) -> None:
        self._name, self._capturing, self._warm, self._capturable = name, capturing, False, True
        self._inputs: dict[str, Buffer] = {}
        self._outputs: dict[str, Buffer] = {}
        context = engine.create_execution_context()
        if context is None:
            raise BackendError(f"TensorRT could not make a context of {name} for a batch of {bucket}; take a smaller --batch-size")
        self._context: trt.IExecutionContext | None = context
        self._stream = Stream()
        try:
            if not context.set_optimization_profile_async(BUCKETS.index(bucket), self._stream.address):
                raise BackendError(f"TensorRT refuses the profile of {name} for a batch of {bucket}; its reason is in the log")
            for buffers, signatures in ((self._inputs, inputs), (self._outputs, outputs)):
                for key, (shape, dtype) in signatures.items():
                    buffers[key] = Buffer((bucket, *shape), dtype)
                    context.set_tensor_address(key, buffers[key].address)
                    if buffers is self._inputs:
                        context.set_input_shape(key, (bucket, *shape))
            self._stream.synchronise()
        except BaseException:
            self.close()
            raise

    def load(self, fixed: Arrays) -> None:
        self._write(fixed)
        self._stream.synchronise()  # the pinned twin may be written again as soon as this returns

    def run(self, varying: Arrays) -> dict[str, np.ndarray]:
        self._write(varying)
        # Copies stay outside the graph: which inputs vary is the caller's affair, and may change from one binding to the next.
        if self._stream.has_graph:
            self._stream.launch()
        elif self._warm and self._capturable:
            self._capture()
        else:
            self._enqueue()  # TensorRT wants one plain call before a capture
            self._warm = True
        for buffer in self._outputs.values():
            buffer.download(self._stream.address)
        self._stream.synchronise()
        return {key: buffer.host for key, buffer in self._outputs.items()}

    def close(self) -> None:
        for buffer in [*self._inputs.values(), *self._outputs.values()]:
            buffer.close()
        self._inputs, self._outputs = {}, {}
        self._stream.close()
        self._context = None

    def _write(self, arrays: Arrays) -> None:
        for key, value in arrays.items():
            np.copyto(self._inputs[key].host, value)
            self._inputs[key].upload(self._stream.address)

    def _enqueue(self) -> None:
        if self._context is None or not self._context.execute_async_v3(self._stream.address):
            raise BackendError(f"TensorRT failed in {self._name}; its reason is in the log")

    def _capture(self) -> None:
        """Record the call as a graph and launch it; a network that cannot be recorded is enqueued as before."""
        with self._capturing:
            try:
                self._stream.begin_capture()
                try:
                    self._enqueue()
                except BaseException:
                    self._stream.end_capture(keep=False)
                    raise
                self._stream.end_capture(keep=True)
            except BackendError as error:
                self._capturable = False
                _log.warning("%s runs without a CUDA graph: %s", self._name, error)
        if self._stream.has_graph:
            self._stream.launch()
        else:
            self._enqueue()
