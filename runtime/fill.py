"""``infer --input --mask``: parts of given images, or coordinates of given points, sampled anew while the rest is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import generate, pixels, sample_pictures, samples
from .data import open_npz
from .errors import DataError
from .inpaint import RESAMPLE, Known
from .sampler import OnStep, Sampler

NUMBER = 8  # fillings of an image, where nobody says how many
_HIDDEN = 128  # the grey that a picture shows in place of what is to be filled


def read(sampler: Sampler, image: Path, mask: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, channels, height, width) in units of the data, and where they are to be filled, (channels, height, width) bool.

    Args:
        image: a picture, scaled and cut in the middle to the bundle's samples, or a data set of that shape as ``samples.load`` reads it.
        mask: a picture, treated alike, white where it is to be filled; or an ``.npz`` whose key ``mask`` is 1 there, (height, width) or
            (channels, height, width).

    Raises:
        DataError: a file that cannot be read, is of another shape, or leaves nothing to fill.
        BackendError: Pillow is not installed.
    """
    shape = tuple(sampler.bundle.manifest["sample_shape"])
    if image.suffix.lower() in samples.PICTURES:
        x = _picture(image, shape, shape[0])[None]
    else:
        x = samples.load(image, shape[1], 0 if sample_pictures.is_points(shape) else shape[0]).x
    if x.shape[1:] != shape:
        raise DataError(f"{image} holds samples of shape {x.shape[1:]} and the bundle's are of {shape}; name images of that shape")
    if mask.suffix.lower() in samples.PICTURES:
        hidden = np.broadcast_to(_picture(mask, shape, 1) > 127, shape)
    elif mask.suffix.lower() == ".npz":
        arrays = open_npz(mask)
        if "mask" not in arrays:
            raise DataError(f"{mask} lacks the key 'mask'; it is 1 where the image is to be filled and 0 where it stays")
        found = arrays["mask"]
        if found.shape == shape[:1] and sample_pictures.is_points(shape):
            found = found[:, None, None]
        if found.shape not in (shape, shape[1:]) or not np.isin(found, (0, 1)).all():
            raise DataError(f"{mask}: 'mask' has shape {found.shape}; expected {shape} or {shape[1:]} of 0 (stays) and 1 (filled)")
        hidden = np.broadcast_to(found != 0, shape)
    else:
        raise DataError(f"{mask} is no mask; it is a picture, white where the image is to be filled, or an .npz with the key 'mask'")
    if not hidden.any():
        raise DataError(f"{mask} leaves nothing to fill; make white (1 in an .npz) what is to be sampled anew")
    return x, hidden


def _picture(path: Path, shape: tuple[int, ...], channels: int) -> np.ndarray:
    """(channels, height, width) uint8 of a picture file."""
    if shape[1] != shape[2]:
        raise DataError(f"{path} is a picture and samples are of {shape[2]} x {shape[1]} pixels; name an .npz with the key 'x'")
    image = pixels.pillow().Image
    try:
        with image.open(path) as picture:
            return pixels.fitted(picture, shape[1], channels)
    except Exception as error:  # Pillow's readers each raise their own for damaged bytes
        raise DataError(f"{path} cannot be read as a picture ({error}); name another file") from None


def fill(
    sampler: Sampler,
    images: np.ndarray,
    hidden: np.ndarray,
    label: str | int | None,
    n: int,
    seed: int,
    resample: int = RESAMPLE,
    on_step: OnStep | None = None,
    **settings: Any,
) -> np.ndarray:
    """n fillings of each image (N, *shape), (N * n, *shape) in the network's units, image by image.

    Args:
        images, hidden: as :func:`read` returns them; what is not hidden comes back as it was.
        label: the class to fill in, None for none.
        resample: how often each step is taken, see :mod:`.inpaint`.
        settings: of :meth:`Sampler.stream`.

    Raises:
        TargetError, BundleError, Cancelled: as :meth:`Sampler.stream` and :meth:`Sampler.labelled`.
    """
    labels = sampler.bundle.labels
    condition = sampler.labelled(label)
    made = []
    for k, image in enumerate(labels.to_network(images)):
        known = Known.of(image, ~hidden, resample)
        step = generate.one_of(on_step, k, len(images))
        made.append(sampler.sample(condition, n, seed=seed, known=known, on_step=step, **settings))
    return np.concatenate(made)


def save(
    sampler: Sampler,
    made: np.ndarray,
    images: np.ndarray,
    hidden: np.ndarray,
    place: int,
    seed: int,
    folder: Path,
    settings: dict[str, Any],
) -> list[Path]:
    """Write what :func:`fill` returned as ``generate.save`` does; the picture shows each image, grey where it was filled, and its fillings.

    Returns, raises: as ``generate.save``.
    """
    picture = None
    if images.dtype == np.uint8:
        filled = sample_pictures.shown(made, sampler.bundle.labels).reshape(len(images), -1, *images.shape[1:])
        rows = np.concatenate([np.where(hidden, np.uint8(_HIDDEN), images)[:, None], filled], axis=1)
        columns = rows.shape[1] if len(images) > 1 else None
        picture = "as given, grey what is to be filled, and filled", rows.reshape(-1, *images.shape[1:]), columns
    return generate.save(sampler, made, np.full(len(made), place), seed, folder, settings, picture)
