"""Pictures of images coming out of noise: clean, noisy, blurred and denoised in rows, one size of noise a column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .denoise import Denoiser, iterate, noisy, reachable
from .denoise_scores import LEVELS, SIGMAS, blurred, parts, psnr
from .drawing import FAINT, INK, matplotlib_needed
from .errors import BundleError
from .files import atomic_file
from .sample_pictures import mosaic, to_bytes
from .sampler import Sampler
from .samples import SampleSet

SHOWN = 4  # images of a cell
MOST = 16


def grid(path: Path, title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]]) -> None:
    """Draw cells, a mosaic of images (N, C, H, W) with white 1 and a note beneath, atomically; the suffix of ``path`` names the format.

    Args:
        rows: what each is called, and a cell for every column.

    Raises:
        BackendError: matplotlib is not installed.
        DataError: a place that cannot be written.
    """
    with matplotlib_needed():
        from matplotlib.figure import Figure

    pages = [[mosaic(to_bytes(images * 255)) for images, _ in cells] for _, cells in rows]
    high, wide = pages[0][0].shape[:2]
    side = 1.15
    tall = side * high / wide
    figure = Figure(figsize=(side * 1.06 * len(columns) + 1.0, (tall + 0.2) * len(rows) + 0.65), facecolor="white", layout="constrained")
    figure.suptitle(title, size=10, color=INK, x=0.01, ha="left", weight="bold")
    for axes_row, pages_row, (name, cells) in zip(figure.subplots(len(rows), len(columns), squeeze=False), pages, rows, strict=True):
        axes_row[0].set_ylabel(name, size=8.5, color=INK, rotation=0, ha="right", va="center")
        for axes, page, (_, note) in zip(axes_row, pages_row, cells, strict=True):
            axes.imshow(page, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_frame_on(False)
            axes.set_xlabel(note, size=7, color=FAINT, labelpad=1)
    for axes, name in zip(figure.axes, columns, strict=False):
        axes.set_title(name, size=8.5, color=INK, pad=4)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130)


def draw_one_step(
    path: Path, title: str, denoise: Callable[[np.ndarray], np.ndarray], training: np.ndarray, clean: np.ndarray, seed: int = 0
) -> None:
    """Images ``clean`` (N, C, H, W) of no more than a cell holds, at every size of noise; the blur is fitted to ``training``.

    PSNR is that of the images shown. Errors as for :func:`grid`.
    """
    rows: dict[str, list[tuple[np.ndarray, str]]] = {name: [] for name in ("clean", "noisy", "best blur", "denoised")}
    for sigma in SIGMAS:
        given = noisy(clean, sigma, seed)
        soft, width = blurred(training, given, sigma, seed)
        found = denoise(given)
        rows["clean"].append((clean, ""))
        rows["noisy"].append((given, _decibels(given, clean)))
        rows["best blur"].append((soft, f"{_decibels(soft, clean)}, {width:.2g} px"))
        rows["denoised"].append((found, _decibels(found, clean)))
    grid(path, title, [f"σ = {sigma:g}" for sigma in SIGMAS], list(rows.items()))


def draw(opened: Denoiser | Sampler, data: SampleSet, path: Path, n: int = SHOWN, seed: int = 0, **settings: Any) -> None:
    """Draw ``n`` held-out images of ``data`` denoised by a bundle, in one step or also iteratively.

    Args:
        settings: of a diffusion model, as for :func:`denoise.iterate`; none for one that denoises in one step.

    Raises:
        DataError: as :func:`denoise_scores.parts`, or as :func:`grid`.
        BackendError: matplotlib is not installed.
        BundleError: so few steps that none is at or below any of the levels.
    """
    bundle = opened.bundle
    training, clean = parts(data, bundle)
    clean = clean[:n]
    name = bundle.manifest["recipe"]["name"]
    if isinstance(opened, Denoiser):
        draw_one_step(path, f"{name}: in one step, trained at σ = {opened.noise_sigma:g}", opened, training, clean, seed)
        return
    columns, steps = [], 0
    rows: dict[str, list[tuple[np.ndarray, str]]] = {word: [] for word in ("clean", "noised", "best blur", "one step", "iterative")}
    levels = reachable(opened, LEVELS, **settings)
    if not levels:
        raise BundleError(f"no step is at or below {LEVELS[-1]:g} of the schedule of {bundle.path}; take more --steps")
    for level in levels:
        found = iterate(opened, clean, level=level, seed=seed, **settings)
        soft, width = blurred(training, found.noised, found.sigma, seed)
        columns.append(f"t = {found.timestep}, σ = {found.sigma:.2g}")
        steps = max(steps, found.steps)
        rows["clean"].append((clean, ""))
        rows["noised"].append((found.noised, _decibels(found.noised, clean)))
        rows["best blur"].append((soft, f"{_decibels(soft, clean)}, {width:.2g} px"))
        rows["one step"].append((found.one_step, _decibels(found.one_step, clean)))
        rows["iterative"].append((found.finished, f"{_decibels(found.finished, clean)}, {found.steps} steps"))
    grid(path, f"{name}: denoised from levels of its schedule", columns, list(rows.items()))


def _decibels(found: np.ndarray, wanted: np.ndarray) -> str:
    value = psnr(found, wanted)
    return "exact" if value is None else f"{value:.1f} dB"
