"""Images and points from a bundle: sampled, saved, drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import sample_pictures
from .errors import BackendError
from .files import write_json, write_npz
from .plots import MOMENTS, trace
from .sampler import OnStep, Sampler
from .version import __version__


def generate(
    sampler: Sampler, label: str | int | None, n: int, seed: int, on_step: OnStep | None = None, **settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """n samples of a class, or of every class in turn where none is named: all of :func:`stream`, with its arguments and errors.

    Returns:
        Samples (n, channels, height, width) in the network's units, and the place (n,) of the class that was asked for; -1 is none.
    """
    made, places = zip(*stream(sampler, label, n, seed, on_step, **settings), strict=True)
    return np.concatenate(made), np.concatenate(places)


def stream(
    sampler: Sampler, label: str | int | None, n: int, seed: int, on_step: OnStep | None = None, **settings: Any
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """n samples in the memory of one batch.

    Args:
        label: a class by name or number; None takes the bundle's classes one after the other, as many of each as n allows, and asks for
            nothing where it has none.
        settings: of :meth:`Sampler.stream`.

    Yields:
        As :func:`generate` returns them, batch by batch.

    Raises:
        TargetError, BundleError, Cancelled: as :meth:`Sampler.stream` and :meth:`Sampler.labelled`.
    """
    labels = sampler.bundle.labels
    wanted = [labels.number(label)] if label is not None else list(range(min(n, len(labels.classes)))) or [-1]
    shares = [n // len(wanted) + (k < n % len(wanted)) for k in range(len(wanted))]
    for k, (place, share) in enumerate(zip(wanted, shares, strict=True)):
        # Classes begin from the same noise, which shows what the class does.
        condition = sampler.labelled(None if place < 0 else place)
        for made in sampler.stream(condition, max(share, 1), seed=seed, on_step=one_of(on_step, k, len(wanted)), **settings):
            yield made, np.full(len(made), place)


def one_of(on_step: OnStep | None, k: int, runs: int) -> OnStep | None:
    """What the k-th of several runs of equal length has to call, so that ``on_step`` hears of them as of one."""
    if on_step is None:
        return None
    return lambda step, total, estimate: on_step(k * total + step, runs * total, estimate)


def save(
    sampler: Sampler,
    samples: np.ndarray,
    places: np.ndarray,
    seed: int,
    folder: Path,
    settings: dict[str, Any],
    picture: tuple[str, np.ndarray, int | None] | None = None,
) -> list[Path]:
    """Write ``samples.npz`` (``x`` in units of the data, ``label``), ``samples.json`` and, with matplotlib, ``samples.png``.

    Args:
        picture: what ``samples.png`` shows in place of the samples: words, images, and how many of them a row has.

    Returns:
        The paths written.

    Raises:
        DataError: a place that cannot be written.
    """
    labels = sampler.bundle.labels
    folder.mkdir(parents=True, exist_ok=True)
    shown = sample_pictures.shown(samples, labels)
    told = {"label": places, "classes": np.array(labels.classes)} if labels.classes else {}
    write_npz(folder / "samples.npz", x=shown, seed=np.array(seed), **told)
    facts = {
        "metascatter": __version__,
        "bundle": sampler.bundle.path.name,
        "recipe": sampler.bundle.manifest["recipe"]["name"],
        "samples": len(samples),
        "shape": list(samples.shape[1:]),
        "seed": seed,
        "classes": {name: int((places == k).sum()) for k, name in enumerate(labels.classes)},
        "settings": {**sampler.bundle.manifest["sampling"], **{key: value for key, value in settings.items() if value is not None}},
        "backend": list(sampler.choice),
    }
    write_json(folder / "samples.json", facts)
    paths = [folder / "samples.npz", folder / "samples.json"]
    try:
        words, images, columns = picture or (_words(sampler, places), shown, _columns(places))
        sample_pictures.draw(folder / "samples.png", facts["recipe"], [(words, images)], columns)
    except BackendError:
        return paths
    return [*paths, folder / "samples.png"]


def reverse(sampler: Sampler, label: str | int | None, path: Path, n: int, seed: int, **settings: Any) -> None:
    """Draw n samples coming out of noise: a strip of moments, or all of them moving where ``path`` is a .gif.

    Args:
        settings: ``steps``, ``scheduler``, ``eta``, ``guidance_scale`` and ``guidance_interval`` of :meth:`Sampler.stream`.

    Raises:
        BackendError: matplotlib is not installed.
        DataError: a place that cannot be written.
        TargetError, BundleError: as :meth:`Sampler.stream`.
    """
    labels = sampler.bundle.labels
    table, _, _, before, done = trace(sampler, sampler.labelled(label), n, seed, **settings)
    moving = path.suffix.lower() == ".gif"
    shown = np.arange(table.num_steps) if moving else np.linspace(0, table.num_steps - 1, min(MOMENTS - 2, table.num_steps)).round()
    steps: Sequence[int] = np.unique(shown.astype(int)).tolist()
    # Methods in sigma let the sample grow with the noise; in the picture its spread is that of the data.
    moments = [(f"t = {table.timesteps[k]:g}", before[k] / max(1.0, float(before[k].std()))) for k in steps] + [("samples", done)]
    parts = [(name, sample_pictures.shown(values, labels)) for name, values in moments]
    title = f"{sampler.bundle.manifest['recipe']['name']}: the reverse process, {table.num_steps} steps"
    (sample_pictures.animate if moving else sample_pictures.draw)(path, title, parts)


def told(sampler: Sampler, samples: np.ndarray, places: np.ndarray, paths: Sequence[Path], seconds: float, as_json: bool) -> str:
    """What ``infer`` says on stdout: the files, or with ``--json`` its one document."""
    if not as_json:
        return "\n".join(map(str, paths))
    return json.dumps(
        {
            "samples": len(samples),
            "labels": sorted({int(place) for place in places}),
            "backend": list(sampler.choice),
            "seconds": round(seconds, 2),
            "files": [str(path) for path in paths],
        },
        indent=2,
    )


def _words(sampler: Sampler, places: np.ndarray) -> str:
    names = sampler.bundle.labels.classes
    found = [names[place] for place in dict.fromkeys(places.tolist()) if place >= 0]
    return f"{len(places)} samples" + (f" of {', '.join(found)}" if found else "")


def _columns(places: np.ndarray) -> int | None:
    """Of a mosaic of several classes, so that a row is a class."""
    counts = np.unique(places, return_counts=True)[1]
    return int(counts.max()) if len(counts) > 1 else None
