"""Scores of a bundle of images or points against data it is to resemble; every score stands beside that of other real data.

Points: the sliced Wasserstein distance (Rabin et al. 2011), the mean over directions of the distance between the sorted projections.
Images: the Fréchet distance between Gaussians (Dowson & Landau 1982) fitted to the first principal components of the pixels. It needs no
download, and is no FID, which takes the features of an Inception network. With classes: the share of samples that a classifier, fitted to
one half of the data, takes for the class that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import denoise_scores
from .errors import DataError
from .generate import generate, one_of
from .sample_pictures import is_points, shown
from .sampler import OnStep, Sampler
from .samples import SampleSet, sklearn, swiss_roll

DRAWS = 5  # seeds, whose median counts
DIRECTIONS = 256
COMPONENTS = 32  # of the pixels
MOST = 2000  # samples compared
SCALES = (1.0, 2.0, 3.0, 5.0)  # guidance scales of the curve


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """Between as many points a and b (N, d): the mean over random directions of the 1-D Wasserstein-1 distance.

    Raises:
        DataError: not as many.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise DataError(f"the points have shapes {a.shape} and {b.shape}; expected as many of each")
    directions = np.random.default_rng(seed).standard_normal((DIRECTIONS, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return float(np.abs(np.sort(a @ directions.T, axis=0) - np.sort(b @ directions.T, axis=0)).mean())


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Between the Gaussians fitted to features a (N, d) and b (M, d): |mean difference|^2 + tr(A + B - 2 (A B)^(1/2))."""
    difference = a.mean(axis=0) - b.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (a, b))
    # The eigenvalues of A B are those of the symmetric A^(1/2) B A^(1/2): real and, but for rounding, not negative.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * mixed)


def evaluate(
    sampler: Sampler, data: SampleSet, n: int | None = None, seed: int = 0, on_step: OnStep | None = None, **settings: Any
) -> dict[str, Any]:
    """Scores as JSON values.

    Args:
        data: real data: what is resembled, and what a score of real data is taken from.
        n: samples compared; None is as many as there are in half of the data, 2000 at most.
        settings: of ``Sampler.stream``.

    Raises:
        DataError: data of another shape or with other classes, or too few.
        BackendError: scikit-learn, which classifies, is not installed.
        TargetError, BundleError: as ``Sampler.stream``.
    """
    shape = tuple(sampler.bundle.manifest["sample_shape"])
    labels = sampler.bundle.labels
    if data.shape != shape:
        raise DataError(f"the data are of shape {data.shape} and the bundle's samples of {shape}; name the data of this bundle")
    if labels.classes:
        data = data.only(labels.classes)
    count = min(n or MOST, MOST, len(data) // 2)
    if count < 10:
        raise DataError(f"{len(data)} samples are too few to compare with; name more data, or a larger -n")
    scale = float(settings.get("guidance_scale") or sampler.bundle.manifest["sampling"]["guidance_scale"])
    common = {"samples": count, "data": len(data), "seed": seed, "recipe": sampler.bundle.manifest["recipe"]["name"]}
    if is_points(shape):
        return {**common, "sliced_wasserstein": _points(sampler, data, count, seed, on_step, settings)}
    scales = sorted({*SCALES, scale}) if labels.classes else [scale]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data))
    one, other = data.take(order[: len(data) // 2]), data.take(order[len(data) // 2 :][:count])
    features = _features(one.x)
    classify = _classifier(one) if labels.classes else None
    rows = []
    for k, guidance in enumerate(scales):
        step = one_of(on_step, k, len(scales))
        made, places = generate(sampler, None, count, seed, step, **{**settings, "guidance_scale": guidance})
        images = shown(made, labels)
        accuracy = None if classify is None else float((classify(images) == places).mean())
        rows.append({"guidance_scale": guidance, "frechet": frechet(features(images), features(one.x)), "class_accuracy": accuracy})
    mean, spread = one.x.mean(axis=0, dtype=np.float64), one.x.std(axis=0, dtype=np.float64)
    independent = np.clip(rng.normal(mean, spread, (count, *shape)), 0, 255)
    return {
        **common,
        "guidance_scale": scale,
        "by_guidance_scale": rows,
        "denoising": _denoising(sampler, data, seed, settings),
        "baselines": {
            "real": {
                "frechet": frechet(features(other.x), features(one.x)),
                "class_accuracy": None if classify is None else float((classify(other.x) == other.label).mean()),
            },
            "independent_pixels": {"frechet": frechet(features(independent), features(one.x)), "class_accuracy": None},
        },
    }


def _denoising(sampler: Sampler, data: SampleSet, seed: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """PSNR of held-out images out of noise; none where they are not of 8 bits or too few to hold some out."""
    plain = {name: value for name, value in settings.items() if name in ("steps", "scheduler", "eta", "batch_size")}
    try:
        return denoise_scores.iterated(sampler, data, seed, **plain)
    except DataError:
        return []


def _points(
    sampler: Sampler, data: SampleSet, count: int, seed: int, on_step: OnStep | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Medians over seeds: of samples to real points, of other real points to these, and of points drawn from one Gaussian."""
    found: dict[str, list[float]] = {"samples": [], "fresh_draw": [], "gaussian": []}
    for draw in range(DRAWS):
        rng = np.random.default_rng((seed, draw))
        real, fresh = _two_draws(sampler, data, count, rng)
        made = shown(
            generate(sampler, None, count, seed + draw, one_of(on_step, draw, DRAWS), **settings)[0], sampler.bundle.labels
        ).reshape(count, -1)
        gauss = rng.multivariate_normal(real.mean(axis=0), np.cov(real, rowvar=False), count)
        for name, points in (("samples", made), ("fresh_draw", fresh), ("gaussian", gauss)):
            found[name].append(sliced_wasserstein(points, real, draw))
    medians = {name: float(np.median(values)) for name, values in found.items()}
    return {**medians, "ratio": medians["samples"] / medians["fresh_draw"], "draws": DRAWS}


def _two_draws(sampler: Sampler, data: SampleSet, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of real points (count, d): drawn anew where the data can be, else halves of what there is."""
    if sampler.bundle.manifest["training"]["data"] == "swiss-roll":
        drawn = swiss_roll(2 * count, int(rng.integers(1, 2**31))).x
    else:
        drawn = data.x[rng.permutation(len(data))[: 2 * count]]
    points = drawn.reshape(2 * count, -1).astype(np.float64)
    return points[:count], points[count:]


def _features(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The projection of images (N, C, H, W) on the first principal components of these, in units of the whole range of a pixel."""
    flat = x.reshape(len(x), -1) / 255.0
    mean = flat.mean(axis=0)
    axes = np.linalg.svd(flat - mean, full_matrices=False)[2][:COMPONENTS]
    return lambda images: (images.reshape(len(images), -1) / 255.0 - mean) @ axes.T


def _classifier(train: SampleSet) -> Callable[[np.ndarray], np.ndarray]:
    """scikit-learn's support vector machine on pixels, fitted to real images."""
    model = sklearn("svm", "the score of classes").SVC().fit(train.x.reshape(len(train), -1) / 255.0, train.label)
    return lambda images: np.asarray(model.predict(images.reshape(len(images), -1) / 255.0))


def table(result: Mapping[str, Any]) -> str:
    """The scores for people."""
    from .fabrication import aligned

    words = f"{result['recipe']}: {result['samples']} samples against real ones, seed {result['seed']}"
    if "sliced_wasserstein" in result:
        found = result["sliced_wasserstein"]
        names = {"samples": "samples", "fresh_draw": "a fresh draw of real points", "gaussian": "one Gaussian, mean and covariance alike"}
        rows = [["", "sliced Wasserstein"], *([label, f"{found[name]:.4f}"] for name, label in names.items())]
        return f"{words}, medians of {found['draws']} seeds\n{aligned(rows)}\nsamples over fresh draw: {found['ratio']:.2f}"
    rows = [["", "Fréchet distance of pixels", "taken for their class"]]

    def line(name: str, row: Mapping[str, Any]) -> Sequence[str]:
        return [name, f"{row['frechet']:.4f}", "-" if row["class_accuracy"] is None else f"{row['class_accuracy']:.1%}"]

    rows += [list(line(f"guidance scale {row['guidance_scale']:g}", row)) for row in result["by_guidance_scale"]]
    rows += [list(line(name.replace("_", " "), row)) for name, row in result["baselines"].items()]
    denoising = f"\n\n{denoise_scores.iterated_table(result['denoising'])}" if result["denoising"] else ""
    return f"{words}\n{aligned(rows)}{denoising}"
