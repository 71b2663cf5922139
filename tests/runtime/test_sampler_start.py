"""Sampling that begins from a known pattern under noise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runtime.backends import Network
from runtime.data import DataSet
from runtime.errors import BundleError
from runtime.sampler import Sampler
from runtime.target import Target


class Listening:
    """A network that keeps what it is asked first."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.first: dict[str, np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    @contextlib.contextmanager
    def bind(self, fixed: Any, batch: int) -> Iterator[Any]:
        with self.network.bind(fixed, batch) as call:

            def listen(varying: dict[str, np.ndarray]) -> Any:
                if not self.first:
                    self.first = {name: value.copy() for name, value in varying.items()}
                return call(varying)

            yield listen


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpmsolver++", "euler", "heun"])
def test_the_network_first_sees_the_pattern_under_noise(
    scheduler: str, sampler: Sampler, target: Target, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Listening(sampler.networks["denoiser"])
    monkeypatch.setitem(sampler.networks, "denoiser", network)
    pattern = data.xx[3]
    found = sampler.reconstruct(target, pattern, 0.6, n=2, seed=5, steps=10, scheduler=scheduler)
    assert found.shape == (2, 5, 5)
    t = int(network.first["timestep"][0])
    assert 500 <= t <= 600
    steps = (np.arange(1001) / 1000 + 0.008) / 1.008  # squaredcos_cap_v2, arXiv 2102.09672, eq. 17
    signal = np.cumprod(np.maximum(np.cos(steps[1:] * np.pi / 2) ** 2 / np.cos(steps[:-1] * np.pi / 2) ** 2, 0.001))[t]
    for candidate in range(2):
        z = np.random.Generator(np.random.Philox(key=[5, candidate])).standard_normal((1, 5, 5), dtype=np.float32)
        expected = np.sqrt(signal) * (2.0 * pattern - 1.0) + np.sqrt(1 - signal) * z
        np.testing.assert_allclose(network.first["sample"][candidate], expected, atol=1e-5)


def test_little_noise_leaves_the_pattern_and_the_bundle_rules_which_step(sampler: Sampler, target: Target, data: DataSet) -> None:
    found = sampler.reconstruct(target, data.xx[7], 0.04, n=3, seed=1)
    np.testing.assert_array_equal(found, np.repeat(data.xx[7][None], 3, axis=0))
    with pytest.raises(BundleError, match="take more steps"):
        sampler.reconstruct(target, data.xx[7], 0.04, steps=4)


def test_progress_counts_the_steps_that_are_left(sampler: Sampler, target: Target, data: DataSet) -> None:
    told: list[tuple[int, int]] = []
    settings = {"steps": 10, "scheduler": "ddim", "batch_size": 2}
    sampler.reconstruct(target, data.xx[0], 0.3, n=3, on_step=lambda step, total, estimate: told.append((step, total)), **settings)
    assert told == [(k, 6) for k in range(1, 7)], "two batches of the 3 steps at 299, 199 and 99"


def test_a_canvas_around_the_pattern_stays_at_zero(
    sampler: Sampler, target: Target, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in training; what comes out is cut from the same window."""
    for name, value in (("sample_shape", [1, 9, 9]), ("window", [2, 1])):
        monkeypatch.setitem(sampler.bundle.manifest, name, value)
    starts: list[np.ndarray] = []

    def sample(condition: Any, n: int, start: tuple[np.ndarray, float]) -> np.ndarray:
        starts.append(start[0])
        return start[0][None]

    monkeypatch.setattr(sampler, "sample", sample)
    np.testing.assert_array_equal(sampler.reconstruct(target, data.xx[2], 0.5), data.xx[2:3])
    expected = np.zeros((1, 9, 9), np.float32)
    expected[0, 2:7, 1:6] = np.where(data.xx[2] == 1, 1, -1)
    np.testing.assert_array_equal(starts[0], expected)
