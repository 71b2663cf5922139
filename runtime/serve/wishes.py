"""What is wished for on the page: an order a row, and the document of a ``.json`` target that the rows make."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from ..errors import TargetError
from ..presets import PRESETS

EXACTLY, LEAST, MOST, BETWEEN = RELATIONS = ("exactly", "at least", "at most", "between")
TITLES = {
    "deflector": "Deflector",
    "splitter-2x2": "Splitter 2×2",
    "equal-3x3": "Equal 3×3",
    "mirror": "Mirror",
    "zero-order-suppressor": "Dark zero order",
}


@dataclasses.dataclass
class Wish:
    """One row: order (m, n) of side "T" or "R", and its share of the incident power in per cent; ``most`` counts for BETWEEN alone."""

    side: str
    m: int
    n: int
    relation: str = LEAST
    share: float | None = 10.0
    most: float | None = None

    @property
    def name(self) -> str:
        return f"{self.side}({self.m},{self.n})"

    def efficiency(self) -> Any:
        """The value of this order in a target's document. Raises TargetError where a number is missing."""
        numbers = [self.share, self.most] if self.relation == BETWEEN else [self.share]
        if any(number is None for number in numbers):
            raise TargetError(f"{self.name} has no share; give one in per cent, or take the order away")
        low, *high = (float(number) / 100 for number in numbers if number is not None)
        return {EXACTLY: low, LEAST: {"min": low}, MOST: {"max": low}}.get(self.relation, [low, *high])

    @property
    def words(self) -> str:
        """The wish in as few characters as fit on a square of the map."""
        sign = {EXACTLY: "", LEAST: "≥", MOST: "≤"}.get(self.relation)
        share = "?" if self.share is None else f"{self.share:.3g}"
        return f"{share}–{'?' if self.most is None else f'{self.most:.3g}'}" if sign is None else sign + share


def target_fields(height_nm: float | None, wishes: list[Wish]) -> dict[str, Any]:
    """The fields of a target. Raises TargetError where something is missing."""
    if height_nm is None:
        raise TargetError("there is no height; give one in nm")
    if not wishes:
        raise TargetError("no order is asked for; click one in the map, take a preset or drop a file")
    return {"height_nm": float(height_nm), "orders": {wish.name: wish.efficiency() for wish in wishes}}


def of_preset(name: str) -> list[Wish]:
    """The rows of a preset with its defaults."""
    preset = PRESETS[name]
    wanted = preset.make(*(preset.order or (0, 0)), preset.efficiency)
    return [_wish(order, value) for order, value in wanted.items()]


def _wish(order: str, value: Any) -> Wish:
    found = re.fullmatch(r"([RT])\((-?\d+),(-?\d+)\)", order)
    assert found is not None
    place = found[1], int(found[2]), int(found[3])
    per_cent = [round(100 * number, 4) for number in (value.values() if isinstance(value, dict) else value)]
    if isinstance(value, dict):
        return Wish(*place, LEAST if "min" in value else MOST, per_cent[0])
    return Wish(*place, BETWEEN, *per_cent)
