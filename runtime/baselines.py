"""What a proposal has to beat: random patterns, and the training sample that happens to scatter most alike."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .data import DataSet
from .errors import DataError
from .files import cache_directory, write_json
from .geometry import Geometry
from .score import misrouted_power
from .target import Target
from .version import __version__

__all__ = ["nearest_training", "random_scores"]

_FORMAT = 1
_STREAM = 0x72616E646F6D  # not the stream data sets are drawn from: a data set of the same seed would hold its own answers
_FLIPS = ((1, 1), (-1, 1), (1, -1), (-1, -1))


def random_scores(
    target: Target,
    index: int,
    size: int,
    geometry: Geometry,
    count: int = 64,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    cancel: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Misrouted power (count,) of fair-coin patterns solved at the target's height.

    They are kept on disk, a file per target named by a hash of all that they depend on, and read from there the next time.
    A cache that cannot be written is done without.

    Args:
        target: with maps of the M to solve for.
        index: the target's place in its data set; with ``seed`` it decides the patterns.
        size: n of the n x n patterns.
        geometry: arrangement and solver settings.
        count, seed: how many patterns, and of which draw.
        cache_dir: None is ``files.cache_directory()``.
        workers, cancel: as for ``solve_many``.

    Raises:
        Cancelled: ``cancel`` said so.
    """
    from .physics.simulate import draw
    from .physics.verify import solve_many

    facts = [_FORMAT, __version__, geometry.to_dict(), target.orders, size, count, seed, index, target.height_nm]
    key = hashlib.sha256(json.dumps(facts).encode())
    for values in (target.R, target.T, target.mask_R, target.mask_T, *(target.ranges or ())):
        key.update(np.ascontiguousarray(values).tobytes())
    path = Path(cache_dir or cache_directory()) / "random" / f"{key.hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        scores = np.array(json.loads(path.read_text(encoding="utf-8"))["scores"], np.float64)
        if scores.shape == (count,) and np.isfinite(scores).all():
            return scores
    patterns, _ = draw(seed, index * count, count, size, (1, 1), stream=_STREAM)
    scores = np.asarray(misrouted_power(*solve_many(patterns, target.height_nm, geometry, target.orders, workers, cancel), target))
    with contextlib.suppress(DataError, OSError):
        write_json(path, {"scores": scores.tolist()})
    return scores


def nearest_training(targets: Sequence[Target], train: DataSet, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The training sample whose stored scattering is nearest to each target's, mirror images included, at any height.

    Cyclic shifts of a pattern change no efficiency, so nothing is gained by trying them. A mirrored pattern has the mirrored
    order maps at normal incidence, and only there.

    Args:
        targets: K full or partial targets of one M.
        train: N samples; of another M their maps are cropped or filled with zeros.
        geometry: the targets' arrangement.

    Returns:
        (K,) float64 misrouted power, and (K,) int indices of the samples.

    Raises:
        DataError: the training data are of another arrangement.
    """
    difference = train.geometry.difference(geometry)
    if difference:
        raise DataError(f"the training data are of another geometry than the targets: {difference}; name the data of this problem")
    orders = targets[0].orders
    maps = np.stack([_resized(train.Rm, orders), _resized(train.Tm, orders)], axis=1).astype(np.float32)
    flips = _FLIPS if geometry.theta_deg == 0 else _FLIPS[:1]
    wanted = np.stack([[target.R, target.T] for target in targets])
    # Most orders are evanescent: only columns with power anywhere, in any mirror image, count.
    power = (maps != 0).any(axis=0) | (wanted != 0).any(axis=0)
    power = np.logical_or.reduce([power[:, ::a, ::b] for a, b in flips])
    columns = maps[:, power]
    scores, indices = np.empty(len(targets)), np.empty(len(targets), np.int64)
    for i, target in enumerate(targets):
        mask = np.stack([target.mask_R, target.mask_T])
        best = (np.inf, -1)
        for a, b in flips:
            # The target is mirrored instead of every sample; a mirror is its own inverse.
            asked = mask[:, ::a, ::b][power]
            gap = columns - wanted[i][:, ::a, ::b][power].astype(np.float32)
            if not asked.all():
                gap = gap[:, asked]
            total = np.abs(gap).sum(axis=1) + np.abs(gap.sum(axis=1))
            j = int(total.argmin())
            R, T = maps[j][:, ::a, ::b].astype(np.float64)
            best = min(best, (float(misrouted_power(R, T, target)), j))
        scores[i], indices[i] = best
    return scores, indices


def _resized(maps: np.ndarray, orders: int) -> np.ndarray:
    """Maps (N, 2M+1, 2M+1) of half-width ``orders``, cropped or filled with zeros."""
    step = orders - maps.shape[-1] // 2
    if step < 0:
        return maps[:, -step:step, -step:step]
    return np.pad(maps, ((0, 0), (step, step), (step, step)))
