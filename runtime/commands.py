"""The runtime's click commands: parse, call, print. ``cli.py`` adds training and exporting to the same group."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from . import denoise_commands, design_commands, making_commands, options
from .console import Group, check_picture, given, own_data, problem, status
from .plot_commands import plot
from .serve_commands import serve
from .version import __version__


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="metascatter")
@options.logging
def group(log_level: str | None, log_format: str) -> None:
    """From a wanted light scattering to metasurface patterns that produce it."""


for _command in (design_commands.infer, design_commands.verify, making_commands.tolerance, making_commands.gds, plot, serve):
    group.add_command(_command)


def main() -> None:
    """The console script ``metascatter``."""
    group(prog_name="metascatter")


@group.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .npz to write.")
@click.option("--count", type=click.IntRange(1), help="How many random patterns to solve.")
@click.option("--patterns", type=click.Path(path_type=Path), help="Solve the patterns of this .npz (keys xx, h) instead.")
@click.option(
    "--add",
    metavar="NAME",
    help="Keep all that --patterns holds and add Rm_NAME and Tm_NAME: its cells with the options given here, else with its own geometry.",
)
@options.seed
@click.option(
    "--height-nm",
    type=(float, float),
    default=(50.0, 600.0),
    show_default=True,
    metavar="LO HI",
    help="Whole heights drawn from this range.",
)
@click.option("--rule", type=click.Choice(["li", "laurent"]), default="li", show_default=True, help="Factorisation rule.")
@click.option("--harmonics", type=click.IntRange(1, 60), default=11, show_default=True)
@click.option("--truncation", type=click.Choice(["circle", "square"]), default="circle", show_default=True)
@click.option("--polarisation", type=click.Choice(["x", "y"]), default="x", show_default=True)
@click.option("--period-nm", type=click.FloatRange(0, min_open=True), default=4000.0, show_default=True, help="Of the cell, along x and y.")
@click.option("--wavelength-nm", type=click.FloatRange(0, min_open=True), default=1550.0, show_default=True)
@click.option("--index", type=click.FloatRange(0, min_open=True), default=3.48, show_default=True, help="Of pillars and substrate.")
@options.cluster
@options.shared_workers
def simulate(
    out: Path,
    count: int | None,
    patterns: Path | None,
    add: str | None,
    seed: int,
    height_nm: tuple[float, float],
    rule: str,
    harmonics: int,
    truncation: str,
    polarisation: str,
    period_nm: float,
    wavelength_nm: float,
    index: float,
    place: dict[str, Any],
    workers: int | None,
    solver: Any = None,  # of an option that cli.py adds: from a checkout, PyTorch can solve too
) -> None:
    """Make a data set: random patterns, or given ones, and their scattering by RCWA. Killed, it goes on where it was.

    \b
    metascatter simulate --count 512 --seed 7 --out test.npz
    metascatter simulate --patterns mine.npz --out solved.npz
    metascatter simulate --patterns test.npz --wavelength-nm 1480 --add 1480 --out both.npz
    metascatter simulate --count 20000 --seed 1 --out data.npz --cluster auto
    """
    from .geometry import Geometry
    from .physics.simulate import simulate as run

    if add is not None and patterns is None:
        raise click.UsageError("--add is for the cells of a data set; name it with --patterns")
    if (count is None) == (patterns is None):
        raise click.UsageError("give either --count or --patterns")
    wish = options.cluster_wish(place, workers)
    if wish is not None and wish.gpus:
        raise click.UsageError("--gpus-per-worker: workers of simulate use no GPU; leave it out, or --cluster for --device cuda")
    where = {"workers": None if wish is not None else workers, "solver": solver, "cluster": wish}
    if add is not None:
        assert patterns is not None
        fields: dict[str, Any] = {"rule": rule, "harmonics": harmonics, "truncation": truncation, "polarisation": polarisation}
        fields |= {"period_nm": (period_nm, period_nm), "wavelength_nm": wavelength_nm, "index": index}
        changes = {name: value for name, value in fields.items() if given(name)}
        if "index" in changes:
            changes["index_pillar"] = changes["index_substrate"] = changes.pop("index")
        from .physics.add import add as run_add

        click.echo(run_add(patterns, out, add, changes, **where))
        return
    geometry = Geometry(
        wavelength_nm=wavelength_nm,
        period_nm=(period_nm, period_nm),
        index_pillar=index,
        index_substrate=index,
        polarisation=polarisation,
        rule=rule,
        harmonics=harmonics,
        truncation=truncation,
    )
    click.echo(run(out, count=count, seed=seed, geometry=geometry, height_nm=height_nm, patterns=patterns, **where))


@group.command()
@click.option("--data", "data_path", type=click.Path(path_type=Path), help="Held-out data set; of images and points the data to resemble.")
@options.bundle
@click.option("--limit", type=click.IntRange(1), help="Only the first so many targets.")
@click.option(
    "--oracle-limit",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Solve all candidates, and random patterns, only for the first so many targets.",
)
@click.option(
    "--noise-limit", type=click.IntRange(0), default=16, show_default=True, help="Add noise to the first so many targets; 0: to none."
)
@click.option("--refine-limit", type=click.IntRange(0), default=16, show_default=True, help="Refine the first so many targets; 0: none.")
@click.option("--train-data", type=click.Path(path_type=Path), help="Training data, for the nearest-sample baseline.")
@options.baseline
@click.option("--picture", type=click.Path(path_type=Path), metavar="FILE", help="Draw the result: .png, .svg or .pdf.")
@click.option(
    "--convention", type=click.Choice(["lab", "metascatter"]), default="lab", show_default=True, help="Index convention of .mat data."
)
@options.candidates
@options.sampling
@options.engine
@options.seed
@options.cluster
@options.shared_workers
@options.as_json
def evaluate(
    data_path: Path | None,
    bundle: Path | None,
    limit: int | None,
    oracle_limit: int,
    noise_limit: int,
    refine_limit: int,
    train_data: Path | None,
    other: dict[str, Any],
    picture: Path | None,
    convention: str,
    n: int,
    settings: dict[str, Any],
    engine: dict[str, Any],
    seed: int,
    place: dict[str, Any],
    workers: int | None,
    as_json: bool,
    network: Any = None,  # of an option that cli.py adds: from a checkout, a network's features are compared too
) -> None:
    """Score a bundle on held-out data: every score is re-solved with the settings stored in the data.

    \b
    metascatter evaluate --data test.npz --limit 64
    metascatter evaluate --data test.npz --limit 64 --train-data train.npz --json > evaluation.json
    metascatter evaluate --data test.npz --baseline bundles/other --picture evaluation.png
    metascatter evaluate --bundle bundles/digits
    metascatter evaluate --bundle bundles/denoiser --picture psnr.png
    metascatter evaluate --data test.npz --cluster auto

    Bundles of images and points are compared with real data, by default those they were trained on; -n is then how many are compared.
    """
    from contextlib import ExitStack

    from . import data
    from . import evaluate as scores
    from .bundle import Bundle
    from .sampler import load

    rival = other.pop("baseline")
    idle = next((name for name, value in other.items() if value is not None), None)
    if rival is None and idle is not None:
        raise click.UsageError(f"--{idle.replace('_', '-')} says how a baseline is sampled; name its bundle with --baseline")
    if picture is not None:
        check_picture(picture)
    opened, wish = Bundle.open(bundle), options.cluster_wish(place, workers)
    if network is not None and (opened.designs or opened.restores):
        raise click.UsageError("--features is for bundles of images that are sampled, and this is none; leave it out")
    if wish is not None:
        from .cluster import check

        if not opened.designs:
            raise click.UsageError("--cluster is for bundles of metasurfaces; what others sample is compared here, leave it out")
        check(wish)
    if opened.restores:
        return denoise_commands.evaluate(opened, data_path, n if given("n") else None, seed, settings, engine, picture, as_json)
    if not opened.designs:
        if picture is not None:
            raise click.UsageError("--picture draws scores of metasurfaces, or of a network that denoises in one step; leave it out")
        return _evaluate_samples(bundle, data_path, n if given("n") else None, seed, settings, engine, as_json, network)
    if data_path is None:
        raise click.UsageError("Missing option '--data': held-out data, such as 'simulate --count 512 --seed 7' makes.")
    held_out = data.load(data_path, convention, extra=list(opened.channels), optional=True)
    training = data.load(train_data, convention) if train_data is not None else None
    with ExitStack() as stack:
        sampler = stack.enter_context(load(bundle, **engine))
        baseline = None if rival is None else stack.enter_context(load(rival, **engine))
        elsewhere = None
        if wish is not None:
            from .cluster import connect
            from .cluster_evaluate import elsewhere as on_cluster

            samplers = {"bundle": sampler, **({} if baseline is None else {"baseline": baseline})}
            elsewhere = on_cluster(stack.enter_context(connect(wish)), samplers)
        result = scores.evaluate(
            held_out,
            sampler,
            limit=limit,
            oracle_limit=oracle_limit,
            n=n,
            seed=seed,
            train_data=training,
            workers=None if wish is not None else workers,
            baseline=baseline,
            baseline_settings={"steps": other["baseline_steps"], "scheduler": other["baseline_scheduler"]},
            baseline_limit=other["baseline_limit"],
            noise_limit=noise_limit,
            refine_limit=refine_limit,
            elsewhere=elsewhere,
            **settings,
        )
    click.echo(json.dumps(result, indent=2) if as_json else scores.table(result))
    # After the result is out: half an hour of solving is not lost to a picture.
    if picture is not None:
        scores.picture(result, picture)
        status(f"{picture} is drawn")


def _evaluate_samples(
    bundle: Path | None,
    data_path: Path | None,
    n: int | None,
    seed: int,
    settings: dict[str, Any],
    engine: dict[str, Any],
    as_json: bool,
    network: Any,
) -> None:
    """``evaluate`` for a bundle of images or points."""
    from . import evaluate_samples, samples
    from .console import Bars
    from .sampler import load

    with load(bundle, **engine) as sampler, Bars() as bars:
        recipe = sampler.bundle.manifest["recipe"]
        real = samples.as_shown(own_data(recipe, data_path), recipe)
        result = evaluate_samples.evaluate(sampler, real, n, seed, bars.step, network, **settings)
    click.echo(json.dumps(result, indent=2) if as_json else evaluate_samples.table(result))


@group.command()
@options.bundle
@options.engine
@options.as_json
def bench(bundle: Path | None, engine: dict[str, Any], as_json: bool) -> None:
    """Time the network, the loop around it and the solver on this machine.

    \b
    metascatter bench
    """
    from . import bench as stopwatch
    from .sampler import load

    with load(bundle, **engine) as sampler:
        result = stopwatch.measure(sampler)
    click.echo(json.dumps(result, indent=2) if as_json else stopwatch.text(result))


@group.command()
@options.bundle
@options.as_json
def doctor(bundle: Path | None, as_json: bool) -> None:
    """What is installed, which devices answer and why not, and whether the bundle passes its self-test.

    \b
    metascatter doctor
    metascatter doctor --bundle bundles/first --json
    """
    from . import doctor as clinic

    report = clinic.examine(bundle)
    click.echo(json.dumps(report, indent=2) if as_json else clinic.text(report))
    if not report["ok"]:
        problem(report["bundle"]["problem"])
        sys.exit(2)
