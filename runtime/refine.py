"""Discrete refinement: from solved designs to better ones, by flipped pixels and, where it is free, another height.

The search walks on the surrogate and is set right by the solver. Around a solved design the scattering of a neighbour is predicted as what
was solved there plus the difference that the surrogate sees: right to 0.003 of misrouted power a flip, against 0.003 to 0.008 without
(its correlation with the truth is 0.97, at 320 and 440 nm). A walk of many flips, each the best that is left, uphill if it must be,
leaves local optima; the best cells it has seen are solved, and the next walk begins at the best design there is.

Without a surrogate the adjoint gradient says which flips to solve first. For silicon pillars that is a weak hint (correlation 0.15 to 0.25
with what a flip does, which is no small change), so it is not asked where there is a surrogate. A free height is settled by the gradient,
for which it is the right tool. Nothing is random: the same starts give the same designs, on any number of cores.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .design import Design
from .errors import Cancelled, DataError
from .fabrication import Limits, fines
from .score import misrouted_power
from .target import Target

Surrogate = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
GRADIENT = 2  # solves that a gradient counts as; it takes 1.4 to 2.3 solves' time
WALK = 8  # flips of a walk on the surrogate; 24 found no more at three times the cost
ROUND = 4  # neighbours solved after each walk
REACHED = 0.001  # misrouted power at which there is nothing left to gain: the solver's own error is tens of times as large
_HEIGHT_STEPS = (-25.0, -8.0, -3.0, 3.0, 8.0, 25.0)  # nm, tried beside the flips where the height is free
_COARSEST, _FINEST = 16.0, 0.5  # nm: steps by which the gradient settles the height
_POLISH = 8  # solves kept back for that
_WEARINESS = 0.01  # misrouted power that a walk from a design weighs when the next is chosen
_Key = tuple[bytes, float]


class _Cell(NamedTuple):
    """A pattern (n, n) uint8 at a height in nm."""

    pattern: np.ndarray
    height_nm: float


def refine(
    starts: Sequence[Design],
    target: Target,
    surrogate: Surrogate | None = None,
    budget: int = 28,
    fixed: np.ndarray | None = None,
    heights: tuple[float, float] | None = None,
    end: float | None = None,
    stop: Callable[[], bool] | None = None,
    on_solve: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    limits: Limits | None = None,
    on_best: Callable[[Design], None] | None = None,
) -> list[Design]:
    """Better designs than ``starts``, found with at most ``budget`` more solves.

    Args:
        starts: solved designs of one geometry and pattern size, at least one.
        target: what they are for, in their number of orders. Its height is not looked at.
        surrogate: ``pattern``, ``height_nm`` -> ``R``, ``T``; None goes by the gradient alone.
        budget: RCWA solves, from 0 up; a gradient counts as ``GRADIENT``.
        fixed: (n, n) of -1 (free), 0 and 1 (held); the starts meet it.
        heights: lowest and highest height in nm; None keeps that of each start.
        end: on the clock of ``time.monotonic``; no solve begins afterwards, nor one that would not be done by then.
        stop: True ends the work with ``Cancelled``, within the time of one solve.
        on_solve: (solved, budget) after every solve.
        workers: threads of the solver; they change nothing in the result.
        limits: of what can be made; designs are then weighed by misrouted power and ``fabrication.fines`` together.
        on_best: called with every design that is better than all before.

    Ends early where a design reaches ``REACHED``.

    Returns:
        The starts and all that was solved, best first; the first is never worse than the best start. What was refined keeps the candidate's
        number and says ``refined``.

    Raises:
        DataError: no start, or one that was not solved.
        Cancelled: ``stop`` said so.
    """
    if not starts or any(design.score is None for design in starts):
        raise DataError("there is nothing to refine; give at least one design that was solved")
    search = _Search(starts, target, surrogate, budget, fixed, heights, end, stop, on_solve, workers, limits, on_best)
    if surrogate is not None:
        search.by_surrogate()
    else:
        if heights is not None:
            search.settle_height(budget // 2)
        search.by_gradient()
    if heights is not None and not search.reached():
        search.settle_height(budget)
    return search.designs


class _Search:
    """The designs found so far, what may still be spent, and the ways to find more."""

    def __init__(
        self,
        starts: Sequence[Design],
        target: Target,
        surrogate: Surrogate | None,
        budget: int,
        fixed: np.ndarray | None,
        heights: tuple[float, float] | None,
        end: float | None,
        stop: Callable[[], bool] | None,
        on_solve: Callable[[int, int], None] | None,
        workers: int | None,
        limits: Limits | None,
        on_best: Callable[[Design], None] | None,
    ) -> None:
        from .physics.rcwa import Solver

        self.limits, self.geometry = limits, starts[0].geometry
        self.designs = sorted(starts, key=self._worth)
        self.target, self.surrogate, self.heights = target, surrogate, heights
        self.budget, self.spent, self.slowest = budget, 0, 0.0
        self.end, self.stop, self.on_solve, self.on_best, self.workers = end, stop, on_solve, on_best, workers
        self.solver = Solver(self.geometry, target.orders)
        shape = starts[0].pattern.shape
        self.free = np.argwhere(np.full(shape, True) if fixed is None else np.asarray(fixed) < 0)
        self.known = set(_keys([_cell(design) for design in self.designs]))
        self.visited: set[_Key] = set()
        self.walks: dict[_Key, int] = {}
        self.reserve = _POLISH if heights is not None and budget > 2 * _POLISH else 0

    # --- What may still be done -------------------------------------------------------------------------------------

    def left(self) -> int:
        """Solves that may still be spent on flips."""
        return 0 if self._late() or self.reached() else self.budget - self.reserve - self.spent

    def reached(self) -> bool:
        """Whether the best design is as good as the solver can tell."""
        return self._worth(self.designs[0])[0] <= REACHED

    def _late(self, solves: int = 1) -> bool:
        """Whether so many solves more would not be done in time. Raises Cancelled when told to stop."""
        if self.stop is not None and self.stop():
            raise Cancelled("refining was cancelled")
        return self.end is not None and time.monotonic() + solves * self.slowest > self.end

    def solve(self, cells: Sequence[_Cell], origin: Design) -> bool:
        """Solve cells and sort them in among the designs; whether one of them is the best."""
        from .physics.verify import solve_until

        cells = list(cells)[: self.budget - self.spent]
        if not cells or self._late():
            return False
        before, best = self.spent, self.designs[0]

        def count(done: int, _: int) -> None:
            if self.on_solve is not None:
                self.on_solve(before + done, self.budget)

        started = time.monotonic()
        heights = np.array([cell.height_nm for cell in cells])
        R, T = solve_until(
            self.end, np.stack([c.pattern for c in cells]), heights, self.geometry, self.target.orders, self.workers, self.stop, count
        )
        self.slowest = max(self.slowest, (time.monotonic() - started) / max(1, len(R)))
        self.spent += len(R)
        self.known.update(_keys(cells[: len(R)]))
        for cell, r, t in zip(cells, R, T, strict=False):
            score = float(misrouted_power(r, t, self.target))
            changes: dict[str, Any] = {
                "pattern": cell.pattern,
                "height_nm": cell.height_nm,
                "R": r,
                "T": t,
                "score": score,
                "refined": True,
            }
            self.designs.append(dataclasses.replace(origin, **changes, verified=True))
        self.designs.sort(key=self._worth)
        better = self.designs[0] is not best
        if better and self.on_best is not None:
            self.on_best(self.designs[0])
        return better

    def _worth(self, design: Design) -> tuple[float, bool, int]:
        """Best first; of equals what was sampled before what was refined."""
        assert design.score is not None
        return design.score + float(fines(design.pattern[None], self.geometry, self.limits)[0]), design.refined, design.candidate

    # --- By the surrogate -------------------------------------------------------------------------------------------

    def by_surrogate(self) -> None:
        """Walk from the best design, solve what the walk shows, and again."""
        while self.left() > 0:
            origin = self._next_origin()
            shown = self._walk(origin)
            if not shown:
                return
            self.solve([cell for _, cell in shown[: min(ROUND, self.left())]], origin)

    def _next_origin(self) -> Design:
        """The best design, those walked from already weighing more."""
        keys = _keys([_cell(design) for design in self.designs])
        weighed = [
            (self._worth(design)[0] + _WEARINESS * self.walks.get(key, 0), place)
            for place, (design, key) in enumerate(zip(self.designs, keys, strict=True))
        ]
        place = min(weighed)[1]
        self.walks[keys[place]] = self.walks.get(keys[place], 0) + 1
        return self.designs[place]

    def _walk(self, origin: Design) -> list[tuple[float, _Cell]]:
        """Unsolved cells within ``WALK`` flips of a solved design, with the score predicted, best first."""
        if not len(self.free) and self.heights is None:
            return []
        assert origin.R is not None
        assert origin.T is not None
        here = _cell(origin)
        base = self._predict([here])
        correction = origin.R - base[0], origin.T - base[1]
        seen: dict[_Key, tuple[float, int, _Cell]] = {}
        self.visited.update(_keys([here]))
        for _ in range(WALK):
            neighbours = list(self._neighbours(here))
            R, T = self._predict(neighbours)
            scores = np.asarray(misrouted_power(R + correction[0], T + correction[1], self.target))
            scores = scores + fines(np.stack([cell.pattern for cell in neighbours]), self.geometry, self.limits)
            keys = _keys(neighbours)
            for key, score, cell in zip(keys, scores.tolist(), neighbours, strict=True):
                if key not in self.known and key not in seen:
                    seen[key] = score, len(seen), cell
            onward = [i for i in np.argsort(scores, kind="stable") if keys[i] not in self.visited]
            if not onward or self._late(ROUND + 1):  # what was seen is still to be solved
                break
            here = neighbours[onward[0]]
            self.visited.add(keys[onward[0]])
        return [(score, cell) for score, _, cell in sorted(seen.values(), key=lambda entry: entry[:2])]

    def _neighbours(self, cell: _Cell) -> Iterator[_Cell]:
        """Every flip of a free pixel; every step of a free height that stays within its limits."""
        for i, j in self.free:
            flipped = cell.pattern.copy()
            flipped[i, j] ^= 1
            yield _Cell(flipped, cell.height_nm)
        if self.heights is not None:
            for height in {float(np.clip(cell.height_nm + step, *self.heights)): None for step in _HEIGHT_STEPS}:
                if height != cell.height_nm:
                    yield _Cell(cell.pattern, height)

    def _predict(self, cells: Sequence[_Cell]) -> tuple[np.ndarray, np.ndarray]:
        """R and T (K, 2M+1, 2M+1) that the surrogate expects of cells."""
        assert self.surrogate is not None
        patterns = np.ascontiguousarray(np.stack([cell.pattern for cell in cells])[:, None], np.float32)
        found = self.surrogate({"pattern": patterns, "height_nm": np.array([[cell.height_nm] for cell in cells], np.float32)})
        return self._sized(found["R"]), self._sized(found["T"])

    def _sized(self, maps: np.ndarray) -> np.ndarray:
        """Maps (K, 2L+1, 2L+1) with the target's number of orders, float64."""
        more = self.target.orders - maps.shape[-1] // 2
        if more < 0:
            maps = maps[:, -more:more, -more:more]
        return np.pad(maps.astype(np.float64), ((0, 0), (max(more, 0),) * 2, (max(more, 0),) * 2))

    # --- By the gradient --------------------------------------------------------------------------------------------

    def gradient(self, design: Design) -> tuple[np.ndarray, float] | None:
        """Slopes of the score by pixel and by nm; None where it cannot be had or is not affordable."""
        from .physics.adjoint import gradient, trusted
        from .physics.verify import one_blas_thread

        too_late = self.budget - self.spent < GRADIENT + 1 or self._late()
        if too_late or not trusted(self.solver, design.height_nm):
            return None
        started = time.monotonic()
        with one_blas_thread():
            _, by_pixel, by_height_nm = gradient(self.solver, design.pattern, design.height_nm, self.target)
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.spent += GRADIENT
        if self.on_solve is not None:
            self.on_solve(self.spent, self.budget)
        return by_pixel, by_height_nm

    def by_gradient(self) -> None:
        """Solve flips of the best design in the order in which its gradient promises most; begin anew where one is better."""
        while self.left() > 0 and len(self.free):
            origin = self.designs[0]
            found = self.gradient(origin) if self.left() > GRADIENT else None
            by_pixel = np.zeros(origin.pattern.shape) if found is None else found[0]
            change = (1.0 - 2.0 * origin.pattern) * by_pixel
            flips = self.free[np.argsort(change[tuple(self.free.T)], kind="stable")]
            cells = []
            for i, j in flips:
                pattern = origin.pattern.copy()
                pattern[i, j] ^= 1
                cells.append(_Cell(pattern, origin.height_nm))
            cells = [cell for cell, key in zip(cells, _keys(cells), strict=True) if key not in self.known]
            better = False
            while cells and not better and self.left() > 0:
                group, cells = cells[: min(ROUND, self.left())], cells[ROUND:]
                better = self.solve(group, origin)
            if not better:
                return

    def settle_height(self, most: int) -> None:
        """Move the best design's height downhill, by steps that are halved where one leads up, to ``_FINEST`` nm or for ``most`` solves."""
        assert self.heights is not None
        step = _COARSEST
        last = min(self.spent + most, self.budget)
        while step >= _FINEST and self.spent + GRADIENT < last:
            best = self.designs[0]
            found = self.gradient(best)
            if found is None or found[1] == 0:
                return
            moved = float(np.clip(best.height_nm - np.sign(found[1]) * step, *self.heights))
            while moved != best.height_nm and step >= _FINEST and not self.solve([_Cell(best.pattern, moved)], best):
                if self.spent >= last or self._late():
                    return
                step /= 2
                moved = float(np.clip(best.height_nm - np.sign(found[1]) * step, *self.heights))
            if moved == best.height_nm:
                return


def _keys(cells: Sequence[_Cell]) -> list[_Key]:
    """Equal for cells of one height that are alike up to a cyclic shift."""
    from .search import canonical

    patterns = canonical(np.stack([cell.pattern for cell in cells]))
    return [(pattern.tobytes(), cell.height_nm) for pattern, cell in zip(patterns, cells, strict=True)]


def _cell(design: Design) -> _Cell:
    return _Cell(design.pattern, design.height_nm)
