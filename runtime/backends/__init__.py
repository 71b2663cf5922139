"""Engines that evaluate a network. Each is one file with the same three doors, and ``open_networks`` is the one in front of them.

An engine module has

- ``why_not(backend, device) -> str | None``: why it cannot be used there, as far as can be told without a model;
- ``precisions(backend, device) -> tuple[str, ...]``: what it computes in there, what it does best first;
- ``open_network(content, name, choice, load) -> Network``: loads the bytes of an ONNX file, or raises BackendError.

Whoever holds a :class:`Network` knows nothing else about the engine.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from types import ModuleType
from typing import NamedTuple

from ..errors import BackendError
from .network import Binding, Context, Network, Signature, check_inputs

__all__ = [
    "BACKENDS",
    "BUCKETS",
    "DEVICES",
    "PRECISIONS",
    "Binding",
    "Choice",
    "Load",
    "Context",
    "Model",
    "Network",
    "Opened",
    "Signature",
    "candidates",
    "check_inputs",
    "file_precision",
    "open_networks",
]


class Engine(NamedTuple):
    """Where an engine's code is, the extra that installs it, and the devices it may run on."""

    module: str
    extra: str
    devices: tuple[str, ...]


BACKENDS = {
    "onnxruntime": Engine("onnxruntime", "cpu", ("cuda", "cpu")),
    "openvino": Engine("openvino", "openvino", ("gpu", "cpu", "npu")),
    "tensorrt": Engine("tensorrt", "tensorrt", ("cuda",)),
    "onnxruntime-tensorrt": Engine("onnxruntime", "gpu", ("cuda",)),
    "onnxruntime-openvino": Engine("onnxruntime", "", ("gpu", "cpu", "npu")),
}
DEVICES = ("auto", "cpu", "cuda", "gpu", "npu")  # gpu and npu are Intel's, through OpenVINO
PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8")
BUCKETS = (1, 8, 64, 128, 256)  # batch sizes that engines with fixed shapes are built for

# What auto tries, the fastest first (bench/runtime.py measures them side by side); what is not listed runs when it is named.
_AUTO = (("tensorrt", "cuda"), ("onnxruntime", "cuda"), ("openvino", "gpu"), ("openvino", "cpu"), ("onnxruntime", "cpu"))

_log = logging.getLogger(__name__)


class Model(NamedTuple):
    """A network's ONNX files: what messages call it, which precisions there are, and how to get the checked bytes of one."""

    name: str
    precisions: Collection[str]
    read: Callable[[str], bytes]


class Choice(NamedTuple):
    """An engine, a device and a precision to run in."""

    backend: str
    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} on {self.device} in {self.precision}"


class Load(NamedTuple):
    """How an engine will be used: CPU threads of one call (None: the engine decides), how many threads call it at a time, and the
    largest batch that engines with fixed shapes are built for."""

    threads: int | None = None
    concurrency: int = 1
    max_batch: int = BUCKETS[-1]

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes to build for: those of ``BUCKETS`` below the largest batch, and that."""
        return (*(size for size in BUCKETS if size < self.max_batch), self.max_batch)


class Opened(NamedTuple):
    """Networks in one engine, which choice that was, and why."""

    networks: dict[str, Network]
    choice: Choice
    reason: str


_ALONE = Load()


def engine(backend: str) -> ModuleType:
    """The module of a word of ``BACKENDS``."""
    return importlib.import_module(f".{BACKENDS[backend].module}", __package__)


def file_precision(precision: str, files: Collection[str]) -> str | None:
    """The precision of the ONNX file that is read to compute in ``precision``, or None where ``files`` has none.

    bf16 is rounded by the engine itself from the fp32 file; the others are files of their own.
    """
    wanted = "fp32" if precision == "bf16" else precision
    return wanted if wanted in files else None


def candidates(
    backend: str = "auto", device: str = "auto", precision: str = "auto", files: Collection[str] = ("fp32",)
) -> tuple[list[Choice], list[str]]:
    """What may be tried, the fastest first, and a reason for everything that was asked for and cannot.

    Args:
        backend, device, precision: words of ``BACKENDS``, ``DEVICES`` and ``PRECISIONS``, or ``auto``.
        files: precisions of the ONNX files there are.

    Raises:
        BackendError: an unknown word, or a device the backend does not know.
    """
    for kind, word, words in (("backend", backend, BACKENDS), ("device", device, DEVICES), ("precision", precision, PRECISIONS)):
        if word != "auto" and word not in words:
            raise BackendError(f"there is no {kind} '{word}'; choose auto or {', '.join(w for w in words if w != 'auto')}")
    if backend == "auto":
        tried: Iterable[tuple[str, str]] = _AUTO
        if device == "npu":
            tried = (("openvino", "npu"),)
    else:
        tried = ((backend, where) for where in BACKENDS[backend].devices if where != "npu" or device == "npu")
    found: list[Choice] = []
    reasons: list[str] = []
    for word, where in tried:
        if device not in ("auto", where):
            continue
        try:
            refusal = engine(word).why_not(word, where)
            offered = engine(word).precisions(word, where) if refusal is None else ()
        except BackendError as error:
            refusal, offered = str(error), ()
        if refusal is not None:
            reasons.append(f"{word} on {where}: {refusal}")
            continue
        fitting = [p for p in offered if precision in ("auto", p)]
        if not fitting:
            reasons.append(f"{word} on {where}: it computes in {', '.join(offered)} there, not in {precision}")
            continue
        able = [p for p in fitting if file_precision(p, files) is not None]
        if not able:
            reasons.append(f"{word} on {where}: the bundle has {', '.join(files)} alone; export it with --{fitting[0]}")
            continue
        found.append(Choice(word, where, able[0]))
    if not found and not reasons:
        raise BackendError(f"{backend} does not run on '{device}'; it runs on {', '.join(BACKENDS[backend].devices)}")
    return found, reasons


def open_networks(
    models: Mapping[str, Model], backend: str = "auto", device: str = "auto", precision: str = "auto", load: Load = _ALONE
) -> Opened:
    """Load networks (ONNX files already checked against their hashes) into one engine.

    ``auto`` takes the fastest that is installed and works, and logs what it passed over and why. A device that was named is never
    replaced by another.

    Args:
        models: by name; the precisions all of them have are what can be chosen from.
        load: threads and concurrency to prepare for.

    Raises:
        BackendError: nothing that was asked for is installed, answers and takes the models; the sentence says why for each.
    """
    common = [p for p in PRECISIONS if models and all(p in model.precisions for model in models.values())]
    choices, reasons = candidates(backend, device, precision, common)
    for choice in choices:
        networks: dict[str, Network] = {}
        try:
            for name, model in models.items():
                content = model.read(str(file_precision(choice.precision, common)))
                networks[name] = engine(choice.backend).open_network(content, model.name, choice, load)
        except BackendError as error:
            for network in networks.values():
                network.close()
            reasons.append(str(error))
            continue
        except BaseException:
            for network in networks.values():
                network.close()
            raise
        reason = "as asked for" if "auto" not in (backend, device, precision) else "the fastest that works here"
        reason += "".join(f"; not {passed}" for passed in reasons)
        _log.info("%s: %s", choice, reason)
        return Opened(networks, choice, reason)
    raise BackendError("; ".join(reasons))
