"""Data sets: patterns, heights and their scattering, with the geometry that made them.

Three forms hold one: an ``.npz`` file, a folder of such shards, and a folder of the lab's ``.mat`` files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import channels, mat_file
from .errors import DataError, GeometryError
from .geometry import Geometry

CONVENTIONS = ("metascatter", "lab")


@dataclasses.dataclass(frozen=True)
class DataSet:
    """N solved samples.

    Args:
        xx: (N, n, n) uint8 patterns, 1 = pillar.
        h: (N,) float32 heights in nm.
        Rm, Tm: (N, 2M+1, 2M+1) float32 efficiencies, order (m, n) at ``[m + M, n + M]``.
        geometry: the arrangement and solver that made them.
        extra: further maps by key, each like ``Rm``; see :mod:`.channels`.
        geometries: by NAME the geometry of the maps ``Rm_NAME`` and ``Tm_NAME`` among them, where the file states it.
    """

    xx: np.ndarray
    h: np.ndarray
    Rm: np.ndarray
    Tm: np.ndarray
    geometry: Geometry
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    geometries: Mapping[str, Geometry] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.xx)

    def take(self, index: np.ndarray | slice) -> DataSet:
        """The samples at ``index``."""
        extra = {key: maps[index] for key, maps in self.extra.items()}
        return DataSet(self.xx[index], self.h[index], self.Rm[index], self.Tm[index], self.geometry, extra, self.geometries)

    def wanted(self, i: int) -> dict[str, channels.Channel]:
        """The further maps of sample i as a target takes them, every order asked for."""
        every = np.ones(self.Rm.shape[1:], bool)
        return {key: channels.Channel(maps[i], every, self.geometries.get(channels.label(key) or "")) for key, maps in self.extra.items()}

    def channel_geometries(self) -> dict[str, Any]:
        """The further maps with the JSON form of their geometries, None for one that is not known."""
        known = {key: self.geometries.get(channels.label(key) or "") for key in self.extra}
        return {key: None if geometry is None else geometry.to_dict() for key, geometry in known.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """The keys of the file form."""
        geometries = {f"geometry_{name}": np.array(geometry.to_json()) for name, geometry in self.geometries.items()}
        main = {"xx": self.xx, "h": self.h, "Rm": self.Rm, "Tm": self.Tm, "geometry": np.array(self.geometry.to_json())}
        return {**main, **self.extra, **geometries}


def open_npz(path: Path) -> dict[str, np.ndarray]:
    """Every array of an ``.npz``, never unpickling.

    Raises:
        DataError: the file is missing, damaged, or holds Python objects.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; name one .npz file")
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path")
    try:
        with path.open("rb") as file:
            magic = file.read(2)
        if magic != b"PK":
            raise DataError(f"{path} is not an .npz file (it starts with {magic!r}); write it with numpy.savez")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except DataError:
        raise
    except Exception as error:  # zip, zlib and the array headers each raise their own errors for damaged bytes
        if isinstance(error, ValueError) and "object arrays" in str(error).lower():
            raise DataError(
                f"{path} holds pickled Python objects, which could run code; save plain numeric arrays with numpy.savez"
            ) from None
        raise DataError(
            f"{path} cannot be read as .npz ({type(error).__name__}: {_short(error)}); it may be damaged, write it again"
        ) from None
    for key, value in arrays.items():
        if not isinstance(value, np.ndarray):  # NumPy hands out the raw bytes of a member that is no array
            raise DataError(f"{path}: '{key}' is not an array; write the file with numpy.savez")
    return arrays


def load(
    path: str | Path,
    convention: str = "lab",
    geometry: Geometry | None = None,
    extra: Sequence[str] = (),
    optional: bool = False,
) -> DataSet:
    """Read a data set in any of its three forms.

    Args:
        path: an ``.npz``, a folder of ``.npz`` shards, or a folder of ``Si_MS_Scat_samp_*.mat``.
        convention: index convention of ``.mat`` files: ``lab`` (``data[i, j]`` is order ``(-(j - M), -(i - M))``) or
            ``metascatter`` (``data[m + M, n + M]``).
        geometry: the arrangement of ``.mat`` files, which do not say; default the lab's.
        extra: keys of the further maps to load; what else a file holds is left alone.
        optional: do without those of ``extra`` that the files lack.

    Raises:
        DataError: what is missing or malformed, with the file and the key.
    """
    path = Path(path)
    if path.is_dir():
        # A name with a dot in front is a temporary that a killed process left half-written (see files.atomic_file).
        shards, files = ([file for file in path.glob(kind) if not file.name.startswith(".")] for kind in ("*.npz", "*.mat"))
        if shards:
            return concatenate([_from_npz(shard, extra, optional) for shard in sorted(shards)])
        if files:
            return _from_mat(sorted(files, key=_number_in_name), convention, geometry or Geometry(), extra, optional)
        raise DataError(f"{path} holds neither .npz shards nor .mat files; name a data set")
    return _from_npz(path, extra, optional)


def concatenate(parts: Sequence[DataSet]) -> DataSet:
    """One data set from several of the same geometry and shapes.

    Raises:
        DataError: the parts differ in geometry or shape.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.geometry != first.geometry:
            difference = part.geometry.difference(first.geometry) or "solver settings"
            raise DataError(f"the shards differ in geometry ({difference}); keep one geometry per folder")
        if part.xx.shape[1:] != first.xx.shape[1:] or part.Rm.shape[1:] != first.Rm.shape[1:]:
            raise DataError("the shards differ in the shape of their patterns or order maps; keep one shape per folder")
        if set(part.extra) != set(first.extra) or part.geometries != first.geometries:
            raise DataError("the shards differ in their further maps or in the geometries of these; keep one kind per folder")
    xx, h, Rm, Tm = (np.concatenate([getattr(part, name) for part in parts]) for name in ("xx", "h", "Rm", "Tm"))
    extra = {key: np.concatenate([part.extra[key] for part in parts]) for key in first.extra}
    return DataSet(xx, h, Rm, Tm, first.geometry, extra, first.geometries)


def _from_npz(path: Path, extra: Sequence[str] = (), optional: bool = False) -> DataSet:
    arrays = open_npz(path)
    for key in ("xx", "h", "Rm", "Tm", "geometry"):
        if key not in arrays:
            raise DataError(f"{path} lacks the key '{key}'; a data set has xx, h, Rm, Tm and geometry")
    try:
        geometry = Geometry.from_json(str(arrays["geometry"]))
    except GeometryError as error:
        raise DataError(f"{path}: {error}") from None
    further = {key: arrays[key] for key in _present(path, arrays, extra, optional)}
    try:
        geometries = channels.read_geometries(arrays, channels.labels(further), str(path))
    except GeometryError as error:
        raise DataError(str(error)) from None
    return check(DataSet(arrays["xx"], arrays["h"], arrays["Rm"], arrays["Tm"], geometry, further, geometries), str(path))


def _present(path: Path, content: Mapping[str, np.ndarray], extra: Sequence[str], optional: bool) -> list[str]:
    """Those of the keys ``extra`` that a file has. Raises DataError where one is missing and not ``optional``."""
    absent = [key for key in extra if key not in content]
    if absent and not optional:
        held = ", ".join(key for key in content if not key.startswith("__"))
        raise DataError(f"{path} lacks the further map '{absent[0]}'; it has {held}")
    return [key for key in extra if key in content]


def check(data: DataSet, name: str) -> DataSet:
    """The same data set in its proper dtypes.

    Raises:
        DataError: naming ``name``, the key, what was found and what was expected.
    """
    count = len(data.xx) if data.xx.ndim else 0
    if data.xx.ndim != 3 or data.xx.shape[1] != data.xx.shape[2] or not count:
        raise DataError(f"{name}: 'xx' has shape {data.xx.shape}; expected (N, n, n) with N above 0")
    if data.h.shape != (count,):
        raise DataError(f"{name}: 'h' has shape {data.h.shape}; expected ({count},), one height per pattern")
    for key, maps in (("Rm", data.Rm), ("Tm", data.Tm)):
        if maps.ndim != 3 or maps.shape[0] != count or maps.shape[1] != maps.shape[2] or maps.shape[1] % 2 == 0:
            raise DataError(f"{name}: '{key}' has shape {maps.shape}; expected ({count}, 2M+1, 2M+1)")
    for key, maps in (("Tm", data.Tm), *data.extra.items()):
        if data.Rm.shape != maps.shape:
            raise DataError(f"{name}: 'Rm' has shape {data.Rm.shape} and '{key}' {maps.shape}; expected the same")
    for key, values in {**{key: getattr(data, key) for key in ("xx", "h", "Rm", "Tm")}, **data.extra}.items():
        if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
            raise DataError(f"{name}: '{key}' holds values that are not finite numbers; remove those samples")
    if not np.isin(data.xx, (0, 1)).all():
        raise DataError(f"{name}: 'xx' holds values other than 0 and 1; a pattern is binary")
    if (data.h <= 0).any():
        raise DataError(f"{name}: 'h' holds heights of 0 nm or less; heights are in nm and positive")
    for key, maps in data.extra.items():
        if maps.min() < 0 or maps.max() > channels.LARGEST:
            raise DataError(
                f"{name}: '{key}' holds values from {maps.min():g} to {maps.max():g}; "
                f"a further map runs from 0 to {channels.LARGEST:g}, correct it"
            )
    h, Rm, Tm = (getattr(data, key).astype(np.float32) for key in ("h", "Rm", "Tm"))
    extra = {key: maps.astype(np.float32) for key, maps in data.extra.items()}
    return DataSet(data.xx.astype(np.uint8), h, Rm, Tm, data.geometry, extra, data.geometries)


def reorder_lab(maps: np.ndarray) -> np.ndarray:
    """Between the lab's index convention and ours, (..., 2M+1, 2M+1): transposed and turned by 180 degrees. Its own inverse."""
    return np.swapaxes(maps, -1, -2)[..., ::-1, ::-1]


def read_mat(path: Path, keys: Sequence[str], optional: Sequence[str] = (), prefixes: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Named numeric arrays of a MATLAB file (5 to 7.3), and of any kind those of ``optional`` that it has or that start with ``prefixes``.

    Raises:
        DataError: missing file or key, a damaged file, or MATLAB 7.3 (HDF5) without h5py to read it.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path")
    try:
        found = mat_file.variables(path)
        wanted = [name for name in found if name in (*keys, *optional) or name.startswith(prefixes)]
        strange = next((name for name in wanted if not found[name]), None)
        if strange is not None:
            raise DataError(f"{path}: '{strange}' is not a numeric array; write it as double")
        content = {**dict.fromkeys(filter(None, found)), **loadmat(path, variable_names=wanted)}
    except DataError:
        raise
    except NotImplementedError:
        content = _read_mat_hdf5(path, (*keys, *optional), prefixes)
    except Exception as error:  # loadmat raises whatever the damaged bytes lead it to
        raise DataError(f"{path} cannot be read as a MATLAB file ({type(error).__name__}: {_short(error)}); write it again") from None
    for key in keys:
        if key not in content:
            held = ", ".join(name for name in content if not name.startswith("__"))
            raise DataError(f"{path} lacks the key '{key}'; expected {', '.join(keys)}, found {held or 'none of them'}")
        if not isinstance(content[key], np.ndarray) or content[key].dtype.kind not in "biuf":
            raise DataError(f"{path}: '{key}' is not a numeric array; write it as double")
    return {key: content[key] for key in dict.fromkeys((*keys, *optional, *_starting(content, prefixes))) if key in content}


def _short(error: Exception) -> str:
    """A library's words on one line; some of them quote the damaged bytes, however many these are."""
    words = " ".join(str(error).split())
    return words if len(words) <= 200 else f"{words[:200]}..."


def _starting(names: Iterable[str], prefixes: tuple[str, ...]) -> list[str]:
    return sorted(name for name in names if name.startswith(prefixes))


def _read_mat_hdf5(path: Path, keys: Sequence[str], prefixes: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The named arrays of a MATLAB 7.3 file, which is HDF5 with the axes in reverse order and text as 16-bit numbers."""
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path} is a MATLAB 7.3 file; install metascatter[lab] to read it, or save it with '-v7'") from None
    content = {}
    try:
        with h5py.File(path, "r") as file:
            for key in (*keys, *_starting(file, prefixes)):
                node = file.get(key)
                if isinstance(node, h5py.Dataset):
                    values = node[()].T
                    is_text = node.attrs.get("MATLAB_class") == b"char"
                    content[key] = np.array("".join(map(chr, values.ravel()))) if is_text else values
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise DataError(f"{path} cannot be read as a MATLAB 7.3 file ({_short(error)}); write it again") from None
    return content


def square_map(values: np.ndarray, name: str) -> np.ndarray:
    """(k, k) from k*k values in any layout MATLAB leaves them in (row, column or square)."""
    side = round(values.size**0.5)
    if side * side != values.size or not values.size:
        raise DataError(f"{name} has {values.size} values; expected a square number (10 x 10 pixels, 23 x 23 orders)")
    return values.reshape(side, side)


def _from_mat(files: Sequence[Path], convention: str, geometry: Geometry, extra: Sequence[str], optional: bool) -> DataSet:
    if convention not in CONVENTIONS:
        raise DataError(f"the index convention is '{convention}'; it must be {' or '.join(CONVENTIONS)}")

    further = [key for key in extra if not optional or key in read_mat(files[0], (), optional=extra)]

    def rows() -> Iterator[tuple[np.ndarray, float, list[np.ndarray]]]:
        for path in files:
            content = read_mat(path, ("xx", "h", "Rm", "Tm", *further))
            if content["h"].size != 1:
                raise DataError(f"{path}: 'h' has {content['h'].size} values; expected one height in nm")
            maps = [square_map(content[key], f"{path}: '{key}'") for key in ("Rm", "Tm", *further)]
            if convention == "lab":
                maps = [reorder_lab(m) for m in maps]
            yield square_map(content["xx"], f"{path}: 'xx'"), float(content["h"].item()), maps

    xx, h, maps = zip(*rows(), strict=True)
    if len({(x.shape, *(m.shape for m in row)) for x, row in zip(xx, maps, strict=True)}) > 1:
        raise DataError(f"the .mat files beside {files[0]} differ in size; keep one size per folder")
    Rm, Tm, *more = (np.stack(column) for column in zip(*maps, strict=True))
    data = DataSet(np.stack(xx), np.array(h), Rm, Tm, geometry, dict(zip(further, more, strict=True)))
    return check(data, f"{files[0].parent}")


def _number_in_name(path: Path) -> tuple[int, str]:
    found = re.search(r"(\d+)\D*$", path.stem)
    return (int(found.group(1)) if found else -1, path.name)
