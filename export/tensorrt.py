"""A bundle's ONNX files -> TensorRT engines, ahead of time: kept where the runtime looks for them, which then builds nothing.

The building itself is the runtime's own (``runtime.backends.tensorrt_build``), since a laboratory's computer does it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from runtime.backends import Load, cuda, tensorrt_build, tensorrt_plans
from runtime.backends.cuda import Device
from runtime.backends.tensorrt_plans import Options
from runtime.bundle import Bundle
from runtime.errors import BackendError, MetascatterError

PRECISIONS = ("fp32", "fp16")


def check(compute_capability: tuple[int, int] | None, *, version_compatible: bool = False, hardware_compatible: bool = False) -> Device:
    """The GPU that engines can be built for: the one named, or this computer's.

    Raises:
        BackendError: TensorRT is not installed, makes no such plans, does not build for the GPU, or there is none and none was named.
    """
    flavour = tensorrt_build.module().__name__
    if version_compatible or hardware_compatible:
        tensorrt_build.check_compatible()
    if compute_capability is not None:
        tensorrt_build.supported(compute_capability)
        return Device("", compute_capability)
    try:
        gpu = cuda.device()
    except BackendError as error:
        raise BackendError(
            f"no GPU to build for: {error}; or name one with --compute-capability, for which TensorRT-RTX (metascatter[rtx]) builds "
            "without it"
        ) from None
    if flavour == "tensorrt_rtx":
        try:
            tensorrt_build.supported(gpu.capability)
        except BackendError as error:
            raise BackendError(f"{error}; this computer has {gpu.name}, for which metascatter[tensorrt] builds in its place") from None
    return gpu


def build_engines(
    bundle: Path,
    precisions: Sequence[str],
    *,
    engine_dir: Path | None = None,
    compute_capability: tuple[int, int] | None = None,
    workspace_mb: int = 1024,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Build a plan of every network of a bundle in every precision, and keep each with its sidecar.

    Args:
        bundle: a folder that ``export.bundle.export`` wrote.
        precisions: of ``PRECISIONS``; the bundle has files in them.
        engine_dir: in place of the user's cache directory; ``METASCATTER_CACHE`` set to it makes the runtime look there.
        compute_capability: (major, minor) of the GPU to build for; None is this computer's GPU.
        workspace_mb: most memory a layer may use while it works, in MiB.
        version_compatible, hardware_compatible: plans that later TensorRTs, or all GPUs from Ampere on, run as well.
        say: called with a line per plan.

    Raises:
        BackendError: TensorRT cannot build it; see also :func:`check`.
        DataError: ``engine_dir`` cannot be written.
    """
    gpu = check(compute_capability, version_compatible=version_compatible, hardware_compatible=hardware_compatible)
    opened = Bundle.open(bundle)
    buckets = Load(max_batch=int(opened.manifest.get("max_batch", Load().max_batch))).buckets
    options = Options(workspace_mb << 20, version_compatible, hardware_compatible)
    written = []
    for precision in precisions:
        for network in opened.manifest["networks"]:
            name = opened.network_file(network, precision)
            with tqdm(desc=f"engine of {name}", unit="step", disable=None, leave=False) as bar:

                def progress(phase: str, step: int, steps: int, bar: tqdm = bar) -> None:
                    bar.set_postfix_str(phase, refresh=False)
                    bar.total, bar.n = steps, step
                    bar.refresh()

                try:
                    plan, path = tensorrt_plans.make(opened.network(network, precision), name, gpu, buckets, options, engine_dir, progress)
                except MetascatterError as error:
                    raise type(error)(f"{error}; the bundle {bundle} is written and its other engines stay") from None
            say(f"engine of {name}, batches {', '.join(map(str, buckets))}: {path} ({len(plan) / 1e6:.0f} MB)")
            written.append(path)
    return written
