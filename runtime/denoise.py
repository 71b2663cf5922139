"""Images out of noise: in one step by a network made for it, or by the reverse process of a diffusion model that begins at an image.

    with Denoiser(Bundle.open("bundles/denoiser")) as denoise:
        clean = denoise(noisy)                                       # (N, channels, height, width), black 0 and white 1
    with metascatter.load("bundles/digits") as sampler:
        clean = iterate(sampler, images, level=0.5).finished         # noised to the middle of the schedule, and back

Wherever noise has a size here, y = x + sigma z with z standard normal and x an image in which black is 0 and white is 1. Of points, which
have neither, x is in units of the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import loop, sample_pictures
from .bundle import Bundle
from .engine import Engine
from .errors import BackendError, BundleError, DataError, TargetError
from .files import write_json, write_npz
from .sample_pictures import is_points, to_bytes
from .sampler import OnStep, Sampler
from .samples import load
from .schedulers import Plan
from .version import __version__

_LOUDEST = 10.0  # mean absolute value of noisy images: numbers beyond are no images in which white is 1


class Denoiser(Engine):
    """A bundle that denoises images in one step, in an engine: a context manager which any number of threads may use at once.

    Made as an :class:`.engine.Engine` is. Raises BundleError also where the bundle is of another kind.
    """

    def __init__(self, bundle: Bundle, *engine: Any, **settings: Any) -> None:
        if not bundle.restores:
            raise BundleError(f"{bundle.path} does not denoise in one step; train the recipe denoiser, export it and name that bundle")
        super().__init__(bundle, *engine, **settings)

    @property
    def noise_sigma(self) -> float:
        """The standard deviation of the noise it was trained to take away."""
        return float(self.bundle.manifest["noise_sigma"])

    def __call__(self, images: np.ndarray, batch_size: int | None = None, on_step: OnStep | None = None) -> np.ndarray:
        """Clean images for noisy ones, (N, channels, height, width) float32; black is 0 and white is 1, and neither bounds anything.

        Args:
            batch_size: images of one call of the network; None leaves it to the engine.
            on_step: called with (batches done, batches, the images of the last one).

        Raises:
            DataError: images of another shape than the bundle's.
            BackendError: the engine failed, or returned numbers that are not finite.
        """
        shape, labels = tuple(self.bundle.manifest["sample_shape"]), self.bundle.labels
        if images.ndim != 4 or images.shape[1:] != shape:
            raise DataError(f"the images have shape {images.shape}; expected (N, {', '.join(map(str, shape))})")
        network, size = self.networks["denoiser"], self.batch_size(batch_size)
        seen, made = labels.to_network(images * np.float32(255)), np.empty(images.shape, np.float32)
        for k, first in enumerate(range(0, len(seen), size)):
            part = slice(first, first + size)
            made[part] = labels.to_data(network({"sample": seen[part]})["output"]) / np.float32(255)
            if on_step is not None:
                on_step(k + 1, -(-len(seen) // size), made[part])
        loop.require_finite(made, network)
        return made


class Iterated(NamedTuple):
    """Images through the reverse process, (N, channels, height, width) float32 each, black 0 and white 1 (points: units of the data).

    ``noised``: x + sigma z, where it began. ``one_step``: what the network took the clean images to be then. ``finished``: the end.
    ``timestep``, ``sigma``, ``steps``: where it began, the noise there, and how many steps it took.
    """

    noised: np.ndarray
    one_step: np.ndarray
    finished: np.ndarray
    timestep: int
    sigma: float
    steps: int


def white(bundle: Bundle) -> float:
    """The number in the bundle's data that is 1 here."""
    return 1.0 if is_points(bundle.manifest["sample_shape"]) else 255.0


def iterate(
    sampler: Sampler,
    images: np.ndarray,
    *,
    level: float | None = None,
    sigma: float | None = None,
    noised: bool = False,
    label: str | int | None = None,
    seed: int = 0,
    steps: int | None = None,
    scheduler: str | None = None,
    eta: float | None = None,
    guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    batch_size: int | None = None,
    on_step: OnStep | None = None,
) -> Iterated:
    """The reverse process of a diffusion model from images on: iterative denoising, or SDEdit (Meng et al., arXiv 2108.01073).

    Args:
        images: (N, channels, height, width), black 0 and white 1; of points units of the data.
        level: begin at the first step whose timestep is at most this share of the training timesteps, 0 to 1.
        sigma: in place of a level, begin at the step whose noise is nearest to this one.
        noised: the images hold noise of that size already; else it is added.
        label: the class they are to be of; None asks for nothing, and there is no guidance then.
        seed: image i's noise depends on (seed, i) alone.
        steps, scheduler, eta, guidance_scale, guidance_interval, batch_size, on_step: as for :meth:`Sampler.stream`.

    Raises:
        TargetError: neither level nor sigma or both, guidance without a class, an unknown class, or an argument out of its range.
        DataError: images of another shape than the bundle's.
        BundleError: no step at or below the level, or none as noisy.
    """
    bundle = sampler.bundle
    labels, shape = bundle.labels, tuple(bundle.manifest["sample_shape"])
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise DataError(f"the images have shape {images.shape}; expected (N, {', '.join(map(str, shape))})")
    if label is None and guidance_scale not in (None, 1.0):
        raise TargetError(f"the guidance scale is {guidance_scale:g} and no class is asked for; name one with --label")
    scale = white(bundle)
    table = _from(sampler, sampler.plan(steps, scheduler, eta), level, None if sigma is None else sigma * scale / labels.scale)
    guidance = sampler.guidance(1.0 if label is None else guidance_scale, guidance_interval)
    arrays, free = sampler.told(sampler.labelled(label), guidance)
    size = sampler.batch_size(batch_size)
    clean = labels.to_network(images * np.float32(scale))
    begun, first, done = (np.empty_like(clean) for _ in range(3))
    total = table.num_steps * -(-len(clean) // size)
    for batch, start in enumerate(range(0, len(clean), size)):
        rows = range(start, min(start + size, len(clean)))
        mine = slice(rows.start, rows.stop)

        def step_done(k: int, estimate: np.ndarray, mine: slice = mine, before: int = batch * table.num_steps) -> None:
            if k < 0:
                begun[mine] = estimate
                return
            if k == 0:
                first[mine] = estimate
            if on_step is not None:
                on_step(before + k + 1, total, estimate)

        done[mine] = loop.denoise(
            sampler.networks["denoiser"], table, shape, arrays, free, guidance, seed, rows, step_done, clean[mine], noised
        )
    spread = float(table.sigmas[0])

    def out(values: np.ndarray) -> np.ndarray:
        return (labels.to_data(values) / np.float32(scale)).astype(np.float32)

    return Iterated(
        out(begun * np.float32(math.hypot(1.0, spread))),
        out(first),
        out(done),
        int(table.timesteps[0]),
        spread * labels.scale / scale,
        table.num_steps,
    )


def reachable(sampler: Sampler, levels: Sequence[float], **settings: Any) -> list[float]:
    """Those levels at or below which there is a step, with ``steps``, ``scheduler`` and ``eta`` among the settings."""
    table = sampler.plan(settings.get("steps"), settings.get("scheduler"), settings.get("eta"))
    most = sampler.scheduler_config.get("num_train_timesteps", 1000)
    return [level for level in levels if table.timesteps[-1] <= level * most]


def _from(sampler: Sampler, table: Plan, level: float | None, sigma: float | None) -> Plan:
    """The rest of a plan from a level on, or from the step whose noise, in the network's units, is nearest to ``sigma``."""
    if (level is None) == (sigma is None):
        raise TargetError("give the share of the schedule to begin at, --noise-level, or the size of the noise, --noise-sigma")
    if sigma is None:
        assert level is not None
        if not 0 <= level <= 1:
            raise TargetError(f"the noise level is {level:g}; expected a share of the schedule, from 0 to 1")
        return table.since(level * sampler.scheduler_config.get("num_train_timesteps", 1000))
    if not 0 < sigma < math.inf:
        raise TargetError(f"the noise is {sigma:g}; expected a size above 0")
    apart = np.abs(np.log(table.sigmas) - math.log(sigma))
    nearest = int(np.argmin(apart))
    if apart[nearest] > math.log(2):
        unit = sampler.bundle.labels.scale / white(sampler.bundle)
        raise BundleError(
            f"the {table.num_steps} steps have noise of {table.sigmas[-1] * unit:.2g} to {table.sigmas[0] * unit:.2g}, and none is near "
            f"{sigma * unit:.2g}; name another size, or other --steps"
        )
    return table.since(float(table.timesteps[nearest]))


def read(source: str | Path, bundle: Bundle) -> np.ndarray:
    """Noisy images for a bundle, (N, channels, height, width) float32, black 0 and white 1: by any reader of :mod:`.samples`.

    Pictures are scaled to the bundle's size; numbers of an ``.npz`` are bytes, or floats in which white is 1, noise and all.

    Raises:
        DataError: there is no such data set, it is damaged, or of another shape.
        BackendError: the library that reads it is not installed.
    """
    channels, high, wide = bundle.manifest["sample_shape"]
    found = load(source, wide if high == wide else 0, channels if channels in (1, 3) else 0)
    if found.shape != (channels, high, wide):
        raise DataError(f"{source} holds samples of shape {found.shape} and the bundle's are of {(channels, high, wide)}")
    if white(bundle) == 1 or found.x.dtype != np.uint8:
        x = found.x.astype(np.float32)
        if white(bundle) != 1 and float(np.abs(x).mean(dtype=np.float64)) > _LOUDEST:
            raise DataError(f"{source} holds floats up to {x.max():g}; expected bytes, or floats in which black is 0 and white is 1")
        return x
    return found.x.astype(np.float32) / np.float32(255)


def shown(images: np.ndarray, bundle: Bundle) -> np.ndarray:
    """Images as pictures take them, uint8; points as they are."""
    return images if white(bundle) == 1 else to_bytes(images * 255)


def noisy(images: np.ndarray, sigma: float, seed: int, stream: int = 0) -> np.ndarray:
    """x + sigma z, float32; z depends on (seed, stream) and the shape alone, so that levels of noise share it."""
    z = np.random.Generator(np.random.Philox(key=[seed, stream])).standard_normal(images.shape, dtype=np.float32)
    return images + np.float32(sigma) * z


def save(
    bundle: Bundle, choice: Sequence[str], given: np.ndarray, parts: Sequence[tuple[str, np.ndarray]], folder: Path, facts: dict[str, Any]
) -> list[Path]:
    """Write ``denoised.npz`` (``x``: the last of ``parts``), ``denoised.json`` and, with matplotlib, ``denoised.png``: given beside parts.

    Returns:
        The paths written.

    Raises:
        DataError: a place that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "denoised.npz", folder / "denoised.json"]
    write_npz(paths[0], x=shown(parts[-1][1], bundle))
    told = {"metascatter": __version__, "bundle": bundle.path.name, "recipe": bundle.manifest["recipe"]["name"], "images": len(given)}
    write_json(paths[1], {**told, "shape": list(given.shape[1:]), **facts, "backend": list(choice)})
    drawn = [(name, shown(values, bundle)) for name, values in (("given", given), *parts)]
    try:
        sample_pictures.draw(folder / "denoised.png", f"{told['recipe']}: {told['images']} denoised", drawn)
    except BackendError:
        return paths
    return [*paths, folder / "denoised.png"]


def to_json(facts: dict[str, Any], count: int, choice: Sequence[str], paths: Sequence[Path], seconds: float) -> str:
    """The one document of ``infer --input --json``."""
    files = [str(path) for path in paths]
    return json.dumps({"images": count, **facts, "backend": list(choice), "seconds": round(seconds, 2), "files": files}, indent=2)
