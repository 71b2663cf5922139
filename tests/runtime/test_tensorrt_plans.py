"""TensorRT plans that are kept: what they depend on, and what becomes of those that are damaged."""

from __future__ import annotations

import hashlib
import json
import types
from pathlib import Path
from typing import Any

import pytest

from runtime.backends import BUCKETS, tensorrt_build, tensorrt_plans
from runtime.backends.cuda import Device

ADA = (8, 9)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of what was built; a plan is a few bytes, and only those are loaded that were built."""
    names: list[str] = []

    def build(content: bytes, name: str, buckets: tuple[int, ...], **options: Any) -> bytes:
        names.append(name)
        return b"plan of " + content

    def deserialised(plan: bytes) -> str | None:
        return plan.decode() if plan.startswith(b"plan of ") else None

    monkeypatch.setenv("METASCATTER_CACHE", str(tmp_path))
    monkeypatch.setattr(tensorrt_build, "build", build)
    monkeypatch.setattr(tensorrt_build, "logger", lambda: None)
    runtime = types.SimpleNamespace(deserialize_cuda_engine=deserialised)
    fake = types.SimpleNamespace(__name__="tensorrt", __version__="11.4", Runtime=lambda log: runtime)
    monkeypatch.setattr(tensorrt_plans, "trt", fake)
    return names


def engine(content: bytes, name: str, gpu: Device) -> Any:
    return tensorrt_plans.engine(content, name, gpu, BUCKETS)[0]


def test_a_plan_is_built_once_for_a_version_a_gpu_and_a_model(builds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Device("NVIDIA L4", ADA)
    for _ in range(2):
        assert engine(b"model", "x.onnx", gpu) == "plan of model"
    assert len(builds) == 1
    (told,) = (tmp_path / "tensorrt").glob("*.json")
    facts = json.loads(told.read_text())
    assert (facts["version"], facts["gpu"], facts["buckets"]) == ("11.4", "NVIDIA L4", list(BUCKETS))
    assert facts["plan_sha256"] == hashlib.sha256(b"plan of model").hexdigest()
    engine(b"another", "x.onnx", gpu)
    engine(b"model", "x.onnx", Device("NVIDIA L40", ADA))
    monkeypatch.setattr(tensorrt_plans.trt, "__version__", "11.5")
    engine(b"model", "x.onnx", gpu)
    assert len(builds) == 4


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1] + b"?", lambda b: b[:10], lambda b: b"", lambda b: hashlib.sha256(b"old").digest() + b"old"]
)
def test_a_plan_that_is_damaged_or_refused_is_built_again(damage: Any, builds: list[str], tmp_path: Path) -> None:
    gpu = Device("NVIDIA L4", ADA)
    engine(b"model", "x.onnx", gpu)
    (kept,) = (tmp_path / "tensorrt").glob("*.bin")
    kept.write_bytes(damage(kept.read_bytes()))
    for _ in range(2):
        assert engine(b"model", "x.onnx", gpu) == "plan of model"
    assert len(builds) == 2


def test_a_cache_that_cannot_be_written_is_done_without(builds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("METASCATTER_CACHE", str(tmp_path / "file"))
    assert engine(b"model", "x.onnx", Device("NVIDIA L4", ADA)) == "plan of model"
