"""How good a sampler is on a data set: every score re-solved by RCWA with the settings stored in the data. Needs no torch.

result = evaluate(data.load("test.npz"), sampler, limit=64)
print(table(result))
picture(result, "evaluation.png")

``evaluate_stages.py`` samples and solves, ``evaluate_work.py`` says where, ``evaluate_measures.py`` has what is computed of the scores,
``evaluate_table.py`` and ``evaluate_picture.py`` show them.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import baselines
from . import evaluate_measures as measures
from . import evaluate_stages as stages
from .data import DataSet
from .errors import DataError
from .evaluate_measures import ORACLES, RANDOM, RANDOM_NAME
from .evaluate_picture import picture
from .evaluate_table import compared, table, wins
from .evaluate_work import Call, Elsewhere, Work
from .score import lab_scores, pixels_apart
from .search import promises
from .target import Target

__all__ = ["compared", "evaluate", "picture", "table", "wins"]


def evaluate(
    data: DataSet,
    sampler: Any,
    limit: int | None = None,
    oracle_limit: int | None = 64,
    n: int = 64,
    seed: int = 0,
    train_data: DataSet | None = None,
    progress: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    cancel: threading.Event | Callable[[], bool] | None = None,
    workers: int | None = None,
    baseline: Any = None,
    baseline_settings: Mapping[str, Any] | None = None,
    baseline_limit: int | None = None,
    noise_limit: int = 16,
    refine_limit: int = 0,
    elsewhere: Elsewhere | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Scores of a sampler on a data set; the scattering of each sample is a target, and its pattern one that meets it.

    Every score is a misrouted power, from 0 (exact) to 1, solved with ``data.geometry``.

    Args:
        data: held-out samples, of any number of pixels and orders.
        sampler: a :class:`~.sampler.Sampler`, or what has ``propose(target, n, seed=...)`` giving (n, N, N) patterns of 0 and 1 in
            candidate order; the settings below reach it under their names, and ``cancel`` as the callable ``stop``, where they are not
            None. It may have ``shortlist(patterns, target)`` giving the indices of those that ranking has solved, else all are;
            ``surrogate``, whose predictions are then judged; and ``reconstruct``, for the seed's protocol.
        limit: only the first so many samples; None is all.
        oracle_limit: the oracle and the random baseline on the first so many targets only; None is all.
        n: candidates a target.
        seed: target i is sampled with seed + i; the random baseline draws its own patterns of the same seed.
        train_data: for the baseline of the nearest training sample; None leaves it out.
        progress: bars on stderr, where that is a terminal.
        cache_dir: where the random baseline is kept; None is ``files.cache_directory()``.
        cancel: an event, or a callable that says True, to stop.
        workers: threads of the solver; None is one per core.
        baseline: another sampler, ranked on the same targets with the same n and seeds. Where it has no surrogate, that of ``sampler``
            ranks its candidates, so that both get as many solves.
        baseline_settings: its settings; those that are missing or None are its own.
        baseline_limit: the baseline on the first so many targets only; None is all.
        noise_limit: targets with noise, of the first so many; 0 leaves them out.
        refine_limit: the first so many targets are refined too, from those that ranking picked, with ``stages.BUDGET`` solves in all;
            0 leaves it out.
        elsewhere: where targets are sampled, ranked, solved and refined, those with noise and those of the baseline too; None is here.
            A cluster's is :func:`.cluster_evaluate.elsewhere`, of the same bundles. The rest is done here in any case.
        given: the sampler's settings (``steps``, ``scheduler``, ``guidance_scale`` and so on); None leaves them to it.

    Returns:
        Plain JSON values. ``targets``; ``ranked`` (the best of the candidates that ranking picks and has solved); ``refined`` (None
        without); ``oracle``: ``best_of_k`` for the first k = 1, 8, 64 candidates, all solved, None where n < k;
        ``baselines``: ``random_best_of_64``, ``nearest_training`` or None, and with a baseline ``bundle``. Each of these is a summary:
        ``median``, ``q25``, ``q75``, ``under`` (shares under 0.02, 0.05, 0.10), ``solves`` (a target), ``targets``; that of ``bundle`` has
        its ``name``, ``ranked_by`` and ``sampler`` settings as well. ``by_height_nm``: five equal bands of the data's heights with ``lo``,
        ``hi``, ``count``, the median of each of these and the ``lab_scores`` (None in an empty band). ``lab_scores``: of all the
        best-ranked patterns against the stored ones, ``plain`` and ``modulo_shift``, None where they differ in size.

        ``diversity``: ``distinct`` (mean share of candidates that differ by more than a cyclic shift), ``mean_pixels_apart`` (between two
        candidates of a target, after the best shift) and ``random_pixels_apart`` (the same of fair coins). ``surrogate``: misrouted power
        between its prediction for the stored pattern and the stored light, ``mean``, ``median``, ``q25``, ``q75`` and ``by_height_nm``.
        ``calibration``: over the oracle's ``targets``, ``spearman`` (quartiles, over the targets, of the rank correlation between the
        scores that the surrogate expects of distinct candidates and those solved), ``loss`` and ``largest_loss`` (median and maximum of
        what ranking loses against all n solved), ``pairs`` (some expected and solved scores). Both are None without a surrogate.
        ``noise_robustness``: a list of summaries, each with the ``level`` of noise on the targets and ``noise``, the median misrouted
        power between the targets with noise and those without: sampled and ranked for the former, solved and scored against the latter.
        ``seed_protocol``: ``starts_from`` says that it starts from the answer; ``levels``, each with the noise ``level``, the ``timestep``
        and ``steps`` it leaves and the lab's scores, None where no step is that low. No solves, one candidate for each of the first 64
        targets. None for a sampler that cannot, or patterns of another size. Also ``per_target``, ``geometry``, ``n``, ``seed``,
        ``sampler`` (its settings) and ``seconds``.

    Raises:
        DataError: a limit or n out of range, a training set of another geometry, a sampler that proposes something else than n patterns,
            a baseline that cannot be ranked.
        TargetError: the sampler or the baseline cannot be asked for these targets.
        BundleError: the baseline cannot take its settings.
        Cancelled: ``cancel`` said so.
    """
    limits = {"limit": limit, "oracle_limit": oracle_limit, "n": n, "baseline_limit": baseline_limit}
    for name, value, least in (
        *((name, value, 1) for name, value in limits.items()),
        ("noise_limit", noise_limit, 0),
        ("refine_limit", refine_limit, 0),
    ):
        if value is not None and value < least:
            raise DataError(f"{name} is {value}; it must be {least} or more")
    count = min(len(data), limit or len(data))
    targets = [
        Target.from_arrays(data.Rm[i], data.Tm[i], float(data.h[i]), name=f"sample {i}", geometry=data.geometry, extra=data.wanted(i))
        for i in range(count)
    ]
    stop = cancel if cancel is None or callable(cancel) else cancel.is_set
    samplers = {"bundle": sampler, "baseline": baseline}
    work = Work(data, n, seed, workers, stop, progress, samplers, elsewhere)
    # What is wrong with the bundles or the training data should not wait for the solver.
    rival = None if baseline is None else stages.Rival(baseline, sampler, baseline_settings or {})
    known = getattr(getattr(baseline, "bundle", None), "channels", ())
    theirs = [
        dataclasses.replace(target, extra={name: channel for name, channel in target.extra.items() if name in known})
        for target in targets[:baseline_limit]
    ]
    for anyone, asked in ((sampler, targets), (baseline, theirs)):
        for target in asked if hasattr(anyone, "check") else ():
            anyone.check(target)
    nearest = None if train_data is None else baselines.nearest_training(targets, train_data, data.geometry)[0]

    settings = {name: value for name, value in given.items() if value is not None}
    surrogate = getattr(sampler, "surrogate", None)
    oracle_count = min(count, oracle_limit or count)
    oracles = {f"best_of_{k}": k for k in ORACLES}
    columns: dict[str, list[float]] = {name: [] for name in ("ranked", *(("refined",) if refine_limit else ()), *oracles, RANDOM_NAME)}
    calibration = measures.Calibration()
    items = [(settings, target, i, i < oracle_count, i < refine_limit, cache_dir) for i, target in enumerate(targets)]
    measured = [Call(stages.measured, item) for item in items]
    calls = {"all solved": measured[:oracle_count], "ranked": measured[oracle_count:]}
    calls |= {} if rival is None else {"baseline": rival.calls(theirs)}
    calls |= stages.noise_calls(work, settings, targets[:noise_limit])
    found = work.done(calls)
    rows: list[stages.Row] = found["all solved"] + found["ranked"]
    for target, row in zip(targets, rows, strict=True):
        columns["ranked"].append(row.ranked)
        if row.refined is not None:
            columns["refined"].append(row.refined)
        if row.scores is None:
            continue
        for name, k in oracles.items():
            if k <= n:
                columns[name].append(float(row.scores[:k].min()))
        if row.expected is not None:
            calibration.add(target.height_nm, row.expected, row.scores[row.kinds], float(row.ranked - row.scores.min()))
        assert row.random is not None
        columns[RANDOM_NAME].append(row.random)
    best = np.stack([row.best for row in rows])
    solves, distinct = sum(row.solves for row in rows), sum(len(row.kinds) for row in rows)
    apart = [row.apart for row in rows if row.apart is not None]
    if nearest is not None:
        columns["nearest_training"] = nearest.tolist()
    if rival is not None:
        columns["bundle"] = rival.scores(found["baseline"])
    noise = stages.noise(calls, found, columns["ranked"][:noise_limit], solves / count)

    same_size = best[0].shape == data.xx.shape[1:]
    protocol, errors = None, []
    if same_size and hasattr(sampler, "reconstruct"):
        protocol = stages.seed_protocol(work, sampler, settings, targets[: measures.SEED_TARGETS])
    if same_size and surrogate is not None:
        errors = [float(promises(data.xx[i : i + 1], target, surrogate)[0]) for i, target in enumerate(targets)]
    edges, heights = measures.band_edges(data.h), data.h[:count]
    coins = np.random.Generator(np.random.Philox(seed)).integers(0, 2, (64, *best[0].shape))

    def summary(name: str, solves: float) -> dict[str, Any] | None:
        return measures.summary(columns[name], solves) if columns.get(name) else None

    return {
        "targets": count,
        "ranked": summary("ranked", solves / count),
        "refined": summary("refined", stages.BUDGET),
        "oracle": {"targets": oracle_count, **{name: summary(name, k) for name, k in oracles.items()}},
        "baselines": {
            RANDOM_NAME: summary(RANDOM_NAME, RANDOM),
            "nearest_training": summary("nearest_training", 0),
            **({} if rival is None else {"bundle": rival.summary(columns["bundle"])}),
        },
        "by_height_nm": measures.bands(edges, heights, columns, (best, data.xx[:count]) if same_size else None),
        "lab_scores": lab_scores(best, data.xx[:count]) if same_size else None,
        "diversity": {
            "distinct": distinct / (count * n),
            "mean_pixels_apart": float(np.mean(apart)) if apart else None,
            "random_pixels_apart": pixels_apart(coins),
        },
        "surrogate": measures.surrogate_error(errors, edges, heights) if errors else None,
        "calibration": calibration.result(),
        "noise_robustness": noise,
        "seed_protocol": protocol,
        "geometry": data.geometry.to_dict(),
        "n": n,
        "seed": seed,
        "sampler": stages.settings_in_force(sampler, given),
        "seconds": {name: round(value, 3) for name, value in work.seconds.items()},
        "per_target": {"height_nm": [float(h) for h in heights], **{name: values for name, values in columns.items() if values}},
    }
