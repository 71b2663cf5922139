"""Presets: targets that many people want, as ranges, for a cell lit at normal incidence.

In a ``.json`` or ``.toml`` target: ``preset = "deflector"`` with the fields ``order``, ``efficiency`` and ``height_nm`` where the defaults
do not suit; on the command line, in place of a file: ``deflector:height_nm=250:order=1,1:efficiency=0.15``. Every preset leaves the orders
it does not speak of free and asks for less than all the light, so that energy conservation is no obstacle. Light is carried, in the
reference geometry, by transmitted orders (m, n) with m² + n² <= 5 and reflected ones with m² + n² <= 80. The functions
of ``PRESETS`` say what each asks for.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import TargetError
from .target_fields import HIGHEST_ORDER, number

PARAMETERS = ("order", "efficiency")
HEIGHT_NM = 300.0
_EVEN = 0.1  # beams that ought to be equal differ from their share by no more than this part of it

Wishes = dict[str, Any]  # the "orders" of a document


@dataclasses.dataclass(frozen=True)
class Preset:
    """One entry of ``PRESETS``.

    Args:
        make: from order (m, n) and efficiency to the ``orders`` of a document; its docstring says what is asked for.
        efficiency: the default.
        order: the default; None where the preset has none.
    """

    make: Callable[[int, int, float], Wishes]
    efficiency: float
    order: tuple[int, int] | None = None


def _deflector(m: int, n: int, efficiency: float) -> Wishes:
    """At least ``efficiency`` in T(m,n), at most a tenth of that in T(-m,-n) and a quarter of it in T(0,0)."""
    return {f"T({m},{n})": {"min": efficiency}, f"T({-m},{-n})": {"max": efficiency / 10}, "T(0,0)": {"max": efficiency / 4}}


def _splitter(m: int, n: int, efficiency: float) -> Wishes:
    """Four equal beams T(±m,±n), a quarter of ``efficiency`` each within 10 %, and at most half of such a beam in T(0,0)."""
    return {**_even([(a * m, b * n) for a in (-1, 1) for b in (-1, 1)], efficiency), "T(0,0)": {"max": efficiency / 8}}


def _equal(m: int, n: int, efficiency: float) -> Wishes:
    """Nine equal beams T(a m, b n), a and b from -1 to 1, a ninth of ``efficiency`` each within 10 %."""
    return _even([(a * m, b * n) for a in (-1, 0, 1) for b in (-1, 0, 1)], efficiency)


def _mirror(m: int, n: int, efficiency: float) -> Wishes:
    """At least ``efficiency`` straight back, in R(0,0)."""
    return {"R(0,0)": {"min": efficiency}}


def _suppressor(m: int, n: int, efficiency: float) -> Wishes:
    """At most ``efficiency`` straight on, in T(0,0)."""
    return {"T(0,0)": {"max": efficiency}}


def _even(orders: list[tuple[int, int]], efficiency: float) -> Wishes:
    share = efficiency / len(orders)
    return {f"T({m},{n})": [(1 - _EVEN) * share, (1 + _EVEN) * share] for m, n in orders}


PRESETS = {
    "deflector": Preset(_deflector, 0.2, (1, 0)),
    "splitter-2x2": Preset(_splitter, 0.2, (1, 1)),
    "equal-3x3": Preset(_equal, 0.27, (1, 1)),
    "mirror": Preset(_mirror, 0.4),
    "zero-order-suppressor": Preset(_suppressor, 0.01),
}


def orders(where: str, name: Any, given: Mapping[str, Any]) -> Wishes:
    """The ``orders`` of a preset for a document.

    Args:
        where: what errors call the document.
        name: a key of ``PRESETS``, with spaces or hyphens.
        given: the fields among ``PARAMETERS`` that the document has.

    Raises:
        TargetError: no such preset, a parameter it does not have, or one out of range.
    """
    key = _key(name) if isinstance(name, str) else None
    if key is None:
        raise TargetError(f"{where}: there is no preset {reprlib.repr(name)}; there are {', '.join(PRESETS)}")
    preset = PRESETS[key]
    efficiency = number(where, "efficiency", given.get("efficiency", preset.efficiency))
    if not 0 < efficiency <= 1:
        raise TargetError(f"{where}: 'efficiency' is {efficiency:g}; it must lie above 0 and not above 1")
    if preset.order is None:
        if "order" in given:
            raise TargetError(f"{where}: the preset {key} has no 'order'; leave it out")
        return preset.make(0, 0, efficiency)
    order = given.get("order", preset.order)
    whole = isinstance(order, list | tuple) and len(order) == 2 and all(isinstance(i, int) and not isinstance(i, bool) for i in order)
    if not whole or max(abs(i) for i in order) > HIGHEST_ORDER:
        raise TargetError(f"{where}: 'order' is {reprlib.repr(order)}; it must be two whole numbers such as [1, 0]")
    if not any(order) or (key != "deflector" and not all(order)):
        fit = "be another than (0,0)" if key == "deflector" else "be 0 in neither direction"
        raise TargetError(f"{where}: 'order' is ({order[0]},{order[1]}); for the preset {key} it must {fit}")
    return preset.make(order[0], order[1], efficiency)


def spoken(text: str) -> dict[str, Any] | None:
    """The fields of ``deflector:height_nm=250:order=1,1``; None where the text names no preset.

    Raises:
        TargetError: a preset, and behind it something that is no parameter with a value.
    """
    name, *rest = text.split(":")
    if _key(name) is None:
        return None
    fields: dict[str, Any] = {"preset": name}
    for part in rest:
        parameter, _, value = part.partition("=")
        pair = re.fullmatch(r"\s*([+-]?[0-9]{1,4})\s*,\s*([+-]?[0-9]{1,4})\s*", value)
        try:
            found: Any = float(value) if parameter != "order" else [int(pair[1]), int(pair[2])] if pair else None
        except ValueError:
            found = None
        if parameter not in ("height_nm", *PARAMETERS) or found is None or parameter in fields:
            raise TargetError(
                f"{text}: {reprlib.repr(part)} is no parameter of a preset; write {_key(name)}:height_nm=300:efficiency=0.2"
                + (":order=1,1" if PRESETS[_key(name) or ""].order else "")
            )
        fields[parameter] = found
    return fields


def name_of(target: Path) -> str:
    """What a target is called, and its folder: a file's stem, or a preset with its parameters."""
    text = str(target)
    return text.replace(":", "_").replace(" ", "-") if _key(text.partition(":")[0]) else target.stem


def _key(name: str) -> str | None:
    """The key of ``PRESETS`` that a name means; None where there is none."""
    key = re.sub(r"[\s_-]+", "-", name.strip().lower())
    return key if key in PRESETS else None
