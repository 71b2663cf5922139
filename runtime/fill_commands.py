"""What ``infer --input --mask`` does: parts of images sampled anew."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from .console import Bars, check_writable, given
from .denoise_commands import DESIGNS, leave_out


def infer(
    targets: tuple[Path, ...],
    directory: Path,
    bundle: Path | None,
    label: str | None,
    n: int,
    seed: int,
    restoring: Mapping[str, Any],
    mask: Path,
    resample: int,
    settings: dict[str, Any],
    engine: dict[str, Any],
    as_json: bool,
) -> None:
    """``infer --input --mask``, with the options of ``infer``."""
    from . import fill, generate
    from .bundle import Bundle
    from .sampler import load

    if restoring["source"] is None or targets:
        raise click.UsageError("--mask says where images of --input are to be filled; pixels of metasurfaces are held by --fixed")
    leave_out(("level", "sigma", "fresh"), "is for denoising; leave it out with --mask")
    leave_out(DESIGNS, "is for designs of metasurfaces; leave it out with --input")
    opened = Bundle.open(bundle)
    if opened.designs or opened.restores:
        what = "designs metasurfaces, whose pixels are held by --fixed" if opened.designs else "denoises in one step and fills nothing"
        raise click.UsageError(f"{opened.path} {what}; name a bundle that samples images with --bundle")
    check_writable(directory)
    started = time.monotonic()
    if label is None and settings["guidance_scale"] is None:
        settings["guidance_scale"] = 1.0  # there is nothing to be guided by
    with load(bundle, **engine) as sampler, Bars() as bars:
        images, hidden = fill.read(sampler, Path(restoring["source"]), mask)
        count = n if given("n") else fill.NUMBER
        made = fill.fill(sampler, images, hidden, label, count, seed, resample, bars.step, **settings)
        place = sampler.bundle.labels.number(label)
        paths = fill.save(sampler, made, images, hidden, place, seed, directory, {**settings, "resample": resample})
        click.echo(generate.told(sampler, made, np.full(len(made), place), paths, time.monotonic() - started, as_json))
