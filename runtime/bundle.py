"""The bundle: the one format between export and runtime.

A bundle is a directory whose ``manifest.json`` lists every other file with its sha256 and carries a digest of itself.
Nothing of it reaches an engine before its hash is checked, and the bytes checked are the bytes used. Hashes prove that
a bundle is whole, not where it comes from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .condition import Condition
from .errors import BundleError, GeometryError
from .geometry import Geometry

FORMAT = 1
DEFAULT = "si1550"
_REQUIRED = {
    "format": int,
    "task": str,
    "geometry": dict,
    "condition": dict,
    "pattern_size": int,
    "sample_shape": list,
    "window": list,
    "networks": dict,
    "sampling": dict,
    "files": dict,
    "digest": str,
}
_LARGEST = 1 << 30


def digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of the manifest's canonical JSON (sorted keys, no spaces) without the digest itself."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
    """An opened bundle: the manifest's content, and its files through :meth:`read`."""

    path: Path
    manifest: Mapping[str, Any]
    geometry: Geometry
    condition: Condition

    @classmethod
    def open(cls, bundle: str | os.PathLike[str] | None = None) -> Bundle:
        """Read and check the manifest of a bundle.

        Raises:
            BundleError: it is missing, altered, incomplete, or of an unknown version.
        """
        path = find(bundle)
        where = path / "manifest.json"
        try:
            manifest = json.loads(_bytes(where))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where} is not JSON ({error}); copy the bundle again") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            version = manifest.get("format") if isinstance(manifest, dict) else None
            raise BundleError(f"{where} has format {version!r}; this version of metascatter reads format {FORMAT}")
        for key, kind in _REQUIRED.items():
            if not isinstance(manifest.get(key), kind):
                raise BundleError(f"{where} lacks '{key}'; export the bundle again")
        if digest(manifest) != manifest["digest"]:
            raise BundleError(f"{where} was altered after it was written (its digest does not match); copy the bundle again")
        for name, entry in manifest["files"].items():
            if not name or name.startswith(".") or any(c in name for c in "/\\:\0"):  # on Linux too: a bundle travels to Windows
                raise BundleError(f"{where} names the file {name!r} outside the bundle; do not use this bundle")
            if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
                raise BundleError(f"{where} lacks the sha256 of '{name}'; export the bundle again")
        _check_parts(where, manifest)
        try:
            geometry = Geometry.from_dict(manifest["geometry"])
        except GeometryError as error:
            raise BundleError(f"{where}: {error}") from None
        return cls(path, manifest, geometry, Condition.from_dict(manifest["condition"]))

    def read(self, name: str) -> bytes:
        """The bytes of a file, once they match the manifest's sha256.

        Raises:
            BundleError: the file is not listed, missing, a link, or altered.
        """
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise BundleError(f"the bundle {self.path} has no file '{name}'; it has {', '.join(self.manifest['files'])}")
        content = _bytes(self.path / name)
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise BundleError(f"{self.path / name} is damaged: its sha256 does not match the manifest; copy the bundle again")
        return content

    def json(self, name: str) -> Any:
        """A JSON file of the bundle, checked as :meth:`read` does."""
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{self.path / name} is not JSON ({error}); export the bundle again") from None

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """An ``.npz`` of the bundle, checked as :meth:`read` does; never unpickles."""
        import io

        content = self.read(name)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except Exception as error:  # zip, zlib and the array headers each raise their own errors
            raise BundleError(f"{self.path / name} cannot be read as .npz ({error}); export the bundle again") from None
        for key, value in arrays.items():
            if not isinstance(value, np.ndarray):  # NumPy hands out the raw bytes of a member that is no array
                raise BundleError(f"{self.path / name}: '{key}' is not an array; export the bundle again")
        return arrays

    def network_file(self, network: str, precision: str) -> str:
        """The name of the ONNX file of a network in a precision.

        Raises:
            BundleError: the bundle has no such network or precision.
        """
        files = self.manifest["networks"].get(network, {}).get("files", {})
        if precision not in files:
            raise BundleError(f"the bundle {self.path} has no {network} in {precision}; it has {', '.join(files) or 'none'}")
        return str(files[precision])


def _check_parts(where: Path, manifest: Mapping[str, Any]) -> None:
    """What the sampler reads of the manifest's nested parts; a digest that matches does not make them sound."""
    for name, entry in manifest["networks"].items():
        files = entry.get("files") if isinstance(entry, dict) else None
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise BundleError(f"{where}: the network '{name}' lacks its files; export the bundle again")
    for key, length in (("sample_shape", 3), ("window", 2)):
        numbers = manifest[key]
        if len(numbers) != length or not all(type(number) is int and number >= 0 for number in numbers):
            raise BundleError(f"{where}: '{key}' is {numbers}; expected {length} whole numbers, export the bundle again")
    for key, kind in (("scheduler", str), ("steps", int), ("guidance_scale", int | float)):
        if not isinstance(manifest["sampling"].get(key), kind):
            raise BundleError(f"{where}: 'sampling' lacks '{key}'; export the bundle again")


def _bytes(path: Path) -> bytes:
    """A regular file's content; links could lead out of the bundle."""
    try:
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path} is missing or is not a regular file; copy the bundle again")
        if path.stat().st_size > _LARGEST:
            raise BundleError(f"{path} has {path.stat().st_size} bytes, more than any bundle file; do not use this bundle")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
