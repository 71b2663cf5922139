"""Which engine, device and precision are taken, and with which reasons, among engines made of nothing."""

from __future__ import annotations

import logging
import types
from typing import Any

import pytest

from runtime import backends
from runtime.backends import Choice, Load, Model, Network, Signature, candidates, open_networks
from runtime.errors import BackendError

ORDER = [("tensorrt", "cuda"), ("onnxruntime", "cuda"), ("openvino", "gpu"), ("openvino", "cpu"), ("onnxruntime", "cpu")]
EVERYWHERE = {(backend, device) for backend, described in backends.BACKENDS.items() for device in described.devices}


class Nothing(Network):
    """A network that only knows whether it was closed."""

    made: list[Nothing]

    def __init__(self, content: bytes, name: str, choice: Choice) -> None:
        super().__init__(name, *choice, inputs={"x": Signature((), "float32")}, outputs={})
        self.content, self.closed = content, 0
        Nothing.made.append(self)

    def _release(self) -> None:
        self.closed += 1


class Engines:
    """Stand-ins for the modules of all engines: where they answer, what they compute in, and on which networks they fail."""

    def __init__(self) -> None:
        self.answering = set(EVERYWHERE)
        self.precisions: dict[str, tuple[str, ...]] = {"cuda": ("fp16", "fp32"), "gpu": ("fp16", "fp32"), "cpu": ("bf16", "fp32")}
        self.failing: dict[tuple[str, str, str], BaseException] = {}

    def __call__(self, backend: str) -> types.SimpleNamespace:
        def why_not(backend: str, device: str) -> str | None:
            return None if (backend, device) in self.answering else "it is not there; install it"

        def open_network(content: bytes, name: str, choice: Choice, load: Load) -> Network:
            error = self.failing.get((choice.backend, choice.device, name))
            if error is not None:
                raise error
            return Nothing(content, name, choice)

        return types.SimpleNamespace(
            why_not=why_not, precisions=lambda backend, device: self.precisions.get(device, ("fp16",)), open_network=open_network
        )


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    Nothing.made = []
    made = Engines()
    monkeypatch.setattr(backends, "engine", made)
    return made


def two(*precisions: str) -> dict[str, Model]:
    """Two networks whose bytes are the name of the precision that is read."""
    return {name: Model(f"{name}.onnx", precisions or ("fp32",), lambda precision: precision.encode()) for name in ("first", "second")}


def test_auto_goes_down_the_list_of_the_fastest(engines: Engines) -> None:
    found, reasons = candidates()
    assert [choice[:2] for choice in found] == ORDER
    assert reasons == []
    for k, gone in enumerate(ORDER[:-1]):
        engines.answering.discard(gone)
        found, reasons = candidates()
        assert [choice[:2] for choice in found] == ORDER[k + 1 :]
        assert reasons == [f"{backend} on {device}: it is not there; install it" for backend, device in ORDER[: k + 1]]
        assert open_networks(two()).choice[:2] == ORDER[k + 1]


def test_a_named_device_or_backend_narrows_the_list(engines: Engines) -> None:
    def taken(**asked: str) -> list[tuple[str, ...]]:
        return [choice[:2] for choice in candidates(**asked)[0]]

    assert taken(device="cuda") == ORDER[:2]
    assert taken(device="cpu") == ORDER[3:]
    assert taken(backend="openvino") == [("openvino", "gpu"), ("openvino", "cpu")]
    assert taken(backend="onnxruntime", device="cpu") == [("onnxruntime", "cpu")]
    assert taken(backend="onnxruntime-tensorrt") == [("onnxruntime-tensorrt", "cuda")], "never taken by auto"
    assert taken(device="npu", precision="fp16") == [], "the files are fp32"
    assert [tuple(c) for c in candidates(device="npu", files=("fp32", "fp16"))[0]] == [("openvino", "npu", "fp16")], "only when named"
    with pytest.raises(BackendError, match="tensorrt does not run on 'cpu'; it runs on cuda"):
        candidates("tensorrt", "cpu")


def test_a_device_or_backend_that_was_named_is_never_replaced(engines: Engines) -> None:
    engines.answering = {("onnxruntime", "cpu")}
    assert open_networks(two()).choice[:2] == ("onnxruntime", "cpu")
    for backend, device in (("auto", "cuda"), ("openvino", "auto"), ("onnxruntime", "cuda")):
        with pytest.raises(BackendError, match="it is not there; install it"):
            open_networks(two(), backend, device)
    with pytest.raises(BackendError) as caught:
        open_networks(two(), device="cuda")
    assert str(caught.value) == "tensorrt on cuda: it is not there; install it; onnxruntime on cuda: it is not there; install it"


def test_unknown_words_are_named_with_those_there_are() -> None:
    asked: Any
    for asked, sentence in [
        (("tensorflow",), "there is no backend 'tensorflow'; choose auto or onnxruntime, openvino, tensorrt"),
        (("auto", "tpu"), "there is no device 'tpu'; choose auto or cpu, cuda, gpu, npu"),
        (("auto", "auto", "fp8"), "there is no precision 'fp8'; choose auto or fp32, fp16, bf16, int8"),
    ]:
        with pytest.raises(BackendError, match=sentence):
            open_networks(two(), *asked)


def test_the_precision_is_what_the_device_does_best_among_the_files(engines: Engines) -> None:
    engines.answering = {("tensorrt", "cuda"), ("openvino", "cpu")}
    asked: Any
    for precisions, asked, expected, read in [
        (("fp32",), (), ("tensorrt", "cuda", "fp32"), "fp32"),
        (("fp32", "fp16"), (), ("tensorrt", "cuda", "fp16"), "fp16"),
        (("fp32", "fp16"), ("auto", "auto", "fp32"), ("tensorrt", "cuda", "fp32"), "fp32"),
        (("fp32", "fp16"), ("auto", "auto", "bf16"), ("openvino", "cpu", "bf16"), "fp32"),
        (("fp32",), ("auto", "cpu"), ("openvino", "cpu", "bf16"), "fp32"),
    ]:
        opened = open_networks(two(*precisions), *asked)
        assert opened.choice == Choice(*expected)
        assert {network.content for network in Nothing.made[-2:]} == {read.encode()}
        assert list(opened.networks) == ["first", "second"]


def test_a_precision_that_is_not_to_be_had_says_why(engines: Engines) -> None:
    with pytest.raises(BackendError, match="openvino on cpu: it computes in bf16, fp32 there, not in int8"):
        open_networks(two(), "openvino", "cpu", "int8")
    with pytest.raises(BackendError, match="tensorrt on cuda: the bundle has fp32 alone; export it with --fp16"):
        open_networks(two(), "tensorrt", precision="fp16")
    mixed = two("fp32", "fp16")
    mixed["second"] = mixed["second"]._replace(precisions=("fp32",))
    with pytest.raises(BackendError, match="the bundle has fp32 alone"):
        open_networks(mixed, "tensorrt", precision="fp16")


def test_a_candidate_that_fails_gives_way_to_the_next_which_says_so(engines: Engines, caplog: pytest.LogCaptureFixture) -> None:
    engines.answering = {("tensorrt", "cuda"), ("onnxruntime", "cuda"), ("onnxruntime", "cpu")}
    engines.failing["tensorrt", "cuda", "first.onnx"] = BackendError("the driver is too old")
    engines.failing["onnxruntime", "cuda", "second.onnx"] = BackendError("no memory is left")
    with caplog.at_level(logging.INFO, logger="runtime.backends"):
        opened = open_networks(two())
    assert opened.choice[:2] == ("onnxruntime", "cpu")
    for passed in ("the driver is too old", "no memory is left", "openvino on gpu: it is not there; install it"):
        assert f"not {passed}" in opened.reason
        assert passed in caplog.text
    assert opened.reason.startswith("the fastest that works here")
    [half_open, *rest] = Nothing.made
    assert (half_open.name, half_open.device, half_open.closed) == ("first.onnx", "cuda", 1), "what had been opened before is closed"
    assert [network.closed for network in rest] == [0, 0]


def test_a_named_engine_that_fails_is_an_error(engines: Engines) -> None:
    engines.failing["onnxruntime", "cuda", "second.onnx"] = BackendError("no memory is left")
    with pytest.raises(BackendError, match=r"^no memory is left$"):
        open_networks(two(), "onnxruntime", "cuda")
    assert [network.closed for network in Nothing.made] == [1]
    assert open_networks(two(), "onnxruntime", "cpu", "fp32").reason == "as asked for"


def test_whatever_interrupts_the_opening_leaves_nothing_open(engines: Engines) -> None:
    engines.failing["tensorrt", "cuda", "second.onnx"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        open_networks(two())
    assert [network.closed for network in Nothing.made] == [1]


def test_the_load_reaches_the_engine(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    there = engines("openvino")

    def open_network(content: bytes, name: str, choice: Choice, load: Load) -> Network:
        given.append(load)
        return there.open_network(content, name, choice, load)

    spy = types.SimpleNamespace(why_not=there.why_not, precisions=there.precisions, open_network=open_network)
    monkeypatch.setattr(backends, "engine", lambda backend: spy)
    open_networks(two(), "openvino", load=Load(threads=3, concurrency=2))
    assert given == [Load(3, 2)] * 2
