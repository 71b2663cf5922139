"""metascatter from a checkout: the runtime's commands, and training and exporting, which need PyTorch.

python cli.py infer examples/targets/deflector.json --out designs
python cli.py train --data data.npz --out runs/first
python cli.py export runs/first --out bundles/first
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.commands import evaluate, group, simulate, status
from runtime.console import check_writable, given
from runtime.errors import BackendError

if TYPE_CHECKING:
    from train.recipes import Recipe


@group.command()
@click.option(
    "--data",
    "data_path",
    type=click.Path(),
    help=".npz, folder of .npz shards, or folder of the lab's .mat files; for images and points see the README. Else the recipe's own.",
)
@click.option("--out", "run", required=True, type=click.Path(path_type=Path), help="Folder for checkpoints, metrics and pictures.")
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="default, lab2023, consistency, surrogate, swiss-roll, digits, denoiser, flowers, craters, automobiles, cifar5, either with "
    "-simple, cifar5-diffusers, or a .toml or .json file; else that of the run --resume or --init names.",
)
@click.option("--quick", is_flag=True, help="The recipe's small settings: minutes on a CPU.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training part; overrides the recipe.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples a step; overrides the recipe.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate; overrides the recipe.")
@click.option("--loss", type=click.Choice(["mse", "l1", "huber"]), help="Overrides the recipe.")
@click.option("--seed", type=click.IntRange(0), help="Of weights, data order and noise; overrides the recipe.")
@click.option("--validation-fraction", type=click.FloatRange(0, 1, True, True), help="Share set aside; overrides the recipe.")
@click.option("--init", type=click.Path(path_type=Path), metavar="RUN", help="Start from the weights of another run, to fine-tune it.")
@click.option("--mix", type=click.Path(), metavar="DATA", help="With --init: data to mix in, so that what they teach is not forgotten.")
@click.option("--mix-share", type=click.FloatRange(0, 1, True, True), help="Their share of each batch; overrides the recipe's 0.5.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out; the end is the same as of an unbroken run.")
@click.option(
    "--convention", type=click.Choice(["lab", "metascatter"]), default="lab", show_default=True, help="Index convention of .mat order maps."
)
@click.option("--checkpoint-every", type=click.IntRange(1), default=500, show_default=True, metavar="STEPS")
@click.option(
    "--sweep", type=click.Path(path_type=Path), metavar="FILE", help="Train a grid of runs into --out and compare them: a .toml file."
)
@click.option("--keep", type=click.IntRange(1), default=2, show_default=True, metavar="K", help="Checkpoints that stay: the last K.")
@click.option(
    "--pictures-every",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    metavar="EPOCHS",
    help="Pictures of samples; of epoch 50 and the last as well, 0 for none at all.",
)
def train(
    data_path: str | None,
    run: Path,
    recipe: str | None,
    quick: bool,
    init: Path | None,
    mix: str | None,
    resume: bool,
    convention: str,
    checkpoint_every: int,
    keep: int,
    pictures_every: int,
    sweep: Path | None,
    **overrides: object,
) -> None:
    """Train a denoiser of metasurfaces, images or points, or the surrogate that ranks metasurfaces.

    \b
    python cli.py train --data data.npz --out runs/first
    python cli.py train --data Si_MS_Scat/ --recipe lab2023 --out runs/lab
    python cli.py train --data data.npz --out runs/first --resume
    python cli.py train --data data.npz --sweep train/sweeps/lab2023.toml --out runs/sweep
    python cli.py train --data measured/ --init runs/first --mix data.npz --lr 1e-4 --epochs 20 --out runs/tuned
    python cli.py train --recipe digits --quick --out runs/digits

    On several GPUs: torchrun --nproc_per_node 4 cli.py train ... Ctrl-C leaves a checkpoint.
    """
    work: dict[str, Any] = {"convention": convention, "resume": resume, "init": init, "mix": mix}
    work |= {"checkpoint_every": checkpoint_every, "keep": keep, "pictures_every": pictures_every}
    if sweep is not None:
        if given("recipe"):
            raise click.UsageError(f"{sweep} names its recipe; leave --recipe out")
        if data_path is None or quick:
            raise click.UsageError("a sweep needs --data and has no quick settings")
        with _extra("train"):
            from train.sweep import sweep as run_sweep
            from train.sweep_report import tables

            results = run_sweep(sweep, data_path, run, overrides=overrides, say=status, **work)
        click.echo(tables(results))
        status("".join(f"\n{run / name}" for name in ("sweep.json", "sweep.csv", "sweep.png", "loss_curves.png")).lstrip())
        if not any(row["status"] == "done" for row in results["runs"].values()):
            click.get_current_context().exit(1)
        return
    with _extra("train"):
        from train.finetune import recipe_for
        from train.loop import train as run_training

        settings = recipe_for(recipe, run if resume else None, init, overrides, quick, data_path is not None)
        if data_path is None and not settings.data:
            raise click.UsageError(f"the recipe {settings.name} has no data of its own; name them with --data")
        last = run_training(data_path or settings.data, run, settings, **work)
    if int(os.environ.get("RANK", "0")) == 0:  # of several processes one speaks
        click.echo(f"trained: {last}\nloss curve: {run / 'loss.png'}\nnext: {_onwards(run, settings)}")


def _onwards(run: Path, recipe: Recipe) -> str:
    """The command after a training: a surrogate alone is no bundle, and a denoiser of metasurfaces needs one to rank what it proposes."""
    if recipe.objective == "scattering":
        return f"python cli.py export RUN --surrogate {run} --out bundles/RUN"
    ranked = "" if recipe.layout == "labels" else "--surrogate RUN "
    return f"python cli.py export {run} {ranked}--out bundles/{run.name}"


@group.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", "bundle", required=True, type=click.Path(path_type=Path), help="Folder of the bundle; replaced whole.")
@click.option("--fp16", is_flag=True, help="Also write half-precision files, for GPUs.")
@click.option("--int8", is_flag=True, help="Also write files quantized to int8, for CPUs.")
@click.option("--surrogate", type=click.Path(path_type=Path), metavar="RUN", help="Run of the recipe surrogate, which ranks candidates.")
@click.option("--fused", type=click.IntRange(1), metavar="K", help="Also write the whole sampler, K steps, as one file: sampler.onnx.")
@click.option("--max-batch", type=click.IntRange(1, 4096), default=256, show_default=True, help="Largest batch that engines are built for.")
@click.option("--force", is_flag=True, help="Write fp16 or int8 even where designs become worse than the stated bound.")
@click.option("--tensorrt", is_flag=True, help="Also build the TensorRT engines, for this computer's GPU or --compute-capability.")
@click.option("--engine-dir", type=click.Path(path_type=Path), help="Folder for the engines; default: the user's cache.")
@click.option("--compute-capability", metavar="X.Y", help="GPU to build engines for, such as 8.9; TensorRT-RTX needs none here for it.")
@click.option("--workspace-mb", type=click.IntRange(1), default=1024, show_default=True, help="Most memory a layer of an engine may use.")
@click.option("--version-compatible", is_flag=True, help="Engines that later TensorRTs run as well.")
@click.option("--hardware-compatible", is_flag=True, help="Engines that all GPUs from Ampere on run as well.")
@click.option("--triton", type=click.Path(path_type=Path), metavar="DIR", help="Also write a Triton Inference Server model repository.")
@click.option(
    "--evaluation", type=click.Path(path_type=Path), metavar="JSON", help="Output of 'evaluate --json' for the manifest and the model card."
)
@click.option("--checkpoint", type=click.IntRange(1), metavar="STEP", help="The checkpoint to export; default: the newest.")
@click.option("--scheduler", help="Default sampler of the bundle, in place of the recipe's.")
@click.option("--steps", type=click.IntRange(1), help="Default number of steps, in place of the recipe's.")
@click.option("--eta", type=click.FloatRange(0, 1), help="Default share of fresh noise (ddim), in place of 0.")
@click.option("--guidance-scale", type=float, help="Default guidance scale, in place of 1.")
def export(
    run: Path,
    bundle: Path,
    fp16: bool,
    int8: bool,
    surrogate: Path | None,
    fused: int | None,
    max_batch: int,
    force: bool,
    tensorrt: bool,
    engine_dir: Path | None,
    compute_capability: str | None,
    workspace_mb: int,
    version_compatible: bool,
    hardware_compatible: bool,
    triton: Path | None,
    evaluation: Path | None,
    checkpoint: int | None,
    **sampling: object,
) -> None:
    """Turn the newest checkpoint of RUN, or that of --checkpoint, into a bundle that runs without PyTorch.

    \b
    python cli.py export runs/first --out bundles/first
    python cli.py export runs/first --out bundles/first --surrogate runs/surrogate --fp16 --int8 --fused 20
    python cli.py export runs/first --out bundles/first --fp16 --tensorrt --compute-capability 8.9 --engine-dir engines
    """
    check_writable(bundle)
    capability = None if compute_capability is None else _capability(compute_capability)
    with _extra("export"):
        from export import tensorrt as engines
        from export import triton as repository
        from export.bundle import export as write_bundle

        for name in ("engine_dir", "compute_capability", "workspace_mb", "version_compatible", "hardware_compatible"):
            if given(name) and not tensorrt:
                raise click.UsageError(f"--{name.replace('_', '-')} is for engines; add --tensorrt")
        if tensorrt:
            engines.check(capability, version_compatible=version_compatible, hardware_compatible=hardware_compatible)
            if engine_dir is not None:
                check_writable(engine_dir)
        if triton is not None:
            check_writable(triton)
            repository.check(triton)
        precisions = ["fp32", *(["fp16"] if fp16 else []), *(["int8"] if int8 else [])]
        write_bundle(
            run,
            bundle,
            precisions=precisions,
            surrogate=surrogate,
            fused=fused,
            max_batch=max_batch,
            force=force,
            evaluation=evaluation,
            step=checkpoint,
            sampling={k: v for k, v in sampling.items() if v is not None},
            say=status,
        )
        if triton is not None:
            repository.write_repository(bundle, triton, say=status)
        if tensorrt:
            if int8:
                status("int8 files are for CPUs: no engine is built of them, since TensorRT takes no zero points; fp16 is for GPUs")
            engines.build_engines(
                bundle,
                [p for p in precisions if p in engines.PRECISIONS],
                engine_dir=engine_dir,
                compute_capability=capability,
                workspace_mb=workspace_mb,
                version_compatible=version_compatible,
                hardware_compatible=hardware_compatible,
                say=status,
            )


@group.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", "run", required=True, type=click.Path(path_type=Path), help="Folder of the run, which must be new.")
@click.option("--network", type=click.Choice(["denoiser", "surrogate"]), default="denoiser", show_default=True, help="Which of them.")
def unpack(bundle: Path, run: Path, network: str) -> None:
    """Turn a BUNDLE back into a run to fine-tune, where the run it was exported from is not at hand.

    \b
    python cli.py unpack bundles/si1550 --out runs/shipped
    python cli.py unpack bundles/si1550 --network surrogate --out runs/judge
    python cli.py train --data measured/ --init runs/shipped --lr 1e-4 --epochs 20 --out runs/tuned
    python cli.py export runs/tuned --surrogate runs/judge --out bundles/tuned
    """
    check_writable(run)
    with _extra("export"):
        from export.unpack import unpack as read_back
        from runtime.bundle import Bundle

        last = read_back(Bundle.open(bundle), run, network, say=status)
    click.echo(f"unpacked: {last}\nnext: python cli.py train --data DATA --init {run} --out RUN")


def _solver(context: click.Context, parameter: click.Parameter, device: str) -> object:
    """What ``simulate`` solves with, on the device asked for; None is the runtime's own solver."""
    if device == "cpu":
        return None
    with _extra("train"):
        from train.rcwa import TorchSolver, usable

        try:
            usable(device)
        except BackendError as error:
            raise click.BadParameter(str(error), context, parameter) from None
        return lambda geometry, orders: TorchSolver(geometry, orders, device).solve_many


# The runtime's command, which must do without PyTorch, with one option more.
simulate.params.append(
    click.Option(
        ["--device", "solver"],
        type=click.Choice(["cpu", "cuda"]),
        default="cpu",
        show_default=True,
        callback=_solver,
        help="cuda: the same solver in PyTorch, batched on an NVIDIA GPU and in float64. The samples are the same and the "
        "efficiencies equal to the rounding of the CPU's complex64 (1e-4), so a run begun on one may be finished on the other.",
    )
)


def _features(context: click.Context, parameter: click.Parameter, path: Path | None) -> object:
    """The scores by a network's features; None where no network is named."""
    if path is None:
        return None
    with _extra("train"):
        from train.inception import load

        return load(path)


evaluate.params.append(
    click.Option(
        ["--features", "network"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        callback=_features,
        help="Of images: also FID and Inception Score by the Inception in FILE (.onnx, TorchScript .pt, torch-fidelity's .pth), or the "
        "like by another network. A TorchScript file is a program: take it only from whom you trust.",
    )
)


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise click.BadParameter(f"'{text}' is no compute capability; write it as 8.9", param_hint="--compute-capability")
    return int(major), int(minor)


class _extra:
    """An import inside the block that fails, now or during the work, becomes a sentence naming the extra to install."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ModuleNotFoundError):
            raise BackendError(
                f"{error.name} is not installed; install the extra with: pip install -c constraints.txt '.[{self.name}]'"
            ) from None


if __name__ == "__main__":
    group(prog_name="cli.py")
