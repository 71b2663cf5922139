"""Engines: arrays in, arrays out, independent of the batch, and never on another device than the one asked for."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from runtime.backends import BACKENDS, open_network
from runtime.backends import onnxruntime as engine
from runtime.bundle import Bundle
from runtime.errors import BackendError

CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
without_cuda = pytest.mark.skipif(CUDA, reason="this ONNX Runtime has CUDA, so asking for it is fine")


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> bytes:
    return Bundle.open(small_bundle).read("denoiser.onnx")


@pytest.fixture(scope="module")
def network(model: bytes) -> Iterator[engine.OnnxRuntimeNetwork]:
    opened = engine.open_network(model, "denoiser.onnx", "cpu", 1)
    yield opened
    opened.close()


def batch_of(network: engine.OnnxRuntimeNetwork, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, (shape, dtype) in network.inputs.items():
        size = (count, *(int(side or 0) for side in shape[1:]))
        arrays[name] = rng.integers(0, 1000, size) if dtype == "int64" else rng.standard_normal(size, np.float32)
    return arrays


def test_inputs_and_outputs_are_those_of_the_manifest(network: engine.OnnxRuntimeNetwork, small_bundle: Path) -> None:
    described = Bundle.open(small_bundle).manifest["networks"]["denoiser"]
    assert set(network.inputs) == set(described["inputs"]) == {"sample", "timestep", "context", "embedding"}
    for name, (shape, dtype) in network.inputs.items():
        assert [*shape[1:]] == described["inputs"][name]["shape"][1:], name
        assert shape[0] is None, f"{name} has no dynamic batch"
        assert dtype == described["inputs"][name]["dtype"], name
    assert network.outputs == list(described["outputs"]) == ["output"]


def test_every_row_is_independent_of_its_batch(network: engine.OnnxRuntimeNetwork) -> None:
    arrays = batch_of(network, 300)
    whole = network(arrays)["output"]
    assert whole.shape == (300, 1, 5, 5)
    assert whole.dtype == np.float32
    assert whole.std(axis=0).min() > 0, "the rows differ from one another"
    for size in (1, 7, 64):
        parts = [network({k: v[i : i + size] for k, v in arrays.items()})["output"] for i in range(0, 300, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5, rtol=0, err_msg=f"batches of {size}")


def test_same_input_same_output_bit_for_bit(network: engine.OnnxRuntimeNetwork) -> None:
    arrays = batch_of(network, 8)
    np.testing.assert_array_equal(network(arrays)["output"], network(arrays)["output"])


def test_arrays_of_any_layout(network: engine.OnnxRuntimeNetwork) -> None:
    """Views, columns first and read-only arrays are arrays too, and none of them is written to."""
    arrays = batch_of(network, 6)
    expected = network({k: np.ascontiguousarray(v[::2]) for k, v in arrays.items()})["output"]
    for value in arrays.values():
        value.setflags(write=False)
    np.testing.assert_array_equal(network({k: v[::2] for k, v in arrays.items()})["output"], expected)
    np.testing.assert_array_equal(network({k: np.asfortranarray(v[::2]) for k, v in arrays.items()})["output"], expected)


def test_wrong_inputs_are_named(network: engine.OnnxRuntimeNetwork) -> None:
    good = batch_of(network, 4)
    cases = [
        ({**good, "extra": good["sample"]}, r"denoiser\.onnx has no input 'extra'; its inputs are sample, timestep"),
        ({k: v for k, v in good.items() if k != "timestep"}, r"denoiser\.onnx lacks its input 'timestep'"),
        ({}, r"denoiser\.onnx lacks its input 'sample'"),
        ({**good, "sample": good["sample"][:, :, :4]}, r"'sample' has shape \(4, 1, 4, 5\); expected \(batch, 1, 5, 5\)"),
        ({**good, "sample": good["sample"][0]}, r"'sample' has shape \(1, 5, 5\); expected \(batch, 1, 5, 5\)"),
        ({**good, "timestep": np.int64(3)}, r"'timestep' has shape \(\); expected \(batch\)"),
        ({**good, "sample": good["sample"].astype(np.float64)}, "'sample' has dtype float64; expected float32"),
        ({**good, "timestep": good["timestep"].astype(np.int32)}, "'timestep' has dtype int32; expected int64"),
        ({**good, "sample": good["sample"].astype(np.complex64)}, "'sample' has dtype complex64; expected float32"),
        ({**good, "timestep": good["timestep"][:3]}, r"inputs have batches of \[3, 4\]; expected one batch size"),
    ]
    for inputs, sentence in cases:
        with pytest.raises(BackendError, match=sentence):
            network(inputs)
    network(good)  # and none of that hurts it


def test_threads_share_a_network(network: engine.OnnxRuntimeNetwork) -> None:
    inputs = [batch_of(network, 16, seed) for seed in range(12)]
    alone = [network(arrays)["output"] for arrays in inputs]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda arrays: network(arrays)["output"], inputs))
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_closed_network(model: bytes) -> None:
    network = open_network(model, "denoiser.onnx", "onnxruntime", "cpu")
    network.close()
    network.close()
    with pytest.raises(BackendError, match=r"denoiser\.onnx is closed"):
        network({})


@pytest.mark.parametrize("content", [b"", b"not ONNX", b"\x08\x07" + b"\xff" * 100])
def test_a_model_that_is_not_onnx(content: bytes) -> None:
    with pytest.raises(BackendError, match=r"ONNX Runtime cannot run x\.onnx on cpu: ") as caught:
        open_network(content, "x.onnx", "onnxruntime", "cpu")
    assert "\n" not in str(caught.value)


def test_a_truncated_model(model: bytes) -> None:
    with pytest.raises(BackendError, match=r"cannot run x\.onnx"):
        open_network(model[: len(model) // 2], "x.onnx")


def test_unknown_backend_and_device(model: bytes) -> None:
    with pytest.raises(BackendError, match=r"there is no backend 'tensorflow'; choose auto or onnxruntime"):
        open_network(model, "x.onnx", "tensorflow")
    with pytest.raises(BackendError, match=r"there is no device 'tpu'; choose auto, cpu, cuda"):
        open_network(model, "x.onnx", "onnxruntime", "tpu")


def test_auto_takes_what_is_there(model: bytes) -> None:
    network = open_network(model, "x.onnx")
    assert network.device == "cpu" or CUDA
    assert set(BACKENDS) == {"onnxruntime"}
    network.close()


@without_cuda
def test_cuda_is_refused_by_name_where_it_is_not(model: bytes) -> None:
    with pytest.raises(BackendError, match=r"built without cuda.*install metascatter\[gpu\]"):
        open_network(model, "x.onnx", "onnxruntime", "cuda")
    with pytest.raises(BackendError, match=r"metascatter\[gpu\]"):
        open_network(model, "x.onnx", "auto", "cuda")
    assert engine.why_not("cpu") is None
    assert "metascatter[gpu]" in str(engine.why_not("cuda"))


def pretender(answers: str | None) -> types.SimpleNamespace:
    """An ONNX Runtime that has CUDA on paper: its session answers on another provider, or the driver is missing (None)."""

    class Options:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_session_config_entry(self, key: str, value: str) -> None:
            self.entries[key] = value

    class Session:
        asked: tuple[list[str], dict[str, str], int]

        def __init__(self, model: bytes, options: Options, providers: list[str], enable_fallback: int) -> None:
            type(self).asked = (providers, options.entries, enable_fallback)
            if answers is None and providers != ["CPUExecutionProvider"]:
                raise RuntimeError("libcudart.so.13: cannot open shared object file\nand a second line")

        def get_providers(self) -> list[str]:
            return [answers or "CPUExecutionProvider", "CPUExecutionProvider"]

        def get_inputs(self) -> list[object]:
            return []

        get_outputs = get_inputs

    return types.SimpleNamespace(
        __version__="0",
        SessionOptions=Options,
        InferenceSession=Session,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )


def test_a_session_that_slid_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = pretender("CPUExecutionProvider")
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    with pytest.raises(BackendError, match="was to run on CUDAExecutionProvider and ONNX Runtime answers with CPUExecutionProvider"):
        open_network(b"", "x.onnx", "onnxruntime", "cuda")
    providers, entries, fallback = fake.InferenceSession.asked
    assert providers == ["CUDAExecutionProvider"]
    assert entries["session.disable_cpu_ep_fallback"] == "1"
    assert fallback == 0


def test_a_gpu_that_does_not_answer_is_an_error_by_name_and_the_cpu_by_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", pretender(None))
    with pytest.raises(BackendError, match=r"cannot run x\.onnx on cuda: libcudart\.so\.13") as caught:
        open_network(b"", "x.onnx", "onnxruntime", "cuda")
    assert "second line" not in str(caught.value)
    assert open_network(b"", "x.onnx", "onnxruntime", "auto").device == "cpu"
    monkeypatch.setitem(sys.modules, "onnxruntime", pretender("CUDAExecutionProvider"))
    assert open_network(b"", "x.onnx", "onnxruntime", "auto").device == "cuda"


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_an_engine_that_is_not_installed_is_named_with_its_extra(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"ONNX Runtime is not installed; install metascatter\[cpu\], or metascatter\[gpu\]"):
        open_network(b"", "x.onnx", "onnxruntime", device)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(model: bytes, network: engine.OnnxRuntimeNetwork) -> None:
    if not CUDA:
        pytest.skip(
            f"ONNX Runtime {onnxruntime.__version__} was built without CUDA; install onnxruntime-gpu on a machine with an NVIDIA GPU"
        )
    on_gpu = open_network(model, "denoiser.onnx", "onnxruntime", "cuda")
    assert on_gpu.device == "cuda"
    for count in (1, 7, 64):
        arrays = batch_of(network, count)
        np.testing.assert_allclose(on_gpu(arrays)["output"], network(arrays)["output"], atol=1e-3, rtol=1e-3, err_msg=f"batch {count}")
    on_gpu.close()
