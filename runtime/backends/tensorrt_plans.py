"""TensorRT plans that are kept: built from the ONNX on first use or by ``cli.py export --tensorrt``, found again by what they depend on.

TensorRT has no way to ask whether a plan fits, so a plan's name is a hash of all that it depends on, and a sidecar says the same for
people. Plans of TensorRT-RTX depend on the GPU's compute capability alone, so that they can be built where there is no GPU; those of
TensorRT on the GPU and the version, unless they were built to be compatible with others.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BackendError, DataError
from ..files import cache_directory, write_json
from . import kept, tensorrt_build
from .cuda import Device
from .tensorrt_build import OnProgress, trt

_log = logging.getLogger(__name__)


class Options(NamedTuple):
    """How a plan is built: most memory of a layer, and whether later versions or all GPUs from Ampere on shall run it as well."""

    workspace_bytes: int = tensorrt_build.WORKSPACE_BYTES
    version_compatible: bool = False
    hardware_compatible: bool = False


DEFAULT = Options()


def facts(content: bytes, gpu: Device, buckets: tuple[int, ...], options: Options = DEFAULT) -> dict[str, Any]:
    """What a plan depends on: with another value of any of these it is another plan."""
    rtx = trt.__name__ == "tensorrt_rtx"
    return {
        "flavour": trt.__name__,
        "version": trt.__version__.partition(".")[0] + ".x" if options.version_compatible else trt.__version__,
        "gpu": "Ampere or later" if options.hardware_compatible else f"compute capability {_words(gpu)}" if rtx else gpu.name,
        "onnx_sha256": hashlib.sha256(content).hexdigest(),
        "buckets": list(buckets),
    }


def make(
    content: bytes,
    name: str,
    gpu: Device,
    buckets: tuple[int, ...],
    options: Options = DEFAULT,
    root: Path | None = None,
    progress: OnProgress | None = None,
) -> tuple[bytes, Path]:
    """Build a plan and keep it with its sidecar; returns it, and where it belongs.

    Args:
        content: the ONNX file; ``name`` is what messages call it.
        gpu: what to build for; TensorRT-RTX needs it to be no more than a compute capability.
        root: a folder laid out as the user's cache directory, in place of that.

    Raises:
        BackendError: TensorRT cannot build it.
        DataError: ``root`` cannot be written; of the cache directory it is only logged.
    """
    told = facts(content, gpu, buckets, options)
    folder = cache_directory() if root is None else root
    path = kept.place("tensorrt", told, folder)
    timings = "".join(c if c.isalnum() else "-" for c in f"{trt.__name__}-{trt.__version__}-{told['gpu']}")
    # Unless it is told, TensorRT-RTX builds for Ampere and later, and the plan does not run on Turing.
    target = gpu.capability if trt.__name__ == "tensorrt_rtx" else None
    plan = tensorrt_build.build(
        content,
        name,
        buckets,
        workspace_bytes=options.workspace_bytes,
        timing_cache=folder / "tensorrt" / f"{timings}.timings",
        compute_capability=target,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        progress=progress,
    )
    try:
        kept.keep(path, plan, required=True)
        sidecar = {
            "network": name,
            **told,
            "compute_capability": _words(gpu),
            "workspace_bytes": options.workspace_bytes,
            "flags": ["STRONGLY_TYPED", "no TF32"],
            "plan_sha256": hashlib.sha256(plan).hexdigest(),
        }
        write_json(path.with_suffix(".json"), sidecar)
    except DataError as error:
        if root is not None:
            raise
        _log.warning(
            "the TensorRT engine of %s cannot be kept and is built at every start (%s); METASCATTER_CACHE names another folder", name, error
        )
    return plan, path


def engine(content: bytes, name: str, gpu: Device, buckets: tuple[int, ...]) -> tuple[trt.ICudaEngine, Path]:
    """A deserialised engine, from a plan that was kept where there is one and it fits, else built and kept; and where it is kept.

    Raises:
        BackendError: TensorRT cannot build it, or cannot load what it has just built.
    """
    runtime = tensorrt_build.start(trt.Runtime)
    for path, options in _places(content, gpu, buckets):
        plan = kept.fetch(path)
        if plan is None:
            continue
        # Plans for other versions carry code of their own; from the user's own cache that is no more trust than the rest takes.
        runtime.engine_host_code_allowed = options.version_compatible
        loaded = runtime.deserialize_cuda_engine(plan)
        if loaded is not None:
            return loaded, path
        _log.warning("TensorRT will not load %s, which is passed over", path)
    _log.info("building the TensorRT engine of %s for %s: this takes minutes, once", name, gpu.name)
    plan, path = make(content, name, gpu, buckets, progress=_Progress(name))
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        raise BackendError(f"TensorRT cannot load the engine it has just built of {name}; its reason is in the log")
    return loaded, path


def _places(content: bytes, gpu: Device, buckets: tuple[int, ...]) -> Iterator[tuple[Path, Options]]:
    """Where plans that run here may be, the most fitting first."""
    compatible = (False,) if trt.__name__ == "tensorrt_rtx" else (False, True)
    for hardware in compatible if gpu.capability >= (8, 0) else (False,):
        for version in compatible:
            options = Options(version_compatible=version, hardware_compatible=hardware)
            yield kept.place("tensorrt", facts(content, gpu, buckets, options)), options


class _Progress:
    """A line in the log for every tenth of a phase."""

    def __init__(self, name: str) -> None:
        self.name, self.told = name, ""

    def __call__(self, phase: str, step: int, steps: int) -> None:
        words = f"{phase}: {10 * step // max(steps, 1) * 10} %"
        if words != self.told:
            self.told = words
            _log.debug("%s, %s", self.name, words)


def _words(gpu: Device) -> str:
    return f"{gpu.capability[0]}.{gpu.capability[1]}"
