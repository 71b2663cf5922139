"""Callers that share the denoiser's calls get what they would get alone, and leave without disturbing the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.batching import BatchingSampler
from runtime.bundle import Bundle
from runtime.data import DataSet
from runtime.errors import BackendError, Cancelled
from runtime.loop import denoise
from runtime.sampler import Sampler
from runtime.target import Target


@pytest.fixture
def shared(small_bundle: Path) -> Iterator[BatchingSampler]:
    """One that waits long enough for all of a test's callers to be there."""
    opened = BatchingSampler(Bundle.open(small_bundle), "onnxruntime", "cpu", threads=1, linger_s=0.3)
    with opened:
        yield opened


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal to the engine's rounding."""
    return found.shape == expected.shape and bool(np.abs(found - expected).max() < 5e-5)


@pytest.mark.parametrize(("scheduler", "scale"), [("ddpm", 1.0), ("dpmsolver++", 1.0), ("dpmsolver++", 3.0)])
def test_rows_of_several_runs_in_one_call(
    scheduler: str, scale: float, sampler: Sampler, data: DataSet, nth_target: Callable[..., Target]
) -> None:
    """Conditions, seeds and candidates of a row each: what each run gives alone, its fresh noise included."""
    runs = [(nth_target(data, i), seed, range(first, first + 3)) for i, seed, first in ((0, 0, 0), (1, 0, 0), (1, 2**63 - 1, 5), (2, 7, 2))]
    plan, guidance, shape = sampler.plan(4, scheduler), sampler.guidance(scale), tuple(sampler.bundle.manifest["sample_shape"])

    def arrays(target: Target, free: bool) -> dict[str, np.ndarray]:
        found = sampler.told(sampler.condition(target), guidance)[free]
        assert found is not None
        return found

    def run(conditions: list[Any], frees: list[Any] | None, seeds: Any, candidates: Any) -> np.ndarray:
        whole = [{k: np.concatenate([c[k] for c in group]) for k in group[0]} if group else None for group in (conditions, frees)]
        network = sampler.networks["denoiser"]
        return denoise(network, plan, shape, whole[0], whole[1], guidance, seeds, candidates, lambda k, estimate: None)  # type: ignore[arg-type]

    alone = [run([arrays(t, False)], [arrays(t, True)] if scale != 1 else None, seed, which) for t, seed, which in runs]
    rows = [(t, seed, k) for t, seed, which in runs for k in which]
    frees = [arrays(t, True) for t, *_ in rows] if scale != 1 else None
    together = run([arrays(t, False) for t, *_ in rows], frees, [seed for _, seed, _ in rows], [k for *_, k in rows])
    assert close(together, np.concatenate(alone))
    assert np.abs(alone[0] - alone[1]).max() > 5e-4, "the targets differ by more than rounding"
    assert np.abs(alone[1] - alone[2]).max() > 1e-2, "the seeds differ"


def test_many_callers_share_calls_and_get_their_own(
    shared: BatchingSampler, sampler: Sampler, data: DataSet, nth_target: Callable[..., Target]
) -> None:
    asked = [(nth_target(data, i % 4), seed, 1 + i % 3) for i, seed in enumerate(range(12))]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda ask: shared.sample(shared.condition(ask[0]), ask[2], seed=ask[1], steps=4), asked))
    for (target, seed, n), got in zip(asked, found, strict=True):
        assert close(got, sampler.sample(sampler.condition(target), n, seed=seed, steps=4))
    assert shared.rows == sum(n for _, _, n in asked)
    assert shared.calls < 6, "twelve callers in a few batches"


def test_only_what_goes_together_does(shared: BatchingSampler, sampler: Sampler, condition: dict[str, np.ndarray]) -> None:
    """Other steps, schedulers or guidance are another batch; a start from a pattern is one of its own."""
    start = (np.ones(tuple(sampler.bundle.manifest["sample_shape"]), np.float32), 0.6)
    settings: list[dict[str, Any]] = [
        {"steps": 4},
        {"steps": 4, "seed": 5},
        {"steps": 5},
        {"steps": 4, "scheduler": "ddpm"},
        {"steps": 4, "guidance_scale": 2.0},
        {"steps": 4, "guidance_scale": 2.0, "guidance_interval": (0.0, 1.0)},
        {"steps": 8, "start": start},
        {"steps": 8, "start": start, "seed": 1},
    ]
    with ThreadPoolExecutor(len(settings)) as pool:
        found = list(pool.map(lambda more: shared.sample(condition, 3, **more), settings))
    for more, got in zip(settings, found, strict=True):
        assert close(got, sampler.sample(condition, 3, **more)), more
    assert shared.calls == 7


def test_a_batch_has_no_more_rows_than_the_engine_wants(
    shared: BatchingSampler, sampler: Sampler, condition: dict[str, np.ndarray]
) -> None:
    sizes: list[int] = []
    run = shared._run
    shared._run = lambda batch: (sizes.append(sum(len(part.candidates) for part in batch)), run(batch))  # type: ignore[method-assign, assignment, func-returns-value]
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda seed: shared.sample(condition, 40, seed=seed, steps=2), range(5)))
    assert max(sizes) <= shared.batch_size()
    assert sum(sizes) == 200
    assert all(close(got, sampler.sample(condition, 40, seed=seed, steps=2)) for seed, got in enumerate(found))


def test_who_leaves_does_not_disturb_the_others(shared: BatchingSampler, sampler: Sampler, condition: dict[str, np.ndarray]) -> None:
    """One is cancelled in the middle, one's callback raises; the third's samples and steps are whole."""

    class Mine(Exception):
        pass

    gone = threading.Event()
    steps: list[int] = []

    def fail(step: int, total: int, estimate: np.ndarray) -> None:
        if step == 2:
            gone.set()
            raise Mine("stop here")

    with ThreadPoolExecutor(3) as pool:
        raising = pool.submit(shared.sample, condition, 2, seed=1, steps=6, on_step=fail)
        cancelled = pool.submit(shared.sample, condition, 2, seed=2, steps=6, stop=gone.is_set)
        whole = pool.submit(shared.sample, condition, 2, seed=3, steps=6, on_step=lambda step, *rest: steps.append(step))
        with pytest.raises(Mine, match="stop here"):
            raising.result()
        with pytest.raises(Cancelled):
            cancelled.result()
        assert close(whole.result(), sampler.sample(condition, 2, seed=3, steps=6))
    assert steps == [1, 2, 3, 4, 5, 6]
    assert shared.calls == 1


def test_when_all_have_left_the_work_ends(shared: BatchingSampler, condition: dict[str, np.ndarray]) -> None:
    gone = threading.Event()
    seen: list[int] = []

    def watch(step: int, total: int, estimate: np.ndarray) -> None:
        seen.append(step)
        gone.set()

    with pytest.raises(Cancelled):
        shared.sample(condition, 2, steps=30, stop=gone.is_set, on_step=watch)
    assert len(shared.sample(condition, 1, steps=2)) == 1, "the thread goes on with what comes next"
    assert max(seen) < 30


def test_who_is_cancelled_while_waiting_leaves_the_queue(shared: BatchingSampler, condition: dict[str, np.ndarray]) -> None:
    """The network is held at work by another until the one that waits has gone."""
    begun, left, gone = threading.Event(), threading.Event(), threading.Event()

    def hold(step: int, total: int, estimate: np.ndarray) -> None:
        begun.set()
        assert left.wait(30)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(shared.sample, condition, 1, steps=3, on_step=hold)
        assert begun.wait(30)
        second = pool.submit(shared.sample, condition, 1, steps=3, stop=gone.is_set)
        gone.set()
        with pytest.raises(Cancelled):
            second.result(30)
        left.set()
        assert len(first.result(30)) == 1
    assert (shared.calls, shared.rows) == (1, 1)


def test_closed_it_refuses_and_leaves_no_thread(small_bundle: Path, condition: dict[str, np.ndarray]) -> None:
    before = set(threading.enumerate())
    sampler = BatchingSampler(Bundle.open(small_bundle), "onnxruntime", "cpu", threads=1, linger_s=30.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sampler.sample, condition, 1, steps=2)
        while not sampler._parts:
            assert not waiting.done()
        sampler.close()
        with pytest.raises(BackendError, match="is closed; load the bundle again"):
            waiting.result()
    with pytest.raises(BackendError, match="is closed"):
        sampler.sample(condition, 1, steps=2)
    assert set(threading.enumerate()) <= before


def test_an_engine_that_fails_fails_for_all_in_the_batch(
    shared: BatchingSampler, condition: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **more: Any) -> Any:
        raise BackendError("the engine broke")

    monkeypatch.setattr("runtime.batching.denoise", broken)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(shared.sample, condition, 1, seed=seed, steps=2) for seed in range(2)]
        errors = [future.exception() for future in waiting]
    assert [str(error) for error in errors] == ["the engine broke"] * 2
    assert errors[0] is not errors[1]


def test_what_the_engine_cannot_take_fails_alone(
    shared: BatchingSampler,
    sampler: Sampler,
    condition: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The others of its batch are sampled again, each by itself, and get what they would get alone."""
    sizes: list[int] = []

    def picky(network: Any, plan: Any, shape: Any, arrays: Any, free: Any, guidance: Any, seeds: Any, *rest: Any, **more: Any) -> Any:
        if 1 in seeds:
            raise BackendError("not that seed")
        return denoise(network, plan, shape, arrays, free, guidance, seeds, *rest, **more)

    monkeypatch.setattr("runtime.batching.denoise", picky)
    shared.on_batch = sizes.append
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(shared.sample, condition, 2, seed=seed, steps=2) for seed in range(3)]
        assert str(waiting[1].exception()) == "not that seed"
        for seed in (0, 2):
            assert close(waiting[seed].result(), sampler.sample(condition, 2, seed=seed, steps=2))
    assert sizes == [6, 2, 2, 2]
    assert caplog.messages == ["a batch of 6 candidates failed, and its 3 requests are sampled one by one: not that seed"]
