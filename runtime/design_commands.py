"""The commands ``infer`` and ``verify``: from targets to designs, and designs solved again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import denoise_commands, fill_commands, making_commands, options
from .console import Bars, check_writable, given, status
from .errors import DataError

if TYPE_CHECKING:
    from .cluster import Wish
    from .design_job import Job


@click.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    "directory",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for the designs; several targets get one folder each, many a folder of shards.",
)
@options.bundle
@options.label
@click.option("--top", type=click.IntRange(1), default=4, show_default=True, help="Designs kept per target.")
@options.candidates
@options.sampling
@options.engine
@options.seed
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Solve Maxwell's equations for the most promising candidates and rank by it.",
)
@options.refinement
@options.restoring
@options.mask
@options.resample
@click.option(
    "--convention",
    type=click.Choice(["lab", "metascatter"]),
    help="Index convention of .mat, .npz and .csv targets; default: the file's own, else the lab's for .mat.",
)
@click.option(
    "--mat-convention", type=click.Choice(["lab", "metascatter"]), default="lab", show_default=True, help="Index convention of designs.mat."
)
@options.making
@click.option(
    "--shard-size",
    type=click.IntRange(1),
    metavar="K",
    help="Targets of a shard; default: up to 16. Makes shards of a few targets too, which else get a folder each.",
)
@options.cluster
@options.shared_workers
@options.as_json
def infer(
    targets: tuple[Path, ...],
    directory: Path,
    bundle: Path | None,
    label: str | None,
    top: int,
    n: int,
    settings: dict[str, Any],
    engine: dict[str, Any],
    seed: int,
    verify: bool,
    search: dict[str, Any],
    restoring: dict[str, Any],
    mask: Path | None,
    resample: int,
    convention: str | None,
    mat_convention: str,
    made: dict[str, Any],
    shard_size: int | None,
    place: dict[str, Any],
    workers: int | None,
    as_json: bool,
) -> None:
    """Design metasurfaces for each TARGET, or sample or denoise images or points with a bundle of those, and write them to a folder.

    A TARGET is a file (.json, .toml, .mat, .npz or .csv) or a preset: deflector, splitter-2x2, equal-3x3, mirror or zero-order-suppressor,
    with its parameters behind it where the defaults do not suit. A folder of such files, an .npz of many rows, a .jsonl with a target on
    every line, or - for the same from stdin, are many targets: their designs come in shards, and a run that was killed goes on.

    \b
    metascatter infer deflector.json --out designs
    metascatter infer deflector:height_nm=250:order=1,1:efficiency=0.05 --out designs
    metascatter infer a.mat b.mat --out designs -n 256 --top 8 --seed 1
    metascatter infer deflector.json --out designs --height free:200:400 --budget 100
    metascatter infer deflector.json --out designs --no-verify --json
    metascatter infer deflector.json --out designs --robust --fabricable --no-corners
    metascatter infer --bundle bundles/digits --label 3 -n 16 --out threes
    metascatter infer --bundle bundles/denoiser --input noisy/ --out clean
    metascatter infer --bundle bundles/digits --input noisy.png --noise-sigma 0.5 --no-add-noise --out clean
    metascatter infer wishes/ many.npz --out designs --cluster auto
    metascatter infer --bundle bundles/flowers --input tulip.jpg --mask hole.png --out filled
    """
    from . import design, report
    from .design_job import Job
    from .freedom import Freedom, read_fixed
    from .presets import name_of
    from .sampler import load
    from .target import Target
    from .target_stream import is_many

    wish = options.cluster_wish(place, workers)
    denoising = denoise_commands.asked(restoring)
    if (denoising or mask is not None or not targets) and (wish is not None or shard_size is not None):
        raise click.UsageError("--cluster and --shard-size are for targets; leave them out")
    if given("resample") and mask is None and search["fixed"] is None:
        raise click.UsageError("--resample is for sampling with something held; add --mask, or --fixed with a TARGET")
    if mask is not None:
        return fill_commands.infer(targets, directory, bundle, label, n, seed, restoring, mask, resample, settings, engine, as_json)
    if denoising:
        return denoise_commands.infer(targets, directory, bundle, label, n, seed, restoring, settings, engine, as_json)
    if not targets:
        return _samples(directory, bundle, label, n, seed, settings, engine, as_json)
    if label is not None:
        raise click.UsageError("--label is for bundles of images, which take no target; leave one of the two out")
    making = making_commands.read_making(made, verify)
    time_limit = search.pop("time_limit")
    if search["fixed"] is not None:
        search["fixed"] = read_fixed(search["fixed"])
    search |= {"limits": making.limits, "resample": resample}
    if shard_size is not None or wish is not None or is_many(targets):
        if given("mat_convention"):
            raise click.UsageError("--mat-convention is of designs.mat, and shards have none; leave it out")
        job = Job(n, top, seed, settings, search, time_limit, verify, making, engine)
        return _shards(targets, directory, bundle, convention, job, shard_size, wish, workers, as_json)
    stems = [os.path.normcase(name_of(path)) for path in targets]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise DataError(f"two targets are called '{twice}' and would share one folder; rename one")
    check_writable(directory)
    with load(bundle, **engine) as sampler:
        # Every target is read and checked before the first one costs any time.
        freedom = Freedom.of(sampler.bundle, **search)
        wanted = [sampler.check(freedom.targets(Target.load(path, convention, sampler.bundle.channels))[0]) for path in targets]
        results = []
        for target in wanted:
            folder = directory / target.name if len(wanted) > 1 else directory
            start = time.monotonic()
            with Bars(f"{target.name}: ") as bars:
                designs = sampler.design(
                    target,
                    n=n,
                    top=making.pool(top),
                    seed=seed,
                    **settings,
                    **search,
                    deadline_s=time_limit,
                    verify=verify,
                    workers=workers,
                    on_step=bars.step,
                    on_solve=bars.solve,
                    on_best=bars.best,
                )
                designs = making.arrange(designs, target, top, workers, on_done=bars.vary)
            seconds = time.monotonic() - start
            saved = design.save(designs, target, folder, mat_convention, making.ranking)
            results.append(
                {
                    "target": target.name,
                    "height_nm": target.height_nm if search["height"] is None else None,
                    "directory": str(folder),
                    "ranked_by": making.ranking,
                    "seconds": round(seconds, 2),
                    "files": [str(path) for path in saved.paths],
                    "missing": {str(file): extra for file, extra in saved.missing},
                    "designs": report.entries(designs, target),
                }
            )
            for file, extra in saved.missing:
                status(f"{file} was not written: install metascatter[{extra}] to have it")
            if not as_json:
                click.echo(f"{report.table(designs, target)}\n\n{making.text(designs)}\n")
                click.echo(f"{n} candidates in {seconds:.1f} s by {sampler.choice}")
                click.echo(report.files(saved.paths))
    if as_json:
        click.echo(json.dumps(results if len(results) > 1 else results[0], indent=2))


def _shards(
    targets: tuple[Path, ...],
    directory: Path,
    bundle: Path | None,
    convention: str | None,
    job: Job,
    shard_size: int | None,
    wish: Wish | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """``infer`` of many targets, here or on a cluster."""
    from . import design_job, design_shards
    from .bundle import Bundle
    from .target_stream import Source

    opened = Bundle.open(bundle)
    check_writable(directory)
    source = Source(targets, convention, opened.channels)
    if wish is None:
        work = design_job.in_process(job, opened, workers)
    else:
        from . import cluster, cluster_design

        cluster.check(wish)
        work = cluster_design.when_needed(wish, job, opened)
    result = design_shards.run(source, job, opened, directory, work, shard_size)
    click.echo(json.dumps(result, indent=2) if as_json else design_shards.text(result))


def _samples(
    directory: Path,
    bundle: Path | None,
    label: str | None,
    n: int,
    seed: int,
    settings: dict[str, Any],
    engine: dict[str, Any],
    as_json: bool,
) -> None:
    """``infer`` without targets: images or points."""
    from . import generate
    from .bundle import Bundle
    from .sampler import load

    if Bundle.open(bundle).designs:
        raise click.UsageError("Missing argument 'TARGET...': the bundle designs metasurfaces; name what the light should do.")
    check_writable(directory)
    started = time.monotonic()
    with load(bundle, **engine) as sampler, Bars() as bars:
        samples, places = generate.generate(sampler, label, n, seed, bars.step, **settings)
        paths = generate.save(sampler, samples, places, seed, directory, settings)
        click.echo(generate.told(sampler, samples, places, paths, time.monotonic() - started, as_json))


@click.command()
@options.saved_designs
@options.workers
@options.as_json
def verify(designs_path: Path, target_path: Path, convention: str | None, workers: int | None, as_json: bool) -> None:
    """Solve Maxwell's equations again for designs and score them against a target.

    \b
    metascatter verify designs/designs.npz --target deflector.json
    """
    from . import design, report
    from .physics import verify as physics
    from .target import Target

    target = Target.load(target_path, convention)
    with Bars() as bars:
        designs = physics.verify(design.read(designs_path), target, workers=workers, on_done=bars.solve)
    if as_json:
        click.echo(json.dumps({"target": target.name, "designs": report.entries(designs, target)}, indent=2))
    else:
        click.echo(report.table(designs, target))
