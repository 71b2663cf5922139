"""Engines built ahead of time, for real by TensorRT-RTX, for a GPU that is not here; and what is said where that cannot be."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from export.bundle import export
from export.tensorrt import build_engines, check
from runtime.backends import BUCKETS, cuda, tensorrt_build, tensorrt_plans
from runtime.backends.cuda import Device
from runtime.bundle import Bundle
from runtime.errors import BackendError, DataError
from runtime.sampler import load

RTX = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; install metascatter[rtx]")
ADA = (8, 9)


@pytest.fixture(scope="module")
def half_bundle(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from export import parity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "ENGINES", ("onnxruntime",))
        return export(small_run, tmp_path_factory.mktemp("bundle") / "half", precisions=("fp32", "fp16"), max_batch=8, force=True)


@pytest.fixture(scope="module")
def built(half_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real fp32 and fp16 engines for Ada."""
    if tensorrt_build.module().__name__ != "tensorrt_rtx":
        pytest.skip("TensorRT is installed beside TensorRT-RTX, and comes first")
    folder = tmp_path_factory.mktemp("engines") / "here"
    said: list[str] = []
    plans = build_engines(half_bundle, ("fp32", "fp16"), engine_dir=folder, compute_capability=ADA, say=said.append)
    assert len(plans) == len(said) == 4
    assert all("batches 1, 8" in line for line in said)
    return folder


def test_the_runtime_finds_them_and_builds_nothing(half_bundle: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASCATTER_CACHE", str(built))
    monkeypatch.setattr(tensorrt_build, "build", lambda *args, **options: pytest.fail("it was built again"))
    loaded: list[bytes] = []

    class Runtime:
        engine_host_code_allowed = False

        def deserialize_cuda_engine(self, plan: bytes) -> str:
            loaded.append(plan)
            return "engine"

    monkeypatch.setattr(tensorrt_build, "start", lambda kind: Runtime())
    opened = Bundle.open(half_bundle)
    for precision in ("fp32", "fp16"):
        for name in ("encoder", "denoiser"):
            content = opened.network(name, precision)
            found, path = tensorrt_plans.engine(content, name, Device("NVIDIA GeForce RTX 4090", ADA), (1, 8))
            assert found == "engine"
            assert path.parent == built / "tensorrt"
            sidecar = json.loads(path.with_suffix(".json").read_text())
            assert sidecar["plan_sha256"] == hashlib.sha256(loaded[-1]).hexdigest()
            assert sidecar["onnx_sha256"] == hashlib.sha256(content).hexdigest()
            assert (sidecar["flavour"], sidecar["version"], sidecar["compute_capability"]) == ("tensorrt_rtx", RTX.__version__, "8.9")
            assert sidecar["buckets"] == [1, 8]
    assert len({hashlib.sha256(plan).digest() for plan in loaded}) == 4
    with pytest.raises(pytest.fail.Exception, match="built again"):
        tensorrt_plans.engine(content, name, Device("NVIDIA RTX A4000", (8, 6)), (1, 8))
    with pytest.raises(pytest.fail.Exception, match="built again"):
        tensorrt_plans.engine(content, name, Device("NVIDIA GeForce RTX 4090", ADA), BUCKETS)


def test_half_plans_are_smaller(half_bundle: Path, built: Path) -> None:
    sizes: dict[str, int] = {}
    for path in (built / "tensorrt").glob("*.json"):
        sizes[json.loads(path.read_text())["network"]] = path.with_suffix(".bin").stat().st_size
    assert set(sizes) == {"encoder.onnx", "denoiser.onnx", "encoder.fp16.onnx", "denoiser.fp16.onnx"}
    assert all(size > 10_000 for size in sizes.values())


def test_a_compatible_plan_is_found_by_another_version_and_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT's own engines, which cannot be built here: what is written and looked up, on a build that writes bytes."""
    import types

    allowed: list[bool] = []

    class Runtime:
        engine_host_code_allowed = False

        def deserialize_cuda_engine(self, plan: bytes) -> bytes:
            allowed.append(self.engine_host_code_allowed)
            return plan

    monkeypatch.setenv("METASCATTER_CACHE", str(tmp_path))
    options: list[dict[str, Any]] = []

    def build(*args: Any, **given: Any) -> bytes:
        options.append(given)
        return b"plan"

    monkeypatch.setattr(tensorrt_build, "build", build)
    monkeypatch.setattr(tensorrt_build, "start", lambda kind: Runtime())
    fake = types.SimpleNamespace(__name__="tensorrt", __version__="10.16.1", Runtime=None)
    monkeypatch.setattr(tensorrt_plans, "trt", fake)
    here = tensorrt_plans.Options(version_compatible=True, hardware_compatible=True)
    tensorrt_plans.make(b"model", "x.onnx", Device("NVIDIA A10", (8, 6)), (1, 8), here)
    assert options[0]["version_compatible"]
    assert options[0]["hardware_compatible"]
    fake.__version__ = "10.17.0"
    assert tensorrt_plans.engine(b"model", "x.onnx", Device("NVIDIA L4", ADA), (1, 8))[0] == b"plan"
    assert (len(options), allowed) == (1, [True])
    tensorrt_plans.engine(b"model", "x.onnx", Device("NVIDIA T4", (7, 5)), (1, 8))
    assert len(options) == 2, "Turing is before Ampere"
    fake.__version__ = "11.4.0"
    tensorrt_plans.engine(b"model", "x.onnx", Device("NVIDIA L4", ADA), (1, 8))
    assert len(options) == 3, "another major version"
    assert allowed[-1] is False


def test_where_it_cannot_be_done(monkeypatch: pytest.MonkeyPatch, half_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"does not build for compute capability 9\.0; it does for 7\.5, 8\.0, 8\.6, 8\.9"):
        check((9, 0))

    def nothing() -> Device:
        raise BackendError("there is no NVIDIA driver")

    with monkeypatch.context() as patch:
        patch.setattr(cuda, "device", nothing)
        with pytest.raises(BackendError, match=r"no GPU to build for: there is no NVIDIA driver; or name one with --compute-capability"):
            check(None)
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "device", lambda: Device("NVIDIA H200", (9, 0)))
        patch.setattr(tensorrt_build, "module", lambda: RTX)
        with pytest.raises(BackendError, match=r"9\.0; it does for .*NVIDIA H200, for which metascatter\[tensorrt\] builds in its place"):
            check(None)
        patch.setattr(cuda, "device", lambda: Device("NVIDIA L4", ADA))
        assert check(None) == Device("NVIDIA L4", ADA)
    for option in ("version_compatible", "hardware_compatible"):
        with pytest.raises(BackendError, match="TensorRT-RTX makes no version- or hardware-compatible plans"):
            check(ADA, **{option: True})
    with monkeypatch.context() as patch:

        def import_module(name: str) -> Any:
            raise ModuleNotFoundError(name, name=name)

        patch.setattr(tensorrt_build.importlib, "import_module", import_module)
        with pytest.raises(BackendError, match=r"TensorRT is not installed; install metascatter\[tensorrt\], or metascatter\[rtx\]"):
            check(ADA)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .*; the bundle .* is written"):
        build_engines(half_bundle, ("fp32",), engine_dir=tmp_path / "file", compute_capability=ADA)


def test_the_largest_batch_is_the_samplers_too(half_bundle: Path) -> None:
    with load(half_bundle, "onnxruntime", "cpu", "fp32") as sampler:
        assert sampler.networks["denoiser"].batch_size > 8
        assert sampler.batch_size() == 8


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_alone(terminal: bool, half_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*args: Any, progress: Any, **options: Any) -> bytes:
        for step in (1, 2):
            progress("Building engine", step, 2)
        return b"plan"

    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(tensorrt_build, "build", build)
    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    build_engines(half_bundle, ("fp16",), engine_dir=tmp_path, compute_capability=ADA)
    shown = stream.getvalue()
    if terminal:
        for words in ("engine of denoiser.fp16.onnx: 100%", "2/2", "Building engine"):
            assert words in shown
    else:
        assert shown == ""


def test_the_words_of_tensorrt_go_to_logging(
    half_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    opened = Bundle.open(half_bundle)
    with caplog.at_level(logging.DEBUG, tensorrt_build.__name__):
        plan, path = tensorrt_plans.make(opened.network("encoder", "fp16"), "encoder.fp16.onnx", Device("", ADA), (1,), root=tmp_path)
    assert capfd.readouterr() == ("", "")
    assert any(record.name == tensorrt_build.__name__ for record in caplog.records)
    assert path.read_bytes().endswith(plan)
