"""What is OpenVINO's own: devices and precisions spelled out, one compilation for a bucket, a cache that cannot lie, no telemetry."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import BUCKETS, Choice, Load, Model, Network, open_networks
from runtime.backends import openvino as engine
from runtime.bundle import Bundle
from runtime.errors import BackendError

ROOT = Path(__file__).parents[3]

Cached = Callable[[], tuple[np.ndarray, int]]


def port(name: str, *shape: int) -> Any:
    """An input or output as OpenVINO describes it; -1 is a free side."""

    class Sides(list[Any]):
        rank = types.SimpleNamespace(is_dynamic=False)

    sides = Sides(types.SimpleNamespace(is_dynamic=side < 0, get_length=lambda side=side: side) for side in shape)
    kind = types.SimpleNamespace(get_type_name=lambda: "f32")
    return types.SimpleNamespace(get_any_name=lambda: name, get_partial_shape=lambda: sides, get_element_type=lambda: kind)


class Pretender:
    """An OpenVINO with the devices one likes, which doubles its input; ``compiled`` holds (device, batch, configuration)."""

    def __init__(self, devices: dict[str, list[str]], executes_on: list[str] | None = None) -> None:
        self.devices, self.executes_on = devices, executes_on
        self.compiled: list[tuple[str, int, dict[str, Any]]] = []
        self.delay = 0.0

    def Core(self) -> Any:
        self.available_devices = list(self.devices)
        return self

    def get_property(self, device: str, key: str) -> Any:
        if key == "RANGE_FOR_STREAMS":
            return (1, 4)
        return next(found for name, found in self.devices.items() if name.startswith(device))

    def read_model(self, content: Any) -> Any:
        model = types.SimpleNamespace(inputs=[port("x", -1, 2)], outputs=[port("y", -1, 2)], batch=0)
        model.reshape = lambda shapes: setattr(model, "batch", shapes["x"][0])
        return model

    def compile_model(self, model: Any, device: str, config: dict[str, Any]) -> Any:
        time.sleep(self.delay)
        self.compiled.append((device, model.batch, dict(config)))
        tensors = {name: types.SimpleNamespace(data=np.zeros((model.batch, 2), np.float32)) for name in "xy"}

        def infer(share_outputs: bool) -> None:
            tensors["y"].data[...] = 2 * tensors["x"].data

        request = types.SimpleNamespace(get_tensor=tensors.__getitem__, infer=infer)
        answering = [device] if self.executes_on is None else self.executes_on
        return types.SimpleNamespace(create_infer_request=lambda: request, get_property=lambda key: answering)


ALL = {"CPU": ["FP32", "BF16", "INT8", "EXPORT_IMPORT"], "GPU": ["FP32", "FP16", "EXPORT_IMPORT"], "NPU": ["FP16", "INT8", "EXPORT_IMPORT"]}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Pretender]:
    """Install such a one, with a cache directory of its own."""
    monkeypatch.setenv("METASCATTER_CACHE", str(tmp_path / "cache"))

    def pretend(devices: dict[str, list[str]] = ALL, executes_on: list[str] | None = None) -> Pretender:
        fake = Pretender(devices, executes_on)
        monkeypatch.setitem(sys.modules, "openvino", fake)
        return fake

    return pretend


def opened(device: str, precision: str = "fp32", load: Load = Load(), content: bytes = b"") -> Network:  # noqa: B008
    return engine.open_network(content, "x.onnx", Choice("openvino", device, precision), load)


# --- Devices and precisions -----------------------------------------------------------------------------------------


def test_what_is_not_installed_or_not_there_is_named_with_its_remedy(
    pretend: Callable[..., Pretender], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"x": Model("x.onnx", ("fp32", "fp16"), lambda precision: b"")}
    pretend({"CPU": ["FP32"]})
    for device, sentence in (
        ("gpu", "finds CPU here and no GPU; install the OpenCL driver"),
        ("npu", "no NPU; install Intel's NPU driver"),
    ):
        with pytest.raises(BackendError, match=sentence):
            open_networks(model, "openvino", device)
    pretend({})
    with pytest.raises(BackendError, match="OpenVINO finds no device here and no CPU; reinstall the package openvino"):
        opened("cpu")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"OpenVINO is not installed; install metascatter\[openvino\]"):
        open_networks(model, "openvino", "cpu")


def test_precisions_are_those_the_hardware_states(pretend: Callable[..., Pretender]) -> None:
    pretend()
    assert engine.precisions("openvino", "cpu") == ("bf16", "fp32", "int8")
    assert engine.precisions("openvino", "gpu") == ("fp16", "fp32")
    assert engine.precisions("openvino", "npu") == ("fp16", "int8")
    pretend({"CPU": ["FP32", "INT8"], "GPU.0": ["FP32", "INT8"], "GPU.1": ["FP32"]})
    assert engine.precisions("openvino", "cpu") == ("fp32", "int8")
    assert engine.precisions("openvino", "gpu") == ("fp32", "int8")
    assert engine.why_not("openvino", "gpu") is None


def test_a_network_that_runs_elsewhere_is_refused(pretend: Callable[..., Pretender]) -> None:
    for answers in (["CPU"], ["GPU.0", "CPU"], []):
        pretend(executes_on=answers)
        with pytest.raises(BackendError, match=f"x.onnx was to run on GPU and OpenVINO answers with {', '.join(answers) or 'nothing'};"):
            opened("gpu")
    pretend(executes_on=["GPU.1"])
    assert opened("gpu").device == "gpu"


FULL = {"x": np.zeros((64, 2), np.float32)}


def test_the_configuration_leaves_nothing_to_openvinos_taste(pretend: Callable[..., Pretender]) -> None:
    fake = pretend()
    for device, precision, hint in (
        ("cpu", "fp32", "f32"),
        ("cpu", "bf16", "bf16"),
        ("cpu", "int8", "f32"),
        ("gpu", "fp16", "f16"),
        ("gpu", "fp32", "f32"),
        ("npu", "int8", "f16"),
    ):
        opened(device, precision)(FULL)
        name, batch, config = fake.compiled[-1]
        assert (name, batch) == (device.upper(), 64)
        assert (config["INFERENCE_PRECISION_HINT"], config["PERFORMANCE_HINT"]) == (hint, "LATENCY")
        assert "CACHE_DIR" in config
        assert config.get("ENABLE_CPU_PINNING") == (False if device == "cpu" else None)
        assert "NUM_STREAMS" not in config
    opened("cpu", load=Load(threads=2, concurrency=3))(FULL)
    config = fake.compiled[-1][2]
    assert (config["PERFORMANCE_HINT"], config["NUM_STREAMS"], config["INFERENCE_NUM_THREADS"]) == ("THROUGHPUT", 3, 6)
    opened("gpu", load=Load(concurrency=100))
    assert fake.compiled[-1][2]["NUM_STREAMS"] == 4, "no more than it has"
    opened("npu", "fp16", load=Load(concurrency=2))
    assert "NUM_STREAMS" not in fake.compiled[-1][2], "it takes no such wish"


def test_a_bucket_is_compiled_when_it_is_used_and_once_for_all_threads(pretend: Callable[..., Pretender]) -> None:
    fake = pretend()
    network = opened("cpu")
    assert fake.compiled == [], "a first design should not wait for what it does not use"
    fake.delay = 0.05
    ready = threading.Barrier(4)

    def doubled(value: float) -> np.ndarray:
        ready.wait(60)
        return network({"x": np.full((3, 2), value, np.float32)})["y"]

    with ThreadPoolExecutor(4) as pool:
        for k, found in enumerate(pool.map(doubled, range(4))):
            np.testing.assert_array_equal(found, np.full((3, 2), 2 * k))
    assert [batch for _, batch, _ in fake.compiled] == [8]
    assert network.buckets[-1] == 64
    assert opened("gpu").buckets == opened("npu", "fp16").buckets == BUCKETS


def test_a_model_with_other_free_sides_is_refused(pretend: Callable[..., Pretender], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = pretend()
    for strange in (port("x", -1, -1), port("x")):
        monkeypatch.setattr(fake, "read_model", lambda content, strange=strange: types.SimpleNamespace(inputs=[strange], outputs=[]))
        with pytest.raises(BackendError, match=r"x\.onnx: 'x' is f32 .*; expected only the batch to be free, export it again"):
            opened("cpu")


# --- The real one ---------------------------------------------------------------------------------------------------


@pytest.fixture
def real() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed; install metascatter[openvino]")


def test_importing_it_reports_to_nobody(real: None, tmp_path: Path) -> None:
    """OpenVINO's own import sends an event and leaves a client number in the user's home, unless CI is set or its sender is missing."""
    code = """
import sys
from runtime.backends import openvino as engine
assert engine.why_not("openvino", "cpu") is None
import openvino, threading
print(*(name for name in sys.modules if name.startswith("openvino_telemetry")), threading.active_count(), callable(openvino.convert_model))
"""
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["1", "True"], "")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def cached(real: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_bundle: Path) -> Cached:
    """Open the small denoiser on the CPU; returns its output and how often it came from the cache."""
    monkeypatch.setenv("METASCATTER_CACHE", str(tmp_path / "cache"))
    content = Bundle.open(small_bundle).read("denoiser.onnx")

    def run() -> tuple[np.ndarray, int]:
        network = opened("cpu", load=Load(threads=1), content=content)
        assert isinstance(network, engine.OpenVinoNetwork)
        rng = np.random.default_rng(0)
        found = network(
            {
                key: rng.integers(0, 1000, (64, *shape)) if dtype == "int64" else rng.standard_normal((64, *shape), np.float32)
                for key, (shape, dtype) in network.inputs.items()
            }
        )["output"]
        loaded = sum(bool(compiled.get_property("LOADED_FROM_CACHE")) for compiled in network._compiled.values())
        network.close()
        return found, loaded

    return run


def test_a_compiled_model_is_kept_and_a_damaged_one_is_made_again(cached: Cached, tmp_path: Path) -> None:
    expected, loaded = cached()
    assert loaded == 0
    [blob] = (tmp_path / "cache").rglob("*.blob")
    again, loaded = cached()
    assert loaded == 1
    np.testing.assert_array_equal(again, expected)
    good = blob.read_bytes()
    middle = len(good) // 2
    flipped = bytes(byte ^ 0xFF for byte in good[middle : middle + 4])
    for damaged in (b"", good[:middle], good[:middle] + flipped + good[middle + 4 :]):
        blob.write_bytes(damaged)
        again, loaded = cached()
        assert loaded == 0
        np.testing.assert_array_equal(again, expected)
    again, loaded = cached()
    assert loaded == 1, "and what was made again is kept"
    np.testing.assert_array_equal(again, expected)
    blob.with_suffix(".sha256").unlink()
    assert cached()[1] == 0, "what nobody vouches for is not used"


def test_a_cache_that_cannot_be_written_is_done_without(cached: Cached, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands where the folder would be")
    found, loaded = cached()
    assert loaded == 0
    assert np.isfinite(found).all()
