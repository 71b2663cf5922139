"""What the TensorRT engine needs of CUDA, through NVIDIA's own bindings (package cuda-python): buffers, streams, captured graphs."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import BackendError


class Device(NamedTuple):
    """The first GPU: its name and compute capability."""

    name: str
    capability: tuple[int, int]


class _Installed:
    """The CUDA runtime's bindings, imported when something of them is first asked for."""

    def __getattr__(self, name: str) -> Any:
        try:
            from cuda.bindings import runtime
        except ImportError:
            raise BackendError("cuda-python is not installed; install metascatter[tensorrt], or metascatter[rtx] for RTX cards") from None
        self.__dict__[name] = getattr(runtime, name)  # a network's every call comes by here
        return self.__dict__[name]


if TYPE_CHECKING:
    from cuda.bindings import runtime as cuda
else:
    cuda = _Installed()


def check(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, which returns (error, value) or (error,).

    Raises:
        BackendError: the call failed; the sentence carries CUDA's name for it.
    """
    error, *values = result
    if int(error) != 0:
        name = getattr(error, "name", str(error))
        raise BackendError(f"CUDA answers {name}{_ADVICE.get(name, '')}")
    return values[0] if len(values) == 1 else tuple(values)


_ADVICE = {
    "cudaErrorInsufficientDriver": ": there is no NVIDIA driver, or it is older than these CUDA libraries; install a newer driver",
    "cudaErrorNoDevice": ": there is no NVIDIA GPU here, or CUDA_VISIBLE_DEVICES hides it",
    "cudaErrorMemoryAllocation": ": the GPU's memory is full; take a smaller --batch-size or end what else uses the GPU",
}


def device() -> Device:
    """The GPU in use.

    Raises:
        BackendError: there is none, or no driver for it.
    """
    if check(cuda.cudaGetDeviceCount()) < 1:
        raise BackendError("there is no NVIDIA GPU here; choose another backend")
    properties = check(cuda.cudaGetDeviceProperties(0))
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Device(name.rstrip("\0"), (int(properties.major), int(properties.minor)))


class Buffer:
    """An array on the device and its pinned twin on the host, between which copies run without waiting."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.nbytes = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
        self.host_address = self.address = 0
        try:
            self.address = int(check(cuda.cudaMalloc(self.nbytes)))
            self.host_address = int(check(cuda.cudaMallocHost(self.nbytes)))
            memory = (ctypes.c_byte * self.nbytes).from_address(self.host_address)
            content = np.frombuffer(memoryview(memory), np.uint8, math.prod(shape) * np.dtype(dtype).itemsize)
            self.host = content.view(dtype).reshape(shape)
        except BaseException:
            self.close()
            raise

    def upload(self, stream: int) -> None:
        """Queue the copy to the device."""
        check(cuda.cudaMemcpyAsync(self.address, self.host_address, self.nbytes, cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, stream))

    def download(self, stream: int) -> None:
        """Queue the copy to the host."""
        check(cuda.cudaMemcpyAsync(self.host_address, self.address, self.nbytes, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream))

    def close(self) -> None:
        """Give both back; a second call does nothing."""
        self.host = np.empty(0, np.uint8)
        if self.address:
            cuda.cudaFree(self.address)
        if self.host_address:
            cuda.cudaFreeHost(self.host_address)
        self.address = self.host_address = 0


class Stream:
    """A queue of work on the device, and the graph captured on it."""

    def __init__(self) -> None:
        self._handle = check(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self._graph: Any = None

    @property
    def address(self) -> int:
        """The stream as other libraries take it."""
        return int(self._handle)

    def synchronise(self) -> None:
        """Wait until all that was queued is done."""
        check(cuda.cudaStreamSynchronize(self._handle))

    def begin_capture(self) -> None:
        """Record what is queued from now on, by this thread alone: others go on queueing work of their own."""
        check(cuda.cudaStreamBeginCapture(self._handle, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))

    def end_capture(self, keep: bool) -> None:
        """End the recording, and make a graph of it if ``keep``."""
        graph = check(cuda.cudaStreamEndCapture(self._handle))
        try:
            if keep:
                self._graph = check(cuda.cudaGraphInstantiate(graph, 0))
        finally:
            cuda.cudaGraphDestroy(graph)

    @property
    def has_graph(self) -> bool:
        """Whether :meth:`launch` has something to launch."""
        return self._graph is not None

    def launch(self) -> None:
        """Queue the captured graph."""
        check(cuda.cudaGraphLaunch(self._graph, self._handle))

    def close(self) -> None:
        """Destroy both; a second call does nothing."""
        if self._graph is not None:
            cuda.cudaGraphExecDestroy(self._graph)
        if self._handle is not None:
            cuda.cudaStreamDestroy(self._handle)
        self._graph = self._handle = None
