"""A bundle as a model repository for NVIDIA's Triton Inference Server: its networks, and the fused sampler where it has one.

The layout and the fields of ``config.pbtxt`` are those of Triton's documentation (model repository, model configuration); every model runs
in its ONNX Runtime backend and gathers requests into batches by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle
from runtime.errors import BundleError, DataError
from runtime.files import atomic_directory

_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8", "bool": "TYPE_BOOL"}
_DELAY_US = 500  # how long a request may wait for company; a call of the denoiser takes some milliseconds on a CPU


def check(out: Path) -> None:
    """Refuse an output folder before the work rather than after it.

    Raises:
        DataError: ``out`` holds something else than what :func:`write_repository` writes, which would be lost.
    """
    if out.is_dir():
        for model in out.iterdir():
            held = {path.relative_to(model).as_posix() for path in model.rglob("*")}
            if not model.name.startswith("metascatter_") or held != {"1", "1/model.onnx", "config.pbtxt"}:
                raise DataError(f"{out} holds something else than a model repository of metascatter ({model.name}); name a new folder")


def write_repository(bundle: Path, out: Path, precision: str = "fp32", say: Callable[[str], None] = lambda text: None) -> Path:
    """Write the model repository of a bundle to the folder ``out``, whole or not at all.

    ``metascatter_denoiser``, ``metascatter_encoder``, ``metascatter_surrogate`` and ``metascatter_sampler``, as far as the bundle has them.

    Raises:
        BundleError: the bundle has no files in that precision, or its fused sampler draws noise at every step, so that its requests cannot
            be put together.
        DataError: ``out`` cannot be written, or holds something else than a model repository of ours.
    """
    check(out)
    opened = Bundle.open(bundle)
    largest = int(opened.manifest.get("max_batch", 256))
    models: dict[str, tuple[bytes, str]] = {}
    for name, entry in opened.manifest["networks"].items():
        models[f"metascatter_{name}"] = (
            opened.network(name, precision),
            _config(f"metascatter_{name}", entry["inputs"], entry["outputs"], largest),
        )
    fused = opened.manifest.get("fused")
    if fused is not None:
        if fused["inputs"]["noise"]["shape"][0] != "batch":
            raise BundleError(
                f"the fused sampler of {bundle} takes noise for every step ({fused['scheduler']}), whose first axis is not the batch, "
                "so that Triton cannot put requests together; export it with a scheduler that draws none, such as dpmsolver++"
            )
        models["metascatter_sampler"] = (
            opened.read(fused["file"]),
            _config("metascatter_sampler", fused["inputs"], fused["outputs"], largest),
        )
    with atomic_directory(out) as work:
        for name, (content, config) in models.items():
            (work / name / "1").mkdir(parents=True)
            (work / name / "1" / "model.onnx").write_bytes(content)
            (work / name / "config.pbtxt").write_text(config, encoding="utf-8")
    say(f"wrote {out}: {', '.join(models)}; start it with: tritonserver --model-repository={out}")
    return out


def _config(name: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], largest: int) -> str:
    """``config.pbtxt``: with a ``max_batch_size`` the batch, every array's first axis, is left out of ``dims``."""
    preferred = [size for size in (8, 64) if size < largest] + [largest]
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {largest}",
        *_arrays("input", inputs),
        *_arrays("output", outputs),
        "dynamic_batching {",
        f"  preferred_batch_size: [ {', '.join(map(str, preferred))} ]",
        f"  max_queue_delay_microseconds: {_DELAY_US}",
        "}",
        "instance_group { count: 1 kind: KIND_AUTO }",  # on a GPU where the server has one, else on the CPU
        "version_policy { latest { num_versions: 1 } }",
    ]
    return "\n".join(lines) + "\n"


def _arrays(kind: str, arrays: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, array in arrays.items():
        sides = array["shape"][1:]
        # A scalar of every row is a vector of one to Triton, which it takes for the model's shape.
        shape = f"dims: [ {', '.join(map(str, sides))} ]" if sides else "dims: [ 1 ]\n  reshape { shape: [ ] }"
        lines.append(f'{kind} {{\n  name: "{key}"\n  data_type: {_TYPES[array["dtype"]]}\n  {shape}\n}}')
    return lines
