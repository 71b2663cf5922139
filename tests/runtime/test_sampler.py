"""The loop: a candidate depends on its seed and number alone, and scheduler, guidance and condition do to it what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import sampler as room
from runtime.errors import BackendError, BundleError, Cancelled, TargetError
from runtime.sampler import Sampler, load
from runtime.target import Target


@pytest.fixture
def counted(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes the denoiser is called with."""
    sizes: list[int] = []
    real = sampler.networks["denoiser"]

    def network(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(len(inputs["sample"]))
        return real(inputs)

    monkeypatch.setitem(sampler.networks, "denoiser", network)
    return sizes


def assert_close(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Samples equal up to the engine's round-off, and the same pattern wherever that cannot decide."""
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0, err_msg=what)
    sure = np.abs(expected) > 1e-3
    assert sure.mean() > 0.9
    np.testing.assert_array_equal((found > 0)[sure], (expected > 0)[sure], err_msg=f"{what}: pattern bits")


def test_same_seed_same_samples_bit_for_bit(sampler: Sampler, small_bundle: Path, condition: dict[str, np.ndarray]) -> None:
    first = sampler.sample(condition, 20, seed=3)
    assert first.shape == (20, 1, 5, 5)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, sampler.sample(condition, 20, seed=3))
    with load(small_bundle, device="cpu", threads=1) as other:
        np.testing.assert_array_equal(first, other.sample(condition, 20, seed=3))


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpmsolver++"])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_candidate_does_not_depend_on_its_batch(
    scheduler: str,
    batch: int,
    sampler: Sampler,
    condition: dict[str, np.ndarray],
    counted: list[int],
    monkeypatch: pytest.MonkeyPatch,
    quick: dict[str, Any],
) -> None:
    """Not on how many share its batch, nor on how many there are in all; its fresh noise neither."""
    monkeypatch.setattr(room, "BATCH", 70)
    whole = sampler.sample(condition, 70, scheduler=scheduler, **quick)
    assert set(counted) == {70}
    monkeypatch.setattr(room, "BATCH", batch)
    counted.clear()
    assert_close(sampler.sample(condition, 70, scheduler=scheduler, **quick), whole, f"batches of {batch}")
    assert max(counted) == batch
    assert_close(sampler.sample(condition, 5, scheduler=scheduler, **quick), whole[:5], "n = 5")
    assert len(np.unique(whole.reshape(70, -1), axis=0)) == 70, "all candidates differ"


def test_different_seeds_differ(sampler: Sampler, condition: dict[str, np.ndarray], quick: dict[str, Any]) -> None:
    samples = [sampler.sample(condition, 8, seed=seed, **quick) for seed in (0, 1, 2**63 - 1)]
    for i in range(3):
        for j in range(i):
            rows = np.abs(samples[i][:, None] - samples[j][None]).max(axis=(2, 3, 4))
            assert rows.min() > 1e-2, "a candidate of one seed is one of another"


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_seeds_out_of_range(seed: int, sampler: Sampler, condition: dict[str, np.ndarray], quick: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match=f"the seed is {seed}"):
        sampler.sample(condition, 1, seed=seed, **quick)


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpmsolver++"])
def test_every_scheduler_samples(scheduler: str, sampler: Sampler, condition: dict[str, np.ndarray], counted: list[int]) -> None:
    found = sampler.sample(condition, 6, scheduler=scheduler, steps=6)
    assert np.isfinite(found).all()
    assert counted == [6] * 6, "one call of the network a step"
    assert np.abs(found).max() < 20
    others = [sampler.sample(condition, 6, scheduler=name, steps=6) for name in ("ddpm", "ddim", "dpmsolver++") if name != scheduler]
    for other in others:
        assert np.abs(found - other).max() > 1e-3


def test_settings_of_the_bundle_are_the_defaults(sampler: Sampler, condition: dict[str, np.ndarray], counted: list[int]) -> None:
    found = sampler.sample(condition, 2)
    assert len(counted) == sampler.bundle.manifest["sampling"]["steps"] == 32
    np.testing.assert_array_equal(found, sampler.sample(condition, 2, scheduler="ddim", steps=32, eta=0.0, guidance_scale=1.0))
    assert np.abs(found - sampler.sample(condition, 2, eta=1.0)).max() > 1e-3


def test_unknown_scheduler_and_steps(sampler: Sampler, condition: dict[str, np.ndarray]) -> None:
    with pytest.raises(BundleError, match="unknown scheduler 'euler'"):
        sampler.sample(condition, 1, scheduler="euler")
    for steps in (0, 1001):
        with pytest.raises(BundleError, match=f"num_steps is {steps}"):
            sampler.sample(condition, 1, steps=steps)


def test_guidance_of_one_is_none_and_of_zero_unconditional(
    sampler: Sampler, condition: dict[str, np.ndarray], counted: list[int], quick: dict[str, Any]
) -> None:
    plain = sampler.sample(condition, 8, **quick)
    np.testing.assert_array_equal(sampler.sample(condition, 8, guidance_scale=1, **quick), plain)
    assert set(counted) == {8}, "guidance 1 costs no second half"
    counted.clear()
    nothing = sampler.sample(sampler.bundle.condition.unconditional(condition), 8, guidance_scale=1, **quick)
    assert np.abs(nothing - plain).max() > 1e-4, "the light has a say"
    counted.clear()
    assert_close(sampler.sample(condition, 8, guidance_scale=0, **quick), nothing, "guidance 0")
    assert set(counted) == {16}


def test_guidance_extrapolates_by_the_formula(sampler: Sampler, condition: dict[str, np.ndarray]) -> None:
    """One step by hand: unconditional + scale (conditional - unconditional), diffusers' convention, on the documented noise."""
    n, scale = 3, 2.0
    noise = np.stack([np.random.Generator(np.random.Philox(key=[5, i])).standard_normal((1, 5, 5), dtype=np.float32) for i in range(n)])
    table = sampler.plan(1)
    sample = table.start(noise)
    outputs = []
    for arrays in (sampler.bundle.condition.unconditional(condition), condition):
        encoded = {key: np.repeat(value, n, axis=0) for key, value in sampler.networks["encoder"](arrays).items()}
        inputs = {"sample": sample, "timestep": np.full(n, table.timesteps[0]), **encoded}
        outputs.append(sampler.networks["denoiser"](inputs)["output"])
    guided = outputs[0] + np.float32(scale) * (outputs[1] - outputs[0])
    expected = sample.copy()
    table.step(0, guided, expected, None, table.new_history(expected.shape))
    found = sampler.sample(condition, n, seed=5, steps=1, guidance_scale=scale)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - sampler.sample(condition, n, seed=5, steps=1)).max() > 1e-4, "guidance 2 changes the result"


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_guidance_that_is_no_number(scale: float, sampler: Sampler, condition: dict[str, np.ndarray], quick: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match="guidance_scale is"):
        sampler.sample(condition, 1, guidance_scale=scale, **quick)


def test_partial_target_differs_from_the_full_one(
    sampler: Sampler, target: Target, condition: dict[str, np.ndarray], quick: dict[str, Any]
) -> None:
    mask = np.zeros_like(target.mask_T)
    mask[3, 3] = True
    partial = Target.from_arrays(target.R, target.T, target.height_nm, np.zeros_like(mask), mask, name="partial")
    assert partial.partial
    assert not target.partial
    other = sampler.condition(partial)
    assert other["light"][0, 2:].sum() == 1
    assert condition["light"][0, 2:].all()
    assert np.abs(sampler.sample(other, 4, **quick) - sampler.sample(condition, 4, **quick)).max() > 1e-4


def test_stream_gives_the_same_batch_by_batch(sampler: Sampler, condition: dict[str, np.ndarray], quick: dict[str, Any]) -> None:
    parts = list(sampler.stream(condition, 130, **quick))
    assert [len(part) for part in parts] == [64, 64, 2]
    np.testing.assert_array_equal(np.concatenate(parts), sampler.sample(condition, 130, **quick))


def test_stream_works_as_it_is_read(sampler: Sampler, condition: dict[str, np.ndarray], counted: list[int], quick: dict[str, Any]) -> None:
    stream = sampler.stream(condition, 10**9, **quick)
    assert len(next(stream)) == 64
    assert len(counted) == 4
    stream.close()  # type: ignore[attr-defined]


def test_on_step_hears_every_step_and_sees_the_estimate(sampler: Sampler, condition: dict[str, np.ndarray], quick: dict[str, Any]) -> None:
    calls: list[tuple[int, int, tuple[int, ...]]] = []
    last: list[np.ndarray] = []

    def on_step(step: int, total: int, estimate: np.ndarray) -> None:
        calls.append((step, total, estimate.shape))
        last[:] = [estimate.copy()]

    found = sampler.sample(condition, 70, on_step=on_step, **quick)
    assert [call[:2] for call in calls] == [(k, 8) for k in range(1, 9)]
    assert [call[2] for call in calls] == [(64, 1, 5, 5)] * 4 + [(6, 1, 5, 5)] * 4
    np.testing.assert_allclose(last[0], found[64:], atol=1e-6)  # DDIM ends on its last estimate


def test_stop_of_sample_is_a_callable(sampler: Sampler, condition: dict[str, np.ndarray], quick: dict[str, Any]) -> None:
    with pytest.raises(Cancelled, match="sampling was cancelled"):
        sampler.sample(condition, 4, stop=lambda: True, **quick)


def test_close_and_context_manager(small_bundle: Path, condition: dict[str, np.ndarray], quick: dict[str, Any]) -> None:
    with load(small_bundle, device="cpu") as sampler:
        sampler.warmup(2)
        sampler.sample(condition, 1, **quick)
    with pytest.raises(BackendError, match="is closed"):
        sampler.sample(condition, 1, **quick)
    sampler.close()


def test_a_network_that_returns_nonsense_is_an_error(
    sampler: Sampler, condition: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, quick: dict[str, Any]
) -> None:
    def network(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"output": np.full_like(inputs["sample"], np.nan)}

    monkeypatch.setitem(sampler.networks, "denoiser", network)
    with pytest.raises(BackendError, match=r"not finite on cpu; run 'metascatter doctor'"):
        sampler.sample(condition, 2, **quick)


def test_unknown_precision(small_bundle: Path) -> None:
    with pytest.raises(BundleError, match="there is no precision 'fp8'"):
        load(small_bundle, precision="fp8")
