"""How far a design is from its target: misrouted power, and the lab's pixel scores."""

from __future__ import annotations

import numpy as np

from .errors import DataError
from .target import Target


def misrouted_power(R: np.ndarray, T: np.ndarray, target: Target) -> np.ndarray | float:
    """Total variation between achieved and wanted power, all unasked orders counted as one bin; lower is better.

    With a the achieved and w the wanted efficiencies: 1/2 (sum over asked of abs(a - w) + abs(sum asked a - sum asked w)),
    from 0 (exact) to 1. The second term is the bin of unasked orders, since what is not in an asked order is there.

    Of an order with a range, w is the value within it that is nearest to a. That is the smallest this score can be over all targets that
    the ranges admit: it equals max(sum of the a - w above 0, sum of the w - a above 0), and nearest values make both sums least. It is the
    smallest as well over those that ask for no more light than there is, as long as no more was achieved.

    Args:
        R, T: (..., 2M+1, 2M+1) achieved efficiencies.
        target: wanted efficiencies, ranges and masks of the same M.

    Returns:
        (...) float64, or a float without leading axes.

    Raises:
        DataError: the maps are not of the target's size.
    """
    difference = missed(R, T, target)
    score = (np.abs(difference).sum(axis=-1) + np.abs(difference.sum(axis=-1))) / 2
    return float(score) if score.ndim == 0 else score


def missed(R: np.ndarray, T: np.ndarray, target: Target) -> np.ndarray:
    """Achieved less wanted efficiency of the orders asked for, (..., K) float64: those of R, then those of T, in the order of the arrays.

    Within a range this is 0, outside it the way to its nearer end. Arguments and errors as for :func:`misrouted_power`.
    """
    R, T = np.asarray(R, np.float64), np.asarray(T, np.float64)
    if R.shape != T.shape or R.shape[-2:] != target.R.shape:
        raise DataError(
            f"the achieved maps have shapes {R.shape} and {T.shape} and the target's {target.R.shape}; "
            "resize the target to their number of orders"
        )
    achieved = np.concatenate([R[..., target.mask_R], T[..., target.mask_T]], axis=-1)
    low_R, low_T, high_R, high_T = target.limits
    low, high = (np.concatenate([r[target.mask_R], t[target.mask_T]]) for r, t in ((low_R, low_T), (high_R, high_T)))
    # The sum of differences, not the difference of sums: an exact match then scores exactly 0.
    return achieved - np.clip(achieved, low, high)


def lab_scores(pattern: np.ndarray, reference: np.ndarray) -> dict[str, dict[str, float]]:
    """The scores the seed paper reports for a set of patterns, as they stand and after the best cyclic shift of each.

    A cyclic shift changes no efficiency, so ``modulo_shift`` moves every pattern by the one of its n*n shifts with the
    fewest unequal pixels before it counts.

    Args:
        pattern, reference: (N, n, n), or (n, n) for one, of 0 and 1, N above 0.

    Returns:
        ``{"plain": scores, "modulo_shift": scores}``, where scores are ``image_accuracy`` (share of patterns without an
        unequal pixel), ``precision`` and ``recall`` of pillar pixels over the whole set (0 where nothing is there to
        count), and ``unequal_pixels`` (mean per pattern, of its n*n).

    Raises:
        DataError: the two sets differ in shape, are empty, or hold values other than 0 and 1.
    """
    pattern, reference = np.asarray(pattern), np.asarray(reference)
    if pattern.shape != reference.shape or pattern.ndim not in (2, 3) or pattern.shape[-1] != pattern.shape[-2] or not pattern.size:
        raise DataError(f"the patterns have shape {pattern.shape} and the references {reference.shape}; both must be (N, n, n), N above 0")
    for name, values in (("patterns", pattern), ("references", reference)):
        if not np.isin(values, (0, 1)).all():
            raise DataError(f"the {name} hold values other than 0 and 1; a pattern is binary")
    size = pattern.shape[-1]
    made, wanted = (values.reshape(-1, size, size).astype(np.float64) for values in (pattern, reference))
    # The other scores follow from the pixels in common, and the shift with the most in common has the fewest unequal pixels.
    common = _common(made, wanted)
    pillars, expected = made.sum(axis=(1, 2)), wanted.sum(axis=(1, 2))
    return {"plain": _counted(common[:, 0, 0], pillars, expected), "modulo_shift": _counted(common.max(axis=(1, 2)), pillars, expected)}


def pixels_apart(patterns: np.ndarray, limit: int = 64) -> float:
    """Mean number of unequal pixels between two patterns, after the best cyclic shift of each pair.

    Args:
        patterns: (N, n, n) of 0 and 1, N at least 2.
        limit: only the first so many are compared, each with each.
    """
    values = np.asarray(patterns[:limit], np.float64)
    first, second = np.triu_indices(len(values), 1)
    common = _common(values[first], values[second]).max(axis=(1, 2))
    pillars = values.sum(axis=(1, 2))
    return float((pillars[first] + pillars[second] - 2 * common).mean())


def _common(made: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Pillar pixels in common, (N, n, n) whole float64, of ``made`` (N, n, n) moved by each of the n*n cyclic shifts and ``wanted``."""
    return np.rint(np.fft.ifft2(np.fft.fft2(wanted) * np.fft.fft2(made).conj()).real)


def _counted(common: np.ndarray, pillars: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Scores from each pattern's pillar pixels in common with its reference, its own and the reference's; all (N,)."""
    unequal = pillars + expected - 2 * common
    return {
        "image_accuracy": float((unequal == 0).mean()),
        "precision": float(common.sum() / max(pillars.sum(), 1)),
        "recall": float(common.sum() / max(expected.sum(), 1)),
        "unequal_pixels": float(unequal.mean()),
    }
