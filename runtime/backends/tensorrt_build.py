"""ONNX -> TensorRT plan, with one code path for TensorRT 10.x, 11.x and TensorRT-RTX.

Every network is strongly typed: the precision is the ONNX file's, and no builder flag changes it. TF32 is switched off, so that fp32
means fp32. Each batch size has an optimisation profile of its own, with nothing left free in it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import BackendError
from ..files import atomic_file

WORKSPACE_BYTES = 1 << 30
OnProgress = Callable[[str, int, int], None]

_log = logging.getLogger(__name__)


def module() -> ModuleType:
    """TensorRT, or TensorRT-RTX where that is what is installed.

    Raises:
        BackendError: neither is.
    """
    for name in ("tensorrt", "tensorrt_rtx"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise BackendError("TensorRT is not installed; install metascatter[tensorrt], or metascatter[rtx] for RTX cards")


class _Installed:
    """Whichever is installed, imported when something of it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(module(), name)


if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt_rtx
else:
    trt = _Installed()

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
    """A serialised engine of an ONNX model whose first axis is the batch.

    Args:
        content: the ONNX file, weights inside.
        name: what messages call it.
        buckets: batch sizes, a profile each, in this order.
        workspace_bytes: most memory a layer may use while it works.
        timing_cache: a file of kernel timings, read if there and written again: with the same one a rebuild takes the same kernels.
        compute_capability: build for another GPU than this computer's; TensorRT-RTX alone can, and needs no GPU then.
        version_compatible, hardware_compatible: plans that later TensorRTs, or all GPUs from Ampere on, run as well (TensorRT alone).
        progress: called with (phase, step, steps); what it raises stops the build and reaches the caller.

    Raises:
        BackendError: TensorRT is not installed, or refuses the model or the options; the sentence carries its reason.
    """
    log = logger()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        reasons = "; ".join(str(parser.get_error(i).desc()) for i in range(min(parser.num_errors, 3)))
        raise BackendError(f"TensorRT cannot read {name}: {reasons or 'it does not say why'}; export it again or choose another backend")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)
    for size in buckets:
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            shape = (size, *tuple(tensor.shape)[1:])
            profile.set_shape(tensor.name, shape, shape, shape)
        config.add_optimization_profile(profile)
    if version_compatible or hardware_compatible:
        if trt.__name__ == "tensorrt_rtx":
            raise BackendError("TensorRT-RTX makes no version- or hardware-compatible plans; name a --compute-capability instead")
        if version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if compute_capability is not None:
        _target(config, compute_capability)
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
        with contextlib.suppress(OSError, BackendError), atomic_file(timing_cache) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))
    return bytes(plan)


def _target(config: Any, capability: tuple[int, int]) -> None:
    """Build for a GPU that need not be here."""
    words = f"{capability[0]}.{capability[1]}"
    if TYPE_CHECKING:
        rtx = tensorrt_rtx
    else:
        rtx = module()
    if not hasattr(rtx, "ComputeCapability"):
        raise BackendError(f"only TensorRT-RTX builds for another GPU ({words}); install metascatter[rtx], or build on that GPU")
    chosen = getattr(rtx.ComputeCapability, f"SM{capability[0]}{capability[1]}", None)
    if chosen is None:
        able = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in rtx.ComputeCapability.__members__ if n.startswith("SM"))
        raise BackendError(f"TensorRT-RTX does not build for compute capability {words}; it does for {able}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(chosen, 0)


def _timing_cache(config: trt.IBuilderConfig, path: Path | None) -> trt.ITimingCache | None:
    if path is None:
        return None
    try:
        known = path.read_bytes()
    except OSError:
        known = b""
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

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            self.steps[phase_name] = int(num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """False ends the build; an exception must not cross TensorRT's own code."""
            try:
                if self.raised is None:
                    progress(phase_name, int(step) + 1, self.steps.get(phase_name, 0))
            except BaseException as error:
                self.raised = error
            return self.raised is None

    return Monitor()
