"""The loop: a candidate depends on its seed and number alone, and scheduler, guidance and condition do to it what they should."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import engine as room
from runtime import selftest
from runtime.backends import Network
from runtime.errors import BackendError, BundleError, Cancelled, TargetError
from runtime.sampler import Sampler, load
from runtime.target import Target

TARGETS = Path(__file__).parents[2] / "examples" / "targets"


class Watched:
    """A network whose calls go through ``answer(inputs, call)``."""

    def __init__(self, network: Network, answer: Callable[[Any, Any], Any]) -> None:
        self.network, self.answer = network, answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    @contextlib.contextmanager
    def bind(self, fixed: Any, batch: int) -> Iterator[Any]:
        with self.network.bind(fixed, batch) as call:
            yield lambda varying: self.answer(varying, call)


@pytest.fixture
def counted(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes the denoiser is called with."""
    sizes: list[int] = []

    def answer(inputs: dict[str, np.ndarray], call: Any) -> Any:
        sizes.append(len(inputs["sample"]))
        return call(inputs)

    monkeypatch.setitem(sampler.networks, "denoiser", Watched(sampler.networks["denoiser"], answer))
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
    with load(small_bundle, "onnxruntime", "cpu", threads=1) as other:
        np.testing.assert_array_equal(first, other.sample(condition, 20, seed=3))


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpmsolver++"])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_candidate_does_not_depend_on_its_batch(
    scheduler: str, batch: int, sampler: Sampler, condition: dict[str, np.ndarray], counted: list[int], quick: dict[str, Any]
) -> None:
    """Not on how many share its batch, nor on how many there are in all; its fresh noise neither."""
    whole = sampler.sample(condition, 70, scheduler=scheduler, batch_size=70, **quick)
    assert set(counted) == {70}
    counted.clear()
    assert_close(sampler.sample(condition, 70, scheduler=scheduler, batch_size=batch, **quick), whole, f"batches of {batch}")
    assert max(counted) == batch
    assert_close(sampler.sample(condition, 5, scheduler=scheduler, batch_size=batch, **quick), whole[:5], "n = 5")
    assert len(np.unique(whole.reshape(70, -1), axis=0)) == 70, "all candidates differ"


def test_the_shipped_bundle_gives_the_same_patterns_for_every_split_and_thread_count() -> None:
    """The noise bit for bit; the samples to 1e-4, and so every pixel that is not within 1e-3 of the edge."""
    target = Target.load(TARGETS / "heldout_94nm.npz")
    samples = []
    for threads, batch in ((1, 64), (1, 1), (2, 7)):
        with load(backend="onnxruntime", device="cpu", threads=threads) as shipped:
            samples.append(shipped.sample(shipped.condition(target), 64 if batch == 64 else 8, batch_size=batch, seed=5))
    for found in samples[1:]:
        assert_close(found, samples[0][:8], "shipped bundle")


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
    with pytest.raises(BundleError, match="unknown scheduler 'plms'"):
        sampler.sample(condition, 1, scheduler="plms")
    for steps in (0, 1001):
        with pytest.raises(BundleError, match=f"num_steps is {steps}"):
            sampler.sample(condition, 1, steps=steps)


def test_guidance_of_one_is_none_and_of_zero_unconditional(
    sampler: Sampler, condition: dict[str, np.ndarray], counted: list[int], quick: dict[str, Any]
) -> None:
    plain = sampler.sample(condition, 8, **quick)
    np.testing.assert_array_equal(sampler.sample(condition, 8, guidance_scale=1, **quick), plain)
    assert set(counted) == {8}, "guidance 1 costs no second half"
    nothing = sampler.sample(sampler.bundle.condition.unconditional(condition), 8, guidance_scale=1, **quick)
    assert np.abs(nothing - plain).max() > 1e-4, "the light has a say"
    counted.clear()
    assert_close(sampler.sample(condition, 8, guidance_scale=0, **quick), nothing, "guidance 0")
    assert set(counted) == {16}


def test_guidance_acts_in_its_interval_alone(
    sampler: Sampler, condition: dict[str, np.ndarray], counted: list[int], quick: dict[str, Any]
) -> None:
    plain, guided = (sampler.sample(condition, 8, guidance_scale=scale, **quick) for scale in (1.0, 3.0))
    sigmas = sampler.plan(**quick).sigmas
    assert len(sigmas) == 4
    counted.clear()
    inside = (float(sigmas[2]), float(sigmas[1]))
    some = sampler.sample(condition, 8, guidance_scale=3.0, guidance_interval=inside, **quick)
    assert counted == [8, 16, 16, 8], "outside the interval a step costs one pass"
    assert np.abs(some - plain).max() > 1e-4
    assert np.abs(some - guided).max() > 1e-4
    everywhere = sampler.sample(condition, 8, guidance_scale=3.0, guidance_interval=(0.0, float("inf")), **quick)
    np.testing.assert_array_equal(everywhere, guided)
    nowhere = (float(sigmas[0]) * 2, float(sigmas[0]) * 3)
    np.testing.assert_array_equal(sampler.sample(condition, 8, guidance_scale=3.0, guidance_interval=nowhere, **quick), plain)
    for empty in ((2.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(TargetError, match="the guidance interval is"):
            sampler.sample(condition, 1, guidance_interval=empty, **quick)


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


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1e308, 1001])
def test_guidance_out_of_range(scale: float, sampler: Sampler, condition: dict[str, np.ndarray], quick: dict[str, Any]) -> None:
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
    assert [len(part) for part in parts] == [32, 32, 32, 32, 2]
    np.testing.assert_array_equal(np.concatenate(parts), sampler.sample(condition, 130, **quick))


def test_stream_works_as_it_is_read(sampler: Sampler, condition: dict[str, np.ndarray], counted: list[int], quick: dict[str, Any]) -> None:
    stream = sampler.stream(condition, 10**9, **quick)
    assert len(next(stream)) == 32
    assert len(counted) == 4
    stream.close()  # type: ignore[attr-defined]


def test_on_step_hears_every_step_and_sees_the_estimate(sampler: Sampler, condition: dict[str, np.ndarray], quick: dict[str, Any]) -> None:
    calls: list[tuple[int, int, tuple[int, ...]]] = []
    last: list[np.ndarray] = []

    def on_step(step: int, total: int, estimate: np.ndarray) -> None:
        calls.append((step, total, estimate.shape))
        last[:] = [estimate.copy()]

    found = sampler.sample(condition, 70, batch_size=64, on_step=on_step, **quick)
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
    def answer(inputs: dict[str, np.ndarray], call: Any) -> dict[str, np.ndarray]:
        return {"output": np.full_like(inputs["sample"], np.nan)}

    monkeypatch.setitem(sampler.networks, "denoiser", Watched(sampler.networks["denoiser"], answer))
    with pytest.raises(BackendError, match=r"not finite on cpu; run 'metascatter doctor'"):
        sampler.sample(condition, 2, **quick)


def test_the_batch_is_what_is_asked_or_what_fits(
    sampler: Sampler, condition: dict[str, np.ndarray], counted: list[int], monkeypatch: pytest.MonkeyPatch, quick: dict[str, Any]
) -> None:
    assert sampler.batch_size() == 32
    row = sampler.networks["denoiser"].row_bytes
    monkeypatch.setattr(room, "_free_memory", lambda: 2 * room._ALIVE * row * 5 + 1)
    sampler.sample(condition, 12, **quick)
    assert set(counted) == {5, 2}
    monkeypatch.setattr(room, "_free_memory", lambda: 0)
    assert sampler.batch_size() == 1
    assert sampler.batch_size(300) == 300
    with pytest.raises(TargetError, match="the batch size is 0; it must be at least 1"):
        sampler.sample(condition, 1, batch_size=0)


def test_a_hundred_thousand_stream_in_the_memory_of_one_batch(sampler: Sampler, condition: dict[str, np.ndarray]) -> None:
    """What is held after a batch does not grow: one kept sample a candidate would be 1.3 MB after these 13,000."""
    held = []
    tracemalloc.start()
    try:
        for _, _part in zip(range(30), sampler.stream(condition, 100_000, steps=1, batch_size=512), strict=False):
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(held) == 30
    assert max(held[5:]) - held[4] < 100_000


def test_the_self_test_runs_at_load_where_it_is_asked_for(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(small_bundle, device="cpu", self_test=True).close()
    monkeypatch.setitem(selftest.TOLERANCE, "fp32", -1.0)
    load(small_bundle, device="cpu", precision="fp32").close()
    with pytest.raises(BundleError, match=r"differs from its golden outputs.*do not trust designs"):
        load(small_bundle, device="cpu", precision="fp32", self_test=True)


def test_a_precision_the_bundle_does_not_have(small_bundle: Path) -> None:
    with pytest.raises(BundleError, match="has no encoder in int8; it has fp32"):
        load(small_bundle, precision="int8")


def test_unknown_precision(small_bundle: Path) -> None:
    with pytest.raises(BundleError, match="there is no precision 'fp8'"):
        load(small_bundle, precision="fp8")
