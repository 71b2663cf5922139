"""JSON from strangers, read strictly: what Python's own reader lets pass and a later step would stumble over is refused here."""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any

from .errors import BundleError

LARGEST_JSON = 1 << 24  # bytes; the shipped manifest has 35 thousand
DEEPEST_JSON = 64  # objects and lists inside each other
_LONGEST_NAME = 200
_LONGEST_NUMBER = 40  # digits of a whole number; the longest in use, a seed, has 19

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 78
_SHORT.maxlevel = 2


def brief(value: Any) -> str:
    """A value as an error shows it: one line of at most 80 characters, whatever it holds."""
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_json(content: bytes, where: str, finite: bool = False) -> Any:
    """A JSON file, strictly: UTF-8 without byte order mark, no name twice in an object, no half characters, no endless nesting.

    Args:
        finite: refuse NaN and Infinity, which Python writes and JSON does not know. diffusers writes them into its configs.

    Raises:
        BundleError: it is none, or larger than any JSON file of a bundle.
    """
    try:
        if len(content) > LARGEST_JSON:
            raise ValueError(f"{len(content)} bytes are more than the {LARGEST_JSON} that are read")
        value = json.loads(
            content.decode(),
            object_pairs_hook=_unique,
            parse_int=_parse_int,
            parse_float=_parse_finite if finite else None,
            parse_constant=_parse_finite if finite else None,
        )
        _check_tree(value)
    except (ValueError, RecursionError) as error:  # what cannot be decoded and JSONDecodeError are ValueErrors
        raise BundleError(f"{where} is not JSON ({error}); copy or export the bundle again") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {brief(twice)} stands twice in an object")
    return found


def _parse_int(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a whole number has {len(text)} digits")
    return int(text)


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"a number is {brief(text)}, which is not finite")
    return number


def _check_tree(value: Any) -> None:
    """Refuse what would fail later: nesting that recursion cannot follow, halves of surrogate pairs, names no error can show."""
    level = [value]
    for _ in range(DEEPEST_JSON):
        names = [name for item in level if isinstance(item, dict) for name in item]
        for text in (*names, *(item for item in level if isinstance(item, str))):
            text.encode()  # UnicodeEncodeError is a ValueError
        for name in names:
            if len(name) > _LONGEST_NAME or not name.isprintable():
                raise ValueError(f"the name {brief(name)} is too long, or cannot be printed")
        level = [inner for item in level if isinstance(item, dict | list) for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST_JSON} deep")
