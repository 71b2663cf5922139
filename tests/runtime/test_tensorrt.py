"""The TensorRT engine: when it is refused, and what it does on a device that only keeps books."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.backends import BUCKETS, Choice, Load, cuda, tensorrt, tensorrt_build, tensorrt_plans
from runtime.backends.cuda import Device
from runtime.errors import BackendError
from runtime.sampler import load

RTX = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; install metascatter[rtx]")
ADA = (8, 9)


def gpu_here() -> bool:
    try:
        cuda.device()
    except BackendError:
        return False
    return True


# --- Why not --------------------------------------------------------------------------------------------------------


def test_no_gpu_is_said_with_what_to_do() -> None:
    if gpu_here():
        pytest.skip("there is a GPU here")
    for ask in (cuda.device, lambda: tensorrt.open_network(b"", "x", Choice("tensorrt", "cuda", "fp32"), Load())):
        with pytest.raises(BackendError, match=r"install a newer driver|no NVIDIA GPU"):
            ask()


def test_a_gpu_that_rtx_does_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build, "module", lambda: RTX)
    monkeypatch.setattr(tensorrt, "device", lambda: Device("NVIDIA H200", (9, 0)))
    assert tensorrt.why_not("tensorrt", "cuda") == (
        "TensorRT-RTX does not run on NVIDIA H200 (compute capability 9.0); install metascatter[tensorrt] in its place"
    )
    monkeypatch.setattr(tensorrt, "device", lambda: Device("NVIDIA L4", ADA))
    assert tensorrt.why_not("tensorrt", "cuda") is None


@pytest.mark.parametrize(("error", "words"), [(35, "install a newer driver"), (100, "no NVIDIA GPU here"), (2, "smaller --batch-size")])
def test_cuda_errors_say_what_to_do(error: int, words: str) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(BackendError, match=words):
        cuda.check((runtime.cudaError_t(error),))
    assert cuda.check((runtime.cudaError_t(0), 7)) == 7


# --- On a device that keeps books -----------------------------------------------------------------------------------


class OutOfMemory(int):
    name = "cudaErrorMemoryAllocation"


class Books:
    """A CUDA runtime whose device memory is the host's, and an engine that doubles its input; every call is written down."""

    def __init__(self, capturable: bool = True) -> None:
        self.calls: list[str] = []
        self.memory: dict[int, np.ndarray] = {}
        self.capturable, self.recording = capturable, False
        self.cudaStreamNonBlocking = 1
        self.cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        self.cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        self.fail_after = 10**9

    def _allocate(self, what: str, size: int) -> tuple[int, int]:
        self.calls.append(what)
        if len(self.memory) >= self.fail_after:
            return OutOfMemory(2), 0
        block = np.zeros(size, np.uint8)
        self.memory[block.ctypes.data] = block
        return 0, block.ctypes.data

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        return self._allocate("malloc", size)

    def cudaMallocHost(self, size: int) -> tuple[int, int]:
        return self._allocate("pinned", size)

    def cudaFree(self, address: int) -> tuple[int]:
        self.memory.pop(address)
        return (0,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, to: int, source: int, count: int, kind: int, stream: int) -> tuple[int]:
        self.calls.append("up" if kind == 1 else "down")
        self.memory[to][:count] = self.memory[source][:count]
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return 0, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.calls.append("destroyed")
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.recording = True
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, str]:
        self.recording = False
        self.calls.append("captured")
        return 0, "graph"

    def cudaGraphInstantiate(self, graph: str, flags: int) -> tuple[int, str]:
        return (0, "exec") if self.capturable else (801, "")

    def cudaGraphDestroy(self, graph: str) -> tuple[int]:
        return (0,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph: str, stream: int) -> tuple[int]:
        self.calls.append("launched")
        self.work()
        return (0,)

    def work(self) -> None:
        raise NotImplementedError


class Engine:
    """Doubles ``a`` and adds ``b``, for any bucket."""

    num_io_tensors = 3

    def __init__(self, books: Books) -> None:
        self.books, self.addresses, self.profile = books, {}, -1  # type: ignore[var-annotated]

    def create_execution_context(self) -> Engine:
        made = Engine(self.books)
        self.books.work = made.work  # type: ignore[method-assign]
        return made

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert shape[0] == BUCKETS[self.profile]
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if not self.books.recording:
            self.books.calls.append("enqueued")
            self.work()
        return True

    def work(self) -> None:
        a, b, y = (self.books.memory[self.addresses[name]].view(np.float32) for name in "aby")
        y[:] = 2 * a + b


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Iterator[Books]:
    books = Books()
    monkeypatch.setattr(cuda, "cuda", books)
    yield books
    assert not books.memory, "something was not given back"


@pytest.fixture
def network(books: Books, monkeypatch: pytest.MonkeyPatch) -> Iterator[tensorrt.TensorRtNetwork]:
    class Doubling(Engine):
        def get_tensor_name(self, i: int) -> str:
            return "aby"[i]

        def get_tensor_mode(self, name: str) -> str:
            return "out" if name == "y" else "in"

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (-1, 3)

        def get_tensor_dtype(self, name: str) -> types.SimpleNamespace:
            return types.SimpleNamespace(name="FLOAT")

    monkeypatch.setattr(tensorrt_plans, "engine", lambda *args: (Doubling(books), Path("unused")))
    fake = types.SimpleNamespace(__name__="tensorrt", TensorIOMode=types.SimpleNamespace(INPUT="in"))
    monkeypatch.setattr(tensorrt, "trt", fake)
    opened = tensorrt.TensorRtNetwork(b"", "x.onnx", Choice("tensorrt", "cuda", "fp32"), Device("L4", ADA))
    yield opened
    opened.close()
    opened.close()


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3), np.float32)


def test_fixed_inputs_go_up_once_and_the_call_is_captured_once(network: tensorrt.TensorRtNetwork, books: Books) -> None:
    fixed = rows(8, 1)
    with network.bind({"b": fixed}, 8) as call:
        books.calls.clear()
        for seed in range(5):
            a = rows(8, seed)
            np.testing.assert_allclose(call({"a": a})["y"], 2 * a + fixed, rtol=1e-6)
        assert books.calls == ["up", "enqueued", "down", "up", "captured", "launched", "down", *["up", "launched", "down"] * 3]
    with network.bind({"b": rows(8, 2)}, 8) as call:
        books.calls.clear()
        np.testing.assert_allclose(call({"a": a})["y"], 2 * a + rows(8, 2), rtol=1e-6)
        assert books.calls == ["up", "launched", "down"], "the graph of the context is used again"


@pytest.mark.parametrize("count", [1, 5, 8, 9, 100, 300, 520])
def test_batches_are_padded_and_cut(count: int, network: tensorrt.TensorRtNetwork, books: Books) -> None:
    a, b = rows(count), rows(count, 1)
    np.testing.assert_allclose(network({"a": a, "b": b})["y"], 2 * a + b, rtol=1e-6)


def test_a_network_that_cannot_be_captured_is_enqueued(
    network: tensorrt.TensorRtNetwork, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    books.capturable = False
    with network.bind({"b": rows(1)}, 1) as call:
        for seed in range(4):
            np.testing.assert_allclose(call({"a": rows(1, seed)})["y"], 2 * rows(1, seed) + rows(1), rtol=1e-6)
    assert books.calls.count("enqueued") == 4
    assert books.calls.count("captured") == 1, "it is not tried again"
    assert "runs without a CUDA graph" in caplog.text


def test_memory_that_runs_out_half_way_is_given_back(network: tensorrt.TensorRtNetwork, books: Books) -> None:
    held = len(books.memory)
    books.fail_after = held + 3
    with pytest.raises(BackendError, match="the GPU's memory is full; take a smaller --batch-size"):
        network({"a": rows(50), "b": rows(50)})
    assert len(books.memory) == held
    books.fail_after = 10**9
    assert network({"a": rows(50), "b": rows(50)})["y"].shape == (50, 3)


@pytest.mark.gpu
def test_on_a_gpu_it_agrees_with_onnx_runtime(small_bundle: Path) -> None:
    try:
        refusal = tensorrt.why_not("tensorrt", "cuda")
    except BackendError as error:
        refusal = str(error)
    if refusal is not None:
        pytest.skip(refusal)
    with (
        load(small_bundle, "tensorrt", "cuda", "fp32", self_test=True) as ours,
        load(small_bundle, "onnxruntime", "cpu", "fp32") as theirs,
    ):
        rng = np.random.default_rng(0)
        for name, network in ours.networks.items():
            for count in (1, 7, 64, 300):
                arrays = {
                    key: rng.integers(0, 1000, (count, *shape)) if dtype == "int64" else rng.standard_normal((count, *shape), np.float32)
                    for key, (shape, dtype) in network.inputs.items()
                }
                for key, value in theirs.networks[name](arrays).items():
                    np.testing.assert_allclose(network(arrays)[key], value, atol=1e-4, rtol=1e-4)
