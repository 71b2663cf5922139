"""What a bundle is packed from: its files, the manifest's entries of them, and the folder they are written to."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import digest
from runtime.files import atomic_directory
from runtime.version import __version__

from . import card, parity
from .onnx import Part

TOOLS = ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "numpy")


def networks(
    reference: Mapping[str, Part], graphs: Mapping[str, Mapping[str, bytes]], yardstick: parity.Comparison, files: dict[str, bytes]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The golden arrays and the manifest's entries of networks, whose ONNX files are put into ``files``."""
    described: dict[str, Any] = {}
    golden: dict[str, np.ndarray] = {}
    for name, part in reference.items():
        named = {}
        for kind, made in graphs.items():
            # An int8 encoder would cost exactness and save nothing: it runs once for a target.
            named[kind] = f"{name}.onnx" if made[name] is graphs["fp32"][name] else f"{name}.{kind}.onnx"
            files[named[kind]] = made[name]
        given, found = yardstick.inputs[name], yardstick.outputs[name]
        cost = {"parameters": part.parameters, "flops": part.flops()}
        described[name] = {"files": named, "inputs": _describe(given), "outputs": _describe(found), **cost}
        golden.update({f"{name}.in.{key}": value[:4] for key, value in given.items()})
        golden.update({f"{name}.out.{key}": value[:4] for key, value in found.items()})
    return golden, described


def versions() -> dict[str, str]:
    """Of this package and of the tools that write bundles."""
    return {"metascatter": __version__, **{tool: metadata.version(tool) for tool in TOOLS}}


def written(
    out: Path,
    manifest: dict[str, Any],
    files: dict[str, bytes],
    golden: Mapping[str, np.ndarray],
    report: Mapping[str, Any],
    say: Callable[[str], None],
) -> Path:
    """Put self-test, parity report, model card and hashes beside the files, and all of them into ``out``."""
    files["golden.npz"] = _npz(golden)
    files["parity.json"] = _text({"bound_fp32": parity.BOUND, "bound_ranked": parity.WORSE, "precisions": report})
    files["README.md"] = card.write(manifest, report).encode()
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in sorted(files.items())
    }
    manifest["digest"] = digest(manifest)
    with atomic_directory(out) as work:
        for name, content in files.items():
            (work / name).write_bytes(content)
        (work / "manifest.json").write_bytes(_text(manifest))
    say(f"wrote {out} ({sum(map(len, files.values())) / 1e6:.1f} MB)")
    return out


def signature(model: bytes, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a foreign program has to know of the fused sampler."""
    import onnx

    def arrays(values: Any) -> dict[str, Any]:
        return {
            value.name: {
                "shape": [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim],
                "dtype": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            }
            for value in values
        }

    graph = onnx.load_from_string(model).graph
    return {"file": "sampler.onnx", **settings, "inputs": arrays(graph.input), "outputs": arrays(graph.output)}


def _describe(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {key: {"shape": ["batch", *value.shape[1:]], "dtype": value.dtype.name} for key, value in arrays.items()}


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An ``.npz`` whose bytes depend on the arrays alone: numpy.savez stamps fixed times, and the names are sorted."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{key: arrays[key] for key in sorted(arrays)})  # type: ignore[arg-type]
    return buffer.getvalue()


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
