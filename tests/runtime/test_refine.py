"""Refinement: never worse than its start, within its budget, and it finds what it should."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.design import Design, read, save
from runtime.errors import Cancelled, DataError, TargetError
from runtime.fabrication import Limits, fines, violations
from runtime.freedom import Freedom, read_fixed
from runtime.geometry import Geometry
from runtime.physics.rcwa import Solver
from runtime.physics.uncertainty import with_uncertainty
from runtime.refine import GRADIENT, refine
from runtime.score import misrouted_power
from runtime.search import canonical
from runtime.target import Target

CELL = Geometry(period_nm=(2000.0, 2000.0), harmonics=3, dtype="complex128")
ORDERS, HEIGHT = 3, 250.0
SOLVER = Solver(CELL, ORDERS)
TRUTH = np.random.default_rng(3).integers(0, 2, (4, 4)).astype(np.uint8)


def target_of(pattern: np.ndarray = TRUTH, height: float = HEIGHT) -> Target:
    return Target.from_arrays(*SOLVER.solve(pattern, height), height)


def solved(pattern: np.ndarray, target: Target, height: float = HEIGHT, candidate: int = 0) -> Design:
    R, T = SOLVER.solve(pattern, height)
    return Design(pattern, height, R, T, float(misrouted_power(R, T, target)), True, 0, candidate, CELL)


def flipped(pattern: np.ndarray, *pixels: tuple[int, int]) -> np.ndarray:
    changed = pattern.copy()
    for pixel in pixels:
        changed[pixel] ^= 1
    return changed


class Judge:
    """A surrogate that solves with fewer harmonics, and counts what it is asked."""

    def __init__(self, harmonics: int = 3) -> None:
        self.solver, self.asked = Solver(dataclasses.replace(CELL, harmonics=harmonics), ORDERS), 0

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        cells = zip(arrays["pattern"][:, 0], arrays["height_nm"][:, 0], strict=True)
        maps = [self.solver.solve(pattern, float(height)) for pattern, height in cells]
        self.asked += len(maps)
        return {"R": np.stack([R for R, _ in maps]).astype(np.float32), "T": np.stack([T for _, T in maps]).astype(np.float32)}


START = flipped(TRUTH, (0, 1), (2, 2), (3, 0))


@pytest.fixture(autouse=True)
def _short_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell of sixteen pixels needs no walk of two dozen flips."""
    monkeypatch.setattr("runtime.refine.WALK", 4)


@pytest.fixture(scope="module")
def target() -> Target:
    return target_of()


@pytest.fixture(scope="module")
def start(target: Target) -> Design:
    return solved(START, target)


def test_with_a_good_surrogate_it_finds_the_cell(target: Target, start: Design) -> None:
    found = refine([start], target, Judge(), budget=8)
    assert start.score is not None
    assert start.score > 0.05
    assert found[0].score == pytest.approx(0, abs=1e-9)
    assert (canonical(found[0].pattern[None]) == canonical(TRUTH[None])).all()
    assert found[0].refined
    assert (found[0].candidate, found[0].verified) == (start.candidate, True)


@pytest.mark.parametrize("judge", [None, 2], ids=["gradient", "rough surrogate"])
@pytest.mark.parametrize("budget", [0, 1, 5, 12])
def test_never_worse_and_within_the_budget(judge: int | None, budget: int, target: Target, start: Design) -> None:
    solves: list[tuple[int, int]] = []
    found = refine(
        [start], target, None if judge is None else Judge(judge), budget=budget, on_solve=lambda done, total: solves.append((done, total))
    )
    scores = [design.score for design in found if design.score is not None]
    assert len(scores) == len(found)
    assert scores == sorted(scores)
    assert start.score is not None
    assert scores[0] <= start.score
    assert start in found, "what it began with is kept"
    assert len(found) - 1 <= budget
    assert max((done for done, _ in solves), default=0) <= budget
    assert all(total == budget for _, total in solves)
    assert len({canonical(design.pattern[None]).tobytes() for design in found}) == len(found), "nothing is solved twice"
    for design in found[:2]:
        assert design.score == misrouted_power(*SOLVER.solve(design.pattern, design.height_nm), target)


def test_the_gradient_alone_finds_a_flip_of_low_contrast() -> None:
    """Where a flip is a small change the gradient is right about it."""
    weak = dataclasses.replace(CELL, index_pillar=1.3, index_substrate=1.3)
    solver = Solver(weak, ORDERS)
    target = Target.from_arrays(*solver.solve(TRUTH, 100.0), 100.0)
    R, T = solver.solve(flipped(TRUTH, (1, 2)), 100.0)
    start = Design(flipped(TRUTH, (1, 2)), 100.0, R, T, float(misrouted_power(R, T, target)), True, 0, 0, weak)
    found = refine([start], target, None, budget=GRADIENT + 1)
    assert found[0].score == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("judge", [None, 3], ids=["gradient", "surrogate"])
def test_fixed_pixels_are_held(judge: int | None, target: Target, start: Design) -> None:
    fixed = np.full(TRUTH.shape, -1)
    fixed[:2] = START[:2]
    found = refine([start], target, None if judge is None else Judge(judge), budget=8, fixed=fixed)
    assert len(found) > 3
    assert all((design.pattern[:2] == START[:2]).all() for design in found)
    nothing = refine([start], target, None if judge is None else Judge(judge), budget=8, fixed=START.astype(np.int8))
    assert nothing == [start], "with every pixel held there is nothing to search"


def test_limits_lead_to_patterns_that_keep_them() -> None:
    limits = Limits(corners=False)
    best = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]], np.uint8)
    target = target_of(best)
    assert violations(best, CELL, limits) >= 8, "the best cell of all touches at many corners"
    first = solved(flipped(best, (1, 1)), target)
    free, held = refine([first], target, Judge(), 12), refine([first], target, Judge(), 12, limits=limits)
    assert np.array_equal(canonical(free[0].pattern[None]), canonical(best[None]))
    weight = [(design.score or 0) + fines(design.pattern[None], CELL, limits)[0] for design in held]
    assert weight == sorted(weight)
    assert violations(held[0].pattern, CELL, limits) < violations(best, CELL, limits)
    assert weight[0] < fines(best[None], CELL, limits)[0]


def test_a_target_that_is_reached_costs_nothing(target: Target) -> None:
    there = solved(TRUTH, target)
    assert refine([there], target, Judge(), 12) == [there]
    wide = Target.from_dict({"height_nm": HEIGHT, "orders": {"T(0,0)": {"max": 0.9}}}).resized(ORDERS)
    met = solved(START, wide)
    assert met.score == 0.0
    assert refine([met], wide, None, 12, heights=(200.0, 300.0)) == [met]


def test_any_number_of_workers_gives_the_same_designs(target: Target, start: Design) -> None:
    one, three = (refine([start], target, Judge(2), budget=8, workers=workers) for workers in (1, 3))
    assert [design.score for design in one] == [design.score for design in three]
    assert all((a.pattern == b.pattern).all() for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize("judge", [None, 3], ids=["gradient", "surrogate"])
def test_a_free_height_is_found(judge: int | None, target: Target) -> None:
    begin = solved(TRUTH, target, HEIGHT + 27.0)
    found = refine([begin], target, None if judge is None else Judge(judge), budget=32, heights=(150.0, 350.0))
    assert begin.score is not None
    assert found[0].score is not None
    assert found[0].score < 0.3 * begin.score
    assert found[0].height_nm == pytest.approx(HEIGHT, abs=6.0)
    kept = refine([begin], target, None if judge is None else Judge(judge), budget=12, heights=(270.0, 350.0))
    assert all(270.0 <= design.height_nm <= 350.0 for design in kept)


@pytest.mark.parametrize("judge", [None, 2], ids=["gradient", "surrogate"])
def test_it_stops_when_told_and_when_time_is_up(judge: int | None, target: Target, start: Design) -> None:
    surrogate = None if judge is None else Judge(judge)
    assert refine([start], target, surrogate, budget=20, end=time.monotonic() - 1) == [start]
    with pytest.raises(Cancelled):
        refine([start], target, surrogate, budget=20, stop=lambda: True)

    def impatient(done: int, total: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        refine([start], target, surrogate, budget=20, on_solve=impatient)


def test_what_was_not_solved_is_refused(target: Target, start: Design) -> None:
    with pytest.raises(DataError, match="at least one design that was solved"):
        refine([dataclasses.replace(start, score=None)], target)
    with pytest.raises(DataError, match="nothing to refine"):
        refine([], target)


# --- What may change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", '{"fixed": ["01.", "1x.", "..."]}', "is no table of pixels"),
        ("a.json", '{"fixed": 3}', "with a list of rows"),
        ("a.json", "{", "is not JSON"),
        ("a.txt", "", "come in a .npz or .json"),
        ("a.npz", "", "a.npz"),
    ],
)
def test_a_wrong_mask_is_one_sentence(name: str, content: str, words: str, tmp_path: Path, plain: Callable[[str], bool]) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words) as error:
        read_fixed(tmp_path / name)
    assert plain(str(error.value))


def test_masks_in_files(tmp_path: Path) -> None:
    wanted = [[-1, 0, 1], [1, -1, -1], [0, 0, 0]]
    (tmp_path / "a.json").write_text('{"fixed": [".01", [1, -1, -1], "000"]}')
    np.savez(tmp_path / "a.npz", fixed=np.array(wanted, np.int8))
    assert read_fixed(tmp_path / "a.json").tolist() == wanted
    assert read_fixed(tmp_path / "a.npz").tolist() == wanted


def test_limits_are_checked_against_the_bundle(sampler: Any) -> None:
    low, high = sampler.bundle.condition.height_range_nm
    assert Freedom.of(sampler.bundle, True, 7, None, "free")[:4] == (7, None, (low, high), None)
    assert Freedom.of(sampler.bundle, False, 7, None, None)[:4] == (None, None, None, None)
    for height, words in (((0.0, high), "outside the"), ((high, low), "the lowest has to come first"), ("tall", "may be 'free'")):
        with pytest.raises(TargetError, match=words):
            Freedom.of(sampler.bundle, True, 7, None, height)
    with pytest.raises(DataError, match="budget is 0"):
        Freedom.of(sampler.bundle, True, 0, None, None)
    with pytest.raises(DataError, match=r"shape \(2, 2\); expected \(5, 5\)"):
        Freedom.of(sampler.bundle, True, 7, [[0, 1], [1, 0]], None)


# --- The whole way --------------------------------------------------------------------------------------------------


def test_a_sampler_refines_within_its_budget(sampler: Any, data: Any, nth_target: Callable[..., Target], quick: dict[str, Any]) -> None:
    wish = nth_target(data, 1)
    fixed = np.full((5, 5), -1)
    fixed[1, 1:3] = 1, 0
    solves: list[int] = []
    settings = {**quick, "n": 6, "top": 3, "fixed": fixed, "height": (200.0, 300.0)}
    bests: list[float] = []
    plain, refined = (
        sampler.design(
            wish,
            refine=refine,
            budget=12,  # half of it solves all six candidates
            on_solve=lambda done, _: solves.append(done),
            on_best=lambda design: bests.append(design.score),
            **settings,
        )
        for refine in (False, True)
    )
    improving = bests[bests.index(plain[0].score) + 1 :]  # the first run tells its own best, and ends there
    assert improving == sorted(set(improving), reverse=True)
    assert improving[-1] == refined[0].score
    assert refined[0].score <= plain[0].score
    assert max(solves) <= 12
    assert all(design.pattern[1, 1:3].tolist() == [1, 0] and 200 <= design.height_nm <= 300 for design in plain + refined)
    assert any(design.refined for design in refined)
    assert all(design.uncertainty is None for design in plain)
    finer = Solver(dataclasses.replace(data.geometry, harmonics=data.geometry.harmonics + 2), wish.orders)
    for design in refined:
        R, T = finer.solve(design.pattern, design.height_nm)
        assert design.uncertainty == pytest.approx((np.abs(R - design.R).sum() + np.abs(T - design.T).sum()) / 2, abs=1e-9)
    again = sampler.design(wish, refine=True, budget=12, **settings)
    assert [design.score for design in again] == [design.score for design in refined]


def test_what_refinement_adds_is_saved_and_read(target: Target, start: Design, tmp_path: Path) -> None:
    designs = with_uncertainty(refine([start], target, Judge(2), budget=4)[:2])
    save(designs, target, tmp_path)
    found = read(tmp_path / "designs.npz")
    assert [(design.refined, design.uncertainty) for design in found] == [(design.refined, design.uncertainty) for design in designs]
    assert all(design.uncertainty is not None for design in found)


def test_uncertainty_needs_time_and_a_solved_design(start: Design) -> None:
    assert with_uncertainty([start], end=time.monotonic() - 1)[0].uncertainty is None
    assert with_uncertainty([dataclasses.replace(start, R=None, T=None, score=None)])[0].uncertainty is None
