"""Designs in words: JSON values for programs and a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .fabrication import aligned, measure
from .pairs import Pair, asked, known, unverified
from .target_ranges import words

if TYPE_CHECKING:
    from .design import Design
    from .target import Target

STRONGEST = 8  # wanted orders listed per design in JSON
_COLUMNS = 6  # and in the table
_KINDS = {
    "designs.png": "picture",
    "design.png": "figure",
    "design.svg": "figure",
    "designs.gds": "GDSII",
    "designs.mat": "MATLAB",
    "designs.npz": "NumPy",
    "designs.json": "JSON",
}


def entries(designs: Sequence[Design], target: Target) -> list[dict[str, Any]]:
    """:func:`to_dict` of designs, best first, ranked from 1."""
    return [to_dict(design, target, rank) for rank, design in enumerate(designs, 1)]


def to_dict(design: Design, target: Target, rank: int) -> dict[str, Any]:
    """One design as JSON values; efficiencies to six decimals, null where not solved."""
    parts = asked(target, {name: pair.geometry for name, pair in design.pairs.items()})
    by_channel = {
        "scores_by_channel": {name: design.pairs[name].score for name in parts},
        "strongest_orders_by_channel": {name: _strongest(part, design.pairs[name]) for name, part in parts.items()},
    }
    return {
        "rank": rank,
        "score": design.score,
        "height_nm": float(design.height_nm),
        "verified": bool(design.verified),
        "seed": int(design.seed),
        "candidate": int(design.candidate),
        "refined": bool(design.refined),
        "uncertainty": design.uncertainty,
        "pattern": ["".join("1" if pixel else "0" for pixel in row) for row in design.pattern],
        "digest": design.digest,
        "fabrication": measure(design.pattern, design.geometry).to_dict(),
        **({} if design.tolerance is None else {"tolerance": design.tolerance.to_dict()}),
        "strongest_orders": _strongest(target, design),
        **(by_channel if parts else {}),
    }


def _strongest(target: Target, solved: Design | Pair) -> list[dict[str, Any]]:
    """The strongest orders that a target asks for, and what came of them."""
    wanted, achieved = {"R": target.R, "T": target.T}, {"R": solved.R, "T": solved.T}
    return [
        {
            "side": side,
            "m": m,
            "n": n,
            "wanted": at(wanted[side], m, n),
            **_ends(target, side, m, n),
            "achieved": at(achieved[side], m, n),
        }
        for side, m, n in target.strongest(STRONGEST)
    ]


def _ends(target: Target, side: str, m: int, n: int) -> dict[str, Any]:
    """Both ends of what counts as reached, as a field, where they differ."""
    low, high = target.range_of(side, m, n)
    return {} if low == high else {"wanted_range": [round(low, 6), round(high, 6)]}


def channel_words(designs: Sequence[Design], target: Target) -> dict[str, Any]:
    """What a target asks of channels and what was done about it, as JSON values; nothing where it asks of none."""
    geometries, unscored = known(designs), unverified(target, designs)
    if not geometries and not unscored:
        return {}
    return {
        "scores_by_channel": "misrouted power of Rm_NAME and Tm_NAME by NAME; designs are ranked by 'score', that of R and T alone",
        "channel_geometries": {name: geometry.to_dict() for name, geometry in geometries.items()},
        "channels_not_verified": unscored,
    }


def at(maps: np.ndarray | None, m: int, n: int) -> float | None:
    """Efficiency of order (m, n) to six decimals; None where the map is not there or does not reach so far."""
    if maps is None or max(abs(m), abs(n)) > len(maps) // 2:
        return None
    return round(float(maps[m + len(maps) // 2, n + len(maps) // 2]), 6)


def table(designs: Sequence[Design], target: Target) -> str:
    """The designs, best first, with the strongest orders wanted and achieved."""
    strongest = target.strongest(_COLUMNS)
    asked = int(target.mask_R.sum() + target.mask_T.sum())
    orders = "every order asked" if not target.partial else f"{asked} order{'s' * (asked != 1)} asked, the others free"
    others = list(known(designs))
    doubt = any(design.uncertainty is not None for design in designs)
    tall = {design.height_nm for design in designs} != {target.height_nm}
    head = [
        "rank",
        *(["nm high"] if tall else []),
        "misrouted power",
        *(["+-"] if doubt else []),
        *(f"at {name}" for name in others),
        "",
        *(f"{side}({m},{n})" for side, m, n in strongest),
    ]
    blank = [""] * (2 + tall + doubt + len(others))
    rows = [[*blank, "wanted", *(words(*target.range_of(*order)) for order in strongest)]]
    for rank, design in enumerate(designs, 1):
        rows.append(
            [
                str(rank),
                *([f"{design.height_nm:g}"] if tall else []),
                "not solved" if design.score is None else f"{design.score:.3f}",
                *(["-" if design.uncertainty is None else f"{design.uncertainty:.3f}"] if doubt else []),
                *("-" if design.pairs[name].score is None else f"{design.pairs[name].score:.3f}" for name in others),
                "verified" if design.verified else "not verified",
                *(_share({"R": design.R, "T": design.T}[side], m, n) for side, m, n in strongest),
            ]
        )
    lines = [aligned([head, *rows])]
    if doubt:
        lines.append("+- is the misrouted power between the maps as solved and with two more harmonics: the solver's own uncertainty.")
    if others and any(design.verified for design in designs):
        lines.append(f"Ranked by R and T alone; 'at {others[0]}' is the misrouted power of Rm_{others[0]} and Tm_{others[0]}.")
    unscored = unverified(target, designs)
    if unscored:
        lines.append(f"Asked for and not verified, since the training data did not say how it was solved: {', '.join(unscored)}.")
    high = "of the heights listed" if tall else f"{target.height_nm:g} nm high"
    return "\n".join([f"{target.name}: pillars {high}, {orders}", *lines])


def files(paths: Sequence[Path]) -> str:
    """Where the files of a design lie, a line each, what people open first on top."""
    lines = {path.name: f"  {_KINDS[path.name]:<8}{path}" for path in paths}
    return "\n".join(lines[name] for name in sorted(lines, key=list(_KINDS).index))


def _share(maps: np.ndarray | None, m: int, n: int) -> str:
    value = at(maps, m, n)
    return "-" if value is None else f"{value:.3f}"
