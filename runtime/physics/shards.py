"""The folder in which a simulation grows: shards that appear whole, and a statement of whose they are.

Whatever moment the run is killed at, what lies here is either finished shards, which the next run of the same settings takes
over, or hidden temporary files, which go with the folder. Nothing half-written ever lies outside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DataSet, open_npz
from ..errors import DataError
from ..files import write_json, write_npz
from ..geometry import Geometry

# take(first, count) gives the patterns (count, n, n) uint8 and heights (count,) float32 nm of those samples, fewer at the end.
Take = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
_SETTINGS, _WHOLE = "settings.json", "whole.npz"


class Parts:
    """The shards of one run.

    Args:
        folder: where they lie.
        settings: JSON values that define every sample; used here are ``count``, ``shard`` (samples a shard), ``size`` and ``orders``.
        take: take(first, count) gives the patterns (count, n, n) uint8 and heights (count,) float32 of those samples.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], take: Take) -> None:
        self.folder, self.settings, self._take = folder, settings, take
        self.count, self.shard = int(settings["count"]), int(settings["shard"])
        self._side = 2 * int(settings["orders"]) + 1

    def begun(self) -> bool:
        """Whether the folder has these settings; False where there is none yet.

        Raises:
            DataError: it is another run's, or not a simulation's at all.
        """
        try:
            found = json.loads((self.folder / _SETTINGS).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            # A kill between making the folder and its settings, or while clearing up, leaves nothing or hidden temporary files.
            if self.folder.exists() and not (self.folder.is_dir() and all(path.name.startswith(".") for path in self.folder.iterdir())):
                raise DataError(f"{self.folder} is in the way and not the work of a simulation; move it away") from None
            return False
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder / _SETTINGS} cannot be read ({error}); remove {self.folder} to begin again") from None
        for name, was, now in _flat(self.settings, found if isinstance(found, dict) else {}):
            if was != now:
                raise DataError(
                    f"{self.folder} holds an unfinished run with {name} {was}, not {now}; finish it with its own settings or remove it"
                )
        return True

    def begin(self) -> None:
        """State the settings, unless that is done. Raises DataError as :meth:`begun`, or where the folder cannot be written."""
        if not self.begun():
            write_json(self.folder / _SETTINGS, self.settings)

    def path(self, first: int) -> Path:
        """Where the shard that starts with sample ``first`` belongs."""
        return self.folder / f"shard-{first:012d}.npz"

    def missing(self) -> list[int]:
        """First samples of the shards that are not there, or damaged."""
        return [first for first in range(0, self.count, self.shard) if self._read(first) is None]

    def finish(self, out: Path, geometry: Geometry) -> None:
        """All shards as the one file ``out``; the folder goes.

        Raises:
            DataError: a shard is gone.
            OSError: ``out`` or the folder cannot be written.
        """
        shape = (self.count, self._side, self._side)
        size = self.settings["size"]
        data = DataSet(
            np.empty((self.count, size, size), np.uint8),
            np.empty(self.count, np.float32),
            np.empty(shape, np.float32),
            np.empty(shape, np.float32),
            geometry,
        )
        for first in range(0, self.count, self.shard):
            arrays = self._read(first)
            if arrays is None:
                raise DataError(f"{self.path(first)} is gone or damaged; let one run at a time write {out} and give the command again")
            for key in ("xx", "h", "Rm", "Tm"):
                getattr(data, key)[first : first + self.shard] = arrays[key]
        write_npz(self.folder / _WHOLE, **data.arrays())
        os.replace(self.folder / _WHOLE, out)
        self.clear()

    def clear(self) -> None:
        """Remove the folder, its settings last: while any work is left it stays known whose it is."""
        for path in self.folder.iterdir():
            if path.name != _SETTINGS:
                path.unlink()
        (self.folder / _SETTINGS).unlink(missing_ok=True)
        self.folder.rmdir()

    def _read(self, first: int) -> dict[str, np.ndarray] | None:
        """The arrays of a shard that is there, whole and of these samples; else None."""
        if not self.path(first).is_file():
            return None
        try:
            arrays = open_npz(self.path(first))
        except DataError:
            return None
        xx, h = self._take(first, self.shard)
        good = all(key in arrays for key in ("xx", "h", "Rm", "Tm")) and np.array_equal(arrays["xx"], xx) and np.array_equal(arrays["h"], h)
        return arrays if good and arrays["Rm"].shape == arrays["Tm"].shape == (len(xx), self._side, self._side) else None


def _flat(settings: dict[str, Any], found: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, found value, wanted value) of every setting, those of the geometry one by one."""
    rows = []
    for name, value in settings.items():
        if isinstance(value, dict):
            inner = found.get(name)
            rows += _flat(value, inner if isinstance(inner, dict) else {})
        else:
            rows.append((name, found.get(name), value))
    return rows
