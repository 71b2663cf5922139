"""ONNX -> TensorRT plan, with one code path for TensorRT 10.x, 11.x and TensorRT-RTX.

Every network is strongly typed: the precision is the ONNX file's, and no builder flag changes it. TF32 is switched off, so that fp32
means fp32. Each batch size has an optimisation profile of its own, with nothing left free in it.
"""

from __future__ import annotations

import importlib
import logging
import threading
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
        progress: called with (phase, step, steps), in another thread; what it raises stops the build and reaches the caller.

    Raises:
        BackendError: TensorRT is not installed, or refuses the model or the options; the sentence carries its reason.
        KeyboardInterrupt: the user had enough; the build has ended by then.
    """
    if not buckets or min(buckets) < 1:
        raise BackendError(f"{name}: the buckets are {list(buckets)}; expected batch sizes of at least 1")
    if version_compatible or hardware_compatible:
        check_compatible()
    target = None if compute_capability is None else supported(compute_capability)
    monitor = _monitor(progress)

    def work() -> bytes:
        builder = start(trt.Builder)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger())  # the network's weights lie in its memory
        if not parser.parse(content):
            raise BackendError(f"TensorRT cannot read {name}: {_reasons(parser)}; export it again or choose another backend")
        config = _config(builder, network, name, buckets, workspace_bytes, target)
        if version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        cache = _timing_cache(config, timing_cache)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if monitor.raised is not None:  # by progress
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

    return _aside(work, monitor)


def _aside(work: Callable[[], T], monitor: Any) -> T:
    """What ``work`` returns or raises, in a thread of its own, which has ended when this returns or raises.

    A KeyboardInterrupt that falls into one of TensorRT's callbacks is swallowed by it, or brings the process down; only the main thread
    gets them, and so does no work here.
    """
    made: list[T] = []
    begun, ended = threading.Event(), threading.Event()  # an interrupted join takes a thread for ended that is not (bpo-45274)

    def run() -> None:
        begun.set()
        try:
            if not monitor.stopped:
                made.append(work())
        except BaseException as error:
            monitor.raised = error
        finally:
            ended.set()

    try:
        threading.Thread(target=run, name="tensorrt").start()
        while not ended.wait(0.2):  # on Windows nothing interrupts a wait without an end
            pass
    except BaseException:
        monitor.stopped = True
        if begun.is_set():  # else it finds that it is stopped
            ended.wait()
        raise
    if monitor.raised is not None:
        raise monitor.raised
    return made[0]


def _config(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    name: str,
    buckets: Sequence[int],
    workspace_bytes: int,
    target: rtx.ComputeCapability | None,
) -> trt.IBuilderConfig:
    """The builder's settings, with a profile per bucket."""
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
    if target is not None:
        chooses = cast("rtx.IBuilderConfig", config)
        chooses.num_compute_capabilities = 1
        chooses.set_compute_capability(target, 0)
    return config


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


def check_compatible() -> None:
    """Refuse version- and hardware-compatible plans where what is installed makes none.

    Raises:
        BackendError: it is TensorRT-RTX.
    """
    if trt.__name__ == "tensorrt_rtx":
        raise BackendError("TensorRT-RTX makes no version- or hardware-compatible plans; name a --compute-capability instead")


def supported(capability: tuple[int, int]) -> rtx.ComputeCapability:
    """TensorRT-RTX's word for the GPUs of a compute capability, which need not be here.

    Raises:
        BackendError: it does not build for those, or what is installed is TensorRT, which builds for this computer's GPU alone.
    """
    words = f"{capability[0]}.{capability[1]}"
    if not hasattr(rtx, "ComputeCapability"):
        raise BackendError(
            f"only TensorRT-RTX builds for another GPU ({words}); install metascatter[rtx] in place of TensorRT, or build on that GPU"
        )
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


def _monitor(progress: OnProgress | None) -> Any:
    """TensorRT's progress, step by step, in a callback; and the one way to stop a build."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.raised: BaseException | None = None
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: SupportsInt) -> None:
            self.steps[phase_name] = int(num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            """False ends the build; an exception must not cross TensorRT's own code."""
            try:
                if self.raised is None and progress is not None:
                    progress(phase_name, int(step) + 1, self.steps.get(phase_name, 0))
            except BaseException as error:
                self.raised = error
            return self.raised is None and not self.stopped

    return Monitor()
