"""What is ONNX Runtime's own: providers that do not slide to the CPU, and CUDA graphs, on an ONNX Runtime made for the test."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.backends import BUCKETS, Choice, Load, Model, Network, open_networks
from runtime.backends import onnxruntime as engine
from runtime.errors import BackendError

MODELS = {name: Model(f"{name}.onnx", ("fp32",), lambda precision: b"") for name in ("first", "second")}


class Value:
    """A tensor on a device that is not there."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def shape(self) -> list[int]:
        return list(self.array.shape)

    def update_inplace(self, array: np.ndarray) -> None:
        self.array[...] = array

    def numpy(self) -> np.ndarray:
        return self.array.copy()


def pretender(answers: str | None, providers: tuple[str, ...] = ("CUDAExecutionProvider",)) -> Any:
    """An ONNX Runtime that has GPUs on paper and doubles its input: it answers on a provider of its own, or not at all (None)."""

    class Options:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}
            self.dimensions: dict[str, int] = {}
            self.intra_op_num_threads = -1

        def add_session_config_entry(self, key: str, value: str) -> None:
            self.entries[key] = value

        def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
            self.dimensions[name] = size

    class Binding:
        def __init__(self) -> None:
            self.inputs: dict[str, Value] = {}
            self.outputs: dict[str, Value] = {}

        def bind_ortvalue_input(self, name: str, value: Value) -> None:
            self.inputs[name] = value

        def bind_ortvalue_output(self, name: str, value: Value) -> None:
            self.outputs[name] = value

    class Session:
        made: list[Session]

        def __init__(self, model: bytes, options: Options, providers: list[Any], enable_fallback: int) -> None:
            self.options, self.providers, self.fallback = options, providers, enable_fallback
            self.addresses: set[tuple[int, ...]] = set()
            type(self).made.append(self)
            if answers is None and providers != ["CPUExecutionProvider"]:
                raise RuntimeError("libcudart.so.13: cannot open shared object file\nand a second line")

        def get_providers(self) -> list[str]:
            return [answers or "CPUExecutionProvider", "CPUExecutionProvider"]

        def get_inputs(self) -> list[Any]:
            return [types.SimpleNamespace(name=name, type="tensor(float)", shape=["batch", 2]) for name in ("x", "y")]

        def get_outputs(self) -> list[Any]:
            return [types.SimpleNamespace(name="z", type="tensor(float)", shape=["batch", 2])]

        def io_binding(self) -> Binding:
            return Binding()

        def run_with_iobinding(self, binding: Binding) -> None:
            x, y, z = binding.inputs["x"].array, binding.inputs["y"].array, binding.outputs["z"].array
            assert len(z) == self.options.dimensions.get("batch", len(z)), "a captured graph has one shape"
            self.addresses.add((id(x), id(y), id(z)))
            z[...] = 2 * x + y

    Session.made = []
    return types.SimpleNamespace(
        __version__="0",
        SessionOptions=Options,
        InferenceSession=Session,
        OrtValue=types.SimpleNamespace(
            ortvalue_from_numpy=lambda array, memory, index: Value(array.copy()),
            ortvalue_from_shape_and_type=lambda shape, dtype, memory, index: Value(np.zeros(shape, dtype)),
        ),
        get_available_providers=lambda: [*providers, "CPUExecutionProvider"],
        capi=types.SimpleNamespace(_pybind_state=types.SimpleNamespace(get_available_openvino_device_ids=lambda: ["CPU", "GPU.0"])),
    )


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Install such a one; returns its sessions as they are made."""

    def pretend(*arguments: Any) -> Any:
        fake = pretender(*arguments)
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)
        return fake.InferenceSession

    return pretend


def opened(device: str, backend: str = "onnxruntime", load: Load = Load()) -> Network:  # noqa: B008
    return engine.open_network(b"", "x.onnx", Choice(backend, device, "fp32"), load)


@pytest.mark.parametrize(
    ("backend", "device", "provider"),
    [
        ("onnxruntime", "cuda", "CUDAExecutionProvider"),
        ("onnxruntime-tensorrt", "cuda", "TensorrtExecutionProvider"),
        ("onnxruntime-openvino", "cpu", "OpenVINOExecutionProvider"),
        ("onnxruntime-openvino", "gpu", "OpenVINOExecutionProvider"),
    ],
)
def test_a_session_that_slid_to_the_cpu_is_refused(pretend: Callable[..., Any], backend: str, device: str, provider: str) -> None:
    sessions = pretend("CPUExecutionProvider", (provider,))
    with pytest.raises(BackendError, match=f"was to run on {provider} and ONNX Runtime answers with CPUExecutionProvider"):
        opened(device, backend)
    [session] = sessions.made
    assert session.providers[0][0] == provider
    assert "CPUExecutionProvider" not in [name for name, _ in session.providers]
    assert session.options.entries["session.disable_cpu_ep_fallback"] == "1"
    assert session.fallback == 0


def test_a_gpu_that_does_not_answer_is_an_error_by_name_and_the_cpu_by_auto(pretend: Callable[..., Any]) -> None:
    pretend(None)
    with pytest.raises(BackendError, match=r"cannot run first\.onnx on cuda: libcudart\.so\.13") as caught:
        open_networks(MODELS, "onnxruntime", "cuda")
    assert "second line" not in str(caught.value)
    on_cpu = open_networks(MODELS, "onnxruntime")
    assert on_cpu.choice == Choice("onnxruntime", "cpu", "fp32")
    assert "libcudart.so.13" in on_cpu.reason
    pretend("CUDAExecutionProvider")
    assert open_networks(MODELS, "onnxruntime").choice.device == "cuda"


def test_on_cuda_every_context_is_a_session_with_its_batch_fixed_and_its_graph_captured(pretend: Callable[..., Any]) -> None:
    sessions = pretend("CUDAExecutionProvider")
    network = opened("cuda")
    assert network.buckets == BUCKETS
    assert network.batch_size == BUCKETS[-1]
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 300, 2), np.float32)
    for size in (1, 7, 8, 300, 64, 7):
        np.testing.assert_array_equal(network({"x": x[:size], "y": y[:size]})["z"], 2 * x[:size] + y[:size])
    with network.bind({"y": y[:7]}, 7) as one, network.bind({"y": y[7:14]}, 7) as two:
        for i in range(3):
            np.testing.assert_array_equal(one({"x": x[i : i + 7]})["z"], 2 * x[i : i + 7] + y[:7])
            np.testing.assert_array_equal(two({"x": x[i : i + 7]})["z"], 2 * x[i : i + 7] + y[7:14])
    batches = [session.options.dimensions["batch"] for session in sessions.made]
    assert sorted(batches) == [1, 8, 8, 64, 256], "one for each bucket used, and a second where two were bound at once"
    for session in sessions.made:
        [(provider, options)] = session.providers
        assert (provider, options["enable_cuda_graph"]) == ("CUDAExecutionProvider", "1")
        assert len(session.addresses) == 1, "a graph reads and writes where it did when it was captured"
    network.close()


def test_on_the_cpu_one_session_serves_every_batch(pretend: Callable[..., Any]) -> None:
    sessions = pretend("CPUExecutionProvider")
    network = opened("cpu", load=Load(threads=3))
    for size in (1, 7, 300):
        network({"x": np.ones((size, 2), np.float32), "y": np.ones((size, 2), np.float32)})
    [session] = sessions.made
    assert session.options.dimensions == {}
    assert session.options.intra_op_num_threads == 3
    assert "session.disable_cpu_ep_fallback" not in session.options.entries, "the CPU is what was asked for"


def test_openvinos_provider_is_told_device_and_precision(pretend: Callable[..., Any]) -> None:
    sessions = pretend("OpenVINOExecutionProvider", ("OpenVINOExecutionProvider",))
    for device, precision, expected in (("cpu", "fp32", "FP32"), ("cpu", "int8", "FP32"), ("gpu", "fp16", "FP16"), ("gpu", "fp32", "FP32")):
        engine.open_network(b"", "x.onnx", Choice("onnxruntime-openvino", device, precision), Load(threads=2))
        [(_, options)] = sessions.made[-1].providers
        assert options == {"device_type": device.upper(), "precision": expected, "num_of_threads": "2"}
    assert engine.precisions("onnxruntime-openvino", "cpu") == ("fp32", "int8")
    with pytest.raises(BackendError, match="its OpenVINO finds cpu, gpu here and no npu; install Intel's driver for it"):
        opened("npu", "onnxruntime-openvino")


@pytest.mark.parametrize(
    ("backend", "device", "sentence"),
    [
        ("onnxruntime", "cuda", r"built without CUDAExecutionProvider; uninstall onnxruntime and install metascatter\[gpu\] in its place"),
        ("onnxruntime-tensorrt", "cuda", r"built without TensorrtExecutionProvider; uninstall onnxruntime and install metascatter\[gpu\]"),
        ("onnxruntime-openvino", "cpu", r"built without OpenVINOExecutionProvider; install the package onnxruntime-openvino in its place"),
    ],
)
def test_a_provider_that_was_not_built_in_is_named_with_what_to_install(
    pretend: Callable[..., Any], backend: str, device: str, sentence: str
) -> None:
    pretend("CPUExecutionProvider", ())
    with pytest.raises(BackendError, match=sentence):
        open_networks(MODELS, backend, device)
    with pytest.raises(BackendError, match=sentence):
        opened(device, backend)
    assert engine.why_not("onnxruntime", "cpu") is None


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_an_engine_that_is_not_installed_is_named_with_its_extra(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"ONNX Runtime is not installed; install metascatter\[cpu\], or metascatter\[gpu\]"):
        open_networks(MODELS, "onnxruntime", device)
