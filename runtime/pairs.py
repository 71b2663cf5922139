"""Pairs of channels ``Rm_NAME``, ``Tm_NAME``: a target at another wavelength or polarisation, solved and scored beside the main one.

The score of a design, by which designs are ranked, is that of R and T at the bundle's own geometry. Where the training data said with which
geometry a pair was solved, the designs that are kept are solved with it too, and each has a misrouted power by NAME.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .channels import label, labels, read_geometries, require
from .errors import DataError, GeometryError, TargetError
from .geometry import Geometry
from .target import Target, check_orders, checked

if TYPE_CHECKING:
    from .design import Design


class Pair(NamedTuple):
    """A design's scattering with another geometry.

    ``R``, ``T`` (2M+1, 2M+1) float64 and ``score``, the misrouted power, are None where it was not solved.
    """

    geometry: Geometry
    R: np.ndarray | None = None
    T: np.ndarray | None = None
    score: float | None = None


def asked(target: Target, geometries: Mapping[str, Geometry]) -> dict[str, Target]:
    """By NAME, in the order of ``geometries``, what ``target`` wants of those pairs of which it asks anything, as targets of their own.

    Raises:
        TargetError: a pair asks for more light than there is, or was stated for another geometry than the one known.
    """
    nothing = np.zeros_like(target.R), np.zeros_like(target.mask_R), None
    found = {}
    for name, geometry in geometries.items():
        (R, mask_R, stated), (T, mask_T, other) = (target.extra.get(f"{side}_{name}", nothing) for side in ("Rm", "Tm"))
        if mask_R.any() or mask_T.any():
            for own in (stated, other):
                difference = own.difference(geometry) if own is not None else None
                if difference:
                    raise TargetError(f"{target.name}: 'geometry_{name}' is not the one known of these maps: {difference}; ask for those")
            where, fields = f"{target.name} at {name}", (f"Rm_{name}", f"Tm_{name}", "height_nm")
            found[name] = checked(where, fields, R, T, target.height_nm, mask_R, mask_T, where, geometry)
    return found


def check(target: Target, channels: Mapping[str, Geometry | None], geometries: Mapping[str, Geometry]) -> None:
    """Refuse what ``target`` wants of further maps where a network with these channels cannot be asked for it.

    Raises:
        TargetError: an unknown channel, and as :func:`asked` and ``target.check_orders``.
    """
    require(target.name, target.extra, channels)
    for part in asked(target, geometries).values():
        assert part.geometry is not None
        check_orders(part, part.geometry)


def unverified(target: Target, designs: Sequence[Design]) -> list[str]:
    """Channels of which ``target`` asks something and that no solver checks, since nobody said with which geometry."""
    solvable = {name for design in designs for name in design.pairs}
    return [name for name, channel in target.extra.items() if channel.mask.any() and label(name) not in solvable]


def scored(
    designs: Sequence[Design],
    target: Target,
    geometries: Mapping[str, Geometry],
    solve: bool = True,
    end: float | None = None,
    workers: int | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[Design]:
    """The same designs, each with a :class:`Pair` by NAME for what ``target`` asks of ``geometries``.

    Args:
        designs: in any order, of any heights.
        target: in the number of orders to solve for.
        solve: False only states the geometries, as for designs that were not verified.
        end: on the clock of ``time.monotonic``; what is not solved by then is left unsolved.
        workers, cancel: as for ``physics.verify.solve_many``.

    Raises:
        TargetError: as :func:`asked`.
        Cancelled: ``cancel`` said so.
    """
    from .physics.verify import solve_until
    from .score import misrouted_power

    made: list[dict[str, Pair]] = [{} for _ in designs]
    for name, part in asked(target, geometries).items():
        groups: dict[tuple[float, tuple[int, ...]], list[int]] = {}
        for i, design in enumerate(designs):
            made[i][name] = Pair(geometries[name])
            groups.setdefault((design.height_nm, design.pattern.shape), []).append(i)
        for (height_nm, _), members in groups.items():
            if not solve or (end is not None and time.monotonic() >= end):
                break
            patterns = np.stack([designs[i].pattern for i in members])
            R, T = solve_until(end, patterns, height_nm, geometries[name], part.orders, workers, cancel)
            for i, r, t in zip(members, R, T, strict=False):
                made[i][name] = Pair(geometries[name], r, t, float(misrouted_power(r, t, part)))
    return [dataclasses.replace(design, pairs=pairs) for design, pairs in zip(designs, made, strict=True)]


def known(designs: Sequence[Design]) -> dict[str, Geometry]:
    """By NAME the geometries that designs state for further pairs; designs of one file state the same."""
    return {name: pair.geometry for design in designs for name, pair in design.pairs.items()}


def to_arrays(designs: Sequence[Design], nothing: np.ndarray) -> dict[str, np.ndarray]:
    """The keys of ``designs.npz`` for them: ``Rm_NAME``, ``Tm_NAME`` and ``score_NAME``, NaN where not solved, and ``geometry_NAME``.

    ``nothing`` (2M+1, 2M+1) is the map of NaN of what was not solved.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, geometry in known(designs).items():
        pairs = [design.pairs.get(name, Pair(geometry)) for design in designs]
        for key, maps in (("Rm", [pair.R for pair in pairs]), ("Tm", [pair.T for pair in pairs])):
            arrays[f"{key}_{name}"] = np.stack([nothing if values is None else values for values in maps]).astype(np.float64)
        arrays[f"score_{name}"] = np.array([np.nan if pair.score is None else pair.score for pair in pairs], np.float64)
        arrays[f"geometry_{name}"] = np.array(geometry.to_json())
    return arrays


def read_pairs(arrays: Mapping[str, np.ndarray], count: int, where: str) -> list[dict[str, Pair]]:
    """The pairs of each of ``count`` designs in the arrays of a designs file.

    Raises:
        DataError: naming the key that is missing or malformed.
    """
    names = [name for name in labels(arrays) if f"geometry_{name}" in arrays]
    try:
        geometries = read_geometries(arrays, names, where)
    except GeometryError as error:
        raise DataError(str(error)) from None
    made: list[dict[str, Pair]] = [{} for _ in range(count)]
    for name, geometry in geometries.items():
        R, T, scores = (arrays.get(f"{key}_{name}", np.zeros(0)) for key in ("Rm", "Tm", "score"))
        square = R.ndim == 3 and R.shape[1] == R.shape[2] and R.shape[1] % 2 == 1 and len(R) == count and R.dtype.kind == "f"
        if not square or T.shape != R.shape or T.dtype.kind != "f" or scores.shape != (count,) or scores.dtype.kind != "f":
            raise DataError(
                f"{where}: 'Rm_{name}', 'Tm_{name}' and 'score_{name}' have shapes {R.shape}, {T.shape} and {scores.shape}; "
                f"expected ({count}, 2M+1, 2M+1) twice and ({count},), of decimal numbers"
            )
        for row, pairs in enumerate(made):
            solved = np.isfinite(R[row]).all() and np.isfinite(T[row]).all() and np.isfinite(scores[row])
            whole = R[row].astype(np.float64), T[row].astype(np.float64), float(scores[row])
            pairs[name] = Pair(geometry, *whole) if solved else Pair(geometry)
    return made
