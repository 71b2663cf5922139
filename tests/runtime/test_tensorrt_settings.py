"""What is asked of TensorRT itself, which cannot build here: written down by a builder that builds nothing."""

from __future__ import annotations

import logging
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest

from runtime.backends import tensorrt_build
from runtime.errors import BackendError


class Cache:
    """A timing cache of one version: what was there before, and one kernel more."""

    def __init__(self, known: bytes) -> None:
        self.known = known

    def serialize(self) -> bytes:
        return self.known + b"k"


class Config:
    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.cleared: set[str] = set()
        self.memory: dict[str, int] = {}
        self.profiles: list[dict[str, tuple[Any, ...]]] = []
        self.caches: list[bytes] = []
        self.progress_monitor: Any = None
        self.hardware_compatibility_level = ""

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.cleared.add(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.memory[pool] = size

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, known: bytes) -> Cache | None:
        self.caches.append(known)
        return None if known == b"unreadable" else Cache(known)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        return ignore_mismatch or not cache.known.startswith(b"of another GPU")


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


class Parser:
    def __init__(self, network: Any, log: object) -> None:
        self.network = network

    def parse(self, content: bytes) -> bool:
        self.network.inputs = [types.SimpleNamespace(name="x", shape=(-1, 1, 4, 4)), types.SimpleNamespace(name="t", shape=(-1,))]
        return True


class Builder:
    configs: ClassVar[list[Config]]
    networks: ClassVar[list[int]]

    def __init__(self, log: object) -> None:
        pass

    def create_network(self, flags: int) -> types.SimpleNamespace:
        self.networks.append(flags)
        network = types.SimpleNamespace(num_inputs=2, inputs=[])
        network.get_input = lambda i: network.inputs[i]
        return network

    def create_builder_config(self) -> Config:
        self.configs.append(Config())
        return self.configs[-1]

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        config.progress_monitor.phase_start("timing", "", 2)
        return b"plan" if all(config.progress_monitor.step_complete("timing", step) for step in range(2)) else None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> type[Builder]:
    """A TensorRT of which everything that was asked is known."""

    class Fresh(Builder):
        configs: ClassVar[list[Config]] = []
        networks: ClassVar[list[int]] = []

    # An attribute that is not listed does not exist: FP16, INT8 and the like are gone from TensorRT 11.
    fake = types.SimpleNamespace(
        __name__="tensorrt",
        Builder=Fresh,
        OnnxParser=Parser,
        Dims=tuple,
        IProgressMonitor=type("IProgressMonitor", (), {}),
        NetworkDefinitionCreationFlag=types.SimpleNamespace(STRONGLY_TYPED=1),
        MemoryPoolType=types.SimpleNamespace(WORKSPACE="workspace"),
        BuilderFlag=types.SimpleNamespace(TF32="TF32", EDITABLE_TIMING_CACHE="editable", VERSION_COMPATIBLE="version"),
        HardwareCompatibilityLevel=types.SimpleNamespace(AMPERE_PLUS="Ampere"),
    )
    monkeypatch.setattr(tensorrt_build, "trt", fake)
    monkeypatch.setattr(tensorrt_build, "rtx", fake)
    monkeypatch.setattr(tensorrt_build, "logger", lambda: None)
    return Fresh


def test_a_strongly_typed_network_with_a_profile_per_bucket(asked: type[Builder]) -> None:
    steps: list[tuple[str, int, int]] = []
    plan = tensorrt_build.build(b"", "x.onnx", (1, 8), workspace_bytes=5 << 20, progress=lambda *step: steps.append(step))
    (config,) = asked.configs
    assert plan == b"plan"
    assert asked.networks == [2], "the second bit is STRONGLY_TYPED"
    assert (config.flags, config.cleared, config.memory) == (set(), {"TF32"}, {"workspace": 5 << 20})
    assert config.profiles == [{"x": ((size, 1, 4, 4),) * 3, "t": ((size,),) * 3} for size in (1, 8)]
    assert config.hardware_compatibility_level == ""
    assert steps == [("timing", 1, 2), ("timing", 2, 2)]


def test_compatible_plans(asked: type[Builder]) -> None:
    tensorrt_build.build(b"", "x.onnx", (1,), version_compatible=True, hardware_compatible=True)
    assert asked.configs[0].flags == {"version"}
    assert asked.configs[0].hardware_compatibility_level == "Ampere"


def test_another_gpu_is_for_rtx(asked: type[Builder]) -> None:
    with pytest.raises(BackendError, match=r"only TensorRT-RTX builds for another GPU \(8\.9\); install metascatter\[rtx\]"):
        tensorrt_build.build(b"", "x.onnx", (1,), compute_capability=(8, 9))
    assert not asked.configs


def test_kernel_timings_are_read_and_written_again(asked: type[Builder], tmp_path: Path) -> None:
    path = tmp_path / "folder" / "gpu.timings"
    for _ in range(2):
        tensorrt_build.build(b"", "x.onnx", (1,), timing_cache=path)
    assert [config.caches for config in asked.configs] == [[b""], [b"k"]]
    assert [config.flags for config in asked.configs] == [{"editable"}] * 2
    assert path.read_bytes() == b"kk"


@pytest.mark.parametrize("known", [b"of another GPU", b"unreadable"])
def test_timings_of_another_gpu_are_begun_anew(known: bytes, asked: type[Builder], tmp_path: Path) -> None:
    path = tmp_path / "gpu.timings"
    path.write_bytes(known)
    tensorrt_build.build(b"", "x.onnx", (1,), timing_cache=path)
    assert asked.configs[0].caches == [known, b""]
    assert path.read_bytes() == b"k"


def test_timings_that_cannot_be_written_are_done_without(asked: type[Builder], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, tensorrt_build.__name__):
        assert tensorrt_build.build(b"", "x.onnx", (1,), timing_cache=tmp_path / "file" / "gpu.timings") == b"plan"
    assert "the kernel timings of x.onnx are not kept" in caplog.text


def test_a_build_that_fails(asked: type[Builder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "build_serialized_network", lambda *args: None)
    with pytest.raises(BackendError, match=r"TensorRT could not build x\.onnx; its reason is in the log, under runtime\.backends"):
        tensorrt_build.build(b"", "x.onnx", (1,))


def test_without_a_gpu_there_is_no_builder(asked: type[Builder], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bindings raise a bare TypeError there."""

    def refuse(self: Builder, log: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(asked, "__init__", refuse)
    with pytest.raises(BackendError, match=r"TensorRT does not start here .*it needs an NVIDIA GPU and a driver as new as its libraries"):
        tensorrt_build.build(b"", "x.onnx", (1,))
