"""What engines compiled on this machine, kept in the user's cache directory and always rebuilt from the ONNX when in doubt.

A file's name is a hash of everything it depends on, and it begins with the sha256 of the rest: a damaged file is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import atomic_file, cache_directory

_log = logging.getLogger(__name__)


def place(engine: str, facts: Mapping[str, Any], root: Path | None = None) -> Path:
    """Where the compiled form of a model with these facts (JSON values: hash of the ONNX, versions, device, options) belongs.

    ``root`` is a folder laid out as the user's cache directory, in place of that.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return (root or cache_directory()) / engine / f"{key}.bin"


def fetch(path: Path) -> bytes | None:
    """What :func:`keep` wrote there, or None where nothing is or it was damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        _log.warning("%s is damaged and will be made again", path)
        return None
    return content[32:]


def keep(path: Path, content: bytes, required: bool = False) -> None:
    """Write it, whole or not at all; a cache that cannot be written is done without, unless it is ``required``.

    Raises:
        DataError: it is required, and the place cannot be written.
    """
    try:
        with atomic_file(path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
    except (DataError, OSError) as error:
        if required:
            raise error if isinstance(error, DataError) else DataError(f"cannot write {path}: {error.strerror or error}") from None
        _log.info("nothing is kept for the next start: %s", error)
