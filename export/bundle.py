"""A run folder -> a bundle: everything the runtime needs, hashed, with its self-test, parity report and model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.bundle import FORMAT
from runtime.condition import Condition
from runtime.data import DataSet
from runtime.errors import BundleError, DataError
from runtime.labels import Labels
from runtime.loop import Guidance
from runtime.samples import SampleSet
from runtime.schedulers import plan
from train.finetune import read_json
from train.networks import unrolled
from train.objective import Denoising

from . import packing, parity, precision, yardsticks
from .fused import fuse
from .onnx import EXAMPLE_BATCH, Part, parts, restorer_part, surrogate_part, to_onnx
from .run import Run, fits
from .yardsticks import Designs, Restored, Samples

Say = Callable[[str], None]


def export(
    run: Path,
    out: Path,
    *,
    precisions: Sequence[str] = ("fp32",),
    surrogate: Path | None = None,
    fused: int | None = None,
    max_batch: int = 256,
    force: bool = False,
    evaluation: Path | None = None,
    step: int | None = None,
    sampling: dict[str, Any] | None = None,
    say: Say = lambda text: None,
) -> Path:
    """Write the bundle of a run's checkpoint (EMA weights) to ``out``, whole or not at all.

    Args:
        run: a folder that ``cli.py train`` wrote.
        precisions: of ``fp32``, which is always written, ``fp16`` and ``int8``.
        surrogate: the run of a surrogate, which ranks what the run's network proposes.
        fused: steps of a sampler that is one ONNX file, ``sampler.onnx``; None leaves it out.
        max_batch: the largest batch that engines are built for.
        force: write precisions that are worse than their bound.
        evaluation: JSON of ``cli.py evaluate --json`` to put into the manifest and the model card.
        step: of the checkpoint to export; None is the newest.
        sampling: settings that replace the recipe's defaults (``scheduler``, ``steps``, ``guidance_scale``, ``eta``).
        say: called with a line per stage.

    Raises:
        DataError: ``run`` or ``surrogate`` is no run folder of that kind, or they do not belong together.
        BundleError: a file gives other numbers than PyTorch, by more than ``parity`` admits.
    """
    trained = Run.open(run, "denoising", step)
    recipe, condition = trained.recipe, trained.condition
    if recipe.objective == "restoration":
        further = {"surrogate": surrogate, "fused": fused, "evaluation": evaluation, **(sampling or {})}
        unused = next((name for name, value in further.items() if value is not None), None)
        if unused is not None:
            option = unused.replace("_", "-")
            raise DataError(f"the recipe {recipe.name} denoises in one step and samples nothing; leave --{option} out")
        return _restoration(trained, out, precisions, max_batch, force, say)
    ranking = None if surrogate is None else Run.open(surrogate, "scattering")
    if ranking is not None:
        fits(ranking, trained)
    results = _evaluation(evaluation) if evaluation is not None else None
    defaults = {"scheduler": recipe.sampling_scheduler, "steps": recipe.sampling_steps, "guidance_scale": 1.0, "eta": 0.0}
    if recipe.objective == "denoising":
        defaults["guidance_scale"] = float(recipe.guidance_scale)
    settings = {**defaults, **(sampling or {})}
    config = read_json(run / "scheduler_config.json")
    # What cannot be sampled with is refused now, rather than by every command that opens the bundle.
    plan(config, settings["steps"], settings["scheduler"], settings["eta"])
    whole = None if fused is None else plan(config, fused, settings["scheduler"], settings["eta"])
    if not np.isfinite(settings["guidance_scale"]):
        raise BundleError(f"guidance_scale is {settings['guidance_scale']}; it must be a finite number")
    if settings["guidance_scale"] != 1 and (condition.layout == "planes" or (isinstance(condition, Labels) and not condition.classes)):
        raise BundleError(f"the recipe {recipe.name} was not trained without condition; guidance_scale must be 1")
    if fused is not None and isinstance(condition, Labels):
        raise BundleError(f"the recipe {recipe.name} is of images or points; --fused is for metasurfaces, leave it out")
    _replaceable(out)
    say(f"read {trained.newest}")

    shape, size, start = _sizes(trained)

    def drawn(half: bool) -> dict[str, Part]:
        """The parts of all networks, an encoder first."""
        network = precision.half(trained.network) if half else trained.network
        example = {key: torch.from_numpy(np.repeat(value, EXAMPLE_BATCH, axis=0)) for key, value in condition.nothing().items()}
        made = parts(network, shape, example)
        if ranking is not None:
            made |= surrogate_part(precision.half(ranking.network) if half else ranking.network, size)
        return made

    reference = drawn(half=False)
    graphs = {"fp32": _exported(reference, "", say)}
    say("sampling with PyTorch")
    table = plan(config, min(settings["steps"], parity.STEPS), settings["scheduler"], settings["eta"])
    guidance = Guidance(float(settings["guidance_scale"]))
    alphas = Denoising(recipe.scheduler, recipe.loss).scheduler.alphas_cumprod.numpy()
    yardstick: Designs | Samples
    if isinstance(condition, Labels):
        assert isinstance(trained.calibration, SampleSet)
        yardstick = Samples(reference, condition, trained.calibration, table, guidance, shape, alphas)
    else:
        assert isinstance(trained.calibration, DataSet)
        assert isinstance(trained.tests, DataSet)
        yardstick = Designs(reference, condition, trained.calibration, trained.tests, table, guidance, shape, start, alphas)
    report = _compared(graphs, yardstick, drawn, precisions, force, say, unrolled.passes(recipe.network_arguments))
    files: dict[str, bytes] = {"scheduler_config.json": (run / "scheduler_config.json").read_bytes()}
    golden, described = packing.networks(reference, graphs, yardstick, files)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "task": "samples" if isinstance(condition, Labels) else "metasurface",
        "recipe": recipe.to_dict(),
        "condition": condition.to_dict(),
        "sample_shape": list(shape),
        "networks": described,
        "max_batch": max_batch,
        "sampling": settings,
        "training": trained.history(),
        "metrics": results,
        "versions": packing.versions(),
    }
    if isinstance(condition, Condition):
        manifest |= {"geometry": trained.facts["geometry"], "pattern_size": size, "window": [start, start]}
        if condition.channels:
            manifest["channels"] = trained.facts["channels"]
    if ranking is not None:
        manifest["surrogate"] = {"recipe": ranking.recipe.to_dict(), "training": ranking.history()}
    if whole is not None and isinstance(yardstick, Designs):
        say(f"fusing {settings['scheduler']} in {fused} steps into sampler.onnx")
        files["sampler.onnx"] = fuse(
            whole, yardstick.condition, graphs["fp32"], sample_shape=shape, window=(start, start), pattern_size=size
        )
        apart = yardsticks.fused(files["sampler.onnx"], whole, yardstick, graphs["fp32"])
        words = f"{apart['equal']:.0%} of sampler.onnx's samples equal the Python sampler's to {yardsticks.BOUND_FUSED:g}"
        say(f"  {words}, all of them to {apart['max_abs']:.1e}")
        if not apart["equal"] >= yardsticks.EQUAL:
            raise BundleError(f"only {words}; no bundle was written")
        manifest["fused"] = {**packing.signature(files["sampler.onnx"], {**settings, "steps": fused}), **apart}
    return packing.written(out, manifest, files, golden, report, say)


def _restoration(trained: Run, out: Path, precisions: Sequence[str], max_batch: int, force: bool, say: Say) -> Path:
    """:func:`export` of a network that denoises in one step."""
    recipe, labels, shape = trained.recipe, trained.condition, tuple(trained.facts["sample_shape"])
    assert isinstance(labels, Labels)
    assert isinstance(trained.calibration, SampleSet)
    assert isinstance(trained.tests, SampleSet)
    _replaceable(out)
    say(f"read {trained.newest}")

    def drawn(half: bool) -> dict[str, Part]:
        return restorer_part(precision.half(trained.network) if half else trained.network, shape)

    reference = drawn(half=False)
    graphs = {"fp32": _exported(reference, "", say)}
    yardstick = Restored(reference, labels, trained.calibration, trained.tests, recipe.noise_sigma)
    report = _compared(graphs, yardstick, drawn, precisions, force, say)
    files: dict[str, bytes] = {}
    golden, described = packing.networks(reference, graphs, yardstick, files)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "task": "restoration",
        "recipe": recipe.to_dict(),
        "condition": labels.to_dict(),
        "sample_shape": list(shape),
        "networks": described,
        "max_batch": max_batch,
        "noise_sigma": recipe.noise_sigma,
        "training": trained.history(),
        "metrics": None,
        "versions": packing.versions(),
    }
    return packing.written(out, manifest, files, golden, report, say)


def _compared(
    graphs: dict[str, dict[str, bytes]],
    yardstick: parity.Comparison,
    drawn: Callable[[bool], dict[str, Part]],
    precisions: Sequence[str],
    force: bool,
    say: Say,
    passes: int = 1,
) -> dict[str, Any]:
    """Add the other precisions to ``graphs``; the report on all of them in every engine. Raises BundleError where one is too far off."""
    if "fp16" in precisions:
        graphs["fp16"] = _exported(drawn(True), ".fp16", say)
    if "int8" in precisions:
        graphs["int8"] = _quantized(graphs["fp32"], yardstick, say)
    say(f"comparing with PyTorch on {yardstick.words}")
    report, absent = parity.every_engine(graphs, yardstick, say)
    for where, reason in absent.items():
        say(f"  {where}: not measured, {reason}")
    _judge(report, graphs, passes, force, say)
    return report


def _sizes(run: Run) -> tuple[tuple[int, ...], int, int]:
    """The shape of a sample, and of metasurfaces the pattern's size and its first row and column there (0 and 0 of others)."""
    if isinstance(run.condition, Labels):
        return tuple(run.facts["sample_shape"]), 0, 0
    size = int(run.facts["pattern_size"])
    side = run.recipe.canvas or size
    return (1, side, side), size, (side - size) // 2


def _exported(made: Mapping[str, Part], suffix: str, say: Say) -> dict[str, bytes]:
    graphs = {}
    for name, part in made.items():
        say(f"exporting {name}{suffix}.onnx")
        graphs[name] = to_onnx(part)
    return graphs


def _quantized(graphs: Mapping[str, bytes], yardstick: parity.Comparison, say: Say) -> dict[str, bytes]:
    made = dict(graphs)
    for name in graphs:
        if name != "encoder":
            say(f"quantizing {name}.int8.onnx")
            made[name] = precision.int8(graphs[name], yardstick.inputs[name])
    return made


def _judge(report: Mapping[str, Any], graphs: Mapping[str, Any], passes: int, force: bool, say: Say) -> None:
    """Refuse what is too far from PyTorch. bf16 is an engine's own rounding of the fp32 file, reported and not judged.

    Raises:
        BundleError: with the reason.
    """
    for kind in graphs:
        for where, found in report[kind].items():
            reason, forgivable = parity.refusal(kind, where, found, passes)
            if reason is None:
                continue
            if not (forgivable and force):
                remedy = f"leave --{kind} out, or write it all the same with --force" if forgivable else "no bundle was written"
                raise BundleError(f"{reason}; {remedy}")
            say(f"  {reason}; written because of --force")


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
    for key in ("targets", "n", "seed", "ranked", "oracle", "baselines", "by_height_nm", "per_target", "sampler", "seconds"):
        if not isinstance(results, dict) or key not in results:
            raise DataError(f"{path} lacks the field '{key}'; name a file that 'cli.py evaluate --json' wrote")
    return results
