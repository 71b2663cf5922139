"""ONNX -> TensorRT plan, with one code path for TensorRT 10.x, 11.x and TensorRT-RTX.

Every network is strongly typed: the precision is the ONNX file's, and no builder flag changes it. TF32 is switched off, so that fp32
means fp32. Each batch size has an optimisation profile of its own, with nothing left free in it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, SupportsInt, TypeVar, cast

from ..errors import BackendError, DataError
from ..files import atomic_file

WORKSPACE_BYTES = 1 << 30
OnProgress = Callable[[str, int, int], None]
T = TypeVar("T")

_log = logging.getLogger(__name__)


def module() -> ModuleType:
    """TensorRT, or TensorRT-RTX where that is what is installed.

    Raises:
        BackendError: neither is, or its libraries cannot be loaded.
    """
    broken = []
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            if not (isinstance(error, ModuleNotFoundError) and error.name == name):
                broken.append(f"{name} is installed and does not load ({_line(error)})")
    if broken:
        raise BackendError(f"{'; '.join(broken)}; install it again")
    raise BackendError("TensorRT is not installed; install metascatter[tensorrt], or metascatter[rtx] for RTX cards")


class _Installed:
    """Whichever is installed, imported when something of it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(module(), name)


if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt_rtx as rtx
else:
    trt = rtx = _Installed()  # rtx in front of what TensorRT-RTX alone has

_loggers: dict[str, trt.ILogger] = {}


def logger() -> trt.ILogger:
    """TensorRT's messages in ``logging``, under this module's name; one of a process, because TensorRT keeps the first it is given."""
    if trt.__name__ in _loggers:
        return _loggers[trt.__name__]
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.INFO,  # that an int64 input is an int64 input, and the like
        trt.ILogger.Severity.INFO: logging.DEBUG,
    }

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in levels:
                _log.log(levels[severity], "%s", msg)

    return _loggers.setdefault(trt.__name__, Logger())


def start(kind: Callable[[trt.ILogger], T]) -> T:
    """A builder or a runtime. The bindings raise a bare TypeError where TensorRT cannot make one, as without a GPU.

    Raises:
        BackendError: it cannot.
    """
    try:
        return kind(logger())
    except (TypeError, RuntimeError) as error:
        raise BackendError(
            f"TensorRT does not start here ({_line(error)}); it needs an NVIDIA GPU and a driver as new as its libraries, see the log"
        ) from None


def build(
    content: bytes,
    name: str,
    buckets: Sequence[int],
    *,
    workspace_bytes: int = WORKSPACE_BYTES,
    timing_cache: Path | None = None,
    compute_capability: tuple[int, int] | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    progress: OnProgress | None = None,
) -> bytes:
    """A serialised engine of an ONNX model whose inputs have the batch as their first axis, and nothing else free.

    Args:
        content: the ONNX file, weights inside.
        name: what messages call it.
        buckets: batch sizes of at least 1, a profile each, in this order.
        workspace_bytes: most memory a layer may use while it works.
        timing_cache: a file of kernel timings, read if there and written again: with the same one a rebuild takes the same kernels.
            One that cannot be written is done without; TensorRT-RTX, which times nothing, keeps nothing in it.
        compute_capability: (major, minor) of the GPU to build for. TensorRT-RTX alone can choose, and needs no GPU to build; None
            there is Ampere and later, None elsewhere this computer's GPU.
        version_compatible, hardware_compatible: plans that later TensorRTs, or all GPUs from Ampere on, run as well (TensorRT alone).
        progress: called with (phase, step, steps); what it raises stops the build and reaches the caller.

    Raises:
        BackendError: TensorRT is not installed, or refuses the model or the options; the sentence carries its reason.
    """
    if not buckets or min(buckets) < 1:
        raise BackendError(f"{name}: the buckets are {list(buckets)}; expected batch sizes of at least 1")
    builder = start(trt.Builder)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger())
    if not parser.parse(content):
        raise BackendError(f"TensorRT cannot read {name}: {_reasons(parser)}; export it again or choose another backend")
    sides = _sides(network, name)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)
    for size in buckets:
        profile = builder.create_optimization_profile()
        for tensor, rest in sides.items():
            shape = trt.Dims((size, *rest))
            profile.set_shape(tensor, shape, shape, shape)
        config.add_optimization_profile(profile)
    if version_compatible or hardware_compatible:
        if trt.__name__ == "tensorrt_rtx":
            raise BackendError("TensorRT-RTX makes no version- or hardware-compatible plans; name a --compute-capability instead")
        if version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if compute_capability is not None:
        target = cast("rtx.IBuilderConfig", config)
        target.num_compute_capabilities = 1
        target.set_compute_capability(supported(compute_capability), 0)
    cache = _timing_cache(config, timing_cache)
    monitor = _monitor(progress) if progress is not None else None
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.raised is not None:
        raise monitor.raised
    if plan is None:
        raise BackendError(f"TensorRT could not build {name}; its reason is in the log, under {__name__}")
    if cache is not None and timing_cache is not None:
        try:
            with atomic_file(timing_cache) as temporary:
                temporary.write_bytes(content_of(cache.serialize()))
        except (DataError, OSError) as error:
            _log.warning("the kernel timings of %s are not kept: %s", name, error)
    return content_of(plan)


def content_of(memory: Any) -> bytes:
    """A copy of memory that TensorRT owns, empty where it gave none; it is a buffer to Python, but its signatures do not say so."""
    return b"" if memory is None else bytes(memory)


def _line(error: object) -> str:
    """What a library says, on one line."""
    return " ".join(str(error).split()).rstrip(".")


def _reasons(parser: trt.OnnxParser) -> str:
    """All that the parser found wrong; an operator it does not know is one reason, however many nodes use it."""
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        found.append(f"{error.node_operator()}: {_line(error.desc())}" if error.node_operator() else _line(error.desc()))
    return "; ".join(dict.fromkeys(found)) or "it does not say why"


def _sides(network: trt.INetworkDefinition, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of all inputs without the batch."""
    sides = {}
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = [int(tensor.shape[k]) for k in range(len(tensor.shape))]
        if shape[:1] != [-1] or -1 in shape[1:]:
            raise BackendError(f"{name}: '{tensor.name}' is {shape}; expected the batch (-1) to be free and nothing else, export it again")
        sides[tensor.name] = tuple(shape[1:])
    return sides


def supported(capability: tuple[int, int]) -> rtx.ComputeCapability:
    """TensorRT-RTX's word for the GPUs of a compute capability, which need not be here.

    Raises:
        BackendError: it does not build for those, or what is installed is TensorRT, which builds for this computer's GPU alone.
    """
    words = f"{capability[0]}.{capability[1]}"
    if not hasattr(rtx, "ComputeCapability"):
        raise BackendError(f"only TensorRT-RTX builds for another GPU ({words}); install metascatter[rtx], or build on that GPU")
    chosen = getattr(rtx.ComputeCapability, f"SM{capability[0]}{capability[1]}", None)
    if chosen is None:
        able = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in rtx.ComputeCapability.__members__ if n.startswith("SM"))
        raise BackendError(f"TensorRT-RTX does not build for compute capability {words}; it does for {able}")
    return chosen


def _timing_cache(config: trt.IBuilderConfig, path: Path | None) -> trt.ITimingCache | None:
    if path is None or trt.__name__ == "tensorrt_rtx":
        return None
    try:
        known = path.read_bytes()
    except OSError:
        known = b""
    if hasattr(trt.BuilderFlag, "EDITABLE_TIMING_CACHE"):
        config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)
    cache = config.create_timing_cache(known)
    # A cache of another version or GPU is no error: it is begun anew.
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        if cache is not None:
            config.set_timing_cache(cache, False)
    return cache


def _monitor(progress: OnProgress) -> Any:
    """TensorRT's progress, step by step, in a callback."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.raised: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: SupportsInt) -> None:
            self.steps[phase_name] = int(num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            """False ends the build; an exception must not cross TensorRT's own code."""
            try:
                if self.raised is None:
                    progress(phase_name, int(step) + 1, self.steps.get(phase_name, 0))
            except BaseException as error:
                self.raised = error
            return self.raised is None

    return Monitor()
