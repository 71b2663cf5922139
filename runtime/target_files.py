"""The forms of a target on disk. People write ``.json`` and ``.toml`` (:mod:`.target_fields`) and ``.csv`` (:mod:`.target_csv`).

``.npz``, for programs: ``Rm`` and ``Tm`` (2M+1, 2M+1) efficiencies, order (m, n) at ``[m + M, n + M]``, and ``h`` in nm. Optional:
``mask_R`` and ``mask_T`` (True or 1 where an order is asked for), ``sigma_R`` and ``sigma_T`` (standard deviations of the efficiencies,
maps like them) and ``noise`` (one number that stands for either where it is missing): an achieved efficiency within two standard deviations
counts as reached. Also ``geometry`` (the JSON text of ``Geometry``) and ``convention`` ("lab" or "metascatter"). Further maps, for a
network that is conditioned on them: ``Rm_NAME`` and ``Tm_NAME``, and what else it knows, with a ``mask_`` each and ``geometry_NAME`` if
need be. A leading axis of length 1 is fine, so one sample of a data set is a target. Other keys are ignored.

``.mat`` (MATLAB 5 to 7.3), for the lab: ``Rm`` and ``Tm`` with (2M+1)^2 values, square or in one row or column, and ``h`` in nm.
They are in the lab's index convention unless an optional key ``convention`` says "metascatter", and so are masks and standard deviations.
Optional keys as in ``.npz``, further maps without masks.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .channels import Channel, label, labels, read_geometries
from .data import CONVENTIONS, open_npz, read_mat, reorder_lab, square_map
from .errors import DataError, GeometryError, TargetError
from .geometry import Geometry
from .target import Target, checked
from .target_fields import from_fields, read_document
from .target_values import numeric

_KEYS = ("Rm", "Tm", "h")
_MASKS, _SIGMAS = ("mask_R", "mask_T"), ("sigma_R", "sigma_T")
_PREFIXES = ("Rm_", "Tm_")


def read(path: Path, convention: str | None, channels: Collection[str] = ()) -> Target:
    """One target of any form; see :meth:`.target.Target.load` for the arguments.

    Raises:
        TargetError: whatever is wrong, in one sentence with the file and the field.
    """
    if convention is not None and convention not in CONVENTIONS:
        raise TargetError(f"the index convention is '{convention}'; it must be {' or '.join(CONVENTIONS)}")
    from . import presets

    made = presets.spoken(str(path))
    if made is not None:
        return from_fields(made, str(path), presets.name_of(path))
    readers = {
        ".npz": _read_npz,
        ".mat": _read_mat,
        ".json": lambda path, *_: read_document(path),
        ".toml": lambda path, *_: read_document(path),
        ".csv": lambda path, convention, _: _read_csv(path, convention),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        known = f"a target is a .json, .toml, .mat, .npz or .csv file, or a preset ({', '.join(presets.PRESETS)})"
        raise TargetError(f"{path} ends in '{path.suffix}'; {known}" if path.suffix else f"{path} has no ending; {known}")
    try:
        return reader(path, convention, channels)
    except (DataError, GeometryError) as error:
        raise TargetError(str(error)) from None


def _read_npz(path: Path, convention: str | None, channels: Collection[str]) -> Target:
    return from_arrays(str(path), path.stem, open_npz(path), convention, channels)


def from_arrays(path: str, name: str, arrays: Mapping[str, np.ndarray], convention: str | None, channels: Collection[str]) -> Target:
    """The target that the keys of an ``.npz`` describe; ``path`` is what errors call it, ``name`` what the target is called.

    Raises:
        TargetError: a missing key, or one of the wrong form.
        GeometryError: a geometry that is none.
    """
    for key in _KEYS:
        if key not in arrays:
            raise TargetError(f"{path} lacks the key '{key}'; a target has {', '.join(_KEYS)}")
    maps = {}
    further = [key for key in arrays if key in channels or key.startswith(_PREFIXES)]
    for key in ("Rm", "Tm", *_MASKS, *_SIGMAS, *further, *(f"mask_{key}" for key in further)):
        if key in arrays:
            array = numeric(path, key, arrays[key])
            if array.ndim == 3 and array.shape[0] > 1:
                raise TargetError(f"{path}: '{key}' holds {array.shape[0]} samples; a target file holds one, save each in its own file")
            maps[key] = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if _convention(path, arrays, convention, "metascatter") == "lab":
        maps = {key: reorder_lab(array) if array.ndim == 2 else array for key, array in maps.items()}
    geometry = _geometry(path, arrays)
    geometries = read_geometries(arrays, labels(further), path)
    extra = {key: Channel(maps[key], maps.get(f"mask_{key}"), geometries.get(label(key) or "")) for key in further}  # type: ignore[arg-type]
    masks, sigmas = (maps.get("mask_R"), maps.get("mask_T")), _sigmas(path, maps, arrays)
    return checked(path, _KEYS, maps["Rm"], maps["Tm"], arrays["h"], *masks, name, geometry, extra, sigmas=sigmas)


def _read_mat(path: Path, convention: str | None, channels: Collection[str]) -> Target:
    content = read_mat(path, _KEYS, ("convention", "geometry", "noise", *_MASKS, *_SIGMAS, *channels), _PREFIXES)
    further = [key for key in content if key in channels or key.startswith(_PREFIXES)]
    keys = ["Rm", "Tm", *further, *(key for key in (*_MASKS, *_SIGMAS) if key in content)]
    for key in keys:
        shape = content[key].shape
        # Nine maps of 23 x 23 have a square number of values too.
        if len(shape) != 2 or (shape[0] != shape[1] and min(shape) != 1):
            raise TargetError(f"{path}: '{key}' has shape {shape}; it must hold one map, 23 x 23 or 529 values in a row")
    maps = {key: square_map(content[key], f"{path}: '{key}'") for key in keys}
    if _convention(path, content, convention, "lab") == "lab":
        maps = {key: reorder_lab(array) for key, array in maps.items()}
    masks, sigmas = (maps.get("mask_R"), maps.get("mask_T")), _sigmas(str(path), maps, content)
    extra = {key: maps[key] for key in further}
    geometry = _geometry(path, content)
    return checked(str(path), _KEYS, maps["Rm"], maps["Tm"], content["h"], *masks, path.stem, geometry, extra, sigmas=sigmas)


def _geometry(path: Path | str, content: Mapping[str, np.ndarray]) -> Geometry | None:
    """What the key ``geometry`` says; None without one."""
    if "geometry" not in content:
        return None
    try:
        return Geometry.from_json(_text(content["geometry"]))
    except GeometryError as error:
        raise TargetError(f"{path}: {error}") from None


def _convention(path: Path | str, content: Mapping[str, np.ndarray], asked: str | None, default: str) -> str:
    """The caller's convention, else the file's own, else ``default``."""
    own = _text(content["convention"]) if "convention" in content else default
    if own not in CONVENTIONS:
        raise TargetError(f"{path}: 'convention' is {reprlib.repr(own)}; it must be {' or '.join(CONVENTIONS)}")
    return asked or own


def _text(value: np.ndarray) -> str:
    """The one string an array holds, whatever its shape."""
    return str(value.ravel()[0]) if value.size == 1 else str(value)


def _read_csv(path: Path, convention: str | None) -> Target:
    from .target_csv import read_csv

    return read_csv(path, convention)


def _sigmas(where: str, maps: Mapping[str, np.ndarray], content: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """The standard deviations of R and T: each its own map, else the number ``noise``, else None."""
    noise = content.get("noise")
    if noise is not None and numeric(where, "noise", noise).size != 1:
        raise TargetError(f"{where}: 'noise' has {noise.size} values; it must be one number, or write maps sigma_R and sigma_T")
    return maps.get("sigma_R", noise), maps.get("sigma_T", noise)
