"""``plot``: the figures of the seed documents, each by a command of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import denoise_commands, options
from .console import check_picture, own_data
from .pixels import COLOURS

_out = click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help=".png, .svg or .pdf.")
_moving = click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help=".png, .svg, .pdf or .gif.")
_convention = click.option(
    "--convention", type=click.Choice(["lab", "metascatter"]), default="lab", show_default=True, help="Index convention of .mat data."
)

MOST = 20  # candidates of a target in a picture


@click.group()
def plot() -> None:
    """Draw figures: what is in a data set, how noise is put on it, how a sample comes out of noise, how losses and scores went."""


@plot.command()
@click.argument("data_path", metavar="DATA", type=click.Path(path_type=Path))
@_out
@click.option("--count", type=click.IntRange(1, 50), default=8, show_default=True, help="Samples shown, from the lowest to the tallest.")
@_convention
def light(data_path: Path, out: Path, count: int, convention: str) -> None:
    """Light matrices: patterns of DATA and the efficiencies of their orders.

    \b
    metascatter plot light test.npz --out light.png
    """
    from . import plots
    from .data import load

    check_picture(out)
    plots.light_matrices(load(data_path, convention), out, count)
    click.echo(out)


@plot.command()
@_out
@options.bundle
@click.option("--data", "data_path", type=click.Path(path_type=Path), help="Clean images; default: the recipe's own.")
@click.option("-n", "n", type=click.IntRange(1, 16), default=4, show_default=True, help="Images shown, of those held out of training.")
@options.sampling
@options.engine
@options.seed
def denoise(
    out: Path, bundle: Path | None, data_path: Path | None, n: int, settings: dict[str, Any], engine: dict[str, Any], seed: int
) -> None:
    """Images out of noise: clean, noisy, blurred and denoised, by the size of the noise; of diffusion models in one step and iteratively.

    \b
    metascatter plot denoise --bundle bundles/denoiser --out denoise.png
    metascatter plot denoise --bundle bundles/digits --steps 50 --out denoise.png
    """
    denoise_commands.draw(out, bundle, data_path, n, settings, engine, seed)


@plot.command()
@click.argument("target_path", metavar="[TARGET]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help=".png, .svg or .pdf; of images and points .gif."
)
@options.bundle
@options.label
@click.option("-n", "n", type=click.IntRange(1), help="Candidates or samples shown; default: 3, of images 16, of points 1000.")
@options.sampling
@options.engine
@options.seed
@click.option("--convention", type=click.Choice(["lab", "metascatter"]), help="Index convention of a .mat target.")
def reverse(
    target_path: Path | None,
    out: Path,
    bundle: Path | None,
    label: str | None,
    n: int | None,
    settings: dict[str, Any],
    engine: dict[str, Any],
    seed: int,
    convention: str | None,
) -> None:
    """The reverse process: candidates for TARGET, or images or points, from noise to what they become.

    \b
    metascatter plot reverse examples/targets/deflector.json --out reverse.png
    metascatter plot reverse target.mat --guidance-scale 3 -n 5 --out reverse.svg
    metascatter plot reverse --bundle bundles/digits --label 3 --out three.gif
    """
    from . import generate, plots
    from .sample_pictures import is_points
    from .sampler import load
    from .target import Target

    if target_path is not None and label is not None:
        raise click.UsageError("--label is for bundles of images, which take no target; leave one of the two out")
    if target_path is not None and n is not None and n > MOST:
        raise click.BadParameter(f"{n} is more than the {MOST} candidates that fit a picture.", param_hint="-n")
    check_picture(out, animated=target_path is None)
    del settings["batch_size"]
    with load(bundle, **engine) as sampler:
        if target_path is None:
            count = n or (1000 if is_points(sampler.bundle.manifest["sample_shape"]) else 16)
            generate.reverse(sampler, label, out, count, seed, **settings)
            click.echo(out)
            return
        n = n or 3
        target = Target.load(target_path, convention, sampler.bundle.channels)
        plots.reverse_process(sampler, target, out, n, seed, **settings)
    click.echo(out)


@plot.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_out
@click.option("--from-epoch", type=click.FloatRange(0), default=5, show_default=True, help="Where the second panel begins; 0: no second.")
def loss(runs: tuple[Path, ...], out: Path, from_epoch: float) -> None:
    """Losses of training runs: all epochs, and beside them those from an epoch on.

    \b
    metascatter plot loss runs/cifar5 runs/cifar5-simple --out losses.png
    """
    from . import curves

    check_picture(out)
    names = [run.resolve().name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(run) for run in runs]
    curves.losses({label: curves.read_losses(run) for label, run in zip(labels, runs, strict=True)}, out, from_epoch)
    click.echo(out)


@plot.command()
@click.argument("results", metavar="EVALUATION.json...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_out
def scores(results: tuple[Path, ...], out: Path) -> None:
    """Scores of bundles of images, as 'evaluate --json' wrote them: against epochs and against guidance.

    \b
    metascatter evaluate --bundle bundles/at-1040 --json > at-1040.json
    metascatter plot scores at-260.json at-520.json at-1040.json --out scores.png
    """
    from . import curves

    check_picture(out)
    curves.scores([curves.read_evaluation(path) for path in results], out)
    click.echo(out)


@plot.command()
@click.argument("source", metavar="DATA")
@_out
@click.option("--count", type=click.IntRange(1, 100), default=100, show_default=True, help="Images or patterns shown.")
@click.option("--size", type=click.IntRange(1), help="Side to which the pictures of a folder are scaled; default: the first's.")
@click.option("--colours", type=click.Choice(list(COLOURS)), help="Show images so; default: as they are.")
@_convention
def data(source: str, out: Path, count: int, size: int | None, colours: str | None, convention: str) -> None:
    """Training data: images in a mosaic, points in a scatter plot, patterns of metasurfaces. DATA is what 'train --data' takes.

    \b
    metascatter plot data swiss-roll --out roll.png
    metascatter plot data flowers/ --size 32 --out flowers.png
    metascatter plot data test.npz --out patterns.png
    """
    from . import forward

    check_picture(out)
    forward.draw_data(forward.read(source, size or 0, COLOURS.get(colours or "", 0), convention), Path(source).name, out, count)
    click.echo(out)


@plot.command()
@click.argument("config_path", metavar="[CONFIG]", required=False, type=click.Path(path_type=Path))
@_out
@options.bundle
def schedule(config_path: Path | None, out: Path, bundle: Path | None) -> None:
    """The noise schedule, betas, alphas_cumprod and signal-to-noise ratio, of a bundle or of CONFIG, a scheduler_config.json.

    \b
    metascatter plot schedule --bundle bundles/digits --out schedule.png
    metascatter plot schedule runs/mine/scheduler_config.json --out schedule.png
    """
    from . import forward
    from .bundle import Bundle
    from .schedulers import load_config, plan

    if config_path is not None and bundle is not None:
        raise click.UsageError("name either a scheduler_config.json or a --bundle, not both")
    check_picture(out)
    if config_path is not None:
        forward.draw_schedule(load_config(config_path), config_path.absolute().parent.name or config_path.name, out)
    else:
        opened = Bundle.open(bundle)
        config, sampling = opened.json("scheduler_config.json"), opened.manifest["sampling"]
        steps = plan(config, sampling["steps"], sampling["scheduler"], sampling.get("eta", 0.0))
        forward.draw_schedule(config, opened.manifest["recipe"]["name"], out, steps)
    click.echo(out)


@plot.command("forward")
@click.argument("source", metavar="[DATA]", required=False)
@_moving
@options.bundle
@click.option("-n", "n", type=click.IntRange(1), help="Samples shown; default: 4, in a .gif 16, of points 1000.")
@options.seed
@_convention
def forward_process(source: str | None, out: Path, bundle: Path | None, n: int | None, seed: int, convention: str) -> None:
    """The forward process: samples of DATA under more and more noise, by a bundle's schedule. Else the data of the bundle's recipe.

    \b
    metascatter plot forward --bundle bundles/flowers --out forward.gif
    metascatter plot forward test.npz --out forward.png
    """
    from . import forward
    from .bundle import Bundle
    from .sample_pictures import is_points

    moving = out.suffix.lower() == ".gif"
    check_picture(out, animated=True)
    opened = Bundle.open(bundle)
    shape, recipe = opened.manifest["sample_shape"], opened.manifest["recipe"]
    source = own_data(recipe, source, "argument 'DATA'")
    channels = 0 if opened.designs or is_points(shape) else shape[0]
    count = n or (1000 if is_points(shape) else 16 if moving else 4)
    forward.draw_forward(opened, forward.read(source, shape[1], channels, convention), out, count, seed)
    click.echo(out)
