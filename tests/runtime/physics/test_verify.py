"""solve_many and verify: the numbers of one Solver, whatever the threads, and a stop that is heard."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from runtime.design import Design
from runtime.errors import Cancelled, DataError, TargetError
from runtime.geometry import Geometry
from runtime.physics import verify as module
from runtime.physics.rcwa import Solver
from runtime.physics.verify import one_blas_thread, solve_many, verify
from runtime.target import Target

# Small enough for a millisecond a solve; the accuracy of the solver is test_rcwa's business.
GEOMETRY = Geometry(harmonics=4)


def patterns(count: int, seed: int = 0, size: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (count, size, size), dtype=np.uint8)


def test_same_numbers_for_any_number_of_workers():
    xx, h = patterns(12), np.linspace(60, 500, 12)
    R, T = solve_many(xx, h, GEOMETRY, 5, workers=1)
    for workers in (2, 5, None):
        again = solve_many(xx, h, GEOMETRY, 5, workers=workers)
        assert np.array_equal(again[0], R)
        assert np.array_equal(again[1], T)
    with one_blas_thread():
        one = [Solver(GEOMETRY, 5).solve(pattern, height) for pattern, height in zip(xx, h, strict=True)]
    assert np.array_equal(R, [r for r, _ in one])
    assert np.array_equal(T, [t for _, t in one])
    assert R.dtype == T.dtype == np.float64
    assert R.shape == (12, 11, 11)


def test_one_height_serves_all_and_no_pattern_is_no_work():
    R, T = solve_many(patterns(3), 200, GEOMETRY, 4)
    assert np.array_equal(R, solve_many(patterns(3), np.full(3, 200.0, np.float32), GEOMETRY, 4)[0])
    assert np.allclose(R.sum((1, 2)) + T.sum((1, 2)), 1, atol=1e-4)
    assert solve_many(patterns(0), 200, GEOMETRY, 4)[0].shape == (0, 9, 9)


def test_wrong_shapes_are_refused():
    with pytest.raises(DataError, match=r"shape \(6, 6\)"):
        solve_many(patterns(1)[0], 200, GEOMETRY, 4)
    with pytest.raises(DataError, match="one per pattern"):
        solve_many(patterns(3), np.array([100.0, 200.0]), GEOMETRY, 4)
    with pytest.raises(DataError, match=r"0 \(gap\) or 1"):
        solve_many(patterns(3) * 2, 200, GEOMETRY, 4)


def test_progress_is_told_in_the_callers_thread():
    seen: list[tuple[int, int, int]] = []
    solve_many(patterns(5), 200, GEOMETRY, 4, workers=2, on_done=lambda done, total: seen.append((done, total, threading.get_ident())))
    assert seen[-1][:2] == (5, 5)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert {thread for _, _, thread in seen} == {threading.get_ident()}


@pytest.mark.parametrize("kind", ["event", "callable", "before"])
def test_cancel_is_prompt(kind):
    event = threading.Event()
    if kind == "before":
        event.set()
    else:
        threading.Timer(0.2, event.set).start()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        solve_many(patterns(5000), 200, Geometry(harmonics=6), 4, workers=2, cancel=event.is_set if kind == "callable" else event)
    assert time.monotonic() - start < 5


def test_what_a_callback_raises_stops_the_work():
    def stop(done: int, total: int) -> None:
        raise KeyError("mine")

    start = time.monotonic()
    with pytest.raises(KeyError, match="mine"):
        solve_many(patterns(5000), 200, Geometry(harmonics=6), 4, workers=2, on_done=stop)
    assert time.monotonic() - start < 5


def test_blas_threads_are_as_before_afterwards():
    known = module._blas_threads()
    if not known:
        pytest.skip("this NumPy has no OpenBLAS of its own")
    before = [get() for _, get in known]
    try:
        known[0][0](2)
        with one_blas_thread() as limited:
            assert limited
            with one_blas_thread():
                assert known[0][1]() == 1
            assert known[0][1]() == 1, "an inner block must not undo an outer one"
        assert known[0][1]() == 2
    finally:
        known[0][0](before[0])


def test_importing_loads_numpy_alone():
    code = (
        "import sys, runtime.physics.verify, runtime.physics.simulate, runtime.evaluate;"
        "print([m for m in ('scipy', 'tqdm', 'torch', 'multiprocessing', 'concurrent.futures') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def design(pattern: np.ndarray, height: float, geometry: Geometry = GEOMETRY, maps: np.ndarray | None = None) -> Design:
    return Design(pattern, height, maps, maps, 0.5, False, 3, 7, geometry)


def test_verify_solves_with_the_settings_each_design_states():
    xx = patterns(3)
    other = dataclasses.replace(GEOMETRY, harmonics=5)
    R, T = Solver(GEOMETRY, 5).solve(xx[1], 300)
    target = Target.from_arrays(R, T, 300)
    lie = np.full((11, 11), 0.1)
    before = [design(xx[0], 300), design(xx[1], 300, maps=lie), design(xx[1], 300, other), design(xx[2], 310)]
    told: list[tuple[int, int]] = []
    after = verify(before, target, on_done=lambda done, total: told.append((done, total)))
    assert [d.verified for d in after] == [True] * 4
    assert [(d.seed, d.candidate, d.height_nm) for d in after] == [(d.seed, d.candidate, d.height_nm) for d in before]
    scores = [d.score for d in after if d.score is not None]
    assert scores[1] == pytest.approx(0, abs=1e-5)
    assert after[1].R is not None
    assert np.allclose(after[1].R, R, atol=1e-6)
    assert scores[2] > 0.005, "other harmonics, other numbers"
    assert scores[3] > scores[1]
    assert not before[0].verified
    assert told[-1] == (4, 4)


def test_verify_refuses_another_problem():
    pattern = patterns(1)[0]
    R, T = Solver(GEOMETRY, 5).solve(pattern, 300)
    target = Target.from_arrays(R, T, 300, geometry=dataclasses.replace(GEOMETRY, wavelength_nm=1300))
    with pytest.raises(TargetError, match="wavelength_nm is 1300"):
        verify([design(pattern, 300)], target)


def test_verify_keeps_the_number_of_orders_of_the_designs():
    pattern = patterns(1)[0]
    R, T = Solver(GEOMETRY, 5).solve(pattern, 300)
    after = verify([design(pattern, 300, maps=np.zeros((15, 15)))], Target.from_arrays(R, T, 300))
    assert after[0].R is not None
    assert after[0].R.shape == (15, 15)
    assert after[0].score == pytest.approx(0, abs=1e-5)
