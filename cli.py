"""metascatter from a checkout: the runtime's commands, and training and exporting, which need PyTorch.

python cli.py infer examples/targets/deflector.json --out designs
python cli.py train --data data.npz --out runs/first
python cli.py export runs/first --out bundles/first
"""

from __future__ import annotations

from pathlib import Path

import click

from runtime.commands import group, status
from runtime.errors import BackendError


@group.command()
@click.option(
    "--data", "data_path", required=True, type=click.Path(), help=".npz, folder of .npz shards, or folder of the lab's .mat files."
)
@click.option("--out", "run", required=True, type=click.Path(path_type=Path), help="Folder for checkpoints, metrics and pictures.")
@click.option("--recipe", default="default", show_default=True, metavar="NAME|FILE", help="default, lab2023, or a .toml or .json file.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training part; overrides the recipe.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples a step; overrides the recipe.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate; overrides the recipe.")
@click.option("--loss", type=click.Choice(["mse", "l1", "huber"]), help="Overrides the recipe.")
@click.option("--seed", type=click.IntRange(0), help="Of weights, data order and noise; overrides the recipe.")
@click.option("--init", type=click.Path(path_type=Path), metavar="RUN", help="Start from the weights of another run.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out; the end is the same as of an unbroken run.")
@click.option(
    "--convention", type=click.Choice(["lab", "metascatter"]), default="lab", show_default=True, help="Index convention of .mat order maps."
)
@click.option("--checkpoint-every", type=click.IntRange(1), default=500, show_default=True, metavar="STEPS")
def train(
    data_path: str, run: Path, recipe: str, init: Path | None, resume: bool, convention: str, checkpoint_every: int, **overrides: object
) -> None:
    """Train a denoiser.

    \b
    python cli.py train --data data.npz --out runs/first
    python cli.py train --data Si_MS_Scat/ --recipe lab2023 --out runs/lab
    python cli.py train --data data.npz --out runs/first --resume
    """
    with _extra("train"):
        from train.loop import train as run_training
        from train.recipes import load_recipe

        settings = load_recipe(recipe, overrides)
        last = run_training(data_path, run, settings, convention=convention, resume=resume, init=init, checkpoint_every=checkpoint_every)
    click.echo(f"trained: {last}\nloss curve: {run / 'loss.png'}\nnext: python cli.py export {run} --out bundles/{run.name}")


@group.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", "bundle", required=True, type=click.Path(path_type=Path), help="Folder of the bundle; replaced whole.")
@click.option(
    "--evaluation", type=click.Path(path_type=Path), metavar="JSON", help="Output of 'evaluate --json' for the manifest and the model card."
)
@click.option("--scheduler", help="Default sampler of the bundle, in place of the recipe's.")
@click.option("--steps", type=click.IntRange(1), help="Default number of steps, in place of the recipe's.")
@click.option("--eta", type=click.FloatRange(0, 1), help="Default share of fresh noise (ddim), in place of 0.")
@click.option("--guidance-scale", type=float, help="Default guidance scale, in place of 1.")
def export(run: Path, bundle: Path, evaluation: Path | None, **sampling: object) -> None:
    """Turn the newest checkpoint of RUN into a bundle that runs without PyTorch.

    \b
    python cli.py export runs/first --out bundles/first
    """
    with _extra("export"):
        from export.bundle import export as write_bundle

        write_bundle(run, bundle, evaluation=evaluation, sampling={k: v for k, v in sampling.items() if v is not None}, say=status)


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
