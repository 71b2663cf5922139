"""Ranking by worst case and within limits, and what is said of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from runtime import making as room
from runtime.design import Design
from runtime.fabrication import Limits
from runtime.geometry import Geometry
from runtime.making import Making
from runtime.search import SOLVED
from runtime.target import Target
from runtime.tolerance import PARAMETERS, Curve, Tolerance

M = 2
SIDE = 2 * M + 1
CORNERS = Limits(corners=False)
PLAIN, CORNER = np.zeros((4, 4), np.uint8), np.eye(4, dtype=np.uint8)
PLAIN[1:3] = 1


def target() -> Target:
    T = np.zeros((SIDE, SIDE))
    T[M, M] = 1.0
    return Target.from_arrays(np.zeros((SIDE, SIDE)), T, 300.0)


def designs() -> list[Design]:
    """By score: one that touches at corners and bears nothing, a plain one, one of each again."""
    R, T = np.zeros((SIDE, SIDE)), target().T
    patterns = (CORNER, PLAIN, 1 - CORNER, PLAIN.T)
    return [Design(pattern, 300.0 + k, R, T, 0.1 * k, True, 0, k, Geometry()) for k, pattern in enumerate(patterns)]


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the designs whose tolerances are solved; the worst cases are 0.9, 0.3, 0.7, 0.5."""
    asked: list[int] = []
    worst = (0.9, 0.3, 0.7, 0.5)

    def tolerances(found, *arguments):
        asked.extend(design.candidate for design in found)
        return [
            dataclasses.replace(
                design, tolerance=Tolerance(dict.fromkeys(PARAMETERS, Curve((-1.0, 0.0, 1.0), (0.2, 0.1, worst[design.candidate]))))
            )
            for design in found
        ]

    monkeypatch.setattr(room.tolerance, "tolerances", tolerances)
    return asked


def order(found: list[Design]) -> list[int]:
    return [design.candidate for design in found]


def test_nothing_asked_changes_nothing(solved: list[int]) -> None:
    made = designs()
    assert Making().arrange(made, target(), 3) == made[:3]
    assert Making().pool(2) == 2
    assert Making().ranking == "score"
    assert solved == []


def test_within_limits_comes_first_and_the_score_decides_after(solved: list[int]) -> None:
    making = Making(CORNERS)
    assert order(making.arrange(designs(), target(), 4)) == [1, 3, 0, 2]
    assert order(making.arrange(designs(), target(), 1)) == [1]
    assert making.pool(1) == SOLVED
    assert making.pool(9) == 9
    assert making.ranking == "no corner contacts first, then score"
    assert solved == []


def test_robust_ranks_all_there_are_by_worst_case(solved: list[int]) -> None:
    making = Making(tolerance=True, robust=True)
    assert order(making.arrange(designs(), target(), 3)) == [1, 3, 2]
    assert sorted(solved) == [0, 1, 2, 3], "each once"
    assert making.pool(1) == SOLVED
    assert order(Making(Limits(2000.0), True, True).arrange(designs(), target(), 4)) == [1, 3, 2, 0]


def test_tolerances_alone_are_solved_for_the_designs_kept(solved: list[int]) -> None:
    found = Making(tolerance=True).arrange(designs(), target(), 2)
    assert order(found) == solved == [0, 1]
    assert all(design.tolerance is not None for design in found)


def test_the_text_says_what_was_ranked(solved: list[int]) -> None:
    both = Making(Limits(1500.0, corners=False), True, True)
    text = both.text(both.arrange(designs(), target(), 4))
    assert "Pillars and gaps of at least 1500 nm and no corner contacts: 2 of 4 designs, which come first." in text
    assert "worst case" in text
    assert "Ranked by worst case." in text
    none = Making(CORNERS)
    assert "No corner contacts: 0 of 1 designs, so the limits ranked nothing" in none.text(designs()[:1])
    plain = Making().text(designs())
    assert [line.split()[0] for line in plain.splitlines()] == ["rank", "1", "2", "3", "4"]
    assert "limits" not in plain
    assert "worst" not in plain
