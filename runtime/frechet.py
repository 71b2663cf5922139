"""The Fréchet distance between Gaussians (Dowson & Landau 1982) fitted to any number of features in the memory of one batch."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

_ROWS = 4096  # taken in at a time


class Moments:
    """Mean and covariance of the features (N, d) taken in so far, in float64.

    Batches are joined as Chan, Golub & LeVeque (1979) do, which loses no digits where the mean is far from zero.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))  # sum of the outer products of what is off the mean

    def add(self, rows: np.ndarray) -> None:
        """Take in features (n, d)."""
        for start in range(0, len(rows), _ROWS):
            self._add(np.asarray(rows[start : start + _ROWS], np.float64))

    def _add(self, rows: np.ndarray) -> None:
        mean, n = rows.mean(axis=0), len(rows)
        off = rows - mean
        scatter = off.T @ off
        if not self.count:
            self.count, self.mean, self._scatter = n, mean, scatter
            return
        total, apart = self.count + n, mean - self.mean
        self._scatter += scatter + np.outer(apart, apart) * (self.count * n / total)
        self.mean = self.mean + apart * (n / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """(d, d), with N - 1 in the denominator."""
        return self._scatter / (self.count - 1)


def moments(rows: np.ndarray) -> Moments:
    """Of features (N, d)."""
    found = Moments()
    found.add(rows)
    return found


def distance(a: Moments, b: Moments) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^(1/2)), of covariances A and B."""
    difference = a.mean - b.mean
    first, second = a.covariance, b.covariance
    # The eigenvalues of A B are those of the symmetric A^(1/2) B A^(1/2): real and, but for rounding, not negative.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * mixed)


class FeatureScores(Protocol):
    """Scores by a network of one's own, which ``evaluate`` takes beside those of pixels; a checkout has one in ``train.inception``."""

    def facts(self) -> dict[str, Any]:
        """What the network is, as JSON values."""
        ...

    def real(self, images: np.ndarray) -> None:
        """Take in real images (N, C, H, W) uint8."""
        ...

    def samples(self, images: np.ndarray) -> None:
        """Take in samples (N, C, H, W) uint8."""
        ...

    def scores(self) -> dict[str, float]:
        """Scores by name, and their names in words by :attr:`words`, of the samples since the last call."""
        ...

    @property
    def words(self) -> dict[str, str]:
        """What :meth:`scores` are called in a table."""
        ...
