"""Options that several commands share. Those that travel together reach the command as one argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .backends import BACKENDS, DEVICES, PRECISIONS
from .inpaint import RESAMPLE
from .logs import FORMATS, LEVELS
from .schedulers import SCHEDULERS

if TYPE_CHECKING:
    from .cluster import Wish

bundle = click.option("--bundle", type=click.Path(path_type=Path), help="Bundle folder; default: the one that ships with metascatter.")
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else.")
workers = click.option("--workers", type=click.IntRange(1), help="Parallel solves; default: one per core.")
shared_workers = click.option(
    "--workers", type=click.IntRange(1), help="Parallel solves; default: one per core. With --cluster, workers; default: as many as fit."
)
seed = click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Same seed, same result.")
label = click.option("--label", metavar="CLASS", help="Of a bundle of images: the class to sample, by name or number; default: all.")
candidates = click.option("-n", "n", type=click.IntRange(1), default=64, show_default=True, help="Candidates sampled per target.")


def logging(command: Any) -> Any:
    """Of the group, before the command's name: ``log_level`` and ``log_format``; ``console.Group`` acts on them."""
    for decorate in (
        click.option(
            "--log-format",
            type=click.Choice(FORMATS),
            default="text",
            show_default=True,
            help="Of stderr; json: one object a line, and no progress bars.",
        ),
        click.option("--log-level", type=click.Choice(LEVELS), help="Least that stderr tells; default: what commands say, and warnings."),
    ):
        command = decorate(command)
    return command


def saved_designs(command: Any) -> Any:
    """A file of designs and the target they were made for: ``designs_path``, ``target_path``, ``convention``."""
    for decorate in (
        click.option("--convention", type=click.Choice(["lab", "metascatter"]), help="Index convention of a .mat, .npz or .csv target."),
        click.option("--target", "target_path", required=True, type=click.Path(path_type=Path), help="What the designs were made for."),
        click.argument("designs_path", metavar="DESIGNS.npz", type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


def _gathered(name: str, *decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Options whose values reach the command as one dict called ``name``."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **values: Any) -> Any:
            return function(*args, **{name: {key: values.pop(key) for key in keys}}, **values)

        before = len(getattr(function, "__click_params__", ()))
        decorated: Any = call
        for decorator in reversed(decorators):
            decorated = decorator(decorated)
        keys = [parameter.name for parameter in decorated.__click_params__[before:]]
        return decorated

    return decorate


engine = _gathered(
    "engine",
    click.option(
        "--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", show_default=True, help="auto: the fastest that works here."
    ),
    click.option(
        "--device",
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        help="cuda: NVIDIA; gpu, npu: Intel, through OpenVINO. A device named is never replaced by another.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="auto",
        show_default=True,
        help="auto: what the device does best, of what the bundle has.",
    ),
)

sampling = _gathered(
    "settings",
    click.option(
        "--steps",
        type=click.IntRange(1),
        help="Denoising steps; default: the bundle's. heun evaluates the network twice in each but the last.",
    ),
    click.option("--scheduler", type=click.Choice(list(SCHEDULERS)), help="Default: the bundle's."),
    click.option("--eta", type=click.FloatRange(0, 1), help="Fresh noise of ddim, from 0 to DDPM's; default: the bundle's."),
    click.option("--guidance-scale", type=float, help="Classifier-free guidance, 1 + w of the papers, 1 is none; default: the bundle's."),
    click.option(
        "--guidance-interval",
        type=(click.FloatRange(0), click.FloatRange(0)),
        metavar="LO HI",
        help="Noise levels (noise over signal) between which guidance acts; default: all.",
    ),
    click.option("--batch-size", type=click.IntRange(1), help="Candidates of one network call; default: by engine and memory."),
)

restoring = _gathered(
    "restoring",
    click.option(
        "--input",
        "source",
        metavar="DATA",
        help="Of a bundle of images: denoise these, a picture, a folder of them, an .npz or another data set; with a diffusion model once, "
        "or -n times each.",
    ),
    click.option(
        "--noise-level",
        "level",
        type=click.FloatRange(0, 1),
        help="With --input and a diffusion model: the share of the schedule to begin at; at 1 nothing is left of an image.",
    ),
    click.option(
        "--noise-sigma",
        "sigma",
        type=click.FloatRange(0, min_open=True),
        help="In place of --noise-level: begin at the step whose noise is nearest to this one, black being 0 and white 1.",
    ),
    click.option(
        "--add-noise/--no-add-noise",
        "fresh",
        default=True,
        show_default=True,
        help="The images of --input are clean and are noised to that level first, or hold that noise already.",
    ),
)

making = _gathered(
    "made",
    click.option("--tolerance", is_flag=True, help="Solve what the designs do where the lab is a little off: 12 solves each."),
    click.option("--robust", is_flag=True, help="Rank the solved designs by the worst of these."),
    click.option("--fabricable", is_flag=True, help="Refine towards the limits, and rank designs that keep them first."),
    click.option("--min-width-nm", type=click.FloatRange(0, min_open=True), help="Limit: least width of pillars and gaps."),
    click.option("--no-corners", is_flag=True, help="Limit: no pixels that touch at a corner."),
)


class _Height(click.ParamType):
    """free or free:LO:HI, as ``Sampler.design`` takes it."""

    name = "free[:LO:HI]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value == "free":
            return value
        word, *limits = value.split(":")
        try:
            low, high = (float(limit) for limit in limits)
        except ValueError:
            word = ""
        if word != "free":
            self.fail(f"{value!r} is neither 'free' nor 'free:LO:HI' with two heights in nm", param, ctx)
        return low, high


refinement = _gathered(
    "search",
    click.option(
        "--refine/--no-refine",
        default=True,
        show_default=True,
        help="Search on from the best candidates: flipped pixels, and other heights where --height is free.",
    ),
    click.option(
        "--budget", type=click.IntRange(1), default=32, show_default=True, help="With --refine, RCWA solves in all, ranking included."
    ),
    click.option(
        "--fixed",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Pixels that every design holds, from the first step of sampling on: key 'fixed' of a .npz or .json.",
    ),
    click.option("--height", type=_Height(), help="Search for the height too, within LO and HI nm; default: the target's height."),
    click.option("--time-limit", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Per target: the best found by then."),
)

cluster = _gathered(
    "place",
    click.option(
        "--cluster",
        metavar="auto|ADDRESS",
        help="Work on a Ray cluster. auto: the one that runs here or that RAY_ADDRESS names, else a new one of this computer.",
    ),
    click.option("--cpus-per-worker", type=click.FloatRange(0, min_open=True), help="With --cluster, threads of a worker; default: 1."),
    click.option("--gpus-per-worker", type=click.FloatRange(0), help="With --cluster; default: 1 where there are any and --device allows."),
)


def cluster_wish(place: dict[str, Any], workers: int | None) -> Wish | None:
    """What ``options.cluster`` asks for; None without ``--cluster``.

    Raises:
        click.UsageError: options for a cluster without one.
    """
    address = place["cluster"]
    shares = {"cpus": place["cpus_per_worker"], "gpus": place["gpus_per_worker"]}
    if address is None:
        idle = next((name for name, value in shares.items() if value is not None), None)
        if idle is not None:
            raise click.UsageError(f"--{idle}-per-worker is for a cluster; add --cluster auto")
        return None
    from .cluster import Wish

    return Wish(address, workers=workers, **{name: value for name, value in shares.items() if value is not None})


mask = click.option(
    "--mask",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Fill the images of --input where this picture is white and keep the rest; or an .npz with the key 'mask', 1 where it is filled.",
)
resample = click.option(
    "--resample",
    type=click.IntRange(1),
    default=RESAMPLE,
    show_default=True,
    metavar="R",
    help="With --mask or --fixed: take each step R times, so that what is sampled agrees with what is held.",
)

baseline = _gathered(
    "other",
    click.option("--baseline", type=click.Path(path_type=Path), help="Another bundle, ranked on the same targets with the same seeds."),
    click.option("--baseline-steps", type=click.IntRange(1), help="Denoising steps of the baseline; default: its own."),
    click.option("--baseline-scheduler", type=click.Choice(list(SCHEDULERS)), help="Scheduler of the baseline; default: its own."),
    click.option("--baseline-limit", type=click.IntRange(1), help="The baseline on the first so many targets only."),
)
