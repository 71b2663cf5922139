"""Distances between sets of samples: known answers, and what a bundle's scores are made of."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import evaluate_samples as room
from runtime.errors import DataError
from runtime.samples import SampleSet

RNG = np.random.default_rng(0)


def test_identical_sets_are_at_no_distance() -> None:
    points = RNG.standard_normal((200, 3))
    assert room.sliced_wasserstein(points, RNG.permutation(points)) == pytest.approx(0, abs=1e-12)
    assert room.frechet(points, points) == pytest.approx(0, abs=1e-9)


def test_a_shift_is_the_mean_of_its_projections() -> None:
    points = RNG.standard_normal((500, 2))
    # The mean of |cos| over directions in the plane is 2 / pi.
    assert room.sliced_wasserstein(points, points + np.array([3.0, 4.0])) == pytest.approx(5 * 2 / np.pi, rel=0.05)
    with pytest.raises(DataError, match="as many of each"):
        room.sliced_wasserstein(points, points[:-1])


def test_two_gaussians_have_the_closed_form() -> None:
    """Covariances that do not commute: against the formula with scipy's square root of a matrix."""
    from scipy.linalg import sqrtm

    a, b = (RNG.standard_normal((400, 3)) @ RNG.standard_normal((3, 3)) + RNG.standard_normal(3) for _ in range(2))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert room.frechet(a, b) == pytest.approx(expected, rel=1e-6)
    line = RNG.standard_normal((100_000, 1))
    assert room.frechet(line, 3 * line + 2) == pytest.approx(4 + 4, rel=0.02), "(2 - 0)^2 + (3 - 1)^2"


def test_features_are_the_first_principal_components() -> None:
    images = RNG.integers(0, 256, (50, 1, 4, 4)).astype(np.uint8)
    found = room._features(images)(images)
    assert found.shape == (50, 16)
    flat = images.reshape(50, -1) / 255
    assert np.var(found, axis=0, ddof=1) == pytest.approx(np.sort(np.linalg.eigvalsh(np.cov(flat, rowvar=False)))[::-1])


def test_a_classifier_learns_what_can_be_learnt() -> None:
    pytest.importorskip("sklearn")
    label = np.arange(80) % 2
    x = RNG.integers(0, 60, (80, 1, 4, 4)).astype(np.uint8)
    x[label == 1] += 150
    classify = room._classifier(SampleSet(x[:40], label[:40], ("dark", "bright")))
    assert (classify(x[40:]) == label[40:]).all()
