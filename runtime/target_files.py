"""The three forms of a target on disk.

``.npz``, for programs: ``Rm`` and ``Tm`` (2M+1, 2M+1) efficiencies, order (m, n) at ``[m + M, n + M]``, and ``h`` in nm. Optional:
``mask_R`` and ``mask_T`` (True or 1 where an order is asked for), ``geometry`` (the JSON text of ``Geometry``) and ``convention``
("lab" or "metascatter"). Further maps, for a network that is conditioned on them: ``Rm_NAME`` and ``Tm_NAME``, and what else the
network knows, with a ``mask_`` each and ``geometry_NAME`` if need be. A leading axis of length 1 is fine, so one sample of a data set is a
target. Other keys are ignored.

``.mat`` (MATLAB 5 to 7.3), for the lab: ``Rm`` and ``Tm`` with (2M+1)^2 values, square or in one row or column, and ``h`` in nm.
They are in the lab's index convention unless an optional key ``convention`` says "metascatter". Further maps as in ``.npz``.

``.json``, for people, naming only the orders wanted::

    {"height_nm": 300,
     "orders": {"T(1,0)": 0.4, "T(-1,0)": 0.1, "R(0,0)": 0.05}}

Optional fields: ``"others": 0`` wants every order that is not named to carry nothing, ``"others": "any"`` (the default) leaves
them free; ``"geometry"`` holds the object form of ``Geometry``; ``"channels": {"Tm_1480": {"(1,0)": 0.3}}`` asks for orders of further
maps, to which ``others`` applies as well. The maps are 23 x 23, or as large as the orders named.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .channels import Channel, fault, label, labels, read_geometries
from .data import CONVENTIONS, open_npz, read_mat, reorder_lab, square_map
from .errors import DataError, GeometryError, TargetError
from .geometry import Geometry
from .target import Target, checked
from .target_values import numeric

_KEYS = ("Rm", "Tm", "h")
_FIELDS = ("height_nm", "orders", "others", "geometry", "channels")
_PREFIXES = ("Rm_", "Tm_")
_PLACE = r"\s*\(\s*([+-]?[0-9]{1,4})\s*,\s*([+-]?[0-9]{1,4})\s*\)\s*"
_ORDER = re.compile(rf"\s*([RT]){_PLACE}")
_CHANNEL_ORDER = re.compile(f"(){_PLACE}")
# The half-width of a JSON target's maps, the lab's, and the largest order one may name (Geometry allows as many harmonics).
_ORDERS, _HIGHEST_ORDER = 11, 60


def read(path: Path, convention: str | None, channels: Collection[str] = ()) -> Target:
    """One target of any form; see :meth:`.target.Target.load` for the arguments.

    Raises:
        TargetError: whatever is wrong, in one sentence with the file and the field.
    """
    if convention is not None and convention not in CONVENTIONS:
        raise TargetError(f"the index convention is '{convention}'; it must be {' or '.join(CONVENTIONS)}")
    readers = {".npz": _read_npz, ".mat": _read_mat, ".json": lambda path, *_: from_fields(_document(path), str(path), path.stem)}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TargetError(f"{path} ends in '{path.suffix}'; a target is a .mat, .npz or .json file")
    try:
        return reader(path, convention, channels)
    except (DataError, GeometryError) as error:
        raise TargetError(str(error)) from None


def _read_npz(path: Path, convention: str | None, channels: Collection[str]) -> Target:
    arrays = open_npz(path)
    for key in _KEYS:
        if key not in arrays:
            raise TargetError(f"{path} lacks the key '{key}'; a target has {', '.join(_KEYS)}")
    maps = {}
    further = [key for key in arrays if key in channels or key.startswith(_PREFIXES)]
    for key in ("Rm", "Tm", "mask_R", "mask_T", *further, *(f"mask_{key}" for key in further)):
        if key in arrays:
            array = numeric(str(path), key, arrays[key])
            if array.ndim == 3 and array.shape[0] > 1:
                raise TargetError(f"{path}: '{key}' holds {array.shape[0]} samples; a target file holds one, save each in its own file")
            maps[key] = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if _convention(path, arrays, convention, "metascatter") == "lab":
        maps = {key: reorder_lab(array) if array.ndim == 2 else array for key, array in maps.items()}
    geometry = None
    if "geometry" in arrays:
        try:
            geometry = Geometry.from_json(_text(arrays["geometry"]))
        except GeometryError as error:
            raise TargetError(f"{path}: {error}") from None
    geometries = read_geometries(arrays, labels(further), str(path))
    extra = {key: Channel(maps[key], maps.get(f"mask_{key}"), geometries.get(label(key) or "")) for key in further}  # type: ignore[arg-type]
    masks = maps.get("mask_R"), maps.get("mask_T")
    return checked(str(path), _KEYS, maps["Rm"], maps["Tm"], arrays["h"], *masks, path.stem, geometry, extra)


def _read_mat(path: Path, convention: str | None, channels: Collection[str]) -> Target:
    content = read_mat(path, _KEYS, ("convention", *channels), _PREFIXES)
    further = [key for key in content if key in channels or key.startswith(_PREFIXES)]
    for key in ("Rm", "Tm", *further):
        shape = content[key].shape
        # Nine maps of 23 x 23 have a square number of values too.
        if len(shape) != 2 or (shape[0] != shape[1] and min(shape) != 1):
            raise TargetError(f"{path}: '{key}' has shape {shape}; it must hold one map, 23 x 23 or 529 values in a row")
    maps = {key: square_map(content[key], f"{path}: '{key}'") for key in ("Rm", "Tm", *further)}
    if _convention(path, content, convention, "lab") == "lab":
        maps = {key: reorder_lab(array) for key, array in maps.items()}
    R, T = maps.pop("Rm"), maps.pop("Tm")
    return checked(str(path), _KEYS, R, T, content["h"], None, None, path.stem, None, maps)


def _convention(path: Path, content: dict[str, np.ndarray], asked: str | None, default: str) -> str:
    """The caller's convention, else the file's own, else ``default``."""
    own = _text(content["convention"]) if "convention" in content else default
    if own not in CONVENTIONS:
        raise TargetError(f"{path}: 'convention' is {reprlib.repr(own)}; it must be {' or '.join(CONVENTIONS)}")
    return asked or own


def _text(value: np.ndarray) -> str:
    """The one string an array holds, whatever its shape."""
    return str(value.ravel()[0]) if value.size == 1 else str(value)


def from_fields(fields: Mapping[str, Any], where: str, name: str) -> Target:
    """The target a JSON document's fields describe; ``where`` is what errors call the document.

    Raises:
        TargetError: as :func:`read`.
    """
    unknown = [field for field in fields if field not in _FIELDS]
    if unknown:
        raise TargetError(f"{where} has the unknown field {reprlib.repr(unknown[0])}; the fields are {', '.join(_FIELDS)}")
    for field in ("height_nm", "orders"):
        if field not in fields:
            raise TargetError(f"{where} lacks the field '{field}'; a target has height_nm and orders")
    height = _number(where, "height_nm", fields["height_nm"])
    wanted = _orders(where, fields["orders"])
    others = fields.get("others", "any")
    if others != "any" and (isinstance(others, bool) or others != 0):
        raise TargetError(f"{where}: 'others' is {reprlib.repr(others)}; it must be \"any\" or 0")
    try:
        geometry = Geometry.from_dict(fields["geometry"]) if "geometry" in fields else None
    except GeometryError as error:
        raise TargetError(f"{where}: {error}") from None
    further = fields.get("channels", {})
    wrong = fault(list(further)) if isinstance(further, dict) else f"is {reprlib.repr(further)}; it must be an object of maps"
    if wrong:
        raise TargetError(f"{where}: 'channels' {wrong}")
    for channel, orders in further.items():
        wanted |= {(channel, m, n): value for (_, m, n), value in _orders(where, orders, f"channels.{channel}").items()}
    M = max([_ORDERS, *(max(abs(m), abs(n)) for _, m, n in wanted)])
    maps = {kind: np.zeros((2 * M + 1, 2 * M + 1)) for kind in ("R", "T", *further)}
    masks = {kind: np.full((2 * M + 1, 2 * M + 1), others != "any") for kind in maps}
    for (kind, m, n), value in wanted.items():
        maps[kind][m + M, n + M] = value
        masks[kind][m + M, n + M] = True
    extra = {channel: Channel(maps[channel], masks[channel]) for channel in further}
    return checked(where, ("orders", "orders", "height_nm"), maps["R"], maps["T"], height, masks["R"], masks["T"], name, geometry, extra)


def _document(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; a field given twice is an error, not the last one's win."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
            raise TargetError(f"{path} gives {reprlib.repr(twice)} twice; keep one")
        return fields

    if path.is_dir() or not path.exists():
        raise TargetError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; name a target file")
    try:
        # utf-8-sig: Windows editors put a byte order mark in front.
        document = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise TargetError(f"{path} is not JSON ({error}); correct it") from None
    except OSError as error:
        raise TargetError(f"{path} cannot be read ({error.strerror}); check the path") from None
    if not isinstance(document, dict):
        raise TargetError(f"{path} holds {reprlib.repr(document)}; a target is a JSON object with height_nm and orders")
    return document


def _orders(where: str, value: Any, field: str = "orders") -> dict[tuple[str, int, int], float]:
    """Efficiency by (kind, m, n); of a channel, whose orders are written without a kind, the kind is ""."""
    main = field == "orders"
    form, example = ("T(m,n) or R(m,n)", '{"T(1,0)": 0.4}') if main else ("(m,n)", '{"(1,0)": 0.4}')
    if not isinstance(value, dict):
        raise TargetError(f"{where}: '{field}' is {reprlib.repr(value)}; it must be an object such as {example}")
    wanted: dict[tuple[str, int, int], float] = {}
    for name, efficiency in value.items():
        match = (_ORDER if main else _CHANNEL_ORDER).fullmatch(name)
        if match is None:
            raise TargetError(f"{where}: '{field}' names {reprlib.repr(name)}; write an order as {form}, such as {example}")
        order = (match[1], int(match[2]), int(match[3]))
        if max(abs(order[1]), abs(order[2])) > _HIGHEST_ORDER:
            raise TargetError(f"{where}: '{field}' names {name}; m and n must lie between -{_HIGHEST_ORDER} and {_HIGHEST_ORDER}")
        if order in wanted:
            raise TargetError(f"{where}: '{field}' gives {reprlib.repr(name)} twice; keep one")
        wanted[order] = _number(where, f"{field}.{name}", efficiency)
    return wanted


def _number(where: str, field: str, value: Any) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            number = float("inf")
        if np.isfinite(number):
            return number
    raise TargetError(f"{where}: '{field}' is {reprlib.repr(value)}; it must be a finite number")
