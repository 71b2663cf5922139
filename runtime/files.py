"""Outputs appear whole or not at all: everything is written beside its place and renamed into it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same directory that takes ``path``'s place when the block ends well.

    The temporary's name starts with a dot, so that what a killed process left is told from a finished file. What the system refuses to the
    block without saying which file it was, as it does when the disk is full, is said of ``path``.

    Raises:
        DataError: the directory cannot be written, or ``path`` is a directory.
    """
    path = Path(path)
    work = _beside(path, path.suffix)
    with refusal(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not mkstemp: it makes private files, and asking for the umask to mend that is not safe among threads.
        os.close(os.open(work, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with _named(path, work):
            yield work
        with refusal(path):
            os.replace(work, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(work)
        raise


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary directory beside ``path`` that takes its place when the block ends well; what stood there is replaced.

    Raises:
        DataError: the parent directory cannot be written, or ``path`` is a file.
    """
    path = Path(path)
    work = _beside(path, "")
    with refusal(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file stands there")
        work.mkdir()
    try:
        with _named(path, work):
            yield work
        with refusal(path):
            _swap(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """One JSON document, atomically. Raises DataError as :func:`atomic_file` does."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_npz(path: str | os.PathLike[str], **arrays: np.ndarray) -> None:
    """A compressed ``.npz``, atomically. Raises DataError as :func:`atomic_file` does."""
    # Given a name, savez would append .npz to one that does not end so, and leave the temporary empty.
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def cache_directory() -> Path:
    """Where this user's rebuildable files belong: ``METASCATTER_CACHE`` if set, else the platform's cache folder."""
    if os.environ.get("METASCATTER_CACHE"):
        return Path(os.environ["METASCATTER_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "metascatter" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "metascatter"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metascatter"


def _beside(path: Path, suffix: str) -> Path:
    """A hidden name in ``path``'s directory that nobody else has; the stem is cut to fit the 255 bytes of a file name."""
    return path.parent / f".{path.stem[:40]}.{secrets.token_hex(6)}{suffix}"


def _swap(work: Path, path: Path) -> None:
    """Put the directory ``work`` at ``path``; what stood there comes back if that fails."""
    old = Path(f"{work}.old")
    if not path.exists():
        os.replace(work, path)
        return
    os.replace(path, old)
    try:
        os.replace(work, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _named(path: Path, work: Path) -> Iterator[None]:
    """An OSError of the block names ``path`` where it names no file, or one of ours that nobody will find."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if error.errno is None or not (name is None or str(name).startswith(str(work))):
            raise
        raise OSError(error.errno, error.strerror or os.strerror(error.errno), str(path)) from error


@contextlib.contextmanager
def refusal(path: Path) -> Iterator[None]:
    """What the operating system refuses while ``path`` is written, as one sentence.

    Raises:
        DataError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; choose a place you may write to") from None
