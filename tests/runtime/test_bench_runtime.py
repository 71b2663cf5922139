"""The runtime against PyTorch and diffusers with the same weights: one call of the network, and a whole run from the same noise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench._children import condition
from runtime.bundle import Bundle
from runtime.errors import BundleError
from runtime.sampler import Sampler, load

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
TARGET = str(ROOT / "examples" / "targets" / "splitter.json")


@pytest.fixture(scope="module")
def twin() -> Any:
    from bench import _twin

    return _twin


@pytest.fixture(scope="module")
def shipped() -> Iterator[Sampler]:
    with load(None, backend="onnxruntime", device="cpu", precision="fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def network(twin: Any, shipped: Sampler) -> Any:
    return twin.from_bundle(shipped.bundle)


def test_pytorch_with_the_weights_of_the_onnx_files_is_the_same_network(twin: Any, shipped: Sampler, network: Any) -> None:
    differences = twin.differences(network, shipped, condition(shipped.bundle, TARGET))
    assert set(differences) == {"context", "embedding", "output"}
    assert max(differences.values()) < 1e-5


def test_one_wrong_weight_is_noticed(twin: Any, shipped: Sampler, network: Any) -> None:
    """A normalisation's scale, the one kind of weight that the ONNX file does not name."""
    import copy

    import torch

    other = copy.deepcopy(network)
    with torch.no_grad():
        other.gates[3].norm.weight[5] += 0.05
    with pytest.raises(BundleError, match="differs from the runtime"):
        twin.differences(other, shipped, condition(shipped.bundle, TARGET))


@pytest.mark.parametrize("mode", ["eager", "eager, encoder in every step"])
def test_diffusers_makes_the_same_samples_from_the_same_noise(twin: Any, shipped: Sampler, network: Any, mode: str) -> None:
    arrays = condition(shipped.bundle, TARGET)
    ours = shipped.sample(arrays, 6, seed=11)
    theirs = twin.Contender(shipped.bundle, network.state_dict(), mode).sample(arrays, 6, seed=11)
    np.testing.assert_allclose(theirs, ours, atol=1e-3, rtol=0)
    sure = np.abs(ours) > 1e-2
    assert sure.mean() > 0.9
    np.testing.assert_array_equal((theirs > 0)[sure], (ours > 0)[sure])


def test_guidance_in_an_interval_is_the_same_in_diffusers(twin: Any, shipped: Sampler, network: Any) -> None:
    arrays = condition(shipped.bundle, TARGET)
    interval = (0.3, 5.0)
    ours = shipped.sample(arrays, 4, seed=2, steps=8, scheduler="ddim", guidance_scale=1.8, guidance_interval=interval)
    pipeline = twin.MetasurfacePipeline(network, twin.scheduler(shipped.scheduler_config, "ddim"))
    theirs = pipeline(
        twin.tensors(arrays),
        twin.tensors({"noise": twin.start_noise((1, 10, 10), 4, seed=2)})["noise"],
        8,
        unconditional=twin.tensors(shipped.bundle.condition.unconditional(arrays)),
        guidance_scale=1.8,
        guidance_interval=interval,
    )
    np.testing.assert_allclose(theirs, ours, atol=1e-3, rtol=0)
    plain = shipped.sample(arrays, 4, seed=2, steps=8, scheduler="ddim")
    assert np.abs(plain - ours).max() > 0.1, "guidance changes nothing here, so the comparison would be idle"


def test_a_bundle_that_lacks_a_parameter_is_refused(twin: Any, small_bundle: Path) -> None:
    """Another network than the recipe says: the sentence names the parameter, its shape and what the file has."""
    bundle = Bundle.open(small_bundle)
    bundle.manifest["recipe"]["network_arguments"]["channels"] = 24
    with pytest.raises(BundleError, match=r"should hold 'conv_in\.conv\.weight' \(24, 1, 3, 3\); it is there in shape \(16, 1, 3, 3\)"):
        twin.from_bundle(bundle)


def test_the_benchmark_finds_the_package_and_not_itself(tmp_path: Path) -> None:
    """bench/runtime.py carries the name of the package it measures."""
    import subprocess

    done = subprocess.run([sys.executable, str(ROOT / "bench" / "runtime.py"), "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "diffusers" in done.stdout
