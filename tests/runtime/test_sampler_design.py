"""From a target to designs: solved, scored and sorted, stopped when asked to, and refused where the bundle cannot be asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import search
from runtime.data import DataSet
from runtime.errors import BackendError, Cancelled, TargetError
from runtime.geometry import Geometry
from runtime.physics.rcwa import Solver
from runtime.physics.verify import verify
from runtime.sampler import Sampler, load
from runtime.score import misrouted_power
from runtime.search import canonical
from runtime.target import Target


def test_no_candidates_is_an_error(sampler: Sampler, target: Target, condition: dict[str, np.ndarray]) -> None:
    for n in (0, -3):
        with pytest.raises(TargetError, match=f"n is {n}; ask for at least one"):
            sampler.sample(condition, n)
        with pytest.raises(TargetError, match=f"n is {n}"):
            sampler.design(target, n=n)


def test_what_a_callback_raises_reaches_the_caller(
    sampler: Sampler, target: Target, condition: dict[str, np.ndarray], quick: dict[str, Any]
) -> None:
    before = sampler.sample(condition, 4, **quick)

    class Mine(Exception):
        pass

    def on_step(step: int, total: int, estimate: np.ndarray) -> None:
        if step == 2:
            raise Mine("stop here")

    def on_solve(done: int, total: int) -> None:
        raise Mine("and here")

    with pytest.raises(Mine, match="stop here"):
        sampler.sample(condition, 4, on_step=on_step, **quick)
    with pytest.raises(Mine, match="stop here"):
        sampler.design(target, 4, on_step=on_step, **quick)
    with pytest.raises(Mine, match="and here"):
        sampler.design(target, 4, on_solve=on_solve, **quick)
    np.testing.assert_array_equal(sampler.sample(condition, 4, **quick), before)


def test_cancel_before_during_and_after_sampling(sampler: Sampler, target: Target, quick: dict[str, Any]) -> None:
    event = threading.Event()
    steps: list[int] = []

    def cancel_at_two(step: int, total: int, estimate: np.ndarray) -> None:
        steps.append(step)
        if step == 2:
            event.set()

    with pytest.raises(Cancelled):
        sampler.design(target, 4, cancel=event, on_step=cancel_at_two, **quick)
    assert steps == [1, 2]
    with pytest.raises(Cancelled):
        sampler.design(target, 4, cancel=event, on_step=cancel_at_two, **quick)
    assert steps == [1, 2], "cancelled before the first step"
    event.clear()
    solved: list[int] = []

    def cancel_solving(done: int, total: int) -> None:
        solved.append(done)
        event.set()

    with pytest.raises(Cancelled):
        sampler.design(target, 16, cancel=event, on_solve=cancel_solving, workers=1, **quick)
    assert solved == [1]
    event.clear()
    assert sampler.design(target, 4, cancel=event, **quick)


def test_deadline_leaves_at_least_one_verified_design(sampler: Sampler, target: Target, quick: dict[str, Any]) -> None:
    solved: list[tuple[int, int]] = []
    steps: list[int] = []
    found = sampler.design(
        target,
        64,
        deadline_s=0.0,
        workers=1,
        on_solve=lambda *call: solved.append(call),
        on_step=lambda step, *rest: steps.append(step),
        **quick,
    )
    assert steps == [1], "time was up after the first step"
    assert len(found) == len(solved) == 1
    assert solved[0][1] > 30, "and many more were there to solve"
    assert found[0].verified
    assert found[0].score is not None
    assert found[0].candidate == 0
    (unsolved,) = sampler.design(target, 64, top=1, deadline_s=0.0, verify=False, **quick)
    np.testing.assert_array_equal(unsolved.pattern, found[0].pattern)


def test_a_deadline_far_away_changes_nothing(sampler: Sampler, target: Target, quick: dict[str, Any]) -> None:
    whole, hurried = (sampler.design(target, 30, top=30, deadline_s=end, **quick) for end in (None, 1000.0))
    assert [(d.candidate, d.pattern.tobytes()) for d in whole] == [(d.candidate, d.pattern.tobytes()) for d in hurried]
    assert [d.score for d in whole] == [d.score for d in hurried]


def test_a_deadline_between_batches_returns_the_best_solved_by_then(
    sampler: Sampler, target: Target, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that moves when a candidate is solved, the best of the first twenty."""
    now = [0.0]
    monkeypatch.setattr(search.time, "monotonic", lambda: now[0])
    solved: list[int] = []

    def on_solve(done: int, total: int) -> None:
        solved.append(done)
        now[0] += 1.0

    found = sampler.design(target, 64, top=4, deadline_s=20.5, workers=1, on_solve=on_solve, **quick)
    assert solved == list(range(1, 21)), "a solve takes a second, so the last begins at 19"
    monkeypatch.undo()
    first = sorted(sampler.design(target, 32, top=32, **quick), key=lambda d: d.candidate)[:20]
    assert found[0].score == min(d.score for d in first if d.score is not None)


def test_batches_are_one_set(sampler: Sampler, target: Target, quick: dict[str, Any]) -> None:
    """Duplicates are dropped across batches, and the numbers the callbacks hear go on."""
    totals: list[tuple[int, int]] = []
    parts = sampler.design(target, 40, top=40, batch_size=7, workers=1, on_solve=lambda *call: totals.append(call), **quick)
    whole = sampler.design(target, 40, top=40, **quick)
    assert [(d.candidate, d.score) for d in parts] == [(d.candidate, d.score) for d in whole]
    assert [done for done, _ in totals] == list(range(1, len(whole) + 1))
    assert totals[-1][1] == len(whole)


def test_designs_are_sorted_unique_and_solved(sampler: Sampler, target: Target, quick: dict[str, Any]) -> None:
    found = sampler.design(target, n=40, top=12, seed=7, **quick)
    scores = [design.score for design in found]
    assert len(found) == 12
    assert scores == sorted(scores, key=lambda score: score if score is not None else np.inf)
    patterns = np.stack([design.pattern for design in found])
    assert patterns.dtype == np.uint8
    assert set(np.unique(patterns)) <= {0, 1}
    assert len(np.unique(canonical(patterns).reshape(12, -1), axis=0)) == 12, "no two are one pattern shifted"
    candidates = sampler.propose(target, 40, seed=7, **quick)
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
    everything = sampler.design(target, n=40, top=40, seed=7, **quick)
    assert [design.score for design in everything][:12] == scores, "top cuts the same list shorter"


def test_designs_are_the_same_again_and_for_any_workers(sampler: Sampler, target: Target, quick: dict[str, Any]) -> None:
    first, second = (sampler.design(target, 16, seed=1, workers=workers, **quick) for workers in (1, 2))
    assert [(d.candidate, d.score) for d in first] == [(d.candidate, d.score) for d in second]


def test_unverified_designs_claim_nothing(sampler: Sampler, target: Target, quick: dict[str, Any]) -> None:
    found = sampler.design(target, 16, top=5, verify=False, **quick)
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


def test_targets_the_bundle_cannot_be_asked_for(sampler: Sampler, data: DataSet, nth_target: Callable[..., Target]) -> None:
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


def test_targets_of_more_orders_are_cut_and_of_fewer_padded(sampler: Sampler, data: DataSet, nth_target: Callable[..., Target]) -> None:
    good = nth_target(data, 0)
    assert sampler.check(good.resized(11)).orders == 3
    mask = np.zeros((3, 3), bool)
    mask[1, 1] = True
    small = Target.from_arrays(np.zeros((3, 3)), np.full((3, 3), 0.1), 250.0, np.zeros((3, 3), bool), mask)
    checked = sampler.check(small)
    assert checked.orders == 3
    assert checked.mask_T.sum() == 1
    assert checked.wanted("T", 0, 0) == pytest.approx(0.1)


def test_two_threads_share_a_sampler(sampler: Sampler, data: DataSet, nth_target: Callable[..., Target], quick: dict[str, Any]) -> None:
    jobs = [(nth_target(data, i), seed) for i in range(3) for seed in range(2)]
    alone = [sampler.design(target, 12, seed=seed, **quick) for target, seed in jobs]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda job: sampler.design(job[0], 12, seed=job[1], **quick), jobs))
    for first, second in zip(alone, together, strict=True):
        assert [(d.candidate, d.score) for d in first] == [(d.candidate, d.score) for d in second]


def test_it_prints_nothing_and_leaves_nothing_running(
    small_bundle: Path, target: Target, quick: dict[str, Any], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Not after a design, nor after one that was cancelled; which engine answers is logged."""
    before = set(threading.enumerate())
    cancel = threading.Event()
    with caplog.at_level("INFO"), load(small_bundle, "onnxruntime", "cpu") as sampler:
        sampler.warmup()
        sampler.design(target, 8, **quick)
        with pytest.raises(Cancelled):
            sampler.design(target, 8, cancel=cancel, on_step=lambda *call: cancel.set(), **quick)
        cancel.clear()
        with pytest.raises(Cancelled):
            sampler.design(target, 8, cancel=cancel, on_solve=lambda *call: cancel.set(), **quick)
    assert set(threading.enumerate()) <= before
    assert capfd.readouterr() == ("", "")
    assert "onnxruntime on cpu in fp32" in caplog.text


def test_a_sampler_closed_while_another_thread_samples(
    small_bundle: Path, target: Target, condition: dict[str, np.ndarray], quick: dict[str, Any]
) -> None:
    """The batch at work is finished, the next one is refused."""
    sampler = load(small_bundle, "onnxruntime", "cpu")
    expected = sampler.sample(condition, 4, **quick)
    stream = sampler.stream(condition, 8, batch_size=4, on_step=lambda step, *rest: sampler.close() if step == 2 else None, **quick)
    np.testing.assert_array_equal(next(stream), expected)
    with pytest.raises(BackendError, match="is closed; load the bundle again"):
        next(stream)
