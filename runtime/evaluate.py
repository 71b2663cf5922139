"""How good a sampler is on a data set: every score re-solved by RCWA with the settings stored in the data. Needs no torch.

result = evaluate(data.load("test.npz"), sampler, limit=64)
print(table(result))
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import baselines
from .data import DataSet
from .errors import Cancelled, DataError
from .score import lab_scores, misrouted_power
from .search import unique
from .target import Target

__all__ = ["evaluate", "table"]

UNDER = (0.02, 0.05, 0.10)  # misrouted powers of interest
ORACLES = (1, 8, 64)
RANDOM = 64
BANDS = 5
_BASELINES = ((f"random_best_of_{RANDOM}", f"best of {RANDOM} random patterns"), ("nearest_training", "nearest training sample"))


def evaluate(
    data: DataSet,
    sampler: Any,
    limit: int | None = None,
    oracle_limit: int | None = None,
    n: int = 64,
    seed: int = 0,
    train_data: DataSet | None = None,
    progress: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    cancel: threading.Event | Callable[[], bool] | None = None,
    workers: int | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Scores of a sampler on a data set; the scattering of each sample is a target, and its pattern one that meets it.

    Every score is a misrouted power, from 0 (exact) to 1, solved with ``data.geometry``.

    Args:
        data: held-out samples, of any number of pixels and orders.
        sampler: has ``propose(target, n, seed=...)`` giving (n, N, N) patterns of 0 and 1 in candidate order, and may have
            ``shortlist(patterns, target)`` giving the indices of those that ranking has solved, else all are; the settings below
            reach it under their names, and ``cancel`` as the callable ``stop``, where they are not None.
        limit: only the first so many samples; None is all.
        oracle_limit: the oracle on the first so many targets only; None is all.
        n: candidates a target.
        seed: target i is sampled with seed + i; the random baseline draws its own patterns of the same seed.
        train_data: for the baseline of the nearest training sample; None leaves it out.
        progress: a bar on stderr, where that is a terminal.
        cache_dir: where the random baseline is kept; None is ``files.cache_directory()``.
        cancel: an event, or a callable that says True, to stop.
        workers: threads of the solver; None is one per core.
        given: the sampler's settings (``steps``, ``scheduler``, ``guidance_scale`` and so on); None leaves them to it.

    Returns:
        Plain JSON values. ``targets``; ``ranked`` (the best of the candidates that ranking picks and has solved); ``refined`` (None:
        there is no refinement yet); ``oracle``: ``best_of_k`` for the first k = 1, 8, 64 candidates, all solved, None where n < k;
        ``baselines``: ``random_best_of_64``, and ``nearest_training`` or None. Each of these is a summary: ``median``, ``q25``,
        ``q75``, ``under`` (shares under 0.02, 0.05, 0.10), ``solves`` (a target). ``by_height_nm``: five equal bands of the data's
        heights with ``lo``, ``hi``, ``count``, the median of each of these and the ``lab_scores`` (None in an empty band).
        ``lab_scores``: of all the best-ranked patterns against the stored ones, ``plain`` and ``modulo_shift``, None where
        they differ in size. Also ``distinct`` (mean share of candidates that differ by more than a cyclic shift), ``per_target``,
        ``geometry``, ``n``, ``seed``, ``sampler`` (its settings) and ``seconds``.

    Raises:
        DataError: a limit or n below 1, a training set of another geometry, a sampler that proposes something else than n patterns.
        TargetError: the sampler cannot be asked for these targets.
        Cancelled: ``cancel`` said so.
    """
    from tqdm import tqdm

    from .physics.verify import solve_many

    for name, value in (("limit", limit), ("oracle_limit", oracle_limit), ("n", n)):
        if value is not None and value < 1:
            raise DataError(f"{name} is {value}; it must be 1 or more")
    count = min(len(data), limit or len(data))
    orders = data.Rm.shape[-1] // 2
    targets = [
        Target.from_arrays(data.Rm[i], data.Tm[i], float(data.h[i]), name=f"sample {i}", geometry=data.geometry) for i in range(count)
    ]
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    stop = cancel if cancel is None or callable(cancel) else cancel.is_set
    if stop is not None:
        settings["stop"] = stop
    # The baseline that costs nothing comes first: what is wrong with the training data should not wait for the solver.
    nearest = None if train_data is None else baselines.nearest_training(targets, train_data, data.geometry)[0]

    shortlist = getattr(sampler, "shortlist", None)
    columns: dict[str, list[float]] = {name: [] for name in ("ranked", *(f"best_of_{k}" for k in ORACLES), f"random_best_of_{RANDOM}")}
    best: list[np.ndarray] = []
    solves, distinct = 0, 0.0
    seconds = {"sampling": 0.0, "solving": 0.0, "random_baseline": 0.0}
    for i, target in enumerate(tqdm(targets, unit="target", disable=None if progress else True, file=sys.stderr)):
        if stop is not None and stop():
            raise Cancelled("the evaluation was cancelled")
        clock = time.monotonic()
        patterns = np.asarray(sampler.propose(target, n, seed=seed + i, **settings), np.uint8)
        if patterns.ndim != 3 or len(patterns) != n:
            raise DataError(f"the sampler proposed an array of shape {patterns.shape}; expected ({n}, N, N), a pattern for each candidate")
        clock = _lap(seconds, "sampling", clock)
        distinct += len(unique(patterns)) / len(patterns)
        picked = np.arange(n) if shortlist is None else shortlist(patterns, target)
        solved = np.arange(n) if oracle_limit is None or i < oracle_limit else picked
        scores = np.full(n, np.inf)
        scores[solved] = misrouted_power(*solve_many(patterns[solved], target.height_nm, data.geometry, orders, workers, stop), target)
        clock = _lap(seconds, "solving", clock)
        winner = picked[scores[picked].argmin()]
        best.append(patterns[winner])
        solves += len(picked)
        columns["ranked"].append(float(scores[winner]))
        if oracle_limit is None or i < oracle_limit:
            for k in ORACLES:
                if k <= n:
                    columns[f"best_of_{k}"].append(float(scores[:k].min()))
        random = baselines.random_scores(target, i, data.xx.shape[-1], data.geometry, RANDOM, seed, cache_dir, workers, stop)
        columns[f"random_best_of_{RANDOM}"].append(float(random.min()))
        _lap(seconds, "random_baseline", clock)
    if nearest is not None:
        columns["nearest_training"] = nearest.tolist()

    same_size = best[0].shape == data.xx.shape[1:]
    return {
        "targets": count,
        "ranked": _summary(columns["ranked"], solves / count),
        "refined": None,
        "oracle": {"targets": min(count, oracle_limit or count), **{f"best_of_{k}": _summary(columns[f"best_of_{k}"], k) for k in ORACLES}},
        "baselines": {
            f"random_best_of_{RANDOM}": _summary(columns[f"random_best_of_{RANDOM}"], RANDOM),
            "nearest_training": _summary(columns.get("nearest_training", []), 0),
        },
        "by_height_nm": _bands(data.h, data.h[:count], columns, (np.stack(best), data.xx[:count]) if same_size else None),
        "lab_scores": lab_scores(np.stack(best), data.xx[:count]) if same_size else None,
        "distinct": distinct / count,
        "geometry": data.geometry.to_dict(),
        "n": n,
        "seed": seed,
        "sampler": _settings(sampler, given),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "per_target": {"height_nm": [float(h) for h in data.h[:count]], **{name: values for name, values in columns.items() if values}},
    }


def table(result: Mapping[str, Any]) -> str:
    """The result for people in a terminal."""
    training = result["baselines"]["nearest_training"]
    rows = [("ranked", result["ranked"]), ("refined", result["refined"])]
    rows += [(f"oracle, best of {k}", result["oracle"][f"best_of_{k}"]) for k in ORACLES]
    rows += [(f"best of {RANDOM} random patterns", result["baselines"][f"random_best_of_{RANDOM}"]), ("nearest training sample", training)]
    lines = [
        f"Misrouted power on {result['targets']} targets, {result['n']} candidates each: the share of the light that goes astray.",
        "0 is exact, 1 the worst; lower is better. Solved with the settings stored in the data.",
        "",
        f"{'':26}{'median':>8}{'q25':>8}{'q75':>8}" + "".join(f"{'< ' + format(u, '.2f'):>9}" for u in UNDER) + f"{'solves':>9}",
    ]
    for name, summary in rows:
        if summary is not None:
            shares = "".join(f"{100 * summary['under'][f'{u:.2f}']:>7.0f} %" for u in UNDER)
            lines.append(f"{name:26}{summary['median']:>8.3f}{summary['q25']:>8.3f}{summary['q75']:>8.3f}{shares}{summary['solves']:>9.4g}")
    bands = result["by_height_nm"]
    names = {
        "ranked": "ranked",
        **{f"best_of_{k}": f"first {k}" for k in ORACLES},
        f"random_best_of_{RANDOM}": "random",
        "nearest_training": "training",
    }
    shown = [name for name in names if any(band[name] is not None for band in bands)]
    pixels = result["lab_scores"] is not None
    head = "".join(f"{names[name]:>10}" for name in shown) + f"{'unequal':>9}{'mod shift':>10}" * pixels
    lines += ["", "Medians by height" + ", and unequal pixels" * pixels, f"{'height, nm':12}{'targets':>8}" + head]
    for band in bands:
        medians = "".join(f"{'-' if band[name] is None else format(band[name], '.3f'):>10}" for name in shown)
        lines.append(
            f"{format(band['lo'], '.0f') + ' to ' + format(band['hi'], '.0f'):12}{band['count']:>8}{medians}{_pixels(band['lab_scores'])}"
        )
    if result["lab_scores"] is not None:
        lines += [
            "",
            "The lab's scores, best-ranked pattern against the stored one (unequal pixels: lower is better)",
            f"{'':18}{'accuracy':>10}{'precision':>11}{'recall':>9}{'unequal pixels':>16}",
        ]
        for name, label in (("plain", "as it stands"), ("modulo_shift", "modulo shift")):
            s = result["lab_scores"][name]
            lines.append(
                f"{label:18}{100 * s['image_accuracy']:>8.1f} %{s['precision']:>11.4f}{s['recall']:>9.4f}{s['unequal_pixels']:>16.2f}"
            )
    seconds = result["seconds"]
    lines += [
        "",
        *(
            f"Ranked beats the {label} on {wins(result, name)} of {result['targets']} targets."
            for name, label in _BASELINES
            if name in result["per_target"]
        ),
        f"{100 * result['distinct']:.0f} % of a target's candidates differ by more than a cyclic shift. "
        f"Sampling took {seconds['sampling']:.0f} s, solving {seconds['solving']:.0f} s.",
    ]
    return "\n".join(lines)


def wins(result: Mapping[str, Any], baseline: str) -> int:
    """On how many targets the ranked design is better than a baseline: ``random_best_of_64`` or ``nearest_training``."""
    scores = result["per_target"]
    return sum(ours < theirs for ours, theirs in zip(scores["ranked"], scores.get(baseline, []), strict=False))


def _pixels(scores: Mapping[str, Any] | None) -> str:
    """A band's mean unequal pixels, as they stand and modulo shift."""
    return (
        ""
        if scores is None
        else "".join(f"{scores[name]['unequal_pixels']:>{width}.1f}" for name, width in (("plain", 9), ("modulo_shift", 10)))
    )


def _summary(scores: Sequence[float], solves: float) -> dict[str, Any] | None:
    """Median, quartiles and shares of a list of scores; None where there are none."""
    if not len(scores):
        return None
    low, median, high = (float(value) for value in np.percentile(scores, (25, 50, 75)))
    return {
        "median": median,
        "q25": low,
        "q75": high,
        "under": {f"{u:.2f}": float(np.mean(np.asarray(scores) < u)) for u in UNDER},
        "solves": int(solves) if solves == int(solves) else float(solves),
    }


def _bands(
    heights: np.ndarray, used: np.ndarray, columns: Mapping[str, Sequence[float]], pairs: tuple[np.ndarray, np.ndarray] | None
) -> list[dict[str, Any]]:
    """Five equal bands from the lowest to the highest of all ``heights``, with medians over the ``used`` ones.

    ``pairs`` are the best-ranked and the stored patterns, for the lab's scores of each band; None leaves these out.
    """
    edges = np.linspace(float(heights.min()), float(heights.max()), BANDS + 1)
    band = np.clip(np.searchsorted(edges, used, side="right") - 1, 0, BANDS - 1)
    rows = []
    for k in range(BANDS):
        row: dict[str, Any] = {"lo": float(edges[k]), "hi": float(edges[k + 1]), "count": int((band == k).sum())}
        for name in (*columns, "nearest_training"):
            values = np.asarray(columns.get(name, []))
            # The oracle may cover the first targets only.
            values = values[band[: len(values)] == k]
            row[name] = float(np.median(values)) if len(values) else None
        row["lab_scores"] = None if pairs is None or not row["count"] else lab_scores(pairs[0][band == k], pairs[1][band == k])
        rows.append(row)
    return rows


def _settings(sampler: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings in force, as far as the sampler tells, with the device it runs on."""
    manifest = getattr(getattr(sampler, "bundle", None), "manifest", {})
    settings = {**manifest.get("sampling", {}), **{name: value for name, value in given.items() if value is not None}}
    for name in ("device", "precision"):
        if getattr(sampler, name, None) is not None:
            settings[name] = str(getattr(sampler, name))
    return {**dict.fromkeys(given), **settings}


def _lap(seconds: dict[str, float], name: str, since: float) -> float:
    now = time.monotonic()
    seconds[name] += now - since
    return now
