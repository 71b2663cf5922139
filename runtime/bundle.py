"""The bundle: the one format between export and runtime.

A bundle is a directory whose ``manifest.json`` lists every other file with its size and sha256 and carries a digest of itself.
Nothing of it reaches an engine before its hash is checked, and the bytes checked are the bytes used. Hashes prove that
a bundle is whole, not where it comes from; so whatever a bundle says is held against bounds as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .channels import label
from .condition import Condition
from .errors import BundleError, GeometryError
from .geometry import Geometry
from .labels import Labels
from .manifest import FORMAT, digest, read_manifest
from .onnx_file import check_self_contained
from .strict_json import LARGEST_JSON, brief, read_json

__all__ = ["DEFAULT", "FORMAT", "Bundle", "digest", "find"]

DEFAULT = "si1550"
_LARGEST_ARRAYS = 1 << 28  # bytes of an .npz once unpacked; those shipped have a quarter of a million


def find(bundle: str | os.PathLike[str] | None) -> Path:
    """The directory of a bundle: a path, or None for the one that ships with metascatter.

    Raises:
        BundleError: there is no such directory, or it holds no manifest.
    """
    if bundle is None:
        here = Path(__file__).resolve().parent
        # Installed, the default bundle lies inside the package; in a checkout beside it.
        places = [here / "bundles" / DEFAULT, here.parent / "bundles" / DEFAULT]
        found = next((place for place in places if (place / "manifest.json").is_file()), None)
        if found is None:
            raise BundleError("the default bundle is not installed; name one with --bundle")
        return found
    path = Path(bundle)
    # os.path answers False where pathlib raises: a name too long, a folder one may not look into.
    if not os.path.isdir(path):
        raise BundleError(f"there is no bundle at {path}; name a directory that 'cli.py export' wrote")
    if not os.path.lexists(path / "manifest.json"):
        raise BundleError(f"{path} is no bundle: it has no manifest.json")
    return path


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle: the manifest's content (its schema is ``manifest.FIELDS``), and its files through :meth:`read`.

    ``conditioning`` says what its network sees: a bundle of metasurfaces has a ``condition`` and a ``geometry``, one of images or
    points has ``labels``, and asking for what a bundle has not is a BundleError. ``channels`` are the further maps that its network is
    conditioned on, in the network's order, with the geometry of those of which the training data stated one.
    """

    path: Path
    manifest: Mapping[str, Any]
    conditioning: Condition | Labels
    arrangement: Geometry | None = None
    channels: Mapping[str, Geometry | None] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, bundle: str | os.PathLike[str] | None = None) -> Bundle:
        """Read and check the manifest of a bundle. The directory may be reached through links; what lies in it may be none.

        Raises:
            BundleError: it is missing, altered, incomplete, out of bounds, or of an unknown version.
        """
        path = find(bundle)
        where = path / "manifest.json"
        manifest = read_manifest(_read(where, LARGEST_JSON), str(where))
        try:
            if manifest["task"] in ("samples", "restoration"):
                return cls(path, manifest, Labels.from_dict(manifest["condition"]))
            geometry, condition = Geometry.from_dict(manifest["geometry"]), Condition.from_dict(manifest["condition"])
            stated = {name: manifest["channels"][name] for name in condition.channels}
            channels = {name: None if fields is None else Geometry.from_dict(fields) for name, fields in stated.items()}
        except (GeometryError, BundleError) as error:
            raise BundleError(f"{where}: {error}") from None
        return cls(path, manifest, condition, geometry, channels)

    @property
    def designs(self) -> bool:
        """Whether it is of metasurfaces, rather than of images or points."""
        return isinstance(self.conditioning, Condition)

    @property
    def restores(self) -> bool:
        """Whether its network turns a noisy image into a clean one in one step, rather than sample by a schedule of noise."""
        return self.manifest["task"] == "restoration"

    @property
    def condition(self) -> Condition:
        """The constants that turn a target into the network's inputs. Raises BundleError where there are no targets."""
        if isinstance(self.conditioning, Condition):
            return self.conditioning
        raise BundleError(f"{self.path} samples images or points, not metasurfaces: it takes no target and --label names a class")

    @property
    def geometry(self) -> Geometry:
        """The arrangement of the cells. Raises BundleError where there are none."""
        if self.arrangement is None:
            raise BundleError(f"{self.path} samples images or points, not metasurfaces, and has no geometry; name a bundle of metasurfaces")
        return self.arrangement

    @property
    def labels(self) -> Labels:
        """Classes and units of images and points. Raises BundleError for a bundle of metasurfaces."""
        if isinstance(self.conditioning, Labels):
            return self.conditioning
        raise BundleError(f"{self.path} designs metasurfaces: it knows no classes; name a target")

    @property
    def geometries(self) -> dict[str, Geometry]:
        """By NAME the geometries of the pairs ``Rm_NAME``, ``Tm_NAME`` among the channels, where they are known."""
        named = {label(channel): geometry for channel, geometry in self.channels.items()}
        return {name: geometry for name, geometry in named.items() if name is not None and geometry is not None}

    def read(self, name: str) -> bytes:
        """The bytes of a file, once they match the manifest's size and sha256. No more than that size is ever read.

        Raises:
            BundleError: the file is not listed, missing, a link or another special file, cut short, too long, or altered.
        """
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise BundleError(f"the bundle {self.path} has no file '{name}'; it has {', '.join(self.manifest['files'])}")
        content = _read(self.path / name, entry["bytes"], exact=True)
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise BundleError(f"{self.path / name} is damaged: its sha256 does not match the manifest; copy the bundle again")
        return content

    def network(self, network: str, precision: str) -> bytes:
        """The ONNX file of a network in a precision, checked as :meth:`read` does, and with all of its weights inside.

        Raises:
            BundleError: the bundle has no such network or precision, the file is spoiled, or it names data in other files.
        """
        name = self.network_file(network, precision)
        content = self.read(name)
        check_self_contained(content, str(self.path / name))
        return content

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the bundle, an object, checked as :meth:`read` does.

        Raises:
            BundleError: also where it is no JSON object.
        """
        value = read_json(self.read(name), str(self.path / name))
        if not isinstance(value, dict):
            raise BundleError(f"{self.path / name} holds a JSON {type(value).__name__}; expected an object, export the bundle again")
        return value

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """An ``.npz`` of the bundle, checked as :meth:`read` does; never unpickles, and unpacks no more than 256 MiB.

        Raises:
            BundleError: also where it is no ``.npz``, or a member of it is no array of numbers.
        """
        content = self.read(name)
        try:
            return _arrays(content)
        except BundleError as error:
            raise BundleError(f"{self.path / name}: {error}; export the bundle again") from None
        except Exception as error:  # zip, zlib and the array headers each raise their own errors
            raise BundleError(f"{self.path / name} cannot be read as .npz ({brief(str(error))}); export the bundle again") from None

    def network_file(self, network: str, precision: str) -> str:
        """The name of the ONNX file of a network in a precision.

        Raises:
            BundleError: the bundle has no such network or precision.
        """
        files = self.manifest["networks"].get(network, {}).get("files", {})
        if precision not in files:
            raise BundleError(f"the bundle {self.path} has no {network} in {precision}; it has {', '.join(files) or 'none'}")
        return str(files[precision])


def _read(path: Path, most: int, exact: bool = False) -> bytes:
    """A regular file's content: at most ``most`` bytes, and with ``exact`` neither more nor fewer.

    Looking first keeps pipes and devices, which would block or act, from being opened at all. What is opened is looked at again, in
    case it was exchanged in between, and however it grows from then on, only the size found is read.
    """
    refusal = BundleError(f"{path} is missing or is not a regular file; copy the bundle again")
    # Windows has none of the last two, nor pipes in its folders.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise refusal
        with open(os.open(path, flags), "rb") as file:
            opened = os.fstat(file.fileno())
            size = opened.st_size
            if not stat.S_ISREG(opened.st_mode):
                raise refusal
            if exact and size != most:
                what = "so it was cut short" if size < most else "so something was added"
                raise BundleError(f"{path} is damaged: it has {size} bytes and the manifest states {most}, {what}; copy the bundle again")
            if size > most:
                raise BundleError(f"{path} has {size} bytes, more than the {most} that are read; do not use this bundle")
            content = file.read(size)
    except FileNotFoundError:
        raise refusal from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}; copy the bundle again") from None
    if len(content) < size:
        raise BundleError(f"{path} is damaged: it became shorter while it was read; copy the bundle again")
    return content


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``. Sizes are known before anything of that size is made, which ``numpy.load`` does not see to.

    Raises:
        BundleError: what is wrong with a member, or with their size.
        Exception: whatever zipfile, zlib and NumPy raise at what they cannot read.
    """
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > _LARGEST_ARRAYS:
            raise BundleError(f"its arrays have {unpacked} bytes, more than the {_LARGEST_ARRAYS} that are unpacked")
        arrays: dict[str, np.ndarray] = {}
        for member in members:
            key = member.filename.removesuffix(".npy")
            # The other methods of zip can ask for any amount of working memory.
            if key in arrays or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise BundleError(f"{brief(key)} stands there twice, or is packed in a way that numpy.savez does not use")
            if key == member.filename:
                raise BundleError(f"{brief(key)} is not an array")
            arrays[key] = _array(archive.read(member))
    return arrays


def _array(content: bytes) -> np.ndarray:
    """One ``.npy``; an array larger than its file is refused without being made."""
    import io
    import math

    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "biufc" or any(side < 0 for side in shape):
        raise ValueError(f"expected an array of numbers, found {dtype} of {shape}")
    flat = np.frombuffer(content, dtype, math.prod(shape), stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C").copy()
