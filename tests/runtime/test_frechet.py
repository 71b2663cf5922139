"""Fréchet distances in the memory of one batch: known answers, and that a bundle's scores take no more of it the more samples there are."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import evaluate_samples
from runtime.frechet import Moments, distance, moments
from runtime.labels import Labels
from runtime.samples import SampleSet

RNG = np.random.default_rng(0)


def test_moments_of_pieces_are_those_of_the_whole() -> None:
    rows = RNG.standard_normal((9001, 4)) @ RNG.standard_normal((4, 4)) + 1e4
    found = Moments()
    for part in np.split(rows, [1, 7, 5000]):
        found.add(part.astype(np.float64))
    assert found.count == 9001
    assert found.mean == pytest.approx(rows.mean(axis=0), rel=1e-12)
    assert found.covariance == pytest.approx(np.cov(rows, rowvar=False), rel=1e-9)


def test_known_answers() -> None:
    rows = RNG.standard_normal((500, 6))
    assert distance(moments(rows), moments(rows[::-1])) == pytest.approx(0, abs=1e-9)
    # Between N(0, diag(a)) and N(m, diag(b)): |m|^2 + sum (sqrt a - sqrt b)^2, and moments can be set to be exact.
    a, b = Moments(), Moments()
    a.count = b.count = 101
    a.mean, b.mean = np.zeros(3), np.array([1.0, -2.0, 0.5])
    a._scatter, b._scatter = 100 * np.diag([1.0, 4.0, 9.0]), 100 * np.diag([4.0, 4.0, 0.0])
    assert distance(a, b) == pytest.approx(5.25 + 1 + 0 + 9)


@pytest.fixture(autouse=True)
def no_denoising(monkeypatch: pytest.MonkeyPatch) -> None:
    """What evaluate says of images out of noise wants a schedule, which these samplers have not."""
    monkeypatch.setattr(evaluate_samples.denoise_scores, "iterated", lambda *rest, **settings: [])


class FakeSampler:
    """Yields digits with noise, as a real sampler would."""

    def __init__(self, data: SampleSet, dropout: float) -> None:
        self.data = data
        recipe = {"name": "fake", "condition_dropout": dropout}
        manifest = {
            "sample_shape": list(data.shape),
            "recipe": recipe,
            "sampling": {"guidance_scale": 2.0},
            "training": {"epochs": 3.0, "steps": 30},
        }
        self.bundle = SimpleNamespace(manifest=manifest, labels=Labels(data.classes, 127.5, 127.5))

    def labelled(self, label: int | None) -> int | None:
        return label

    def stream(self, condition: int | None, n: int, **settings: Any) -> Iterator[np.ndarray]:
        rows = np.flatnonzero(self.data.label == condition)
        for start in range(0, n, 250):
            chosen = rows[np.arange(start, min(start + 250, n)) % len(rows)]
            yield self.bundle.labels.to_network(self.data.x[chosen])


@pytest.fixture(scope="module")
def halves() -> SampleSet:
    label = np.arange(80) % 2
    x = RNG.integers(0, 60, (80, 1, 8, 8)).astype(np.uint8)
    x[label == 1] += 150
    return SampleSet(x, label, ("dark", "bright"))


def test_memory_does_not_grow_with_the_number_of_samples(halves: SampleSet) -> None:
    pytest.importorskip("sklearn")
    peaks = []
    for n in (500, 20_000):  # the second holds 20,000 x 64 numbers, 10 MB in float64
        tracemalloc.start()
        result = evaluate_samples.evaluate(FakeSampler(halves, 0.0), halves, n)  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result["samples"] == n
    assert peaks[1] < peaks[0] + 1_000_000


def test_only_a_network_that_knows_the_null_condition_is_guided(halves: SampleSet) -> None:
    pytest.importorskip("sklearn")
    for dropout, scales in ((0.1, [1, 2, 3, 5]), (0.0, [2])):
        result = evaluate_samples.evaluate(FakeSampler(halves, dropout), halves, 40)  # type: ignore[arg-type]
        assert [row["guidance_scale"] for row in result["by_guidance_scale"]] == scales
        assert (result["epoch"], result["steps"]) == (3.0, 30)
        assert all(row["class_accuracy"] == 1 for row in result["by_guidance_scale"])


def test_one_class_is_not_classified(halves: SampleSet) -> None:
    result = evaluate_samples.evaluate(FakeSampler(halves.only(["bright"]), 0.0), halves, 40)  # type: ignore[arg-type]
    assert result["by_guidance_scale"][0]["class_accuracy"] is None
    assert "-" in evaluate_samples.table(result)


def test_a_network_scores_what_the_pixels_do(halves: SampleSet) -> None:
    pytest.importorskip("sklearn")
    taken: dict[bool, int] = {True: 0, False: 0}

    class Counts:
        @property
        def words(self) -> dict[str, str]:
            return {"seen": "images seen"}

        def facts(self) -> dict[str, Any]:
            return {"file": "counts"}

        def real(self, images: np.ndarray) -> None:
            assert images.dtype == np.uint8
            taken[True] += len(images)

        def samples(self, images: np.ndarray) -> None:
            assert images.dtype == np.uint8
            taken[False] += len(images)

        def scores(self) -> dict[str, float]:
            count, taken[False] = taken[False], 0
            return {"seen": float(count)}

    result = evaluate_samples.evaluate(FakeSampler(halves, 0.1), halves, 60, network=Counts())  # type: ignore[arg-type]
    assert [row["seen"] for row in result["by_guidance_scale"]] == [60] * 4
    assert (taken[True], result["baselines"]["real"]["seen"]) == (40, 40)
    text = evaluate_samples.table(result)
    assert "images seen" in text.splitlines()[1]
