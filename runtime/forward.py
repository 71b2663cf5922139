"""Pictures of what a diffusion model is trained on: its data, its noise schedule, and the data under noise (the forward process)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import data as cells
from . import plots, sample_pictures, samples
from .bundle import Bundle
from .data import DataSet
from .drawing import ACCENT, INK, matplotlib_needed, style
from .errors import DataError
from .files import atomic_file
from .schedulers import Plan, schedule

MOMENTS, FRAMES = 8, 40  # timesteps of a strip and of an animation


def read(source: str | Path, size: int = 0, channels: int = 0, convention: str = "lab") -> samples.SampleSet | DataSet:
    """A data set of either kind: metasurfaces where it is a folder of ``.mat`` or ``.npz`` files or has the key ``xx``, else samples.

    Raises:
        DataError, BackendError: as ``data.load`` and ``samples.load``.
    """
    path = Path(source)
    if path.is_dir():
        solved = any(path.glob("*.mat")) or any(path.glob("*.npz"))
    else:
        solved = path.suffix == ".npz" and path.exists() and "xx" in cells.open_npz(path)
    return cells.load(path, convention) if solved else samples.load(source, size, channels)


def draw_data(found: samples.SampleSet | DataSet, name: str, path: Path, count: int) -> None:
    """Draw ``count`` samples of a data set, evenly spread through it: images or patterns in a mosaic, all points in a scatter plot.

    With classes a row is a class. Patterns have x right and y up, pillars dark, and go from the lowest to the tallest.

    Raises:
        BackendError: matplotlib is not installed.
        DataError: a place that cannot be written.
    """
    if isinstance(found, DataSet):
        part = plots.chosen(found, count)
        words = f"{len(part)} of {len(found)} patterns, {found.h.min():g} to {found.h.max():g} nm"
        return sample_pictures.draw(path, name, [(words, _cells(2.0 * part.xx[:, None] - 1.0))])
    if sample_pictures.is_points(found.shape):
        return sample_pictures.draw(path, name, [(f"{len(found)} points", found.x)])
    columns = None
    rows = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    if found.classes:
        places = [np.flatnonzero(found.label == k) for k in range(len(found.classes))]
        columns = min(max(1, count // len(found.classes)), *(len(place) for place in places))
        if columns:
            rows = np.concatenate([place[:columns] for place in places])
    pages = found.take(np.unique(rows) if not columns else rows).x
    shown = pages if pages.dtype == np.uint8 else sample_pictures.to_bytes(255 * (pages - pages.min()) / max(float(np.ptp(pages)), 1e-9))
    of = f" of the classes {', '.join(found.classes)}" if found.classes else ""
    sample_pictures.draw(path, name, [(f"{len(shown)} of {len(found)} images{of}", shown)], columns or None)


def draw_schedule(config: Mapping[str, Any], name: str, path: Path, plan: Plan | None = None) -> None:
    """Draw betas, alphas_cumprod and signal-to-noise ratio over the timesteps of a ``scheduler_config.json``; ``plan``'s steps as dots.

    Raises:
        BackendError: matplotlib is not installed.
        DataError: a place that cannot be written.
        BundleError: a schedule that is not supported.
    """
    betas, signal = schedule(config)
    with matplotlib_needed():
        from matplotlib.figure import Figure
    figure = Figure(figsize=(9.0, 2.9), facecolor="white", layout="constrained")
    kind = config.get("beta_schedule", "linear")
    dots = "" if plan is None else f"; dots: the {plan.num_steps} steps of sampling"
    figure.suptitle(
        f"{name}: the noise schedule, {kind}, {len(betas)} timesteps{dots}", size=10, color=INK, x=0.02, ha="left", weight="bold"
    )
    with np.errstate(divide="ignore"):
        ratio = signal / (1 - signal)
    at = None if plan is None else np.clip(plan.timesteps.round().astype(int), 0, len(betas) - 1)
    for axis, values, title, logarithmic in zip(
        figure.subplots(1, 3),
        (betas, signal, ratio),
        ("β, variance added", "ᾱ, share of signal left (alphas_cumprod)", "signal-to-noise ratio, ᾱ / (1 − ᾱ)"),
        (False, False, True),
        strict=True,
    ):
        axis.plot(values, color=INK, linewidth=1.2)
        if logarithmic:
            axis.set_yscale("log")
            if at is not None:
                axis.plot(at, values[at], "o", color=ACCENT, markersize=3, linewidth=0)
        axis.set_title(title, size=8, color=INK, loc="left")
        axis.set_xlabel("timestep", size=7.5, color=INK)
        axis.grid(alpha=0.25, linewidth=0.5)
        style(axis)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=sample_pictures.DPI)


def draw_forward(bundle: Bundle, found: samples.SampleSet | DataSet, path: Path, n: int, seed: int) -> None:
    """Draw n samples under more and more noise, by a bundle's schedule: a strip, or all moving where ``path`` is a ``.gif``.

    x_t = sqrt(alphas_cumprod[t]) x_0 + sqrt(1 - alphas_cumprod[t]) z (DDPM, eq. 4), each sample with one z for all timesteps.

    Raises:
        DataError: data of another kind or shape than the bundle's, or a place that cannot be written.
        BackendError: matplotlib is not installed.
    """
    signal = schedule(bundle.json("scheduler_config.json"))[1]
    moving = path.suffix.lower() == ".gif"
    timesteps = np.linspace(0, len(signal) - 1, min(FRAMES if moving else MOMENTS, len(signal))).round().astype(int).tolist()
    clean = _clean(bundle, found, n, seed)
    noise = np.random.default_rng(seed).standard_normal(clean.shape, dtype=np.float32)
    moments = [("data", clean)]
    moments += [(f"t = {t}", (np.sqrt(signal[t]) * clean + np.sqrt(1 - signal[t]) * noise).astype(np.float32)) for t in timesteps]
    title = f"{bundle.manifest['recipe']['name']}: the forward process, {len(signal)} timesteps"
    if bundle.designs:
        parts = [(name, _cells(values)) for name, values in moments]
    else:
        parts = [(name, sample_pictures.shown(values, bundle.labels)) for name, values in moments]
    if moving:
        sample_pictures.animate(path, title, parts)
    else:
        sample_pictures.draw(path, title, parts, 1, 1.2 if not sample_pictures.is_points(clean.shape[1:]) else None)


def _cells(values: np.ndarray) -> np.ndarray:
    """Patterns (N, 1, n, n) from -1 (gap) to 1 (pillar), under noise or not, as images: pillars dark, x right and y up."""
    return sample_pictures.to_bytes(127.5 - 85 * values.transpose(0, 1, 3, 2)[:, :, ::-1])


def _clean(bundle: Bundle, found: samples.SampleSet | DataSet, n: int, seed: int) -> np.ndarray:
    """Samples (n, channels, height, width) float32 in the network's units, drawn from the data without replacement."""
    rows = np.sort(np.random.default_rng((seed, 1)).permutation(len(found))[:n])
    if bundle.designs != isinstance(found, DataSet):
        kinds = ("metasurfaces", "images or points") if bundle.designs else ("images or points", "metasurfaces")
        raise DataError(f"the bundle {bundle.path.name} is of {kinds[0]} and the data are {kinds[1]}; name the other of one of them")
    if isinstance(found, DataSet):
        return 2.0 * found.xx[rows, None].astype(np.float32) - 1.0
    shape = tuple(bundle.manifest["sample_shape"])
    if found.shape != shape:
        raise DataError(f"the data are of shape {found.shape} and the bundle's samples of {shape}; name the data of this bundle")
    return bundle.labels.to_network(found.x[rows])
