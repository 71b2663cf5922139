"""What ``infer --input``, ``evaluate`` and ``plot denoise`` do with bundles of images that denoise."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from .console import Bars, check_picture, check_writable, given, own_data, status

# Names of options as click knows them, by what they are for.
DESIGNS = (
    *("top", "verify", "refine", "budget", "fixed", "height", "time_limit", "tolerance", "robust", "fabricable", "min_width_nm"),
    *("no_corners", "convention", "mat_convention", "workers"),
)
_SCORES = (
    *("limit", "oracle_limit", "noise_limit", "refine_limit", "train_data", "baseline", "baseline_steps", "baseline_scheduler"),
    *("baseline_limit", "convention", "workers"),
)
_SCHEDULE = ("steps", "scheduler", "eta", "guidance_scale", "guidance_interval")
_ITERATED = (*_SCHEDULE, "label", "n", "seed", "level", "sigma", "fresh")


def asked(restoring: Mapping[str, Any]) -> bool:
    """Whether ``infer`` is to denoise. Raises click.UsageError for an option of it without ``--input``."""
    if restoring["source"] is None:
        leave_out(("level", "sigma", "fresh"), "says how images are denoised; name them with --input")
    return restoring["source"] is not None


def infer(
    targets: tuple[Path, ...],
    directory: Path,
    bundle: Path | None,
    label: str | None,
    n: int,
    seed: int,
    restoring: Mapping[str, Any],
    settings: dict[str, Any],
    engine: dict[str, Any],
    as_json: bool,
) -> None:
    """``infer --input``: images denoised in one step, or by the reverse process from them on."""
    from . import denoise
    from .bundle import Bundle
    from .sampler import load

    if targets:
        raise click.UsageError("--input is for bundles of images, which take no target; leave one of the two out")
    leave_out(DESIGNS, "is for designs of metasurfaces; leave it out with --input")
    opened = Bundle.open(bundle)
    if opened.designs:
        raise click.UsageError(f"--input is for bundles of images and {opened.path} designs metasurfaces; name a bundle with --bundle")
    if opened.restores:
        leave_out(_ITERATED, f"is for diffusion models and {opened.path} denoises in one step; leave it out")
    elif restoring["level"] is None and restoring["sigma"] is None:
        raise click.UsageError("Missing option '--noise-level' or '--noise-sigma': how noisy the images are, or are to be made.")
    check_writable(directory)
    images = denoise.read(restoring["source"], opened)
    started = time.monotonic()
    facts: dict[str, Any] = {}
    with Bars() as bars:
        if opened.restores:
            with denoise.Denoiser(opened, **engine) as denoiser:
                made = [("denoised", denoiser(images, settings["batch_size"], bars.step))]
                choice, facts["noise_sigma"] = denoiser.choice, denoiser.noise_sigma
        else:
            images = np.repeat(images, n if given("n") else 1, axis=0)
            begin = {name: restoring[name] for name in ("level", "sigma")}
            with load(bundle, **engine) as sampler:
                found = denoise.iterate(
                    sampler, images, **begin, noised=not restoring["fresh"], label=label, seed=seed, on_step=bars.step, **settings
                )
                choice = sampler.choice
            facts = {"seed": seed, "label": label, "timestep": found.timestep, "noise_sigma": found.sigma, "steps": found.steps}
            facts["noise_added"] = restoring["fresh"]
            made = [*([("noised", found.noised)] if restoring["fresh"] else []), ("denoised", found.finished)]
    paths = denoise.save(opened, choice, images, made, directory, facts)
    if as_json:
        click.echo(denoise.to_json(facts, len(images), choice, paths, time.monotonic() - started))
        return
    if not opened.restores:
        status(f"from timestep {found.timestep}, where the noise is {found.sigma:.3g}, in {found.steps} steps")
    click.echo("\n".join(map(str, paths)))


def evaluate(
    opened: Any,
    data_path: Path | None,
    n: int | None,
    seed: int,
    settings: Mapping[str, Any],
    engine: dict[str, Any],
    picture: Path | None,
    as_json: bool,
) -> None:
    """``evaluate`` for a bundle that denoises in one step."""
    from . import denoise_scores
    from .denoise import Denoiser

    leave_out(_SCORES, f"is for designs of metasurfaces and {opened.path} denoises images; leave it out")
    leave_out(_SCHEDULE, f"is for diffusion models and {opened.path} denoises in one step; leave it out")
    data = _data(opened, data_path)
    with Denoiser(opened, **engine) as denoiser, Bars() as bars:
        result = denoise_scores.evaluate(denoiser, data, n, seed, settings["batch_size"], bars.step)
    click.echo(json.dumps(result, indent=2) if as_json else denoise_scores.table(result))
    if picture is not None:
        denoise_scores.picture(result, picture)
        status(f"{picture} is drawn")


def draw(
    out: Path, bundle: Path | None, data_path: Path | None, n: int, settings: dict[str, Any], engine: dict[str, Any], seed: int
) -> None:
    """``plot denoise``."""
    from . import denoise_pictures
    from .bundle import Bundle
    from .denoise import Denoiser
    from .sample_pictures import is_points
    from .sampler import load

    check_picture(out)
    leave_out(("guidance_scale", "guidance_interval"), "is for a class, and none is asked for here; leave it out")
    leave_out(("batch_size",), "changes nothing for so few images; leave it out")
    opened = Bundle.open(bundle)
    if opened.designs or is_points(opened.manifest["sample_shape"]):
        what = "designs metasurfaces" if opened.designs else "samples points"
        raise click.UsageError(f"{opened.path} {what} and images are denoised here; name a bundle of images with --bundle")
    if opened.restores:
        leave_out(_SCHEDULE, f"is for diffusion models and {opened.path} denoises in one step; leave it out")
    data = _data(opened, data_path)
    if opened.restores:
        with Denoiser(opened, **engine) as denoiser:
            denoise_pictures.draw(denoiser, data, out, n, seed)
    else:
        with load(bundle, **engine) as sampler:
            denoise_pictures.draw(sampler, data, out, n, seed, **settings)
    click.echo(out)


def _data(opened: Any, data_path: Path | None) -> Any:
    """The clean images named, or those of the bundle's recipe."""
    from .pixels import COLOURS
    from .samples import load

    recipe = opened.manifest["recipe"]
    return load(own_data(recipe, data_path), int(recipe.get("canvas", 0)), COLOURS.get(recipe.get("colours", ""), 0))


def leave_out(names: Iterable[str], words: str) -> None:
    """Refuse options that were given and would do nothing."""
    known = {parameter.name: parameter for parameter in click.get_current_context().command.params}
    for name in names:
        if given(name):
            raise click.UsageError(f"{max(known[name].opts, key=len)} {words}")
