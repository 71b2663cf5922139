"""What Pillow does to pictures: sizes and colours of 8-bit images (N, channels, height, width)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .errors import BackendError, DataError

COLOURS = {"grey": 1, "rgb": 3}  # channels of each

Box = tuple[float, float, float, float]


def pillow() -> Any:
    """The package PIL. Raises BackendError where it is not installed."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise BackendError(f"pictures need Pillow, which cannot be imported ({error}); pip install 'metascatter[lab]'") from None
    return PIL


def channels_of(picture: Any) -> int:
    """Of an opened picture: 1 where it has no colours, else 3."""
    return 1 if picture.mode in ("1", "L", "LA", "I", "I;16", "F") else 3


def fitted(picture: Any, size: int, channels: int) -> np.ndarray:
    """An opened picture scaled and cut in the middle to a square, (channels, size, size) uint8."""
    square = pillow().ImageOps.fit(picture.convert("L" if channels == 1 else "RGB"), (size, size))
    return np.asarray(square, np.uint8).reshape(size, size, channels).transpose(2, 0, 1)


def scaled(x: np.ndarray, side: int, boxes: Sequence[Box] | None = None) -> np.ndarray:
    """The part of each image within its box (left, top, right, bottom), scaled to (N, channels, side, side) by bicubic interpolation.

    Without boxes it is the largest square in the middle. Scaling down averages, as Pillow does.

    Raises:
        DataError: no images of 8 bits, grey or in three colours.
    """
    _need_bytes(x, "scaled or cut")
    high, wide = x.shape[2:]
    edge = min(high, wide)
    middle = ((wide - edge) / 2, (high - edge) / 2, (wide + edge) / 2, (high + edge) / 2)
    if boxes is None and (high, wide) == (side, side):
        return x
    bicubic = pillow().Image.Resampling.BICUBIC
    made = [
        np.asarray(image.resize((side, side), bicubic, box=box))
        for image, box in zip(_images(x), boxes if boxes is not None else [middle] * len(x), strict=True)
    ]
    return np.stack(made).reshape(len(x), side, side, x.shape[1]).transpose(0, 3, 1, 2)


def recoloured(x: np.ndarray, channels: int) -> np.ndarray:
    """Images in grey (1, luma of ITU-R 601) or colours (3); 0 leaves them. Raises DataError as :func:`scaled`."""
    if channels in (0, x.shape[1]):
        return x
    _need_bytes(x, "recoloured")
    if channels == 3:
        return np.repeat(x, 3, axis=1)
    return np.stack([np.asarray(image.convert("L")) for image in _images(x)])[:, None]


def varied(x: np.ndarray, rng: np.random.Generator, canvas: int, crop: float, mirrors: bool, flips: bool) -> np.ndarray:
    """Images (or points) as a recipe shows them: a random part of each, turned over at random.

    Args:
        crop: above 0: a random square, its side from that share of the image's shorter side to all of it, evenly, and its place as well,
            scaled to (``canvas``, ``canvas``).
        mirrors, flips: left and right, top and bottom change places in half of them.

    Raises:
        DataError: as :func:`scaled`.
    """
    if crop:
        high, wide = x.shape[2:]
        share, across, down = rng.random((3, len(x)))
        side = min(high, wide) * (crop + (1 - crop) * share)
        left, top = across * (wide - side), down * (high - side)
        x = scaled(x, canvas, list(zip(*(edge.tolist() for edge in (left, top, left + side, top + side)), strict=True)))
    for asked, over in ((mirrors, np.s_[..., ::-1]), (flips, np.s_[..., ::-1, :])):
        if asked:
            x = np.where(rng.integers(0, 2, len(x)).astype(bool)[:, None, None, None], x[over], x)
    return x


def size_for(canvas: int, crop: float) -> int:
    """The side of pictures that parts are to be cut out of: the smallest part is as large as the canvas, so that none is scaled up."""
    return math.ceil(canvas / crop) if crop else canvas


def _need_bytes(x: np.ndarray, done: str) -> None:
    if x.dtype != np.uint8 or x.shape[1] not in COLOURS.values():
        raise DataError(f"samples of {x.dtype} with {x.shape[1]} channels are not {done}; that is for images of 8 bits, grey or RGB")


def _images(x: np.ndarray) -> Iterator[Any]:
    image = pillow().Image
    for values in x:
        yield image.fromarray(np.ascontiguousarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0)))
