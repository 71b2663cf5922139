"""A run folder -> a bundle: everything the runtime needs, hashed, with its self-test, parity report and model card."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.bundle import FORMAT, digest
from runtime.condition import Condition
from runtime.data import load
from runtime.errors import BundleError, DataError
from runtime.files import atomic_directory
from runtime.schedulers import plan
from runtime.version import __version__
from train import checkpoint, networks
from train.recipes import from_dict

from . import card, parity
from .onnx import EXAMPLE_BATCH, parts, to_onnx

TOOLS = ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "numpy")


def export(
    run: Path,
    out: Path,
    *,
    evaluation: Path | None = None,
    sampling: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the bundle of a run's last checkpoint (EMA weights) to ``out``, whole or not at all.

    Args:
        run: a folder that ``cli.py train`` wrote.
        evaluation: JSON of ``cli.py evaluate --json`` to put into the manifest and the model card.
        sampling: settings that replace the recipe's defaults (``scheduler``, ``steps``, ``guidance_scale``, ``eta``).
        say: called with a line per stage.

    Raises:
        DataError: ``run`` is no run folder.
        BundleError: the ONNX graphs differ from PyTorch by more than ``parity.BOUND``.
    """
    facts, recipe_fields, condition_fields = (_json(run / name) for name in ("data.json", "recipe.json", "condition.json"))
    recipe = from_dict(recipe_fields, str(run / "recipe.json"))
    condition = Condition.from_dict(condition_fields)
    results = _evaluation(evaluation) if evaluation is not None else None
    defaults = {"scheduler": recipe.sampling_scheduler, "steps": recipe.sampling_steps, "guidance_scale": 1.0, "eta": 0.0}
    settings = {**defaults, **(sampling or {})}
    # What cannot be sampled with is refused now, rather than by every command that opens the bundle.
    plan(_json(run / "scheduler_config.json"), settings["steps"], settings["scheduler"], settings["eta"])
    if not np.isfinite(settings["guidance_scale"]):
        raise BundleError(f"guidance_scale is {settings['guidance_scale']}; it must be a finite number")
    if condition.layout == "planes" and settings["guidance_scale"] != 1:
        raise BundleError(f"the recipe {recipe.name} was not trained without condition; guidance_scale must be 1")
    _replaceable(out)
    newest = checkpoint.latest(run)
    say(f"reading {newest}")
    network = networks.build(recipe.network, recipe.network_arguments)
    network.load_state_dict(checkpoint.load_weights(newest))
    network.eval()

    size = int(facts["pattern_size"])
    side = recipe.canvas or size
    sample_shape = (1, side, side)
    samples = load(run / "calibration.npz")
    count = max(parity.BATCHES)
    samples = samples.take(np.arange(count) % len(samples))
    arrays = condition.arrays(samples.Rm, samples.Tm, samples.h)
    example = {key: torch.from_numpy(value[:EXAMPLE_BATCH]) for key, value in arrays.items()}
    rng = np.random.Generator(np.random.Philox(key=[0, 0]))
    inputs: dict[str, np.ndarray] = {
        "sample": rng.standard_normal((count, *sample_shape), dtype=np.float32),
        "timestep": rng.integers(0, recipe.scheduler["num_train_timesteps"], count),
        **arrays,
    }
    files: dict[str, bytes] = {}
    described: dict[str, Any] = {}
    report: dict[str, Any] = {}
    golden: dict[str, np.ndarray] = {}
    for name, part in parts(network, sample_shape, example).items():
        say(f"exporting {name}.onnx")
        model = to_onnx(part)
        given = {key: inputs[key] for key in part.inputs}
        report[name] = {"fp32": {"onnxruntime cpu": parity.measure(name, part, model, given)}}
        worst = parity.worst(report[name]["fp32"]["onnxruntime cpu"])
        say(f"  differs from PyTorch by at most {worst:.1e} at batches {', '.join(map(str, parity.BATCHES))}")
        if not worst <= parity.BOUND:
            raise BundleError(f"{name}.onnx differs from PyTorch by {worst:.1e}, more than {parity.BOUND:.0e}; no bundle was written")
        outputs = {key: value.numpy() for key, value in part({k: torch.from_numpy(v) for k, v in given.items()}).items()}
        inputs.update(outputs)
        files[f"{name}.onnx"] = model
        described[name] = {
            "files": {"fp32": f"{name}.onnx"},
            "inputs": _describe(given),
            "outputs": _describe(outputs),
            "parameters": part.parameters,
        }
        golden.update({f"{name}.in.{key}": value[:4] for key, value in given.items()})
        golden.update({f"{name}.out.{key}": value[:4] for key, value in outputs.items()})

    files["scheduler_config.json"] = (run / "scheduler_config.json").read_bytes()
    files["golden.npz"] = _npz(golden)
    files["parity.json"] = _text({"bound_fp32": parity.BOUND, "networks": report})
    start = (side - size) // 2
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "task": "metasurface",
        "recipe": recipe.to_dict(),
        "geometry": facts["geometry"],
        "condition": condition.to_dict(),
        "pattern_size": size,
        "sample_shape": list(sample_shape),
        "window": [start, start],
        "networks": described,
        "sampling": settings,
        "training": {**{k: v for k, v in facts.items() if k != "geometry"}, **_history(run, newest)},
        "metrics": results,
        "versions": {"metascatter": __version__, **{tool: metadata.version(tool) for tool in TOOLS}},
    }
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


def _replaceable(out: Path) -> None:
    """Refuse to replace a folder that is no bundle: it would be gone with everything in it."""
    if out.is_dir() and any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise DataError(f"{out} holds something else than a bundle; name a new folder with --out")


def _evaluation(path: Path) -> Any:
    """The output of ``evaluate --json``, of which the model card needs some fields."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); name a file that 'cli.py evaluate --json' wrote") from None
    for key in ("targets", "n", "seed", "ranked", "oracle", "baselines", "by_height_nm", "per_target"):
        if not isinstance(results, dict) or key not in results:
            raise DataError(f"{path} lacks the field '{key}'; name a file that 'cli.py evaluate --json' wrote")
    return results


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; name the folder that 'cli.py train --out' wrote") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None


def _history(run: Path, newest: Path) -> dict[str, Any]:
    """Steps, time and losses of the run, from its metrics."""
    step = json.loads((newest / "state.json").read_text(encoding="utf-8"))["step"]
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    # A kill leaves half a line, or rows of steps after the last checkpoint.
    rows = [row for row in (json.loads(line) for line in lines if line.endswith("}")) if row["step"] <= step]
    last = rows[-1] if rows else {}
    machine = _json(run / "machine.json")
    return {
        "steps": step,
        "epochs": last.get("epoch"),
        "seconds": last.get("seconds"),
        "loss": last.get("loss"),
        "validation_loss": last.get("validation_loss"),
        "machine": machine,
    }


def _describe(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {key: {"shape": ["batch", *value.shape[1:]], "dtype": value.dtype.name} for key, value in arrays.items()}


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """An ``.npz`` whose bytes depend on the arrays alone: numpy.savez stamps fixed times, and the names are sorted."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{key: arrays[key] for key in sorted(arrays)})  # type: ignore[arg-type]
    return buffer.getvalue()


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
