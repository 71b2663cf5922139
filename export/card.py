"""The model card: what a bundle is, what it was trained on, and how well it does, from numbers that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.evaluate import compared, wins
from train.networks import unrolled

from . import parity
from .yardsticks import CANDIDATES, EACH


def write(manifest: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The bundle's README.md.

    Args:
        manifest: the bundle's manifest, all but its file list.
        report: parity per network, precision and engine.
    """
    lines = [
        f"# metascatter bundle, recipe `{manifest['recipe']['name']}`",
        "",
        *_purpose(manifest),
    ]
    sections = {
        "What it knows": _scope(manifest),
        "Training": _training(manifest),
        "Results": _results(manifest["metrics"]),
        "Difference from PyTorch": _parity(report, manifest["task"]),
    }
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _purpose(manifest: Mapping[str, Any]) -> list[str]:
    if manifest["task"] == "restoration":
        return [
            "A network that takes noise out of images in one step. Open it with",
            "`metascatter infer --input IMAGES --bundle THIS_FOLDER --out DIR` or `metascatter.Denoiser`.",
        ]
    if manifest["task"] == "samples":
        label = "--label CLASS " if manifest["condition"]["classes"] else ""
        return [
            "A diffusion model of images or points. Open it with",
            f"`metascatter infer {label}--bundle THIS_FOLDER --out DIR` or `metascatter.load(THIS_FOLDER)`.",
        ]
    return [
        "A conditional diffusion model that proposes metasurface patterns for a wanted light scattering. Open it with",
        "`metascatter infer TARGET --bundle THIS_FOLDER --out DIR` or `metascatter.load(THIS_FOLDER)`.",
    ]


def _scope(manifest: Mapping[str, Any]) -> list[str]:
    if manifest["task"] == "restoration":
        channels, high, wide = manifest["sample_shape"]
        return [
            f"- Images of {high} x {wide} pixels, channels: {channels}.",
            f"- Gaussian noise with a standard deviation of {manifest['noise_sigma']:g}, black being 0 and white 1.",
            "  `metascatter evaluate --bundle THIS_FOLDER` says how well it does there, and with less and more of it.",
        ]
    if manifest["task"] == "samples":
        shape, classes = manifest["sample_shape"], manifest["condition"]["classes"]
        what = (
            f"Points in {shape[0]} dimensions" if shape[1:] == [1, 1] else f"Images of {shape[1]} x {shape[2]} pixels, channels: {shape[0]}"
        )
        return [f"- {what}; " + (f"classes {', '.join(classes)}." if classes else "without classes.")]
    geometry, size = manifest["geometry"], manifest["pattern_size"]
    low, high = manifest["condition"]["height_range_nm"]
    period_x, period_y = geometry["period_nm"]
    return [
        f"- Binary cells of {size} x {size} pixels, period {period_x:g} x {period_y:g} nm, wavelength {geometry['wavelength_nm']:g} nm.",
        f"- Pillars n = {geometry['index_pillar']:g} on a substrate n = {geometry['index_substrate']:g}, "
        f"cover n = {geometry['index_cover']:g}, lit from the {geometry['incidence']}, E along {geometry['polarisation']}.",
        f"- Heights {low:g} to {high:g} nm. Targets outside this range or geometry are refused.",
        f"- Labels: RCWA, rule `{geometry['rule']}`, {geometry['harmonics']} harmonics, truncation `{geometry['truncation']}`, "
        f"{geometry['dtype']}.",
        *_channels(manifest.get("channels", {}), geometry),
    ]


def _channels(channels: Mapping[str, Any], main: Mapping[str, Any]) -> list[str]:
    """The further maps that targets may ask for, and in what their geometry differs from that of R and T."""
    lines = []
    for name, own in channels.items():
        differs = "" if own is None else ", ".join(f"{key} {own[key]}" for key in own if own[key] != main[key])
        words = f"solved with {differs}" if own is not None else "which is not verified: the data did not say how it was solved"
        lines.append(f"- Also conditioned on `{name}`, {words}.")
    return lines


def _training(manifest: Mapping[str, Any]) -> list[str]:
    training, recipe = manifest["training"], manifest["recipe"]
    machine = training["machine"]
    # A run that ended within its first epoch has a checkpoint and no row of metrics.
    measured = training["epochs"] is not None
    long = f" ({training['epochs']:.0f} epochs), {training['seconds'] / 3600:.1f} h" if measured else ""
    networks = manifest["networks"].items()
    weights = ", ".join(f"{name} {part['parameters']:,}" for name, part in networks)
    work = ", ".join(f"{name} {part['flops'] / 1e9:.3f}" for name, part in networks)
    return [
        f"- Data `{training['data']}`: {training['training_samples']:,} samples, "
        f"{training['validation_samples']:,} more set aside for validation.",
        *_start(training.get("init")),
        f"- {training['steps']:,} steps of {recipe['batch_size']} samples{long} "
        f"on {machine['device']} ({machine['threads']} thread{'s' * (machine['threads'] != 1)}, {recipe['precision']}).",
        f"- Final loss {training['loss']:.4f}, on the validation part {training['validation_loss']:.4f} "
        f"({recipe['loss']}{_predicted(recipe)})."
        if measured
        else "- The run ended within its first epoch; no loss was recorded.",
        *_surrogate(manifest.get("surrogate")),
        f"- Parameters: {weights}.",
        f"- GFLOP a row: {work}. "
        + (
            ("The denoiser runs once an image." if "sampling" not in manifest else "The denoiser runs once a step and sample.")
            if len(networks) == 1
            else "The encoder runs once a target, the denoiser once a step "
        )
        + ("" if len(networks) == 1 else "and candidate, the surrogate once a candidate."),
        *_sampling(manifest.get("sampling"), unrolled.passes(recipe["network_arguments"])),
    ]


def _predicted(recipe: Mapping[str, Any]) -> str:
    prediction = recipe["scheduler"].get("prediction_type")
    return f", {prediction}; the training loss includes masked and dropped conditions" if prediction else ", the clean image"


def _sampling(settings: Mapping[str, Any] | None, passes: int) -> list[str]:
    if settings is None:
        return []
    each = f" of {passes} passes each" if passes > 1 else ""
    return [
        f"- Default sampling: {settings['scheduler']}, {settings['steps']} steps{each}, eta {settings['eta']:g}, "
        f"guidance scale {settings['guidance_scale']:g}."
    ]


def _start(init: Mapping[str, Any] | None) -> list[str]:
    return [] if init is None else [f"- Started from the weights of another run, `{init['run']}`, after its {init['steps']:,} steps."]


def _surrogate(entry: Mapping[str, Any] | None) -> list[str]:
    """The surrogate's training in one line, if there is one."""
    if entry is None:
        return []
    training = entry["training"]
    if training["epochs"] is None:
        return ["- Surrogate: its run ended within its first epoch."]
    return [
        f"- Surrogate (ranks candidates by predicting R and T): {training['steps']:,} steps ({training['epochs']:.0f} epochs) on "
        f"`{training['data']}`; {'misrouted power' if entry['recipe']['loss'] == 'l1' else entry['recipe']['loss']} between predicted and "
        f"true light {training['validation_loss']:.4f} on the validation part."
    ]


def _results(metrics: Mapping[str, Any] | None) -> list[str]:
    """Tables of ``cli.py evaluate --json``."""
    if metrics is None:
        return ["Not evaluated when this bundle was written; run `cli.py evaluate --bundle THIS_FOLDER --data TEST`."]
    rows = {"ranked": metrics["ranked"], **metrics["oracle"], **metrics["baselines"]}
    rows.pop("targets", None)
    lines = [
        f"`cli.py evaluate` on {metrics['targets']} held-out targets, {metrics['n']} candidates each, seed {metrics['seed']}.",
        "Misrouted power after solving Maxwell's equations: 0 is exact, lower is better.",
        "",
        "| | median | quartiles | under 0.05 | under 0.10 | solves |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, part in rows.items():
        if part is not None:
            quartiles, under = f"{part['q25']:.3f} to {part['q75']:.3f}", part["under"]
            shares = f"{under['0.05']:.0%} | {under['0.10']:.0%}"
            lines.append(f"| {_named(name, metrics)} | {part['median']:.3f} | {quartiles} | {shares} | {part['solves']} |")
    first = metrics["oracle"].get("targets", metrics["targets"])
    if first < metrics["targets"]:
        lines += ["", f"Best of 1, 8 and 64, and random patterns: on the first {first} targets alone."]
    beaten = [name for name, part in metrics["baselines"].items() if part is not None]
    shown = ["ranked", *beaten]
    lines += [
        "",
        *(f"Ranked beats {_named(name, metrics)} on {wins(metrics, name)} of {compared(metrics, name)} targets.  " for name in beaten),
        "Medians by height:",
        "",
        "| height, nm | targets | " + " | ".join(_named(name, metrics) for name in shown) + " |",
        "| --- | --- |" + " --- |" * len(shown),
    ]
    for band in metrics["by_height_nm"]:
        medians = " | ".join("-" if band[name] is None else f"{band[name]:.3f}" for name in shown)
        lines.append(f"| {band['lo']:.0f} to {band['hi']:.0f} | {band['count']} | {medians} |")
    return [*lines, "", _pace(metrics)]


def _pace(metrics: Mapping[str, Any]) -> str:
    """How long the denoiser took in that evaluation."""
    used = metrics["sampler"]
    each = 1e3 * metrics["seconds"]["sampling"] / (metrics["targets"] * used["steps"])
    return (
        f"A step of {metrics['n']} candidates took {each:.0f} ms there ({used['scheduler']}, {used['steps']} steps, guidance scale "
        f"{used['guidance_scale']:g}, {used['precision']} on {used['device']}), with everything around the network."
    )


def _named(name: str, metrics: Mapping[str, Any]) -> str:
    """What a row of the results is called."""
    return f"bundle `{metrics['baselines'][name]['name']}`" if name == "bundle" else name.replace("_", " ")


def _parity(report: Mapping[str, Any], task: str) -> list[str]:
    rows, designs = [], task == "metasurface"
    for precision, engines in report.items():
        for engine, found in engines.items():
            if found is not None:
                path = found["trajectory"]
                row = f"| {precision} | {engine} | {parity.worst(found):.1e} | {path['mean_abs']:.1e} |"
                if designs:
                    row += f" {path['flipped']:.2%} | {path['ranked_median']:.4f} ({path['ranked_change']:+.4f}) |"
                if task == "restoration":
                    row += f" {path['psnr']:.2f} dB ({path['psnr_change']:+.3f}) |"
                rows.append(row)
    spread = "with all sizes of noise" if task == "restoration" else "at all timesteps"
    ranked = f"the test samples of the calibration, {CANDIDATES} candidates each. Ranked: median misrouted power of the best one solved"
    kinds = {"metasurface": ranked, "restoration": "held-out images under the noise of training"}
    samples = kinds.get(task, f"{EACH} of each class, the same noise")
    return [
        "| precision | engine | network, largest difference | samples, mean difference |"
        + {"metasurface": " pixels that flip | ranked median (change) |", "restoration": " PSNR (change) |"}.get(task, ""),
        "| --- | --- | --- | --- |" + {"metasurface": " --- | --- |", "restoration": " --- |"}.get(task, ""),
        *rows,
        "",
        f"PyTorch in fp32 is the reference. Networks: calibration samples {spread}, largest absolute difference of any output.",
        f"Samples: {samples}.",
        "bf16 is an engine's own rounding of the fp32 file. Details in `parity.json`.",
        "Hashes in `manifest.json` prove that the bundle is whole, not where it comes from.",
    ]
