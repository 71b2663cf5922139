"""Channels: further maps of a cell, beside ``Rm`` and ``Tm``, that a network may be conditioned on. What they are called, and mean.

A channel is the key of a map (2M+1, 2M+1) over the diffraction orders, laid out as ``Rm`` is. Two kinds exist:

- ``Rm_NAME`` and ``Tm_NAME`` are the efficiencies of the same cell at another wavelength or polarisation. A file that says which, in
  ``geometry_NAME``, lets designs be solved and scored for it.
- Any other name is a map of non-negative numbers in any unit, such as the thermal radiation into the direction of each order. The
  network sees every map relative to its training mean, as sqrt(value / mean), so the unit drops out.

Like an order map, either kind has to stay as it is when the pattern is shifted and be mirrored when the pattern is: a map over the cell's
own x and y is none (training turns ``mirrors`` off where a geometry is known not to allow them).
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .errors import GeometryError, TargetError
from .geometry import Geometry

# A name is a key of .npz files, a variable of MATLAB (63 characters) and an input of ONNX graphs, beside others that stand there.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9_]{1,40}", re.ASCII)
_PREFIXES = ("mask_", "geometry_", "score_")
_TAKEN = {
    *("xx", "h", "Rm", "Tm", "geometry", "convention", "test", "score", "verified", "seed", "candidate", "target"),  # keys of files
    *(
        "R",
        "T",
        "light",
        "height",
        "height_nm",
        "mask",
        "noise",
        "sample",
        "pattern",
        "guidance_scale",
    ),  # of networks
    *("file", "path", "allow_pickle"),  # arguments of numpy.savez and of the function that calls it
}
LARGEST = 1e30  # of a map's values: their ratios to a mean stay finite in float32


class Channel(NamedTuple):
    """What a target wants of a channel.

    ``wanted`` (2M+1, 2M+1) float64, 0 where not asked for; ``mask`` (2M+1, 2M+1) bool, True where asked for; ``geometry`` as the target
    states it, None where it does not.
    """

    wanted: np.ndarray
    mask: np.ndarray
    geometry: Geometry | None = None


def fault(names: Any) -> str | None:
    """What is wrong with a list of channels, as the end of a sentence; None where nothing is."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return f"is {reprlib.repr(names)}; it must be a list of names of maps"
    for name in names:
        if not _NAME.fullmatch(name):
            return f"names {reprlib.repr(name)}; a name has up to 63 letters, digits and '_' and starts with a letter"
        if name in _TAKEN or name.startswith(_PREFIXES):
            return f"names '{name}', which means something else in the files; call the map otherwise"
    twice = next((name for name in names if list(names).count(name) > 1), None)
    return None if twice is None else f"names '{twice}' twice; name it once"


def fault_of_label(label: str) -> str | None:
    """What is wrong with the NAME of a pair ``Rm_NAME``, ``Tm_NAME``; None where nothing is."""
    return None if _LABEL.fullmatch(label) else f"is {reprlib.repr(label)}; a name has up to 40 letters, digits and '_'"


def label(channel: str) -> str | None:
    """NAME of ``Rm_NAME`` and ``Tm_NAME``; None for a channel of the other kind."""
    return channel[3:] if channel.startswith(("Rm_", "Tm_")) and channel[3:] else None


def labels(channels: Iterable[str]) -> list[str]:
    """The NAMEs among channels, each once, in order."""
    return list(dict.fromkeys(name for name in map(label, channels) if name is not None))


def require(where: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuse channels that are not among those known. Raises TargetError."""
    strange = next((name for name in names if name not in known), None)
    if strange is not None:
        what = f"it knows {', '.join(known)}" if known else "it knows none beside R and T"
        raise TargetError(f"{where}: the channel '{strange}' is not one that this network was trained with ({what}); leave it out")


def read_geometries(arrays: Mapping[str, np.ndarray], names: Iterable[str], where: str) -> dict[str, Geometry]:
    """By NAME the geometries ``geometry_NAME`` that a file has of the pairs ``names``; ``where`` is what errors call the file.

    Raises:
        GeometryError: one is no geometry.
    """
    found = {}
    for name in names:
        if f"geometry_{name}" in arrays:
            text = arrays[f"geometry_{name}"]
            try:
                found[name] = Geometry.from_json(str(text.ravel()[0]) if text.size == 1 else str(text))
            except GeometryError as error:
                raise GeometryError(f"{where}: 'geometry_{name}': {error}") from None
    return found
