"""TensorRT 10.x, 11.x and TensorRT-RTX on NVIDIA GPUs, without PyTorch.

A plan is built from the bundle's ONNX on first use, and kept (``tensorrt_plans``). Each context has an execution context of its own on
the profile of its bucket, a stream, fixed buffers, and the whole call captured as one CUDA graph; so threads never wait for one another.
Making a context, and capturing, happen one at a time under a lock. TensorRT-RTX leaves the kernels to be compiled for the GPU that is
found; they are kept beside the plan.

Never executed on a GPU by us: plans are built for real, and the calls are checked against TensorRT's signatures.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path
from typing import cast

import numpy as np

from ..errors import BackendError
from . import BUCKETS, Choice, Load, kept, tensorrt_build, tensorrt_plans
from .cuda import Buffer, Device, Stream, device
from .network import Arrays, Network, Signature
from .tensorrt_build import rtx, trt

_log = logging.getLogger(__name__)


def why_not(backend: str, device_word: str) -> str | None:
    """Why TensorRT cannot be used here as far as can be told without a model, or None."""
    gpu = device()  # before TensorRT is imported, which takes a tenth of a second where there is no GPU to use it on
    if tensorrt_build.module().__name__ == "tensorrt_rtx":
        try:
            tensorrt_build.supported(gpu.capability)
        except BackendError:  # a data-centre GPU or a Jetson
            words = ".".join(map(str, gpu.capability))
            return f"TensorRT-RTX does not run on {gpu.name} (compute capability {words}); install metascatter[tensorrt] in its place"
    return None


def precisions(backend: str, device_word: str) -> tuple[str, ...]:
    """What is computed in, best first; the precision is in the ONNX file."""
    return ("fp16", "fp32")  # our int8 files have zero points, which TensorRT does not take


def open_network(content: bytes, name: str, choice: Choice, load: Load) -> TensorRtNetwork:
    """See :mod:`runtime.backends`."""
    refusal = why_not(choice.backend, choice.device)
    if refusal is not None:
        raise BackendError(refusal)
    return TensorRtNetwork(content, name, choice, device(), load.buckets)


class _Compiled:
    """Kernels that TensorRT-RTX compiles for this GPU when a context first runs, kept for the next start."""

    def __init__(self, engine: rtx.ICudaEngine, path: Path) -> None:
        self._path = path
        self.config = engine.create_runtime_config()
        # By default a kernel for the shape at hand is compiled in the background while another runs, and a graph would hold on to that.
        self.config.dynamic_shapes_kernel_specialization_strategy = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
        self._cache = self.config.create_runtime_cache()
        self._known = kept.fetch(path)
        if self._known is not None and not self._cache.deserialize(self._known):
            _log.info("TensorRT-RTX will not load %s, and compiles its kernels again", path)
        self.config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write down what has been compiled since."""
        content = tensorrt_build.content_of(self._cache.serialize())
        if content != self._known:
            kept.keep(self._path, content)


# NumPy's names of what a model may take and give.
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "INT8": "int8", "UINT8": "uint8", "BOOL": "bool"}


class TensorRtNetwork(Network):
    """One ONNX model in one TensorRT engine."""

    def __init__(self, content: bytes, name: str, choice: Choice, gpu: Device, buckets: tuple[int, ...] = BUCKETS) -> None:
        plan, place = tensorrt_plans.engine(content, name, gpu, buckets)
        self._engine: trt.ICudaEngine | None = plan
        self._making = threading.Lock()
        signatures: dict[bool, dict[str, Signature]] = {True: {}, False: {}}
        for i in range(plan.num_io_tensors):
            tensor = plan.get_tensor_name(i)
            entering = plan.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT
            kind = plan.get_tensor_dtype(tensor).name
            if kind not in _DTYPES:
                raise BackendError(f"{name}: '{tensor}' is of type {kind}, which NumPy has not; export it with float32 inputs and outputs")
            shape = plan.get_tensor_shape(tensor)[1:]
            signatures[entering][tensor] = Signature(tuple(int(side) for side in shape), _DTYPES[kind])
        self._compiled: _Compiled | None = None
        if trt.__name__ == "tensorrt_rtx":
            self._compiled = _Compiled(cast("rtx.ICudaEngine", plan), place.with_suffix(".kernels"))
        super().__init__(name, *choice, inputs=signatures[True], outputs=signatures[False], buckets=buckets, batch_size=buckets[-1])
        self._idle.append((buckets[0], self._context(buckets[0])))  # whether the GPU has room for it shows now

    def _context(self, bucket: int) -> _TensorRtContext:
        with self._making:
            if self._engine is None:
                raise BackendError(f"{self.name} is closed; load the bundle again")
            made: trt.IExecutionContext | None
            if self._compiled is None:
                made = self._engine.create_execution_context()
            else:
                compiling = cast("rtx.ICudaEngine", self._engine)
                made = cast("trt.IExecutionContext | None", compiling.create_execution_context(runtime_config=self._compiled.config))
            return _TensorRtContext(made, self.name, self.inputs, self.outputs, bucket, self.buckets.index(bucket), self._making)

    def _release(self) -> None:
        if self._compiled is not None:
            self._compiled.keep()
        self._engine = self._compiled = None


class _TensorRtContext:
    """An execution context with its stream and its buffers, whose addresses never change."""

    def __init__(
        self,
        context: trt.IExecutionContext | None,
        name: str,
        inputs: dict[str, Signature],
        outputs: dict[str, Signature],
        bucket: int,
        profile: int,
        capturing: threading.Lock,
    ) -> None:
        self._name, self._capturing, self._warm, self._capturable = name, capturing, False, True
        self._inputs: dict[str, Buffer] = {}
        self._outputs: dict[str, Buffer] = {}
        if context is None:
            raise BackendError(f"TensorRT could not make a context of {name} for a batch of {bucket}; take a smaller --batch-size")
        self._context: trt.IExecutionContext | None = context
        self._stream = Stream()
        try:
            if not context.set_optimization_profile_async(profile, self._stream.address):
                raise BackendError(f"TensorRT refuses the profile of {name} for a batch of {bucket}; its reason is in the log")
            for buffers, signatures in ((self._inputs, inputs), (self._outputs, outputs)):
                for key, (shape, dtype) in signatures.items():
                    buffers[key] = Buffer((bucket, *shape), dtype)
                    taken = context.set_tensor_address(key, buffers[key].address)
                    if buffers is self._inputs:
                        taken = context.set_input_shape(key, (bucket, *shape)) and taken
                    if not taken:
                        raise BackendError(f"TensorRT refuses '{key}' of {name} for a batch of {bucket}; its reason is in the log")
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
                    with contextlib.suppress(BackendError):  # ending a recording that failed fails as well
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
