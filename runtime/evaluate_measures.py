"""What ``evaluate`` says of scores, candidates and networks: pure functions of arrays, without a solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .score import lab_scores
from .target import Target

UNDER = (0.02, 0.05, 0.10)  # misrouted powers of interest
ORACLES = (1, 8, 64)
RANDOM = 64
RANDOM_NAME = f"random_best_of_{RANDOM}"
BANDS = 5
NOISE = (0.0, 0.05, 0.10, 0.20)  # standard deviation of the noise on a target's efficiencies, relative
SEED_LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)  # timesteps over training timesteps
SEED_TARGETS = 64
PAIRS = 8  # candidates of a target whose expected and solved scores are kept
_NOISE_STREAM = 0x6E6F697365  # apart from the noise that candidates start from


def summary(scores: Sequence[float], solves: float) -> dict[str, Any]:
    """Median, quartiles and shares of one or more scores, the solves a target takes, and how many targets there are."""
    return {
        **quartiles(scores),
        "under": {f"{u:.2f}": float(np.mean(np.asarray(scores) < u)) for u in UNDER},
        "solves": int(solves) if solves == int(solves) else float(solves),
        "targets": len(scores),
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """``median``, ``q25`` and ``q75`` of at least one value."""
    low, median, high = (float(value) for value in np.percentile(values, (25, 50, 75)))
    return {"median": median, "q25": low, "q75": high}


def band_edges(heights: np.ndarray) -> np.ndarray:
    """Five equal bands from the lowest to the highest of all ``heights``: their edges, (6,) nm."""
    return np.linspace(float(heights.min()), float(heights.max()), BANDS + 1)


def band_of(edges: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """The band of each height, int; the highest height belongs to the last band."""
    return np.clip(np.searchsorted(edges, heights, side="right") - 1, 0, BANDS - 1)


def bands(
    edges: np.ndarray, used: np.ndarray, columns: Mapping[str, Sequence[float]], pairs: tuple[np.ndarray, np.ndarray] | None
) -> list[dict[str, Any]]:
    """Medians of each column in each band of height, over the ``used`` heights (K,) nm; a column may cover the first of them only.

    ``pairs`` are the best-ranked and the stored patterns, for the lab's scores of each band; None leaves these out.
    """
    band = band_of(edges, used)
    rows = []
    for k in range(BANDS):
        row: dict[str, Any] = {"lo": float(edges[k]), "hi": float(edges[k + 1]), "count": int((band == k).sum())}
        for name in (*columns, "nearest_training"):
            values = np.asarray(columns.get(name, []))
            values = values[band[: len(values)] == k]
            row[name] = float(np.median(values)) if len(values) else None
        row["lab_scores"] = None if pairs is None or not row["count"] else lab_scores(pairs[0][band == k], pairs[1][band == k])
        rows.append(row)
    return rows


def surrogate_error(errors: Sequence[float], edges: np.ndarray, heights: np.ndarray) -> dict[str, Any]:
    """Mean and quartiles of the misrouted power (K,) between what a surrogate predicts for stored patterns and what is stored.

    ``by_height_nm`` has ``lo``, ``hi``, ``count``, ``mean`` and ``median`` of each band, None where it is empty.
    """
    values, band = np.asarray(errors), band_of(edges, heights)
    rows = []
    for k in range(BANDS):
        part = values[band == k]
        row = {"mean": float(part.mean()), "median": float(np.median(part))} if len(part) else {"mean": None, "median": None}
        rows.append({"lo": float(edges[k]), "hi": float(edges[k + 1]), "count": len(part), **row})
    return {"mean": float(values.mean()), **quartiles(errors), "by_height_nm": rows}


class Calibration:
    """Whether a surrogate ranks candidates as the solver does; fed target by target."""

    def __init__(self) -> None:
        self.targets = 0
        self.correlations: list[float] = []
        self.losses: list[float] = []
        self.pairs: dict[str, list[float]] = {"height_nm": [], "expected": [], "solved": []}

    def add(self, height_nm: float, expected: np.ndarray, solved: np.ndarray, loss: float) -> None:
        """One target: scores (K,) that its distinct candidates were expected to have and those they had, and what ranking lost."""
        self.targets += 1
        self.losses.append(loss)
        correlation = rank_correlation(expected, solved)
        if correlation is not None:
            self.correlations.append(correlation)
        # Evenly from the most to the least promising.
        kept = np.argsort(expected, kind="stable")[np.unique(np.linspace(0, len(expected) - 1, PAIRS).round().astype(int))]
        self.pairs["height_nm"] += [height_nm] * len(kept)
        self.pairs["expected"] += np.round(expected[kept], 5).tolist()
        self.pairs["solved"] += np.round(solved[kept], 5).tolist()

    def result(self) -> dict[str, Any] | None:
        """JSON; None where there was no target."""
        if not self.targets:
            return None
        return {
            "targets": self.targets,
            "spearman": {**quartiles(self.correlations), "targets": len(self.correlations)} if self.correlations else None,
            "loss": float(np.median(self.losses)),
            "largest_loss": float(np.max(self.losses)),
            "pairs": self.pairs,
        }


def rank_correlation(expected: np.ndarray, solved: np.ndarray) -> float | None:
    """Spearman's rank correlation of two (K,); None for fewer than three values, or where all of one side are equal."""
    if len(expected) < 3 or np.ptp(expected) == 0 or np.ptp(solved) == 0:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(expected, solved).statistic)


def noisy_target(target: Target, level: float, seed: int, index: int) -> Target:
    """A full target as a measurement would give it: every efficiency times 1 + ``level`` z, z standard normal.

    What falls below 0 is 0, and where more light than before would be asked for, all is scaled down to what there was. The noise is that
    of (seed, index) alone and the same at every level, but for its size.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, _NOISE_STREAM]))
    clean = np.stack([target.R, target.T])
    noisy = np.maximum(clean * (1.0 + level * rng.standard_normal(clean.shape)), 0.0)
    if noisy.sum() > clean.sum():
        noisy *= clean.sum() / noisy.sum()
    return Target.from_arrays(
        noisy[0], noisy[1], target.height_nm, target.mask_R, target.mask_T, name=target.name, geometry=target.geometry
    )
