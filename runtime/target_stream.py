"""Many targets, one after the other and never all at once: folders, files of many rows, lines of JSON from a file or a pipe.

    for item in Source(["wishes/", "many.npz"]):
        target = item.read()

An ``.npz`` of many rows has the keys of a target (:mod:`.target_files`) with a leading axis: ``Rm``, ``Tm`` (N, 2M+1, 2M+1) and ``h``
(N,), so a data set is one. Other maps may have it or not, and what has not holds for every row. Rows are unpacked a few at a time. A
``.jsonl`` has an object with the fields of a ``.json`` target on every line, and ``-`` is the same from stdin.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from . import presets
from .errors import DataError, GeometryError, TargetError
from .target import Target
from .target_files import from_arrays

_SUFFIXES = (".json", ".toml", ".mat", ".npz", ".csv", ".jsonl")
_STDIN = Path("-")
_ROWS = 64  # unpacked at a time
_SHARED = ("geometry", "convention")  # one for all rows
_PER_ROW = ("h", "noise")  # numbers that may differ by row
_MAPS = ("Rm", "Tm", "mask_", "sigma_", "geometry_")  # what these begin may be a map for each row, or one for all


class Item(NamedTuple):
    """One target of a source: the file it is in, its row there (0 in a file of one), and how it is read."""

    file: str
    row: int
    load: Any

    def read(self) -> Target:
        """The target. Raises TargetError with the file, the row and the field."""
        try:
            target: Target = self.load()
        except (DataError, GeometryError) as error:
            raise TargetError(str(error)) from None
        return target


class Source:
    """The targets of some paths, in order; iterated over again it gives them again, except those of stdin.

    Args:
        paths: files, folders (their target files, sorted by name), presets, ``-``.
        convention: index convention of arrays, as for :meth:`.target.Target.load`.
        channels: further maps to look for.

    Raises:
        TargetError: while iterating: a path that is no target, a folder without one, an ``.npz`` that is not made of rows.
    """

    def __init__(self, paths: Sequence[Path], convention: str | None = None, channels: Collection[str] = ()) -> None:
        self.paths, self.convention, self.channels = [Path(path) for path in paths], convention, tuple(channels)
        self.repeatable = _STDIN not in self.paths

    def __iter__(self) -> Iterator[Item]:
        for path in self.paths:
            if is_preset(path) or not os.path.isdir(path):  # which answers where pathlib raises: a name too long
                yield from self._file(path)
                continue
            names = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in _SUFFIXES and not entry.name.startswith("."))
            if not names:
                raise TargetError(f"{path} holds no target; put {', '.join(_SUFFIXES)} files into it")
            for file in names:
                yield from self._file(file)

    def _file(self, path: Path) -> Iterator[Item]:
        if path == _STDIN:
            yield from self._lines(sys.stdin.buffer, "stdin")
        elif is_preset(path) or path.suffix.lower() not in (".npz", ".jsonl"):
            yield Item(_name(path), 0, functools.partial(Target.load, path, self.convention, self.channels))
        elif path.suffix.lower() == ".npz":
            if rows(path) is None:
                yield Item(_name(path), 0, functools.partial(Target.load, path, self.convention, self.channels))
                return
            with contextlib.closing(_Rows(path, self.channels)) as file:
                for row, arrays in enumerate(file):
                    named = (f"{path} row {row}", f"{path.stem} row {row}")
                    yield Item(_name(path), row, functools.partial(from_arrays, *named, arrays, self.convention, self.channels))
        else:
            try:
                with path.open("rb") as stream:
                    yield from self._lines(stream, str(path))
            except OSError as error:
                raise TargetError(f"{path} cannot be read: {error.strerror or error}; check the name") from None

    def _lines(self, stream: IO[bytes], where: str) -> Iterator[Item]:
        count = 0
        for number, line in enumerate(stream, 1):
            if line.strip():
                named = (f"{where} line {number}", f"{Path(where).stem} line {number}")
                yield Item(Path(where).name, count, functools.partial(_from_line, line, *named))
                count += 1
        if not count:
            raise TargetError(f"{where} holds no target; write one as a JSON object on every line")


def is_many(paths: Sequence[Path]) -> bool:
    """Whether paths name a stream of targets rather than a few: a folder, ``-``, a ``.jsonl``, or an ``.npz`` of more than one row."""
    files = [path for path in paths if not is_preset(path)]
    return any(path == _STDIN or os.path.isdir(path) or path.suffix.lower() == ".jsonl" or _many_rows(path) for path in files)


def _many_rows(path: Path) -> bool:
    return path.suffix.lower() == ".npz" and (rows(path) or 1) > 1


def is_preset(path: Path) -> bool:
    """Whether a path is a preset with its parameters. Raises TargetError for one with parameters it has not."""
    return presets.spoken(str(path)) is not None


def rows(path: Path) -> int | None:
    """Rows of an ``.npz`` with a leading axis; None for one target alone, and for what is no ``.npz``, which its reader will say."""
    with (
        contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile),
        zipfile.ZipFile(path) as archive,
        archive.open("Rm.npy") as member,
    ):
        shape = _header(member)[0]
        return shape[0] if len(shape) == 3 else None
    return None


class _Rows:
    """The rows of an ``.npz``, unpacked as they are asked for: whatever its size, a few rows are in memory."""

    def __init__(self, path: Path, channels: Collection[str]) -> None:
        self._path = path
        self._known = {*_SHARED, *_PER_ROW, *channels, *(f"mask_{key}" for key in channels)}
        self._open: dict[str, tuple[IO[bytes], tuple[int, ...], np.dtype]] = {}
        self._whole: dict[str, np.ndarray] = {}
        self._count = rows(path) or 0
        self._archive = zipfile.ZipFile(path)
        try:
            for name in self._archive.namelist():
                self._take(name.removesuffix(".npy"), name)
        except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
            self.close()
            raise TargetError(f"{path} cannot be read as .npz ({error}); it may be damaged, write it again") from None
        except BaseException:
            self.close()
            raise
        if not self._count:
            self.close()
            raise TargetError(f"{path} has no rows; 'Rm' and 'Tm' hold one map for each target")

    def close(self) -> None:
        """Let go of the file."""
        for stream, *_ in self._open.values():
            stream.close()
        self._archive.close()

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        """The arrays of row after row, as a file of that target alone would have them."""
        for first in range(0, self._count, _ROWS):
            count = min(_ROWS, self._count - first)
            part = {key: self._next(key, count) for key in self._open}
            for i in range(count):
                yield {**self._whole, **{key: values[i] for key, values in part.items()}}

    def _take(self, key: str, member: str) -> None:
        """Keep an array that all rows share, or open one that has a row for each."""
        if key not in self._known and not key.startswith(_MAPS):  # patterns and whatever else a data set has
            return
        stream = self._archive.open(member)
        shape, fortran, dtype = _header(stream)
        by_row = key not in _SHARED and (len(shape) == 3 or (key in _PER_ROW and shape not in ((), (1,))))
        if by_row and shape[0] != self._count:
            raise TargetError(f"{self._path}: '{key}' has shape {shape} and 'Rm' {self._count} rows; give both a row for each target")
        if dtype.hasobject:
            raise TargetError(
                f"{self._path}: '{key}' holds pickled Python objects, which could run code; save plain arrays with numpy.savez"
            )
        if by_row and fortran:
            raise TargetError(f"{self._path}: '{key}' is stored column by column; save numpy.ascontiguousarray of it")
        if by_row:
            self._open[key] = stream, shape[1:], dtype
            return
        stream.close()
        with self._archive.open(member) as again:
            self._whole[key] = np.load(io.BytesIO(again.read()), allow_pickle=False)

    def _next(self, key: str, count: int) -> np.ndarray:
        """The next ``count`` rows of an array."""
        stream, shape, dtype = self._open[key]
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize * count
        try:
            content = stream.read(size)
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            raise TargetError(f"{self._path}: '{key}' cannot be read ({error}); the file may be damaged, write it again") from None
        except Exception as error:  # zlib has its own, without a common base
            raise TargetError(f"{self._path}: '{key}' cannot be unpacked ({error}); the file may be damaged, write it again") from None
        if len(content) < size:
            raise TargetError(f"{self._path}: '{key}' ends before its last row; write the file again")
        return np.frombuffer(content, dtype).reshape(count, *shape)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of the array that an ``.npy`` stream goes on with."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, fortran, dtype


def _from_line(line: bytes, where: str, name: str) -> Target:
    from .target_fields import from_fields, read_object

    return from_fields(read_object(line, where), where, name)


def _name(path: Path) -> str:
    return presets.name_of(path) if is_preset(path) else path.name
