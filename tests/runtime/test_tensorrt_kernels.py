"""Kernels that TensorRT-RTX compiles on the GPU it finds, kept from one start to the next; and batches engines are built for."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from runtime.backends import BUCKETS, Load, kept, tensorrt


class Cache:
    """Kernels in bytes; it takes back what begins as its own."""

    def __init__(self) -> None:
        self.kernels = b""

    def deserialize(self, content: bytes) -> bool:
        if content.startswith(b"kernels"):
            self.kernels = content
        return content.startswith(b"kernels")

    def serialize(self) -> bytes:
        return self.kernels


class Engine:
    """What of an engine has to do with kernels."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.config = types.SimpleNamespace(create_runtime_cache=lambda: self.cache, set_runtime_cache=self.take, taken=None)

    def take(self, cache: Cache) -> bool:
        self.config.taken = cache
        return True

    def create_runtime_config(self) -> types.SimpleNamespace:
        return self.config


@pytest.fixture(autouse=True)
def rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    strategies = types.SimpleNamespace(EAGER="eager", LAZY="lazy", NONE="none")
    monkeypatch.setattr(tensorrt, "rtx", types.SimpleNamespace(DynamicShapesKernelSpecializationStrategy=strategies))


def start(path: Path) -> tuple[Any, Engine]:
    engine: Any = Engine()
    return tensorrt._Compiled(engine, path), engine


def test_kernels_are_compiled_before_a_graph_is_captured_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.kernels"
    compiled, engine = start(path)
    assert engine.config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert engine.config.taken is engine.cache
    engine.cache.kernels = b"kernels of this GPU"
    compiled.keep()
    again, engine = start(path)
    assert engine.cache.kernels == b"kernels of this GPU"
    with monkeypatch.context() as patch:
        patch.setattr(kept, "keep", lambda *args: pytest.fail("nothing is new"))
        again.keep()
    engine.cache.kernels += b", and more"
    again.keep()
    assert kept.fetch(path) == b"kernels of this GPU, and more"


def test_kernels_of_another_driver_are_compiled_again(tmp_path: Path) -> None:
    path = tmp_path / "plan.kernels"
    kept.keep(path, b"from another driver")
    compiled, engine = start(path)
    assert engine.config.taken is engine.cache
    engine.cache.kernels = b"kernels"
    compiled.keep()
    assert kept.fetch(path) == b"kernels"


@pytest.mark.parametrize(
    ("largest", "buckets"), [(1, (1,)), (2, (1, 2)), (8, (1, 8)), (100, (1, 8, 64, 100)), (256, BUCKETS), (300, (*BUCKETS, 300))]
)
def test_the_largest_batch_is_built_for_and_nothing_above_it(largest: int, buckets: tuple[int, ...]) -> None:
    assert Load(max_batch=largest).buckets == buckets
