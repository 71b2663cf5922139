"""Scores of a bundle of images or points against data it is to resemble; every score stands beside that of other real data.

Points: the sliced Wasserstein distance (Rabin et al. 2011), the mean over directions of the distance between the sorted projections.
Images: the Fréchet distance between Gaussians (Dowson & Landau 1982) fitted to the first principal components of the pixels. It needs no
download, and is no FID, which takes the features of an Inception network. With classes: the share of samples that a classifier, fitted to
one half of the data, takes for the class that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import denoise_scores
from . import frechet as gaussians
from .errors import DataError
from .frechet import FeatureScores, Moments, moments
from .generate import generate, one_of, stream
from .sample_pictures import is_points, shown, to_bytes
from .sampler import OnStep, Sampler
from .samples import SampleSet, sklearn, swiss_roll

DRAWS = 5  # seeds, whose median counts
DIRECTIONS = 256
COMPONENTS = 32  # of the pixels
MOST = 2000  # samples compared where no number is asked for
LARGE, LARGE_COMPONENTS = 256, 64  # pixels of an image that are too many for the classifier, and what it is shown instead
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
    return gaussians.distance(moments(a), moments(b))


def evaluate(
    sampler: Sampler,
    data: SampleSet,
    n: int | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    network: FeatureScores | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Scores as JSON values; images are scored as they are sampled, so that any number of them takes the memory of a batch.

    Args:
        data: real data: what is resembled, and what a score of real data is taken from.
        n: samples compared; None is as many as there are in half of the data, 2000 at most, and of points this is the most.
        network: scores images by features of its own as well.
        settings: of ``Sampler.stream``; where ``guidance_scale`` is one of them, no other is tried.

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
    half = min(MOST, len(data) // 2)
    count = min(n or half, half) if is_points(shape) else n or half
    if min(half, count) < 10:
        raise DataError(f"{min(half, count)} samples are too few to compare; name more data, or a larger -n")
    if is_points(shape) and network is not None:
        raise DataError("points have no features of a network; leave --features out")
    scale = float(settings.get("guidance_scale") or sampler.bundle.manifest["sampling"]["guidance_scale"])
    training = sampler.bundle.manifest["training"]
    common = {"samples": count, "data": len(data), "seed": seed, "recipe": sampler.bundle.manifest["recipe"]["name"]}
    common |= {"epoch": training.get("epochs"), "steps": training.get("steps")}
    if is_points(shape):
        return {**common, "sliced_wasserstein": _points(sampler, data, count, seed, on_step, settings)}
    # A network that was never shown the null condition has nothing to be guided away from.
    guided = labels.classes and sampler.bundle.manifest["recipe"].get("condition_dropout", 0)
    scales = sorted({*SCALES, scale}) if guided and settings.get("guidance_scale") is None else [scale]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data))
    one, other = data.take(order[: len(data) // 2]), data.take(order[len(data) // 2 :][:count])
    features = _features(one.x)
    real = _moments(features, one.x)
    classify = _classifier(one) if len(labels.classes) > 1 else None
    if network is not None:
        for images in _batches(one.x):
            network.real(images)
    rows = []
    for k, guidance in enumerate(scales):
        made, right = Moments(), 0
        step = one_of(on_step, k, len(scales))
        for batch, places in stream(sampler, None, count, seed, step, **{**settings, "guidance_scale": guidance}):
            images = shown(batch, labels)
            made.add(features(images))
            right += 0 if classify is None else int((classify(images) == places).sum())
            if network is not None:
                network.samples(images)
        accuracy = None if classify is None else right / made.count
        row = {"guidance_scale": guidance, "frechet": gaussians.distance(made, real), "class_accuracy": accuracy}
        rows.append({**row, **({} if network is None else network.scores())})
    mean, spread = one.x.mean(axis=0, dtype=np.float64), one.x.std(axis=0, dtype=np.float64)
    independent = np.clip(rng.normal(mean, spread, (len(other), *shape)), 0, 255)
    baselines = {
        "real": {
            "frechet": gaussians.distance(_moments(features, other.x), real),
            "class_accuracy": None if classify is None else float((classify(other.x) == other.label).mean()),
        },
        "independent_pixels": {"frechet": gaussians.distance(_moments(features, independent), real), "class_accuracy": None},
    }
    result = {**common, "real_samples": len(other), "guidance_scale": scale, "by_guidance_scale": rows, "baselines": baselines}
    result["denoising"] = _denoising(sampler, data, seed, settings)
    if network is None:
        return result
    for name, pictures in (("real", other.x), ("independent_pixels", to_bytes(independent))):
        for images in _batches(pictures):
            network.samples(images)
        baselines[name] |= network.scores()
    return {**result, "features": {**network.facts(), "words": network.words}}


def _batches(images: np.ndarray, size: int = 256) -> Iterator[np.ndarray]:
    return (images[start : start + size] for start in range(0, len(images), size))


def _moments(features: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> Moments:
    found = Moments()
    for part in _batches(images, 4096):
        found.add(features(part))
    return found


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


def _features(x: np.ndarray, components: int = COMPONENTS) -> Callable[[np.ndarray], np.ndarray]:
    """The projection of images (N, C, H, W) on the first principal components of these, in units of the whole range of a pixel."""
    pixels = _moments(_flat, x)
    axes = np.linalg.eigh(pixels.covariance)[1][:, ::-1][:, :components]
    return lambda images: (_flat(images) - pixels.mean) @ axes


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255.0


def _classifier(train: SampleSet) -> Callable[[np.ndarray], np.ndarray]:
    """scikit-learn's support vector machine on pixels, of large images on their first principal components, fitted to real images."""
    seen = _flat if train.x[0].size <= LARGE else _features(train.x, LARGE_COMPONENTS)
    model = sklearn("svm", "the score of classes").SVC().fit(seen(train.x), train.label)
    return lambda images: np.asarray(model.predict(seen(images)))


def table(result: Mapping[str, Any]) -> str:
    """The scores for people."""
    from .fabrication import aligned

    words = f"{result['recipe']}: {result['samples']} samples against real ones, seed {result['seed']}"
    if "sliced_wasserstein" in result:
        found = result["sliced_wasserstein"]
        names = {"samples": "samples", "fresh_draw": "a fresh draw of real points", "gaussian": "one Gaussian, mean and covariance alike"}
        rows = [["", "sliced Wasserstein"], *([label, f"{found[name]:.4f}"] for name, label in names.items())]
        return f"{words}, medians of {found['draws']} seeds\n{aligned(rows)}\nsamples over fresh draw: {found['ratio']:.2f}"
    more = result.get("features", {}).get("words", {})
    rows = [["", "Fréchet distance of pixels", "taken for their class", *more.values()]]

    def line(name: str, row: Mapping[str, Any]) -> Sequence[str]:
        share = "-" if row["class_accuracy"] is None else f"{row['class_accuracy']:.1%}"
        return [name, f"{row['frechet']:.4f}", share, *(f"{row[key]:.4g}" for key in more)]

    rows += [list(line(f"guidance scale {row['guidance_scale']:g}", row)) for row in result["by_guidance_scale"]]
    rows += [list(line(name.replace("_", " "), row)) for name, row in result["baselines"].items()]
    denoising = f"\n\n{denoise_scores.iterated_table(result['denoising'])}" if result["denoising"] else ""
    return f"{words}\n{aligned(rows)}{denoising}"
