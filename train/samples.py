"""What the network makes of a few validation samples while it trains, as a picture of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from runtime import denoise_pictures, sample_pictures
from runtime.condition import Condition
from runtime.data import DataSet
from runtime.labels import Labels
from runtime.plots import Row, chosen, lit, sample_grid
from runtime.samples import SampleSet
from runtime.schedulers import Plan, plan

from . import tasks
from .recipes import Recipe
from .run import Run

TARGETS, SAMPLES, STEPS = 8, 3, 20
EARLY = {"restoration": (1, 5)}  # epochs that have a picture as well, by objective
IMAGES, POINTS, _BLURRED = 60, 1000, 256
LARGE = 32  # pixels; of larger images a third is drawn, for sampling them takes longer
_SEED = 2023


def picture(path: Path, epoch: float, run: Run, network: nn.Module, device: torch.device) -> None:
    """Draw what ``network`` makes of some validation samples: patterns for their light or, of a surrogate, light for their patterns."""
    if run.recipe.objective == "restoration":
        _draw_restored(path, f"{run.recipe.name}, epoch {epoch:g}, validation images", run, network, device)
        return
    if isinstance(run.data, SampleSet):
        _draw_samples(path, f"{run.recipe.name}, epoch {epoch:g}", run, network, device)
        return
    held = chosen(run.data.take(run.validation), TARGETS)
    title = f"{run.recipe.name}, epoch {epoch:g}, validation samples"
    if run.recipe.objective == "scattering":
        _draw_light(path, title, held, network, device)
    else:
        _draw_patterns(path, title, held, run, network, device)


def _draw_samples(path: Path, title: str, run: Run, network: nn.Module, device: torch.device) -> None:
    """Images, of every class in turn, or points; each beside training samples."""
    labels, data = run.condition, run.data
    assert isinstance(labels, Labels)
    assert isinstance(data, SampleSet)
    shape = tuple(run.recipe.network_arguments["shape"])
    count = POINTS if sample_pictures.is_points(shape) else IMAGES if shape[-1] <= LARGE else IMAGES // 3
    # Spread through the data, whose neighbours may be alike.
    rows = np.unique(np.linspace(0, len(run.training) - 1, count).round().astype(int))
    true = tasks.whole(run.recipe, data.take(run.training[rows]))
    assert isinstance(true, SampleSet)
    wanted = np.arange(count) % len(labels.classes) if labels.classes else np.full(count, -1)
    made = sample(network, quick_plan(run.recipe), shape, labels.arrays(wanted), device, count)
    parts = [("training data", true.x), ("samples", sample_pictures.shown(made, labels))]
    sample_pictures.draw(path, title, parts, len(labels.classes) or None)


@torch.no_grad()
def _draw_restored(path: Path, title: str, run: Run, network: nn.Module, device: torch.device) -> None:
    """Validation images at every size of noise: what the network makes of them, beside a blur fitted to training images."""
    assert isinstance(run.data, SampleSet)
    training, held = (
        run.data.x[rows].astype(np.float32) / 255 for rows in (run.training[:_BLURRED], run.validation[: denoise_pictures.SHOWN])
    )
    denoise_pictures.draw_one_step(
        path, title, lambda images: network(torch.from_numpy(images).to(device)).float().cpu().numpy(), training, held, _SEED
    )


def _draw_patterns(path: Path, title: str, held: DataSet, run: Run, network: nn.Module, device: torch.device) -> None:
    steps, size = quick_plan(run.recipe), held.xx.shape[-1]
    side = run.recipe.canvas or size
    start = (side - size) // 2
    assert isinstance(run.condition, Condition)
    seen = run.condition.arrays(held.Rm, held.Tm, held.h, extra=held.extra)
    condition = {key: np.repeat(value, SAMPLES, axis=0) for key, value in seen.items()}
    found = sample(network, steps, (1, side, side), condition, device, len(held) * SAMPLES)[
        :, 0, start : start + size, start : start + size
    ]
    patterns = (found > 0).astype(np.uint8).reshape(len(held), SAMPLES, size, size)
    rows = []
    for truth, height, R, T, made in zip(held.xx, held.h, held.Rm, held.Tm, patterns, strict=True):
        moved, unequal = aligned(made, truth)
        notes = [f"{count} px differ" if count else "the same" for count in unequal]
        rows.append(Row(f"{height:g} nm", [lit(R, held.geometry, 0), lit(T, held.geometry, 1), truth, *moved], ["", "", "", *notes]))
    words = "samples shifted to where they fit best"
    sample_grid(path, f"{title}; {words}", ["wanted R", "wanted T", "true pattern", *(f"sample {k + 1}" for k in range(SAMPLES))], rows)


@torch.no_grad()
def _draw_light(path: Path, title: str, held: DataSet, network: nn.Module, device: torch.device) -> None:
    pattern, height = held.xx[:, None].astype(np.float32), held.h[:, None].astype(np.float32)
    R, T = (maps.float().cpu().numpy() for maps in network(*(torch.from_numpy(a).to(device) for a in (pattern, height))))
    rows = []
    for k in range(len(held)):
        pairs = ((held.Rm[k], R[k], 0), (held.Tm[k], T[k], 1))
        wrong = 0.5 * float(sum(np.abs(true - found).sum() for true, found, _ in pairs))
        cells = [lit(maps, held.geometry, side) for true, found, side in pairs for maps in (true, found)]
        rows.append(Row(f"{held.h[k]:g} nm", [held.xx[k], *cells], [f"misrouted {wrong:.3f}", "", "", "", ""]))
    sample_grid(path, title, ["pattern", "true R", "predicted R", "true T", "predicted T"], rows)


def quick_plan(recipe: Recipe) -> Plan:
    """The recipe's own sampler where it takes few steps, else ``STEPS`` of DDIM."""
    if recipe.sampling_steps <= 2 * STEPS:
        return plan(recipe.scheduler, recipe.sampling_steps, recipe.sampling_scheduler)
    return plan(recipe.scheduler, min(STEPS, recipe.scheduler.get("num_train_timesteps", 1000)), "ddim")


@torch.no_grad()
def sample(
    network: nn.Module, steps: Plan, shape: tuple[int, ...], condition: Mapping[str, np.ndarray], device: torch.device, count: int
) -> np.ndarray:
    """Samples (count, *shape) float32 for a condition, from a fixed noise of NumPy's; torch's random state is left alone."""
    draws = np.random.Generator(np.random.Philox(key=[_SEED, 0]))
    state = steps.start(draws.standard_normal((count, *shape), dtype=np.float32))
    history = steps.new_history(state.shape)
    seen = {key: torch.from_numpy(np.ascontiguousarray(value)).to(device) for key, value in condition.items()}
    for k, timestep in enumerate(steps.timesteps.tolist()):
        moment = torch.full((count,), timestep, dtype=torch.int64, device=device)
        output = network(torch.from_numpy(state).to(device), moment, **seen).float().cpu().numpy()
        noise = draws.standard_normal(state.shape, dtype=np.float32) if steps.needs_noise[k] else None
        steps.step(k, output, state, noise, history)
    return state


def aligned(patterns: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patterns (B, n, n), each moved by the cyclic shift that fits ``truth`` (n, n) best, and in how many pixels (B,) they then differ.

    Shifted cells scatter alike, so a network cannot know where the true one began.
    """
    n = truth.shape[0]
    shifted = np.stack([np.roll(patterns, (i, j), axis=(1, 2)) for i in range(n) for j in range(n)], axis=1)
    unequal = (shifted != truth).sum(axis=(2, 3))
    best = unequal.argmin(axis=1)
    rows = np.arange(len(patterns))
    return shifted[rows, best], unequal[rows, best]
