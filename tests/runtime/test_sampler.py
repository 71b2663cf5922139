"""The loop: a candidate depends on its seed and number alone, and what comes out is solved, scored and sorted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import sampler as room
from runtime.data import DataSet
from runtime.data import load as load_data
from runtime.errors import BackendError, BundleError, Cancelled, TargetError
from runtime.geometry import Geometry
from runtime.physics.rcwa import Solver
from runtime.physics.verify import verify
from runtime.sampler import Sampler, load
from runtime.score import misrouted_power
from runtime.search import canonical
from runtime.target import Target

QUICK: dict[str, Any] = {"steps": 4}


@pytest.fixture(scope="module")
def sampler(small_bundle: Path) -> Iterator[Sampler]:
    with load(small_bundle, device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def data(small_data: Path) -> DataSet:
    return load_data(small_data)


def nth_target(data: DataSet, i: int, **more: Any) -> Target:
    """Target of the i-th sample whose height lies well within the training range."""
    k = int(np.flatnonzero((data.h > 150) & (data.h < 350))[i])
    return Target.from_arrays(data.Rm[k], data.Tm[k], float(data.h[k]), name=f"sample {k}", **more)


@pytest.fixture(scope="module")
def target(data: DataSet) -> Target:
    return nth_target(data, 0, geometry=data.geometry)


@pytest.fixture(scope="module")
def condition(sampler: Sampler, target: Target) -> dict[str, np.ndarray]:
    return sampler.condition(target)


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
    scheduler: str, batch: int, sampler: Sampler, condition: dict[str, np.ndarray], counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on how many share its batch, nor on how many there are in all; its fresh noise neither."""
    monkeypatch.setattr(room, "BATCH", 70)
    whole = sampler.sample(condition, 70, scheduler=scheduler, **QUICK)
    assert set(counted) == {70}
    monkeypatch.setattr(room, "BATCH", batch)
    counted.clear()
    assert_close(sampler.sample(condition, 70, scheduler=scheduler, **QUICK), whole, f"batches of {batch}")
    assert max(counted) == batch
    assert_close(sampler.sample(condition, 5, scheduler=scheduler, **QUICK), whole[:5], "n = 5")
    assert len(np.unique(whole.reshape(70, -1), axis=0)) == 70, "all candidates differ"


def test_different_seeds_differ(sampler: Sampler, condition: dict[str, np.ndarray]) -> None:
    samples = [sampler.sample(condition, 8, seed=seed, **QUICK) for seed in (0, 1, 2**63 - 1)]
    for i in range(3):
        for j in range(i):
            rows = np.abs(samples[i][:, None] - samples[j][None]).max(axis=(2, 3, 4))
            assert rows.min() > 1e-2, "a candidate of one seed is one of another"


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_seeds_out_of_range(seed: int, sampler: Sampler, condition: dict[str, np.ndarray]) -> None:
    with pytest.raises(TargetError, match=f"the seed is {seed}"):
        sampler.sample(condition, 1, seed=seed, **QUICK)


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


def test_guidance_of_one_is_none_and_of_zero_unconditional(sampler: Sampler, condition: dict[str, np.ndarray], counted: list[int]) -> None:
    plain = sampler.sample(condition, 8, **QUICK)
    np.testing.assert_array_equal(sampler.sample(condition, 8, guidance_scale=1, **QUICK), plain)
    assert set(counted) == {8}, "guidance 1 costs no second half"
    counted.clear()
    nothing = sampler.sample(sampler.bundle.condition.unconditional(condition), 8, guidance_scale=1, **QUICK)
    assert np.abs(nothing - plain).max() > 1e-4, "the light has a say"
    counted.clear()
    assert_close(sampler.sample(condition, 8, guidance_scale=0, **QUICK), nothing, "guidance 0")
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
def test_guidance_that_is_no_number(scale: float, sampler: Sampler, condition: dict[str, np.ndarray]) -> None:
    with pytest.raises(TargetError, match="guidance_scale is"):
        sampler.sample(condition, 1, guidance_scale=scale, **QUICK)


def test_partial_target_differs_from_the_full_one(sampler: Sampler, target: Target, condition: dict[str, np.ndarray]) -> None:
    mask = np.zeros_like(target.mask_T)
    mask[3, 3] = True
    partial = Target.from_arrays(target.R, target.T, target.height_nm, np.zeros_like(mask), mask, name="partial")
    assert partial.partial
    assert not target.partial
    other = sampler.condition(partial)
    assert other["light"][0, 2:].sum() == 1
    assert condition["light"][0, 2:].all()
    assert np.abs(sampler.sample(other, 4, **QUICK) - sampler.sample(condition, 4, **QUICK)).max() > 1e-4


def test_stream_gives_the_same_batch_by_batch(sampler: Sampler, condition: dict[str, np.ndarray]) -> None:
    parts = list(sampler.stream(condition, 130, **QUICK))
    assert [len(part) for part in parts] == [64, 64, 2]
    np.testing.assert_array_equal(np.concatenate(parts), sampler.sample(condition, 130, **QUICK))


def test_stream_works_as_it_is_read(sampler: Sampler, condition: dict[str, np.ndarray], counted: list[int]) -> None:
    stream = sampler.stream(condition, 10**9, **QUICK)
    assert len(next(stream)) == 64
    assert len(counted) == 4
    stream.close()  # type: ignore[attr-defined]


def test_no_candidates_is_an_error(sampler: Sampler, target: Target, condition: dict[str, np.ndarray]) -> None:
    for n in (0, -3):
        with pytest.raises(TargetError, match=f"n is {n}; ask for at least one"):
            sampler.sample(condition, n)
        with pytest.raises(TargetError, match=f"n is {n}"):
            sampler.design(target, n=n)


def test_on_step_hears_every_step_and_sees_the_estimate(sampler: Sampler, condition: dict[str, np.ndarray]) -> None:
    calls: list[tuple[int, int, tuple[int, ...]]] = []
    last: list[np.ndarray] = []

    def on_step(step: int, total: int, estimate: np.ndarray) -> None:
        calls.append((step, total, estimate.shape))
        last[:] = [estimate.copy()]

    found = sampler.sample(condition, 70, on_step=on_step, **QUICK)
    assert [call[:2] for call in calls] == [(k, 8) for k in range(1, 9)]
    assert [call[2] for call in calls] == [(64, 1, 5, 5)] * 4 + [(6, 1, 5, 5)] * 4
    np.testing.assert_allclose(last[0], found[64:], atol=1e-6)  # DDIM ends on its last estimate


def test_what_a_callback_raises_reaches_the_caller(sampler: Sampler, target: Target, condition: dict[str, np.ndarray]) -> None:
    before = sampler.sample(condition, 4, **QUICK)

    class Mine(Exception):
        pass

    def on_step(step: int, total: int, estimate: np.ndarray) -> None:
        if step == 2:
            raise Mine("stop here")

    def on_solve(done: int, total: int) -> None:
        raise Mine("and here")

    with pytest.raises(Mine, match="stop here"):
        sampler.sample(condition, 4, on_step=on_step, **QUICK)
    with pytest.raises(Mine, match="stop here"):
        sampler.design(target, 4, on_step=on_step, **QUICK)
    with pytest.raises(Mine, match="and here"):
        sampler.design(target, 4, on_solve=on_solve, **QUICK)
    np.testing.assert_array_equal(sampler.sample(condition, 4, **QUICK), before)


def test_cancel_before_during_and_after_sampling(sampler: Sampler, target: Target) -> None:
    event = threading.Event()
    steps: list[int] = []

    def cancel_at_two(step: int, total: int, estimate: np.ndarray) -> None:
        steps.append(step)
        if step == 2:
            event.set()

    with pytest.raises(Cancelled):
        sampler.design(target, 4, cancel=event, on_step=cancel_at_two, **QUICK)
    assert steps == [1, 2]
    with pytest.raises(Cancelled):
        sampler.design(target, 4, cancel=event, on_step=cancel_at_two, **QUICK)
    assert steps == [1, 2], "cancelled before the first step"
    event.clear()
    solved: list[int] = []

    def cancel_solving(done: int, total: int) -> None:
        solved.append(done)
        event.set()

    with pytest.raises(Cancelled):
        sampler.design(target, 16, cancel=event, on_solve=cancel_solving, workers=1, **QUICK)
    assert solved == [1]
    event.clear()
    assert sampler.design(target, 4, cancel=event, **QUICK)


def test_stop_of_sample_is_a_callable(sampler: Sampler, condition: dict[str, np.ndarray]) -> None:
    with pytest.raises(Cancelled, match="sampling was cancelled"):
        sampler.sample(condition, 4, stop=lambda: True, **QUICK)


def test_deadline_leaves_at_least_one_verified_design(sampler: Sampler, target: Target) -> None:
    solved: list[tuple[int, int]] = []
    found = sampler.design(target, 64, deadline_s=0.0, workers=1, on_solve=lambda *call: solved.append(call), **QUICK)
    assert len(found) == len(solved) == 1
    assert solved[0][1] > 30, "and many more were there to solve"
    assert found[0].verified
    assert found[0].score is not None
    assert found[0].candidate == 0
    whole = sampler.design(target, 64, top=64, deadline_s=1000.0, workers=1, **QUICK)
    assert len(whole) == solved[0][1]


def test_designs_are_sorted_unique_and_solved(sampler: Sampler, target: Target) -> None:
    found = sampler.design(target, n=40, top=12, seed=7, **QUICK)
    scores = [design.score for design in found]
    assert len(found) == 12
    assert scores == sorted(scores, key=lambda score: score if score is not None else np.inf)
    patterns = np.stack([design.pattern for design in found])
    assert patterns.dtype == np.uint8
    assert set(np.unique(patterns)) <= {0, 1}
    assert len(np.unique(canonical(patterns).reshape(12, -1), axis=0)) == 12, "no two are one pattern shifted"
    candidates = sampler.propose(target, 40, seed=7, **QUICK)
    solver = Solver(sampler.bundle.geometry, target.orders)
    for design, again in zip(found, verify(found, target), strict=True):
        assert design.verified
        assert (design.seed, design.height_nm, design.geometry) == (7, target.height_nm, sampler.bundle.geometry)
        np.testing.assert_array_equal(candidates[design.candidate], design.pattern)
        R, T = solver.solve(design.pattern, design.height_nm)
        assert design.R is not None
        assert design.T is not None
        np.testing.assert_allclose(design.R, R, atol=1e-12)
        np.testing.assert_allclose(design.T, T, atol=1e-12)
        assert design.score == pytest.approx(float(misrouted_power(R, T, target)), abs=1e-12)
        assert design.score == pytest.approx(again.score, abs=1e-12)
    everything = sampler.design(target, n=40, top=40, seed=7, **QUICK)
    assert [design.score for design in everything][:12] == scores, "top cuts the same list shorter"


def test_designs_are_the_same_again_and_for_any_workers(sampler: Sampler, target: Target) -> None:
    first, second = (sampler.design(target, 16, seed=1, workers=workers, **QUICK) for workers in (1, 2))
    assert [(d.candidate, d.score) for d in first] == [(d.candidate, d.score) for d in second]


def test_unverified_designs_claim_nothing(sampler: Sampler, target: Target) -> None:
    found = sampler.design(target, 16, top=5, verify=False, **QUICK)
    assert len(found) == 5
    assert [design.candidate for design in found] == sorted(design.candidate for design in found)
    for design in found:
        assert (design.R, design.T, design.score, design.verified) == (None, None, None, False)


def test_patterns_are_cut_at_zero_in_the_window(sampler: Sampler) -> None:
    samples = np.zeros((1, 1, 5, 5), np.float32)
    samples[0, 0, 1, 2], samples[0, 0, 2, 1] = 1e-6, -1.0
    pattern = sampler.patterns(samples)
    assert (pattern.shape, pattern.dtype, int(pattern.sum())) == ((1, 5, 5), np.uint8, 1)
    assert pattern[0, 1, 2] == 1


def test_targets_the_bundle_cannot_be_asked_for(sampler: Sampler, data: DataSet) -> None:
    good = nth_target(data, 0)
    refused = [
        (Target.from_arrays(good.R, good.T, 1000.0, name="tall"), "tall: the height is 1000 nm, outside the 1.. to 3.. nm"),
        (Target.from_arrays(good.R, good.T, 20.0, name="flat"), "flat: the height is 20 nm"),
        (nth_target(data, 0, geometry=Geometry()), "the target's geometry is not the bundle's: period_nm"),
    ]
    corner = np.zeros((7, 7))
    corner[6, 6] = 0.5
    refused.append(
        (Target.from_arrays(np.zeros((7, 7)), corner, 250.0, name="corner"), r"corner: order T\(3,3\) is asked 0\.5.*evanescent")
    )
    for target, sentence in refused:
        for ask in (sampler.check, sampler.condition, sampler.design):
            with pytest.raises(TargetError, match=sentence) as caught:
                ask(target)
            assert ";" in str(caught.value), "it says what to do"


def test_targets_of_more_orders_are_cut_and_of_fewer_padded(sampler: Sampler, data: DataSet) -> None:
    good = nth_target(data, 0)
    assert sampler.check(good.resized(11)).orders == 3
    mask = np.zeros((3, 3), bool)
    mask[1, 1] = True
    small = Target.from_arrays(np.zeros((3, 3)), np.full((3, 3), 0.1), 250.0, np.zeros((3, 3), bool), mask)
    checked = sampler.check(small)
    assert checked.orders == 3
    assert checked.mask_T.sum() == 1
    assert checked.wanted("T", 0, 0) == pytest.approx(0.1)


def test_two_threads_share_a_sampler(sampler: Sampler, data: DataSet) -> None:
    jobs = [(nth_target(data, i), seed) for i in range(3) for seed in range(2)]
    alone = [sampler.design(target, 12, seed=seed, **QUICK) for target, seed in jobs]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda job: sampler.design(job[0], 12, seed=job[1], **QUICK), jobs))
    for first, second in zip(alone, together, strict=True):
        assert [(d.candidate, d.score) for d in first] == [(d.candidate, d.score) for d in second]


def test_close_and_context_manager(small_bundle: Path, condition: dict[str, np.ndarray]) -> None:
    with load(small_bundle, device="cpu") as sampler:
        sampler.warmup(2)
        sampler.sample(condition, 1, **QUICK)
    with pytest.raises(BackendError, match="is closed"):
        sampler.sample(condition, 1, **QUICK)
    sampler.close()


def test_a_network_that_returns_nonsense_is_an_error(
    sampler: Sampler, condition: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def network(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"output": np.full_like(inputs["sample"], np.nan)}

    monkeypatch.setitem(sampler.networks, "denoiser", network)
    with pytest.raises(BackendError, match=r"not finite on cpu; run 'metascatter doctor'"):
        sampler.sample(condition, 2, **QUICK)


def test_unknown_precision(small_bundle: Path) -> None:
    with pytest.raises(BundleError, match="there is no precision 'fp8'"):
        load(small_bundle, precision="fp8")
