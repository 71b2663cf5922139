"""The work of ``evaluate``: candidates sampled and solved target by target, for the bundle, a baseline and targets with noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import evaluate_measures as measures
from .baselines import random_scores
from .design import Design
from .errors import DataError
from .evaluate_measures import RANDOM
from .evaluate_work import Call, Samplers, Work
from .refine import refine
from .score import lab_scores, misrouted_power, pixels_apart
from .search import promises, unique
from .target import Target

BUDGET = 32  # RCWA solves of a refined design, those of ranking included
_NOISE = {f"{level:.0%} noise": level for level in measures.NOISE[1:]}


def refined(work: Work, picked: np.ndarray, R: np.ndarray, T: np.ndarray, target: Target, surrogate: Any) -> float:
    """Misrouted power of the best design refined from picked patterns (K, N, N), whose R and T (K, 2M+1, 2M+1) are solved, with
    ``BUDGET`` solves in all, theirs among them."""
    with work.clock("refined"):
        starts = [
            Design(pattern, target.height_nm, r, t, float(misrouted_power(r, t, target)), True, work.seed, k, work.data.geometry)
            for k, (pattern, r, t) in enumerate(zip(picked[: BUDGET // 2], R, T, strict=False))
        ]
        best = refine(starts, target, surrogate, BUDGET - len(starts), stop=work.stop, workers=work.workers)[0]
    assert best.score is not None
    return best.score


class Row(NamedTuple):
    """What one target came to.

    ``best``: the pattern (N, N) that ranking picks as best; ``solves``: how many it had solved; ``kinds``: candidates that differ by more
    than a shift; ``apart``: pixels between two candidates, None of one alone. ``refined``: None where it was not. Of a target whose
    candidates were all solved: ``scores`` (n,), ``expected`` (of the kinds, by the surrogate, None without) and ``random``, the best
    score of the random patterns.
    """

    ranked: float
    best: np.ndarray
    solves: int
    kinds: np.ndarray
    apart: float | None
    refined: float | None = None
    scores: np.ndarray | None = None
    expected: np.ndarray | None = None
    random: float | None = None


def measured(
    work: Work, samplers: Samplers, settings: Mapping[str, Any], target: Target, i: int, whole: bool, refine: bool, cache_dir: Any
) -> Row:
    """Target number i sampled, ranked, solved and, where asked for, refined; ``whole`` solves all candidates and random patterns too."""
    sampler = samplers["bundle"]
    shortlist, surrogate = getattr(sampler, "shortlist", None), getattr(sampler, "surrogate", None)
    patterns = work.propose(sampler, target, i, settings)
    picked = np.arange(work.n) if shortlist is None else shortlist(patterns, target)
    solved = np.arange(work.n) if whole else picked
    scores = np.full(work.n, np.inf)
    R, T = work.scatter(patterns[solved], target)
    scores[solved] = misrouted_power(R, T, target)
    winner = picked[scores[picked].argmin()]
    kinds = unique(patterns)
    row = Row(float(scores[winner]), patterns[winner], len(picked), kinds, None if work.n < 2 else pixels_apart(patterns))
    if refine:
        rows = picked if whole else slice(None)
        row = row._replace(refined=refined(work, patterns[picked], R[rows], T[rows], target, surrogate))
    if not whole:
        return row
    with work.clock("random_baseline"):
        size = work.data.xx.shape[-1]
        random = random_scores(target, i, size, work.data.geometry, RANDOM, work.seed, cache_dir, work.workers, work.stop)
    expected = None if surrogate is None else promises(patterns[kinds], target, surrogate)
    return row._replace(scores=scores, expected=expected, random=float(random.min()))


def ranked(
    work: Work, samplers: Samplers, which: str, judge: str, settings: Mapping[str, Any], asked: Target, true: Target, i: int, clock: str
) -> tuple[float, int]:
    """The best score against ``true`` of those candidates of sampler ``which`` for ``asked`` that ``judge`` picks, and their number."""
    shortlist = getattr(samplers[judge], "shortlist", None)
    patterns = work.propose(samplers[which], asked, i, settings, clock)
    picked = np.arange(work.n) if shortlist is None else shortlist(patterns, asked)
    return float(work.solve(patterns[picked], true, clock).min()), len(picked)


class Rival:
    """A baseline: another sampler, ranked as the one under evaluation is.

    Args:
        sampler: the baseline.
        judge: the sampler under evaluation, whose surrogate ranks a baseline that has none.
        settings: of the baseline; None is its own.

    Raises:
        BundleError: it cannot take its settings.
        DataError: it has no surrogate, and the other's is made for patterns of another size.
    """

    def __init__(self, sampler: Any, judge: Any, settings: Mapping[str, Any]) -> None:
        self.sampler, self.given, self.solves = sampler, dict(settings), 0.0
        self.settings = {name: value for name, value in settings.items() if value is not None}
        if hasattr(sampler, "plan"):
            sampler.plan(**{name: value for name, value in self.settings.items() if name in ("steps", "scheduler", "eta")})
        self.judge = "baseline"
        self.ranked_by = "its own surrogate"
        if getattr(sampler, "surrogate", None) is None:
            own, other = (getattr(getattr(one, "bundle", None), "manifest", {}).get("pattern_size") for one in (sampler, judge))
            if getattr(judge, "surrogate", None) is None:
                self.ranked_by = "nothing: all were solved"
            elif own == other:
                self.judge, self.ranked_by = "bundle", "the surrogate of the bundle under evaluation"
            else:
                raise DataError(
                    f"the baseline has no surrogate, and the bundle's ranks patterns of {other} x {other} pixels, not {own} x {own}; "
                    "export the baseline with a surrogate"
                )

    def calls(self, targets: Sequence[Target]) -> list[Call]:
        """What :func:`ranked` is to do for targets."""
        return [Call(ranked, ("baseline", self.judge, self.settings, target, target, i, "baseline")) for i, target in enumerate(targets)]

    def scores(self, found: Sequence[tuple[float, int]]) -> list[float]:
        """The best score among the candidates that ranking picks, of each target, from the results of the calls."""
        self.solves = float(sum(solves for _, solves in found))
        return [score for score, _ in found]

    def summary(self, scores: Sequence[float]) -> dict[str, Any]:
        """JSON of the baseline's scores, with what it is and how it was ranked."""
        bundle = getattr(self.sampler, "bundle", None)
        return {
            **measures.summary(scores, self.solves / len(scores)),
            "name": None if bundle is None else Path(bundle.path).name,
            "recipe": None if bundle is None else bundle.manifest["recipe"]["name"],
            "ranked_by": self.ranked_by,
            "sampler": settings_in_force(self.sampler, self.given),
        }


def noise_calls(work: Work, settings: Mapping[str, Any], targets: Sequence[Target]) -> dict[str, list[Call]]:
    """What :func:`ranked` is to do for targets with noise, a stage a level."""
    calls = {}
    for name, level in _NOISE.items():
        asked = [measures.noisy_target(target, level, work.seed, i) for i, target in enumerate(targets)]
        both = enumerate(zip(asked, targets, strict=True))
        calls[name] = [Call(ranked, ("bundle", "bundle", settings, *pair, i, "noise_robustness")) for i, pair in both]
    return calls


def noise(
    calls: Mapping[str, Sequence[Call]], found: Mapping[str, Sequence[tuple[float, int]]], clean: Sequence[float], solves: float
) -> list[dict[str, Any]] | None:
    """How ranked scores bear noise on the targets; see ``noise_robustness`` of ``evaluate``. None without targets.

    ``calls`` and what came of them (``found``) by stage; ``clean`` are the ranked scores of the targets as they are, which cost ``solves``
    each.
    """
    if not clean:
        return None
    rows = [{"level": 0.0, "noise": 0.0, **measures.summary(clean, solves)}]
    for name, level in _NOISE.items():
        pairs = [call.item[3:5] for call in calls[name]]
        distances = [float(misrouted_power(noisy.R, noisy.T, target)) for noisy, target in pairs]
        scores = [score for score, _ in found[name]]
        spent = sum(count for _, count in found[name]) / len(scores)
        rows.append({"level": level, "noise": float(np.median(distances)), **measures.summary(scores, spent)})
    return rows


def seed_protocol(work: Work, sampler: Any, settings: Mapping[str, Any], targets: Sequence[Target]) -> dict[str, Any]:
    """The seed paper's evaluation: from the true pattern under noise back to a pattern; see ``evaluate``. No solves."""
    stored = work.data.xx[: len(targets)]
    plan = sampler.plan(**{name: value for name, value in settings.items() if name in ("steps", "scheduler", "eta")})
    most = sampler.scheduler_config.get("num_train_timesteps", 1000)
    rows: list[dict[str, Any]] = []
    for level in measures.SEED_LEVELS:
        row: dict[str, Any] = {"level": level, "timestep": None, "steps": 0}
        row |= dict.fromkeys(("image_accuracy", "precision", "recall", "unequal_pixels"))
        if plan.timesteps[-1] <= level * most:
            part = plan.since(level * most)
            found = []
            for i, target in enumerate(work.through(f"seed's protocol, {level:g}", targets)):
                with work.clock("seed_protocol"):
                    found.append(sampler.reconstruct(target, stored[i], level, seed=work.seed + i, **settings, **work.stopping())[0])
            row |= {"timestep": int(part.timesteps[0]), "steps": part.num_steps, **lab_scores(np.stack(found), stored)["plain"]}
        rows.append(row)
    return {"starts_from": "the answer: the stored pattern under noise", "targets": len(targets), "levels": rows}


def settings_in_force(sampler: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings in force, as far as the sampler tells, with the device it runs on."""
    manifest = getattr(getattr(sampler, "bundle", None), "manifest", {})
    settings = {**manifest.get("sampling", {}), **{name: value for name, value in given.items() if value is not None}}
    for name in ("device", "precision"):
        if getattr(sampler, name, None) is not None:
            settings[name] = str(getattr(sampler, name))
    return {**dict.fromkeys(given), **settings}
