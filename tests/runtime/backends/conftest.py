"""What the tests of engines share: each that answers here in turn, a network opened by it, and something to give it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.backends import Choice, Network
from runtime.bundle import Bundle
from tests.runtime.engines import ANSWERING, REFERENCE, Arrays, opened


@pytest.fixture(scope="module", params=ANSWERING)
def choice(request: pytest.FixtureRequest) -> Choice:
    return request.param


@pytest.fixture(scope="module")
def network(choice: Choice, small_bundle: Path) -> Iterator[Network]:
    """The small bundle's denoiser."""
    made = opened(small_bundle, "denoiser", choice)
    yield made
    made.close()


@pytest.fixture(scope="module")
def batch_of() -> Callable[..., Arrays]:
    """Random inputs for any network, the same for the same seed."""

    def batch_of(network: Network, count: int, seed: int = 0) -> Arrays:
        rng = np.random.default_rng(seed)
        arrays: Arrays = {}
        for name, (shape, dtype) in network.inputs.items():
            size = (count, *shape)
            arrays[name] = rng.integers(0, 1000, size) if dtype == "int64" else rng.standard_normal(size, np.float32)
        return arrays

    return batch_of


@pytest.fixture(scope="module")
def shipped() -> tuple[Bundle, Arrays, Arrays]:
    """The shipped bundle, inputs of its denoiser over all noise levels for its golden conditions, and what ONNX Runtime makes of them."""
    bundle = Bundle.open()
    golden = bundle.arrays("golden.npz")
    timesteps = np.array([0, 1, 20, 100, 400, 700, 900, 999])
    rng = np.random.default_rng(0)
    arrays = {key: golden[f"denoiser.in.{key}"][np.arange(len(timesteps)) % 4] for key in ("context", "embedding")}
    arrays |= {"sample": rng.standard_normal((len(timesteps), 1, 10, 10), np.float32), "timestep": timesteps}
    reference = opened(bundle.path, "denoiser", REFERENCE)
    expected = reference(arrays)
    reference.close()
    return bundle, arrays, expected
