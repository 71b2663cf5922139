"""How well images come out of noise: PSNR beside that of a Gaussian blur, the classical denoiser.

PSNR = -10 log10(mean squared error) dB over all held-out images together, which are in [0, 1] as data and cut to it before they are
compared. The blur is as wide as is best for that size of noise on the training part, which no held-out image belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle
from .denoise import Denoiser, iterate, noisy, reachable
from .errors import DataError
from .generate import one_of
from .sampler import OnStep, Sampler
from .samples import SampleSet, set_aside

SIGMAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)  # of the noise
LEVELS = (0.1, 0.25, 0.5, 0.75)  # of the schedule of a diffusion model
WIDTHS = (0.0, *np.geomspace(0.2, 10.0, 60).round(3).tolist())  # of the blur: standard deviations in pixels
MOST, MOST_ITERATED = 2000, 128  # images compared, and compared by the reverse process
_MOST_BLURRED = 1 << 20  # numbers that the best blur is searched on


def psnr(found: np.ndarray, wanted: np.ndarray) -> float | None:
    """Peak signal-to-noise ratio in dB of images cut to [0, 1], all together; None where they are equal."""
    error = float(np.mean((np.clip(found, 0, 1, dtype=np.float64) - wanted) ** 2))
    return None if error == 0 else -10 * float(np.log10(error))


def blur(images: np.ndarray, width: float) -> np.ndarray:
    """Images (N, C, H, W) under a Gaussian of this standard deviation in pixels, mirrored at the edges (``scipy.ndimage``)."""
    from scipy.ndimage import gaussian_filter

    return images if width == 0 else gaussian_filter(images, (0, 0, width, width))


def best_width(given: np.ndarray, wanted: np.ndarray) -> float:
    """The width of ``WIDTHS`` whose blur of ``given`` has the largest PSNR: the best of every sixth, then the best around that one."""

    def error(place: int) -> float:
        return float(np.mean((np.clip(blur(given, WIDTHS[place]), 0, 1) - wanted) ** 2))

    near = min(range(0, len(WIDTHS), 6), key=error)
    return WIDTHS[min(range(max(0, near - 5), min(len(WIDTHS), near + 6)), key=error)]


def parts(data: SampleSet, bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """The training and the held-out part of a data set, (N, *shape) float32 with white 1, split as training the bundle did.

    Raises:
        DataError: no images of 8 bits, images of another shape, or too few to split.
    """
    shape, recipe = tuple(bundle.manifest["sample_shape"]), bundle.manifest["recipe"]
    if data.shape != shape:
        raise DataError(f"the data are of shape {data.shape} and the bundle's samples of {shape}; name the data of this bundle")
    if data.x.dtype != np.uint8:
        raise DataError(f"the data are {data.x.dtype}; PSNR is measured on clean images of 8 bits")
    if recipe.get("classes") and data.classes:
        data = data.only(recipe["classes"])
    held = set_aside(data.identities(), float(recipe.get("validation_fraction", 0.1)))
    if held.all() or not held.any():
        raise DataError(f"{len(data)} images are too few to hold some out and search the best blur on the others; name more data")
    x = data.x.astype(np.float32) / np.float32(255)
    return x[~held], x[held]


def blurred(training: np.ndarray, given: np.ndarray, sigma: float, seed: int) -> tuple[np.ndarray, float]:
    """Noisy images under the blur that is best for this noise on training images, and its width."""
    clean = training[: max(16, _MOST_BLURRED // training[0].size)]
    width = best_width(noisy(clean, sigma, seed, 1), clean)
    return blur(given, width), width


def evaluate(
    denoiser: Denoiser,
    data: SampleSet,
    n: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """PSNR on held-out images by the size of the noise, as JSON values; None for a PSNR is no error at all.

    Args:
        data: clean images; those that training would have held out are compared, the best blur is searched on the others.
        n: images compared, at most ``MOST``; None is all.

    Raises:
        DataError: as :func:`parts`.
    """
    training, clean = parts(data, denoiser.bundle)
    clean = clean[: min(n or MOST, MOST)]
    rows: list[dict[str, Any]] = []
    sigmas = sorted({*SIGMAS, denoiser.noise_sigma})
    for k, sigma in enumerate(sigmas):
        given = noisy(clean, sigma, seed)
        soft, width = blurred(training, given, sigma, seed)
        found = denoiser(given, batch_size, one_of(on_step, k, len(sigmas)))
        rows.append(
            {"sigma": sigma, "noisy": psnr(given, clean), "blur": psnr(soft, clean), "blur_width": width, "denoised": psnr(found, clean)}
        )
    blurred_, restored = next((row["blur"], row["denoised"]) for row in rows if row["sigma"] == denoiser.noise_sigma)
    gain = None if blurred_ is None or restored is None else restored - blurred_
    return {
        "recipe": denoiser.bundle.manifest["recipe"]["name"],
        "images": len(clean),
        "training_images": len(training),
        "seed": seed,
        "noise_sigma": denoiser.noise_sigma,
        "psnr": rows,
        "gain_over_blur_db": gain,
    }


def iterated(sampler: Sampler, data: SampleSet, seed: int = 0, on_step: OnStep | None = None, **settings: Any) -> list[dict[str, Any]]:
    """The same of a diffusion model by the level of its schedule: blurred, in one step, iteratively; no class is asked for.

    Args:
        settings: ``steps``, ``scheduler``, ``eta`` and ``batch_size`` of :func:`denoise.iterate`.

    Raises:
        DataError: as :func:`parts`.
    """
    training, clean = parts(data, sampler.bundle)
    clean = clean[:MOST_ITERATED]
    rows = []
    levels = reachable(sampler, LEVELS, **settings)
    for k, level in enumerate(levels):
        found = iterate(sampler, clean, level=level, seed=seed, on_step=one_of(on_step, k, len(levels)), **settings)
        soft, width = blurred(training, found.noised, found.sigma, seed)
        rows.append(
            {
                "level": level,
                "timestep": found.timestep,
                "sigma": found.sigma,
                "steps": found.steps,
                "noisy": psnr(found.noised, clean),
                "blur": psnr(soft, clean),
                "blur_width": width,
                "one_step": psnr(found.one_step, clean),
                "iterative": psnr(found.finished, clean),
            }
        )
    return rows


def _cells(row: Mapping[str, Any], columns: tuple[str, ...]) -> list[str]:
    return [f"{row[name]:.2f}" if row[name] is not None else "exact" for name in columns]


def table(result: Mapping[str, Any]) -> str:
    """What :func:`evaluate` gives, for people."""
    from .fabrication import aligned

    rows = [["noise", "noisy", "best blur", "(pixels)", "denoised"]]
    for row in result["psnr"]:
        noisy_, soft, made = _cells(row, ("noisy", "blur", "denoised"))
        rows.append([f"{row['sigma']:g}", noisy_, soft, f"{row['blur_width']:.2f}", made])
    lines = [f"{result['recipe']}: PSNR in dB on {result['images']} held-out images, seed {result['seed']}", aligned(rows)]
    if result["gain_over_blur_db"] is not None:
        lines.append(f"at {result['noise_sigma']:g}, the noise it was trained on, {result['gain_over_blur_db']:+.2f} dB over the blur")
    return "\n".join(lines)


def iterated_table(rows: list[dict[str, Any]]) -> str:
    """What :func:`iterated` gives, for people."""
    from .fabrication import aligned

    lines = [["noise level", "timestep", "noise", "noised", "best blur", "(pixels)", "one step", "iterative", "(steps)"]]
    for row in rows:
        noised, soft, one, many = _cells(row, ("noisy", "blur", "one_step", "iterative"))
        where = [f"{row['level']:g}", str(row["timestep"]), f"{row['sigma']:.2f}"]
        lines.append([*where, noised, soft, f"{row['blur_width']:.2f}", one, many, str(row["steps"])])
    return f"denoising held-out images, PSNR in dB\n{aligned(lines)}"


def picture(result: Mapping[str, Any], path: Path) -> None:
    """Draw the table of :func:`evaluate` as curves, atomically.

    Raises:
        BackendError: matplotlib is not installed.
        DataError: a place that cannot be written.
    """
    from .drawing import ACCENT, FAINT, INK, PILLAR, matplotlib_needed
    from .files import atomic_file

    with matplotlib_needed():
        from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), facecolor="white", layout="constrained")
    axes = figure.subplots()
    for name, words, colour in (("noisy", "noisy", FAINT), ("blur", "best Gaussian blur", PILLAR), ("denoised", "denoised", ACCENT)):
        found = [(row["sigma"], row[name]) for row in result["psnr"] if row[name] is not None]
        axes.plot(*zip(*found, strict=True), "o-", color=colour, markersize=4, label=words)
    axes.axvline(result["noise_sigma"], color=FAINT, linewidth=0.8, linestyle=":")
    axes.text(result["noise_sigma"], 1.01, "trained here", transform=axes.get_xaxis_transform(), ha="center", size=7, color=FAINT)
    axes.set(xlabel="standard deviation of the noise (white is 1)", ylabel="PSNR, dB")
    axes.set_title(f"{result['recipe']}, {result['images']} held-out images", size=10, color=INK, loc="left", pad=14)
    axes.grid(True, alpha=0.3)
    axes.legend(frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130)
