"""Targets that people write: ``.json`` and ``.toml`` documents, whose fields are the same, and what they share with ``.csv`` and presets.

::

    height_nm = 300
    noise = 0.005

    [orders]
    "T(1,0)" = 0.4                # exactly this much; with noise, within two standard deviations of it
    "T(-1,0)" = [0.05, 0.15]      # anything from 0.05 to 0.15 counts as reached
    "T(0,1)" = {min = 0.1}        # at least
    "T(0,0)" = {max = 0.05}       # at most
    "R(0,0)" = {value = 0.1, sigma = 0.02}    # measured, with a noise of its own
    "R(1,0)" = "any"              # nobody's concern; as a rule such an order is just not named

Fields: ``height_nm`` and ``orders``, or ``preset`` with its own (:mod:`.presets`), to which ``orders`` then adds, or which it overrules;
``others``, 0 to want every order that is not named to carry nothing, ``"any"`` (the default) to leave them free; ``noise``, a standard
deviation of the efficiencies given as numbers; ``geometry``, the object form of ``Geometry``; ``channels``, orders of further maps such as
``{"Tm_1480": {"(1,0)": 0.3}}``, numbers or ``"any"``, to which ``others`` applies as well. The maps are 23 x 23, or as large as the orders
named.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .channels import Channel, fault
from .errors import GeometryError, TargetError
from .geometry import Geometry
from .target import Target, checked
from .target_ranges import Ranges, widened

_FIELDS = ("height_nm", "orders", "others", "geometry", "channels", "noise", "preset", "order", "efficiency")
_PLACE = r"\s*\(\s*([+-]?[0-9]{1,4})\s*,\s*([+-]?[0-9]{1,4})\s*\)\s*"
_ORDER = re.compile(rf"\s*([RT]){_PLACE}")
_CHANNEL_ORDER = re.compile(f"(){_PLACE}")
# The half-width of the maps, the lab's, and the largest order one may name (Geometry allows as many harmonics).
_ORDERS, HIGHEST_ORDER = 11, 60

Order = tuple[str, int, int]


class Wish(NamedTuple):
    """What is wanted of one order: the value a network is shown, and the ends of what counts as reached."""

    shown: float
    low: float
    high: float


def read_document(path: Path) -> Target:
    """The target of a ``.json`` or ``.toml`` file.

    Raises:
        TargetError: whatever is wrong, in one sentence with the file and the field.
    """
    return from_fields(_document(path), str(path), path.stem)


def from_fields(fields: Mapping[str, Any], where: str, name: str) -> Target:
    """The target a document's fields describe; ``where`` is what errors call the document.

    Raises:
        TargetError: as :func:`read_document`.
    """
    unknown = [field for field in fields if field not in _FIELDS]
    if unknown:
        raise TargetError(f"{where} has the unknown field {reprlib.repr(unknown[0])}; the fields are {', '.join(_FIELDS)}")
    sigma = number(where, "noise", fields.get("noise", 0.0))
    if sigma < 0:
        raise TargetError(f"{where}: 'noise' is {sigma:g}; it must be a standard deviation from 0 up")
    wanted: dict[Order, Wish | None] = {}
    if "preset" in fields:
        from . import presets

        made = presets.orders(where, fields["preset"], {field: fields[field] for field in presets.PARAMETERS if field in fields})
        wanted = _orders(where, made, 0.0)
        fields = {"height_nm": presets.HEIGHT_NM, "orders": {}, **fields}
    for field in ("height_nm", "orders"):
        if field not in fields:
            raise TargetError(f"{where} lacks the field '{field}'; a target has height_nm and orders, or names a preset")
    for field in ("order", "efficiency"):
        if field in fields and "preset" not in fields:
            raise TargetError(f"{where}: '{field}' belongs to a preset; name orders in 'orders', or a preset in 'preset'")
    height = number(where, "height_nm", fields["height_nm"])
    wanted |= _orders(where, fields["orders"], sigma)
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
        field = f"channels.{channel}"
        for (_, m, n), wish in _orders(where, orders, 0.0, field).items():
            if wish is not None and wish.low != wish.high:
                raise TargetError(f"{where}: '{field}' asks for a range in ({m},{n}); give a number, ranges are for the orders of R and T")
            wanted[channel, m, n] = wish
    return assembled(where, name, height, wanted, others != "any", ("orders", "orders", "height_nm"), geometry, tuple(further))


def assembled(
    where: str,
    name: str,
    height_nm: float,
    wanted: Mapping[Order, Wish | None],
    every: bool,
    fields: tuple[str, str, str],
    geometry: Geometry | None = None,
    channels: tuple[str, ...] = (),
) -> Target:
    """The target of wishes by (kind, m, n), where kind is "R", "T" or one of ``channels`` and None stands for "any".

    ``every`` wants nothing of the orders that are not among them; ``fields`` is what errors call the values of R, of T and the height.
    """
    M = max([_ORDERS, *(max(abs(m), abs(n)) for _, m, n in wanted)])
    maps = {kind: np.zeros((3, 2 * M + 1, 2 * M + 1)) for kind in ("R", "T", *channels)}
    masks = {kind: np.full((2 * M + 1, 2 * M + 1), every) for kind in maps}
    for (kind, m, n), wish in wanted.items():
        maps[kind][:, m + M, n + M] = wish or 0.0
        masks[kind][m + M, n + M] = wish is not None
    extra = {channel: Channel(maps[channel][0], masks[channel]) for channel in channels}
    R, T = maps["R"], maps["T"]
    ranges = Ranges(R[1], T[1], R[2], T[2])
    return checked(where, fields, R[0], T[0], height_nm, masks["R"], masks["T"], name, geometry, extra, ranges)


def measured(value: float, sigma: float) -> Wish:
    """A value that counts as reached within two standard deviations."""
    low, high = widened(np.array(value), sigma)
    return Wish(value, float(low), float(high))


def read_text(path: Path, kind: str) -> str:
    """The text of a file. Raises TargetError where it is none, or not there."""
    if path.is_dir() or not path.exists():
        raise TargetError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; name a target file")
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows editors put a byte order mark in front
    except ValueError as error:
        raise TargetError(f"{path} is not {kind} ({error}); correct it") from None
    except OSError as error:
        raise TargetError(f"{path} cannot be read ({error.strerror}); check the path") from None


def number(where: str, field: str, value: Any) -> float:
    """A finite number. Raises TargetError for anything else."""
    if not isinstance(value, bool) and isinstance(value, int | float):
        try:
            found = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            found = float("inf")
        if np.isfinite(found):
            return found
    raise TargetError(f"{where}: '{field}' is {reprlib.repr(value)}; it must be a finite number")


def _document(path: Path) -> dict[str, Any]:
    """The object in ``path``."""
    kind = path.suffix[1:].upper()
    text = read_text(path, kind)
    if kind != "TOML":
        return read_object(text, str(path))
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        bare = re.search(r"^\s*[RT]\s*\(", text, re.MULTILINE)
        remedy = 'put the names of orders in quotation marks, "T(1,0)" = 0.4' if bare else "correct it"
        raise TargetError(f"{path} is not TOML ({error}); {remedy}") from None


def read_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``text``, which errors call ``where``; a field given twice is an error, not the last one's win.

    Raises:
        TargetError: it is none.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
            raise TargetError(f"{where} gives {reprlib.repr(twice)} twice; keep one")
        return fields

    try:
        document = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise TargetError(f"{where} is not JSON ({error}); correct it") from None
    if not isinstance(document, dict):
        raise TargetError(f"{where} holds {reprlib.repr(document)}; a target is a JSON object with height_nm and orders")
    return document


def _orders(where: str, value: Any, sigma: float, field: str = "orders") -> dict[Order, Wish | None]:
    """Wishes by (kind, m, n), None for "any"; of a channel, whose orders are written without a kind, the kind is ""."""
    main = field == "orders"
    form, example = ("T(m,n) or R(m,n)", '{"T(1,0)": 0.4}') if main else ("(m,n)", '{"(1,0)": 0.4}')
    if not isinstance(value, dict):
        raise TargetError(f"{where}: '{field}' is {reprlib.repr(value)}; it must be an object such as {example}")
    wanted: dict[Order, Wish | None] = {}
    for name, efficiency in value.items():
        match = (_ORDER if main else _CHANNEL_ORDER).fullmatch(name)
        if match is None:
            raise TargetError(f"{where}: '{field}' names {reprlib.repr(name)}; write an order as {form}, such as {example}")
        order = (match[1], int(match[2]), int(match[3]))
        if max(abs(order[1]), abs(order[2])) > HIGHEST_ORDER:
            raise TargetError(f"{where}: '{field}' names {name}; m and n must lie between -{HIGHEST_ORDER} and {HIGHEST_ORDER}")
        if order in wanted:
            raise TargetError(f"{where}: '{field}' gives {reprlib.repr(name)} twice; keep one")
        wanted[order] = _wish(where, f"{field}.{name}", efficiency, sigma)
    return wanted


def _wish(where: str, field: str, value: Any, sigma: float) -> Wish | None:
    """One of the forms of the module's docstring; None for "any"."""
    if isinstance(value, str) and value == "any":
        return None
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise TargetError(f"{where}: '{field}' has {len(value)} values; a range is [least, most]")
        low, high = (number(where, field, end) for end in value)
        return _range(where, field, low, high, (low + high) / 2)
    if not isinstance(value, dict):
        return measured(number(where, field, value), sigma)
    given = {key: number(where, f"{field}.{key}", entry) for key, entry in value.items()}
    if set(given) == {"value", "sigma"}:
        if given["sigma"] < 0:
            raise TargetError(f"{where}: '{field}.sigma' is {given['sigma']:g}; it must be a standard deviation from 0 up")
        return measured(given["value"], given["sigma"])
    if not given or not set(given) <= {"min", "max"}:
        raise TargetError(f"{where}: '{field}' is {reprlib.repr(value)}; give min, max or both, or value and sigma")
    low, high = given.get("min", 0.0), given.get("max", 1.0)
    return _range(where, field, low, high, low if "max" not in given else (low + high) / 2)


def _range(where: str, field: str, low: float, high: float, shown: float) -> Wish:
    if not 0 <= low <= high <= 1:
        raise TargetError(f"{where}: '{field}' runs from {low:g} to {high:g}; a range runs from the least to the most, within 0 to 1")
    return Wish(shown, low, high)
