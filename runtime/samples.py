"""Data sets of images and points, and the readers of the formats they come in.

    data = load("digits")                  # by name: digits, swiss-roll, photographs (scikit-learn's), craters (drawn); no download
    data = load("flowers/")                # a folder of pictures
    data = load("train-images-idx3-ubyte") # MNIST's own format, its labels beside it
    data = load("cifar-10-batches-bin")    # CIFAR-10's binary version
    data = load("points.npz")              # key x, and label where there are classes

A point (x, y) is a sample of two channels and one pixel, so that everything that samples images samples points.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import pixels, sample_sources
from .data import open_npz
from .errors import BackendError, DataError
from .labels import Labels

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR_HOME = (
    "unpack cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, and name its folder cifar-10-batches-bin with --data; "
    "train --quick takes scikit-learn's digits instead"
)
_ROLL = 16384  # points of the Swiss roll: of 4096, their own scatter is what is left of the score


@dataclasses.dataclass(frozen=True, eq=False)
class SampleSet:
    """Images or points.

    Args:
        x: (N, channels, height, width), uint8 of images or float32.
        label: (N,) int64, the place of each sample's class in ``classes``; all -1 where there are none.
        classes: names of the classes.
    """

    x: np.ndarray
    label: np.ndarray
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a sample."""
        return self.x.shape[1:]

    def take(self, rows: np.ndarray | slice) -> SampleSet:
        """Some of the samples."""
        return dataclasses.replace(self, x=self.x[rows], label=self.label[rows])

    def identities(self) -> Iterator[bytes]:
        """What tells each sample from the others."""
        for x, label in zip(self.x, self.label, strict=True):
            yield np.ascontiguousarray(x).tobytes() + label.tobytes()

    def only(self, classes: Sequence[str]) -> SampleSet:
        """The samples of some classes, which are then the only ones there are.

        Raises:
            DataError: one is unknown.
        """
        unknown = [name for name in classes if name not in self.classes]
        if unknown:
            raise DataError(f"the data have no class '{unknown[0]}'; they have {', '.join(self.classes) or 'no classes'}")
        places = np.array([self.classes.index(name) for name in classes])
        new = np.full(len(self.classes), -1)
        new[places] = np.arange(len(places))
        rows = np.isin(self.label, places)
        return SampleSet(self.x[rows], new[self.label[rows]], tuple(classes))

    def arrays(self) -> dict[str, np.ndarray]:
        """The keys of an ``.npz``: ``x``, and ``label`` with ``classes`` where there are any."""
        more = {"label": self.label, "classes": np.array(self.classes)} if self.classes else {}
        return {"x": self.x, **more}

    def labels(self, conditional: bool) -> Labels:
        """The condition constants of this data set as a training part; points are scaled by their standard deviation."""
        classes = self.classes if conditional else ()
        if self.x.dtype == np.uint8:
            return Labels(classes, 127.5, 127.5)
        return Labels(classes, float(self.x.mean(dtype=np.float64)), float(self.x.std(dtype=np.float64)) or 1.0)


def set_aside(identities: Iterable[bytes], fraction: float) -> np.ndarray:
    """Which samples (N,) bool are held out of training: a hash of each one alone says so, not its order or company."""
    bound = int(fraction * 2**32)
    return np.array([int.from_bytes(hashlib.sha256(one).digest()[:4], "big") < bound for one in identities], bool)


def load(source: str | os.PathLike[str], size: int = 0, channels: int = 0) -> SampleSet:
    """A data set by name, file or folder; see the module.

    Args:
        size: of pictures, to which they are scaled and cut in the middle; 0 takes the size of the first. Photographs are cut to it and
            craters drawn in it; what is stored as an array keeps its own.
        channels: makes images grey (1) or coloured (3); 0 leaves them, and those of a folder are as the first is.

    Raises:
        DataError: there is no such data set, or it is damaged.
        BackendError: the library that reads it is not installed.
    """
    found = _load(os.fspath(source), size, channels)
    return dataclasses.replace(found, x=pixels.recoloured(found.x, channels))


def as_shown(source: str | os.PathLike[str], recipe: Mapping[str, Any], least: int = 2000) -> SampleSet:
    """A data set as a recipe (the fields of its JSON) shows it to its network; errors as :func:`load`.

    Where the recipe cuts parts out of images or turns them upside down, so has whoever compares with them: each image is then shown as
    often as makes ``least`` of them.
    """
    canvas, crop = int(recipe.get("canvas", 0)), float(recipe.get("crop", 0.0))
    found = load(source, pixels.size_for(canvas, crop), pixels.COLOURS.get(recipe.get("colours", ""), 0))
    if not (crop or recipe.get("flips")):
        return found
    many = found.take(np.tile(np.arange(len(found)), -(-least // len(found))))
    x = pixels.varied(many.x, np.random.default_rng(0), canvas, crop, bool(recipe.get("mirrors")), bool(recipe.get("flips")))
    return dataclasses.replace(many, x=x)


def _load(name: str, size: int, channels: int) -> SampleSet:
    if name in NAMED:
        return NAMED[name](size)
    path = Path(name)
    if path.is_dir():
        if any(path.glob("data_batch_*.bin")):
            return _cifar(sorted(path.glob("data_batch_*.bin")))
        if (path / "data_batch_1").exists():
            raise DataError(f"{path} is not CIFAR-10's binary version but one for Python or Matlab; {_CIFAR_HOME}")
        return _folder(path, size, channels)
    if not path.exists() and "cifar" in path.name.lower():
        raise DataError(f"there is no data set '{name}'; {_CIFAR_HOME}")
    if not path.exists():
        raise DataError(f"there is no data set '{name}'; name a file or a folder, or one of {', '.join(NAMED)}")
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".bin":
        return _cifar([path])
    if path.suffix.lower() in PICTURES:
        return _pictures([(path, -1)], (), size, channels)
    return _idx(path)


def sklearn(module: str, what: str) -> Any:
    """A module of scikit-learn, for ``what``. Raises BackendError where it is not installed."""
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise BackendError(f"{what} needs scikit-learn, not importable here ({error}); pip install scikit-learn") from None


def _digits(size: int = 0) -> SampleSet:
    """1797 grey digits of 8 x 8 pixels (Alpaydin & Kaynak, UCI), from 17 levels to 8 bits."""
    found = sklearn("datasets", "the data set digits").load_digits()
    x = np.round(found.images * (255 / 16)).astype(np.uint8)[:, None]
    return SampleSet(x, found.target.astype(np.int64), tuple(map(str, range(10))))


def swiss_roll(count: int = _ROLL, seed: int = 0) -> SampleSet:
    """``count`` points of a Swiss roll seen along its axis, spread by noise of 0.5 (scikit-learn's ``make_swiss_roll``, x and z)."""
    points, _ = sklearn("datasets", "the data set swiss-roll").make_swiss_roll(count, noise=0.5, random_state=seed)
    return _unlabelled(points[:, [0, 2]].astype(np.float32)[:, :, None, None])


def _photographs(size: int = 0) -> SampleSet:
    """Overlapping tiles of the two photographs that scikit-learn brings (a temple and a flower), in colours."""
    try:
        images = sklearn("datasets", "the data set photographs").load_sample_images().images
    except ImportError as error:  # of Pillow, inside scikit-learn
        raise BackendError(f"the data set photographs needs Pillow ({error}); pip install 'metascatter[lab]'") from None
    return _unlabelled(sample_sources.tiles(np.stack(images), size))


NAMED: dict[str, Callable[[int], SampleSet]] = {
    "digits": _digits,
    "swiss-roll": lambda size: swiss_roll(),
    "photographs": _photographs,
    "craters": lambda size: _unlabelled(sample_sources.craters(size)),
}


def _unlabelled(x: np.ndarray) -> SampleSet:
    return SampleSet(x, np.full(len(x), -1))


def _npz(path: Path) -> SampleSet:
    arrays = open_npz(path)
    if "x" not in arrays:
        raise DataError(f"{path} lacks the key 'x'; it has {', '.join(arrays) or 'none'}")
    x = arrays["x"]
    if x.ndim == 2:
        x = x[:, :, None, None]  # points
    if x.ndim == 3:
        x = x[:, None]  # grey images
    if x.ndim != 4 or not x.size or x.dtype.kind not in "biuf" or not np.isfinite(x).all():
        raise DataError(f"{path}: 'x' has shape {arrays['x'].shape}; expected (N, channels, height, width) or (N, 2) of finite numbers")
    x = x if x.dtype == np.uint8 else x.astype(np.float32)
    if "label" not in arrays:
        return _unlabelled(x)
    label = arrays["label"]
    if label.dtype.kind not in "biu" or label.shape != x.shape[:1]:
        raise DataError(f"{path}: 'label' holds {label.dtype} of shape {label.shape}; expected ({len(x)},), whole numbers")
    label = label.astype(np.int64)
    names = tuple(map(str, arrays["classes"].ravel())) if "classes" in arrays else tuple(map(str, range(int(label.max()) + 1)))
    if label.min() < -1 or label.max() >= len(names):
        raise DataError(f"{path}: 'label' runs from {label.min()} to {label.max()}; there are {len(names)} classes, and -1 is none")
    return SampleSet(x, label, names)


def _idx(path: Path) -> SampleSet:
    """MNIST's format; the labels lie beside the images under MNIST's names."""
    x = _idx_array(path)
    if x.ndim != 3 or x.dtype != np.uint8:
        raise DataError(f"{path} holds {x.dtype} of shape {x.shape}; expected the images of an IDX file, such as train-images-idx3-ubyte")
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if beside == path or not beside.exists():
        return _unlabelled(x[:, None])
    label = _idx_array(beside).astype(np.int64)
    if label.shape != x.shape[:1]:
        raise DataError(f"{beside} has {len(label)} labels for the {len(x)} images of {path}; they belong to different sets")
    return SampleSet(x[:, None], label, tuple(map(str, range(int(label.max()) + 1))))


def _idx_array(path: Path) -> np.ndarray:
    """The array of an IDX file of bytes, gzipped or not (http://yann.lecun.com/exdb/mnist)."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); it may be damaged, write it again") from None
    rank = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = struct.unpack_from(f">{rank}I", content, 4) if 1 <= rank <= 3 and len(content) >= 4 + 4 * rank else ()
    if not shape or len(content) - 4 - 4 * rank != math.prod(shape):
        raise DataError(
            f"{path} is neither .npz nor an IDX file of bytes (it begins {content[:4].hex() or 'nowhere'} and has {len(content)} bytes); "
            "name a data set as the README lists them"
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _cifar(paths: Sequence[Path]) -> SampleSet:
    """CIFAR-10's binary version: rows of a label and 3 x 32 x 32 bytes (https://www.cs.toronto.edu/~kriz/cifar.html)."""
    parts = []
    for path in paths:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        if not content.size or content.size % 3073 or content[::3073].max() > 9:
            raise DataError(f"{path} is no file of CIFAR-10's binary version: {content.size} bytes are no rows of a label and 3072 bytes")
        parts.append(content.reshape(-1, 3073))
    rows = np.concatenate(parts)
    return SampleSet(rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64), CIFAR10)


def _folder(path: Path, size: int, channels: int) -> SampleSet:
    """Pictures in a folder; where it has only folders, each of them is a class."""
    files = [(file, -1) for file in sorted(path.iterdir()) if file.suffix.lower() in PICTURES]
    names: tuple[str, ...] = ()
    if not files:
        names = tuple(sorted(folder.name for folder in path.iterdir() if folder.is_dir()))
        files = [(file, k) for k, name in enumerate(names) for file in sorted((path / name).iterdir()) if file.suffix.lower() in PICTURES]
    if not files:
        raise DataError(f"{path} holds no pictures ({', '.join(PICTURES)}), nor folders of them; put them there or name another folder")
    return _pictures(files, names, size, channels)


def _pictures(files: Sequence[tuple[Path, int]], names: tuple[str, ...], size: int, channels: int) -> SampleSet:
    """Pictures and the places of their classes among ``names``, all as large and as colourful as the first, where nothing is asked for."""
    image = pixels.pillow().Image
    made = []
    for file, _ in files:
        try:
            with image.open(file) as picture:
                channels = channels or pixels.channels_of(picture)
                size = size or min(picture.size)
                made.append(pixels.fitted(picture, size, channels))
        except Exception as error:  # Pillow's readers each raise their own for damaged bytes
            raise DataError(f"{file} cannot be read as a picture ({error}); take it out of the folder") from None
    return SampleSet(np.stack(made), np.array([k for _, k in files], np.int64), names)
