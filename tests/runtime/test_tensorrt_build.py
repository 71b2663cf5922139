"""ONNX to TensorRT plans: TensorRT-RTX builds them for real, for GPUs that are not here."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import tensorrt_build
from runtime.bundle import Bundle
from runtime.errors import BackendError

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; install metascatter[rtx]")
ADA = (8, 9)


@pytest.fixture(scope="module")
def encoder(small_bundle: Path) -> bytes:
    return Bundle.open(small_bundle).network("encoder", "fp32")


def test_a_plan_for_another_gpu_with_a_profile_per_bucket(small_bundle: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    content = Bundle.open(small_bundle).network("denoiser", "fp32")
    plan = tensorrt_build.build(content, "denoiser.onnx", (1, 8), compute_capability=ADA, progress=lambda *step: steps.append(step))
    assert len(plan) > 10_000
    assert steps
    assert all(step >= 1 for _, step, _ in steps)
    assert {phase for phase, _, _ in steps} >= {"Building engine"}
    assert len(tensorrt_build.build(content, "denoiser.onnx", (1,), compute_capability=ADA)) < len(plan)


def test_half_precision_is_the_files(encoder: bytes) -> None:
    """A strongly typed network: halving the weights in the file halves them in the plan, without any flag."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    sizes = {}
    for dtype, kind in ((np.float32, TensorProto.FLOAT), (np.float16, TensorProto.FLOAT16)):
        weight = numpy_helper.from_array(rng.standard_normal((512, 512)).astype(dtype), "w")
        nodes = [
            helper.make_node("Cast", ["x"], ["x_"], to=kind),
            helper.make_node("MatMul", ["x_", "w"], ["y_"]),
            helper.make_node("Cast", ["y_"], ["y"], to=TensorProto.FLOAT),
        ]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 512]) for name in "xy")
        graph = helper.make_graph(nodes, "g", [x], [y], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model)
        sizes[dtype] = len(tensorrt_build.build(model.SerializeToString(), "x.onnx", (8,), compute_capability=ADA))
    assert sizes[np.float16] < sizes[np.float32] - 300_000


def test_what_a_progress_callback_raises_stops_the_build(encoder: bytes) -> None:
    class Mine(Exception):
        pass

    calls: list[str] = []

    def progress(phase: str, step: int, steps: int) -> None:
        calls.append(phase)
        raise Mine("stop here")

    with pytest.raises(Mine, match="stop here"):
        tensorrt_build.build(encoder, "encoder.onnx", (1,), compute_capability=ADA, progress=progress)
    assert len(calls) == 1


def test_an_interrupt_amid_tensorrts_own_messages_ends_the_build(encoder: bytes) -> None:
    """Its bindings catch what is raised while a message is handed over, and go on."""

    class Impatient(logging.Handler):
        told = 0

        def emit(self, record: logging.LogRecord) -> None:
            self.told += 1
            if self.told == 1:
                signal.raise_signal(signal.SIGINT)

    handler, log = Impatient(), logging.getLogger(tensorrt_build.__name__)
    level = log.level
    # Started in the background of a shell, Python inherits that interrupts are ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        with pytest.raises(KeyboardInterrupt):
            tensorrt_build.build(encoder, "encoder.onnx", (1,), compute_capability=ADA)
        told = handler.told
        for thread in threading.enumerate():
            if thread.name == "tensorrt":
                thread.join()
        assert handler.told == told >= 1, "it went on after it was said to have ended"
    finally:
        signal.signal(signal.SIGINT, before)
        log.removeHandler(handler)
        log.setLevel(level)
    assert handler.told >= 1
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("tensorrt")]


def test_why_int8_files_are_not_for_tensorrt() -> None:
    """Ours have unsigned activations with a zero point, as processors like them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def model(zero_point: np.generic) -> bytes:
        given = {"scale": np.float32(0.1), "zero": zero_point}
        weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16]) for name in "xy")
        whole = helper.make_model(
            helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
        )
        onnx.checker.check_model(whole)
        return bytes(whole.SerializeToString())

    with pytest.raises(BackendError, match=r"x\.onnx: QuantizeLinear: .*[Nn]on-zero zero point is not supported"):
        tensorrt_build.build(model(np.uint8(128)), "x.onnx", (1,), compute_capability=ADA)
    assert tensorrt_build.build(model(np.int8(0)), "x.onnx", (1,), compute_capability=ADA)


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (b"\x08\x07nonsense", {}, r"TensorRT cannot read x\.onnx: .*export it again"),
        (None, {"compute_capability": (9, 0)}, r"does not build for compute capability 9\.0; it does for 7\.5, 8\.0, 8\.6, 8\.9"),
        (None, {"version_compatible": True}, "makes no version- or hardware-compatible plans; name a --compute-capability"),
    ],
)
def test_refusals_are_one_sentence(content: bytes | None, options: dict[str, Any], sentence: str, encoder: bytes) -> None:
    with pytest.raises(BackendError, match=sentence) as caught:
        tensorrt_build.build(encoder if content is None else content, "x.onnx", (1,), **options)
    assert "\n" not in str(caught.value)


def test_messages_go_to_logging_alone(encoder: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, tensorrt_build.__name__):
        tensorrt_build.build(encoder, "encoder.onnx", (1,), compute_capability=ADA)
    assert capfd.readouterr() == ("", "")
    assert any(record.name == tensorrt_build.__name__ for record in caplog.records)
