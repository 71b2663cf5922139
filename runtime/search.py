"""From candidates to designs: those equal up to a cyclic shift of the cell, which scatter alike, once; the rest solved and ranked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .design import Design
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
) -> list[Design]:
    """Sample n candidates batch by batch, solve each batch, and keep the best ``top``; see ``Sampler.design``.

    ``end``, on the clock of ``time.monotonic``, ends it early: what is solved by then is ranked. If nothing is, the network's present
    view of the batch at work is cut to patterns and the first of them solved.
    """
    from .physics.verify import solve_until

    geometry = sampler.bundle.geometry
    best: list[Design] = []
    seen: set[bytes] = set()
    done = duplicates = solved = 0
    present: list[np.ndarray] = []

    def watched(step: int, total: int, estimate: np.ndarray) -> None:
        if on_step is not None:
            on_step(step, total, estimate)
        if end is not None and time.monotonic() >= end:
            present[:] = [estimate]
            raise _TimeUp

    if end is not None:
        settings = {**settings, "batch_size": min(HURRIED, settings.get("batch_size") or HURRIED)}
    stream = sampler.stream(sampler.condition(target), n, seed=seed, stop=stop, on_step=watched, **settings)
    while done < max(n, 1):  # the stream says what is wrong with an n below 1
        late = end is not None and time.monotonic() >= end
        if late and best:
            break
        try:
            patterns = sampler.patterns(next(stream))
        except _TimeUp:
            if best:
                break
            patterns, late = sampler.patterns(present[0]), True
        fresh = []
        for i, key in enumerate(canonical(patterns)):
            if key.tobytes() not in seen:
                seen.add(key.tobytes())
                fresh.append(i)
        duplicates += len(patterns) - len(fresh)
        indices = [done + i for i in fresh]
        done += len(patterns)
        if not verify:
            best += [
                Design(patterns[i], target.height_nm, None, None, None, False, seed, k, geometry)
                for i, k in zip(fresh, indices, strict=True)
            ]
            if late or len(best) >= top:
                break
            continue
        if not fresh:
            continue

        def counted(count: int, _: int, before: int = solved, total: int = n - duplicates) -> None:
            if on_solve is not None:
                on_solve(before + count, total)

        R, T = solve_until(end, patterns[fresh], target.height_nm, geometry, target.orders, workers, stop, counted)
        solved += len(R)
        scores = np.asarray(misrouted_power(R, T, target))
        best += [
            Design(patterns[i], target.height_nm, r, t, float(score), True, seed, k, geometry)
            for i, k, r, t, score in zip(fresh, indices, R, T, scores, strict=False)  # time may leave the last unsolved
        ]
        best.sort(key=lambda design: (design.score, design.candidate))
        del best[top:]
        if late or len(R) < len(fresh):
            break
    return best[:top]


def shortlist(patterns: np.ndarray, target: Target, surrogate: Network | None, count: int = SOLVED) -> np.ndarray:
    """Indices of the candidates worth solving: the ``count`` that the surrogate ranks best, best first; without one, all.

    Args:
        patterns: (N, n, n) of 0 and 1; of those equal up to a cyclic shift the first stands for all.
        surrogate: ``pattern`` (N, 1, n, n), ``height_nm`` (N, 1) -> ``R``, ``T`` (N, 2M+1, 2M+1) for the target's M.
    """
    first = unique(patterns)
    if surrogate is None:
        return first
    cells = np.ascontiguousarray(patterns[first][:, None], np.float32)
    found = surrogate({"pattern": cells, "height_nm": np.full((len(first), 1), target.height_nm, np.float32)})
    scores = np.asarray(misrouted_power(found["R"], found["T"], target))
    return first[np.argsort(scores, kind="stable")[:count]]


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
