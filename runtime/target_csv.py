"""Measured targets as ``.csv``: one order a line, in any spreadsheet.

::

    # height_nm = 300
    # noise = 0.005
    kind,m,n,efficiency,sigma
    T,1,0,0.212,0.01
    T,0,0,0.051,

``kind`` is R or T. ``sigma``, a standard deviation, may be left out as a column or in a line, where ``noise`` stands for it (without either
the efficiency is wanted exactly); an achieved efficiency within two of them counts as reached. The lines ``# name = value`` say
``height_nm``, ``noise``, ``others`` (0 or any, as in ``.json``) and ``convention``: ``metascatter``, where m and n are the order (m, n), or
``lab``, where they are the rows and columns of the lab's maps counted from their middle, so that m, n is order (-n, -m). Other comments
have no equals sign. Columns are separated by commas, tabs or semicolons; with semicolons a decimal comma is read too.
"""

from __future__ import annotations

import csv
import re
import reprlib
from pathlib import Path

from .data import CONVENTIONS
from .errors import TargetError
from .target import Target
from .target_fields import HIGHEST_ORDER, Order, Wish, assembled, measured, number, read_text

_COLUMNS = ("kind", "m", "n", "efficiency")
_SETTINGS = ("height_nm", "noise", "others", "convention")
_WHOLE = re.compile(r"[+-]?[0-9]{1,4}")


def read_csv(path: Path, convention: str | None) -> Target:
    """The target in ``path``; ``convention`` overrules the file's own.

    Raises:
        TargetError: whatever is wrong, in one sentence with the file and the line.
    """
    lines = read_text(path, "CSV text").splitlines()
    head = next((line for line in lines if line.strip(" \t,;\"'") and not line.lstrip(" \"'").startswith("#")), "")
    delimiter = next((mark for mark in ";\t" if mark in head), ",")
    settings: dict[str, str] = {}
    columns: list[str] = []
    wanted: dict[Order, tuple[str, float, str]] = {}
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, strict=True)]
    except csv.Error as error:
        raise TargetError(f"{path} is not CSV ({error}); correct it") from None
    # Quotes may hold line breaks, and then rows would not be lines.
    if len(rows) != len(lines):
        raise TargetError(f"{path} has quotation marks that span lines; write one order a line")
    for count, row in enumerate(rows, 1):
        place = f"{path}, line {count}"
        if not any(row):
            continue
        if row[0].startswith("#"):
            _setting(place, delimiter.join(row).strip("# \t" + delimiter), settings)
        elif not columns:
            columns = [name.lower() for name in row if name]
            strange = [name for name in columns if name not in (*_COLUMNS, "sigma")]
            missing = [name for name in _COLUMNS if name not in columns]
            if strange or missing or len(set(columns)) < len(columns):
                raise TargetError(f"{place} names the columns {reprlib.repr(row)}; they must be {', '.join(_COLUMNS)} and, if known, sigma")
        else:
            cells = dict(zip(columns, row, strict=False))
            if len(cells) < len(_COLUMNS) or any(row[len(columns) :]):
                raise TargetError(f"{place} has {len(row)} cells; expected {', '.join(columns)}")
            order = _order(place, cells)
            if order in wanted:
                raise TargetError(f"{place} gives {order[0]}({order[1]},{order[2]}) a second time; keep one")
            wanted[order] = place, _number(place, "efficiency", cells["efficiency"], delimiter), cells.get("sigma", "")
    if not columns:
        raise TargetError(f"{path} has no line that names the columns; begin with {','.join(_COLUMNS)}")
    if "height_nm" not in settings:
        raise TargetError(f"{path} does not say the height; add a line '# height_nm = 300'")
    own = settings.get("convention", CONVENTIONS[0])
    others = settings.get("others", "any")
    for name, value, allowed in (("convention", own, CONVENTIONS), ("others", others, ("any", "0"))):
        if value not in allowed:
            raise TargetError(f"{path}: '{name}' is {reprlib.repr(value)}; it must be {' or '.join(allowed)}")
    noise = settings.get("noise", "0")
    wishes: dict[Order, Wish | None] = {}
    for (kind, m, n), (place, efficiency, sigma) in wanted.items():
        spread = _number(place if sigma else str(path), "sigma" if sigma else "noise", sigma or noise, delimiter)
        if spread < 0:
            raise TargetError(f"{place}: the standard deviation is {spread:g}; it must be 0 or more")
        wishes[(kind, m, n) if (convention or own) == "metascatter" else (kind, -n, -m)] = measured(efficiency, spread)
    height = _number(str(path), "height_nm", settings["height_nm"], delimiter)
    return assembled(str(path), path.stem, height, wishes, others == "0", ("efficiency", "efficiency", "height_nm"))


def _setting(place: str, text: str, settings: dict[str, str]) -> None:
    """Add ``name = value`` of a comment; one without an equals sign is for people."""
    name, sign, value = (part.strip() for part in text.partition("="))
    if not sign:
        return
    if name not in _SETTINGS:
        raise TargetError(f"{place} sets {reprlib.repr(name)}; such lines set {', '.join(_SETTINGS)}, other comments have no '='")
    if name in settings:
        raise TargetError(f"{place} sets '{name}' a second time; keep one")
    settings[name] = value


def _order(place: str, cells: dict[str, str]) -> Order:
    kind, m, n = cells["kind"], cells["m"], cells["n"]
    if kind not in ("R", "T"):
        raise TargetError(f"{place}: 'kind' is {reprlib.repr(kind)}; it must be R or T")
    for name, text in (("m", m), ("n", n)):
        if not _WHOLE.fullmatch(text) or abs(int(text)) > HIGHEST_ORDER:
            raise TargetError(
                f"{place}: '{name}' is {reprlib.repr(text)}; it must be a whole number from -{HIGHEST_ORDER} to {HIGHEST_ORDER}"
            )
    return kind, int(m), int(n)


def _number(place: str, name: str, text: str, delimiter: str) -> float:
    try:
        value = float(text.replace(",", ".") if delimiter == ";" else text)
    except ValueError:
        raise TargetError(f"{place}: '{name}' is {reprlib.repr(text)}; it must be a number") from None
    return number(place, name, value)
