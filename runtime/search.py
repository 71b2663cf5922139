"""From candidates to designs: those equal up to a cyclic shift of the cell, which scatter alike, once; the rest ranked and solved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .design import Design
from .fabrication import fines
from .freedom import Freedom
from .pairs import scored
from .refine import refine
from .score import misrouted_power
from .target import Target

if TYPE_CHECKING:
    from .backends import Network
    from .sampler import OnStep, Sampler, Stop

# Candidates of a batch when time is short: the first of them is there in an eighth of the time of the usual 64.
HURRIED = 8
SOLVED = 4  # candidates that ranking has solved where a surrogate picks them


def best_designs(
    sampler: Sampler,
    target: Target,
    n: int,
    top: int,
    seed: int,
    settings: Mapping[str, Any],
    end: float | None = None,
    stop: Stop | None = None,
    verify: bool = True,
    workers: int | None = None,
    on_step: OnStep | None = None,
    on_solve: Callable[[int, int], None] | None = None,
    freedom: Freedom | None = None,
    on_best: Callable[[Design], None] | None = None,
) -> list[Design]:
    """Sample n candidates batch by batch, solve those worth it, refine them, and keep the best ``top``; see ``Sampler.design``.

    With a surrogate the ``max(SOLVED, top)`` that it ranks best are solved, without one all, or half of the budget where they are then
    refined. ``end``, on the clock of ``time.monotonic``, ends it early: what is solved by then is ranked. If nothing is, the network's
    present view of the batch at work is cut to patterns and the first of them solved.
    """
    freedom = freedom or Freedom()
    budget = freedom.budget if verify else None
    from .physics.uncertainty import with_uncertainty
    from .physics.verify import solve_until

    geometry = sampler.bundle.geometry
    surrogate = sampler.surrogate if verify else None
    most = max(SOLVED, top) if budget is None else min(max(SOLVED, top), budget)
    waiting: list[_Candidate] = []  # of those the surrogate ranked, the best so far
    best: list[Design] = []
    distinct = solved = left = 0

    def solve(chosen: Sequence[_Candidate], total: int) -> bool:
        """Solve candidates and sort them in among the best; False where time left some unsolved."""
        nonlocal solved
        if not chosen:
            return True

        def counted(count: int, _: int, before: int = solved) -> None:
            if on_solve is not None:
                on_solve(before + count, total if budget is None else budget)

        patterns = np.stack([candidate.pattern for candidate in chosen])
        heights = np.array([candidate.height_nm for candidate in chosen])
        R, T = solve_until(end, patterns, heights, geometry, target.orders, workers, stop, counted)
        solved += len(R)
        before = best[0] if best else None
        best.extend(
            # One by one: a sum over several rows at once may round otherwise, and company must not change a score.
            Design(
                candidate.pattern, candidate.height_nm, r, t, float(misrouted_power(r, t, target)), True, seed, candidate.number, geometry
            )
            for candidate, r, t in zip(chosen, R, T, strict=False)
        )
        best.sort(key=lambda design: (design.score, design.candidate))
        if on_best is not None and best[0] is not before:
            on_best(best[0])
        if surrogate is None:
            del best[max(top, SOLVED) :]
        return len(R) == len(chosen)

    for patterns, indices, done, late, part in _proposals(sampler, target, n, seed, settings, end, stop, on_step, freedom):
        if late and best:
            break
        distinct, left = distinct + len(indices), n - done
        if not verify:
            best += [
                Design(pattern, part.height_nm, None, None, None, False, seed, k, geometry)
                for pattern, k in zip(patterns, indices, strict=True)
            ]
            if late or len(best) >= top:
                break
        elif surrogate is None:
            found = [_Candidate(0.0, k, pattern, part.height_nm) for pattern, k in zip(patterns, indices, strict=True)]
            if budget is not None:
                found = found[: max(1, budget // 2) - solved]
            if not solve(found, distinct + left) or late or (budget is not None and solved >= max(1, budget // 2)):
                break
        else:
            expected = (promises(patterns, part, surrogate) + fines(patterns, geometry, freedom.limits)).tolist()
            waiting += [_Candidate(*entry, part.height_nm) for entry in zip(expected, indices, patterns, strict=True)]
            waiting.sort()
            del waiting[most:]
            # In a hurry there should soon be one; what the surrogate ranks better later is solved as well.
            if end is not None and not best:
                solve(waiting[:1], min(most, distinct + left))
        if end is not None and time.monotonic() >= end and best:
            break
    else:
        if surrogate is not None:
            known = {design.candidate for design in best}
            others = [candidate for candidate in waiting if candidate.number not in known]
            if solve(others if budget is None else others[: budget - solved], len(waiting) + len(known)):
                # All in time: the designs are those of a run without a deadline.
                chosen = {candidate.number for candidate in waiting}
                best = [design for design in best if design.candidate in chosen]
    if budget is not None and best:
        spent = solved

        def refined(done: int, _: int) -> None:
            if on_solve is not None:
                on_solve(spent + done, budget)

        left = budget - solved
        best = refine(best, target, surrogate, left, freedom.fixed, freedom.heights, end, stop, refined, workers, freedom.limits, on_best)
    # What the target asks at other wavelengths is solved for the designs kept, and ranks nothing.
    best = best[:top]
    if budget is not None:
        best = with_uncertainty(best, workers, stop, end)
    return scored(best, target, sampler.bundle.geometries, verify, end, workers, stop)


class _Candidate(NamedTuple):
    """A candidate as ranked: what the surrogate expects of it, its number, its pattern (n, n), its height."""

    promise: float
    number: int
    pattern: np.ndarray
    height_nm: float


def _proposals(
    sampler: Sampler,
    target: Target,
    n: int,
    seed: int,
    settings: Mapping[str, Any],
    end: float | None,
    stop: Stop | None,
    on_step: OnStep | None,
    freedom: Freedom,
) -> Iterator[tuple[np.ndarray, list[int], int, bool, Target]]:
    """Batch by batch: patterns unlike all before of their height, their numbers, how many candidates there were so far, whether time is up,
    and the target at their height.

    Where time runs out while a batch is being sampled, its patterns are those of the network's present view, and the last.
    """
    parts = freedom.targets(target)[: max(n, 1)]
    done = 0
    present: list[np.ndarray] = []

    def watched(step: int, total: int, estimate: np.ndarray) -> None:
        if on_step is not None:
            on_step(index * total + step, len(parts) * total, estimate)
        if end is not None and time.monotonic() >= end:
            present[:] = [estimate]
            raise _TimeUp

    if end is not None:
        settings = {**settings, "batch_size": min(HURRIED, settings.get("batch_size") or HURRIED)}
    if freedom.fixed is not None:
        settings = {**settings, "known": sampler.held(freedom.fixed, freedom.resample)}
    index = 0
    for index, part in enumerate(parts):
        seen: set[bytes] = set()
        # The stream says what is wrong with an n below 1.
        share = n if len(parts) == 1 else n // len(parts) + (index < n % len(parts))
        stream = sampler.stream(sampler.condition(part), share, seed=seed, stop=stop, on_step=watched, **settings)
        finished = done + max(share, 1)
        while done < finished:
            late = False
            try:
                patterns = sampler.patterns(next(stream))
            except _TimeUp:
                patterns, late = sampler.patterns(present[0]), True
            fresh = []
            for i, key in enumerate(canonical(patterns)):
                if key.tobytes() not in seen:
                    seen.add(key.tobytes())
                    fresh.append(i)
            indices = [done + i for i in fresh]
            done += len(patterns)
            yield patterns[fresh], indices, done, late, part
            if late:
                return


def promises(patterns: np.ndarray, target: Target, surrogate: Network) -> np.ndarray:
    """The misrouted power (N,) that a surrogate expects of patterns (N, n, n); see :func:`shortlist`."""
    if not len(patterns):
        return np.zeros(0)
    cells = np.ascontiguousarray(patterns[:, None], np.float32)
    found = surrogate({"pattern": cells, "height_nm": np.full((len(patterns), 1), target.height_nm, np.float32)})
    return np.asarray(misrouted_power(found["R"], found["T"], target.resized(found["R"].shape[-1] // 2)))


def shortlist(patterns: np.ndarray, target: Target, surrogate: Network | None, count: int = SOLVED) -> np.ndarray:
    """Indices of the candidates worth solving: the ``count`` that the surrogate ranks best, best first; without one, all.

    Args:
        patterns: (N, n, n) of 0 and 1; of those equal up to a cyclic shift the first stands for all.
        surrogate: ``pattern`` (N, 1, n, n), ``height_nm`` (N, 1) -> ``R``, ``T`` (N, 2M+1, 2M+1) for the target's M.
    """
    first = unique(patterns)
    if surrogate is None:
        return first
    return first[np.argsort(promises(patterns[first], target, surrogate), kind="stable")[:count]]


class _TimeUp(Exception):
    """The deadline has come while a batch is being sampled."""


def canonical(patterns: np.ndarray) -> np.ndarray:
    """The representative of each pattern's class under the n*n cyclic shifts of the cell.

    Args:
        patterns: (N, n, n) of 0 and 1.

    Returns:
        (N, n, n) uint8: the shift whose pixels, read row by row as one binary number, are largest.
    """
    patterns = np.asarray(patterns, np.uint8)
    count, size = patterns.shape[0], patterns.shape[-1]
    best = np.packbits(patterns.reshape(count, size * size), axis=1)
    for rows in range(size):
        for columns in range(size):
            if rows or columns:
                shifted = np.packbits(np.roll(patterns, (rows, columns), axis=(1, 2)).reshape(count, size * size), axis=1)
                best = np.where(_greater(shifted, best)[:, None], shifted, best)
    return np.unpackbits(best, axis=1, count=size * size).reshape(patterns.shape)


def unique(patterns: np.ndarray) -> np.ndarray:
    """Indices, ascending, of the first of each class under cyclic shifts; patterns (N, n, n)."""
    flat = canonical(patterns).reshape(len(patterns), np.shape(patterns)[-1] ** 2)
    return np.sort(np.unique(flat, axis=0, return_index=True)[1])


def _greater(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, whether bytes ``a`` (N, k) come after ``b`` (N, k)."""
    different = a != b
    first = different.argmax(axis=1)[:, None]
    return different.any(axis=1) & (np.take_along_axis(a, first, 1) > np.take_along_axis(b, first, 1))[:, 0]
