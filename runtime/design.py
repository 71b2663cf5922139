"""Designs: a pattern with its height, scattering and score; writing them for people, MATLAB and lithography, and reading them back."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import pairs as further
from .data import open_npz
from .design_files import RANKING, WRITERS, Content
from .errors import DataError, GeometryError
from .files import atomic_file
from .geometry import Geometry
from .pairs import Pair, read_pairs

if TYPE_CHECKING:
    from .target import Target
    from .tolerance import Tolerance

_KEYS = ("xx", "h", "score", "Rm", "Tm", "verified", "seed", "geometry")


@dataclasses.dataclass(frozen=True, eq=False)
class Design:
    """A candidate with what is known about it.

    Args:
        pattern: (n, n) uint8, 1 = pillar; ``pattern[i, j]`` fills x in [i, i+1] pixels and y in [j, j+1] pixels.
        height_nm: pillar height.
        R, T: (2M+1, 2M+1) float64 achieved efficiencies, order (m, n) at ``[m + M, n + M]``; None where not solved.
        score: misrouted power, 0 to 1, lower is better; None where not solved.
        verified: R and T come from RCWA with ``geometry``.
        seed, candidate: the sampler's seed and the candidate's index; candidate -1 where a file does not say.
        geometry: the arrangement and solver settings.
        pairs: the scattering at other wavelengths or polarisations that the target asks for, by name; see :mod:`.pairs`.
        refined: the candidate was the start, and a search over pixels or height changed it.
        uncertainty: misrouted power between R, T and the same at a higher truncation: the solver's own error; None where not known.
        tolerance: what it bears of the lab's errors, where somebody asked; see :mod:`.tolerance`. ``designs.npz`` does not hold it.
    """

    pattern: np.ndarray
    height_nm: float
    R: np.ndarray | None
    T: np.ndarray | None
    score: float | None
    verified: bool
    seed: int
    candidate: int
    geometry: Geometry
    pairs: Mapping[str, Pair] = dataclasses.field(default_factory=dict)
    refined: bool = False
    uncertainty: float | None = None
    tolerance: Tolerance | None = None

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name what is to be made: a hash of pattern, height and geometry.

        ``designs.json`` and the label in ``designs.gds`` carry it, so that a wafer can be traced to its file.
        """
        pattern = np.ascontiguousarray(self.pattern, np.uint8)
        text = json.dumps([list(pattern.shape), pattern.tobytes().hex(), float(self.height_nm), self.geometry.to_dict()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def efficiency(self, kind: str, m: int, n: int) -> float:
        """The achieved efficiency of order (m, n) of ``kind`` "R" or "T".

        Raises:
            DataError: the design was not solved, or not for this order.
        """
        if self.R is None or self.T is None:
            raise DataError("this design was not solved, so nobody knows its efficiencies; sample it with verify=True")
        maps, orders = self.R if kind == "R" else self.T, len(self.R) // 2
        if max(abs(m), abs(n)) > orders:
            raise DataError(f"the design holds orders from -{orders} to {orders}; {kind}({m},{n}) is not among them")
        return float(maps[m + orders, n + orders])


@dataclasses.dataclass(frozen=True)
class Saved:
    """What :func:`save` wrote, and what it left out: pairs of a file's name and the extra that would write it."""

    paths: list[Path]
    missing: list[tuple[str, str]]


def save(
    designs: Sequence[Design],
    target: Target,
    directory: str | os.PathLike[str],
    mat_convention: str = "lab",
    ranking: str = RANKING,
    only: Collection[str] | None = None,
) -> Saved:
    """Write the designs, best first: the five ``designs`` files of DESIGN.md, and of the best one a figure, ``design.png`` and ``.svg``.

    ``designs.npz`` is what :func:`read` reads. ``designs.mat`` has the lab's keys: ``xx`` (K, n*n), ``h`` (K, 1), ``Rm`` and ``Tm``
    (2M+1, 2M+1, K) in the lab's index convention, so that ``xx(k,:)``, ``h(k)`` and ``Rm(:,:,k)`` are design k and one design alone is
    a file of the lab's own form; ``reshape(xx(k,:), n, n)'`` is its pattern. Its key ``convention`` says which. What was not solved is
    NaN. All files are ready before the first takes its place, ``designs.npz`` last. A file whose package is not installed is not
    written, and an old one of that name, which shows other designs, is removed.

    Args:
        designs: one or more of one pattern size, order count and geometry.
        target: what they were made for.
        directory: made where it does not exist.
        mat_convention: of the maps in ``designs.mat``: ``lab``, order (m, n) at ``[-n + M, -m + M]``, or ``metascatter``.
        ranking: what they were ranked by, in words for ``designs.json``.
        only: names of the files to write; None writes all.

    Raises:
        DataError: no design, an unknown convention, designs that do not go together, or a directory that cannot be written.
    """
    if mat_convention not in ("lab", "metascatter"):
        raise DataError(f"the convention of designs.mat is '{mat_convention}'; it must be lab or metascatter")
    arrays = to_arrays(designs, target)
    directory = Path(directory)
    content = Content(designs, target, arrays, mat_convention, ranking)
    missing: list[tuple[str, str]] = []
    paths: list[Path] = []
    with contextlib.ExitStack() as stack:
        for name, package, write in WRITERS:
            if only is not None and name not in only:
                continue
            if package is not None and not _installed(package):
                missing.append((name, "lab"))
                continue
            temporary = stack.enter_context(atomic_file(directory / name))  # takes its place when the stack ends, last in first
            write(temporary, content)
            paths.append(directory / name)
    for name, _ in missing:
        with contextlib.suppress(OSError):
            (directory / name).unlink(missing_ok=True)
    return Saved(paths, missing)


def read(path: str | os.PathLike[str]) -> list[Design]:
    """The designs of a ``designs.npz``, in its order.

    Raises:
        DataError: the file is missing, damaged, pickled, lacks a key, or a key has the wrong shape or values.
    """
    path = Path(path)
    arrays = open_npz(path)
    for key in _KEYS:
        if key not in arrays:
            raise DataError(f"{path} lacks the key '{key}'; a designs file has {', '.join(_KEYS)}")
    try:
        geometry = Geometry.from_json(str(arrays["geometry"]))
    except GeometryError as error:
        raise DataError(f"{path}: {error}") from None
    count = _check(arrays, str(path))
    pairs = read_pairs(arrays, count, str(path))
    candidate = arrays.get("candidate", np.full(count, -1))
    refined, uncertainty = arrays.get("refined", np.zeros(count, bool)), arrays.get("uncertainty", np.full(count, math.nan))
    designs = []
    for k in range(count):
        R, T = arrays["Rm"][k].astype(np.float64), arrays["Tm"][k].astype(np.float64)
        solved = not np.isnan(R).all()
        score = float(arrays["score"][k])
        designs.append(
            Design(
                arrays["xx"][k].astype(np.uint8),
                float(arrays["h"][k]),
                R if solved else None,
                T if solved else None,
                None if math.isnan(score) else score,
                bool(arrays["verified"][k]),
                int(arrays["seed"][k]),
                int(candidate[k]),
                geometry,
                pairs[k],
                bool(refined[k]),
                None if math.isnan(uncertainty[k]) else float(uncertainty[k]),
            )
        )
    return designs


def _check(arrays: dict[str, np.ndarray], name: str) -> int:
    """The number of designs. Raises DataError naming the key, what it holds and what it should."""
    xx = arrays["xx"]
    if xx.ndim != 3 or 0 in xx.shape or xx.shape[1] != xx.shape[2] or xx.dtype.kind not in "biuf" or not np.isin(xx, (0, 1)).all():
        raise DataError(f"{name}: 'xx' has shape {xx.shape} and type {xx.dtype}; expected (K, n, n) of 0 and 1 with K above 0")
    count = len(xx)
    for key, kinds in (
        ("h", "iuf"),
        ("score", "f"),
        ("verified", "b"),
        ("seed", "iu"),
        ("candidate", "iu"),
        ("refined", "b"),
        ("uncertainty", "f"),
    ):
        value = arrays.get(key)
        if value is not None and (value.shape != (count,) or value.dtype.kind not in kinds):
            raise DataError(f"{name}: '{key}' has shape {value.shape} and type {value.dtype}; expected ({count},), one number per design")
    if not (np.isfinite(arrays["h"]) & (arrays["h"] > 0)).all():
        raise DataError(f"{name}: 'h' holds a height that is not a positive number of nm; write the file again")
    R, T = arrays["Rm"], arrays["Tm"]
    for key, maps in (("Rm", R), ("Tm", T)):
        square = maps.ndim == 3 and maps.shape[1] == maps.shape[2] and maps.shape[1] % 2 == 1
        if not square or len(maps) != count or maps.shape != R.shape or maps.dtype.kind != "f":
            raise DataError(
                f"{name}: '{key}' has shape {maps.shape} and type {maps.dtype}; expected ({count}, 2M+1, 2M+1) "
                "of decimal numbers, the same for Rm and Tm"
            )
    solved = np.isfinite(R).all((1, 2)) & np.isfinite(T).all((1, 2))
    if not (solved | (np.isnan(R).all((1, 2)) & np.isnan(T).all((1, 2)))).all():
        raise DataError(
            f"{name}: 'Rm' and 'Tm' hold values that are not finite; a design has both maps whole, "
            "or NaN throughout where it was not solved"
        )
    if (arrays["verified"] & ~solved).any():
        raise DataError(f"{name}: 'verified' is true for a design whose 'Rm' and 'Tm' are NaN; run the verify command again")
    return count


def to_arrays(designs: Sequence[Design], target: Target) -> dict[str, np.ndarray]:
    """The arrays of ``designs.npz``; of the target only the number of orders counts.

    Raises:
        DataError: the designs do not go together, or there is none.
    """
    if not designs:
        raise DataError("there is no design to save; sample at least one candidate")
    first = designs[0]
    sides = {values.shape for design in designs for values in (design.R, design.T) if values is not None} or {(2 * target.orders + 1,) * 2}
    if len(sides) > 1 or any(d.pattern.shape != first.pattern.shape or d.geometry != first.geometry for d in designs):
        raise DataError("the designs differ in pattern size, number of orders or geometry; save those that go together")
    nothing = np.full(sides.pop(), math.nan)
    arrays: dict[str, np.ndarray] = {
        "xx": np.stack([d.pattern for d in designs]).astype(np.uint8),
        "h": np.array([d.height_nm for d in designs], np.float64),
        "score": np.array([math.nan if d.score is None else d.score for d in designs], np.float64),
        "Rm": np.stack([nothing if d.R is None else d.R for d in designs]).astype(np.float64),
        "Tm": np.stack([nothing if d.T is None else d.T for d in designs]).astype(np.float64),
        "verified": np.array([d.verified for d in designs], bool),
        "seed": np.array([d.seed for d in designs], np.int64),
        "candidate": np.array([d.candidate for d in designs], np.int64),
        "geometry": np.array(first.geometry.to_json()),
        **further.to_arrays(designs, nothing),
    }
    if any(d.refined for d in designs):
        arrays["refined"] = np.array([d.refined for d in designs], bool)
    if any(d.uncertainty is not None for d in designs):
        arrays["uncertainty"] = np.array([math.nan if d.uncertainty is None else d.uncertainty for d in designs], np.float64)
    _check(arrays, "the designs")
    return arrays


def _installed(package: str) -> bool:
    """Whether a package can be imported; one that is there but broken cannot."""
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True
