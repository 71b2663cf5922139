"""bench/design.py: what a search spends is counted, what it finds was solved, and the tables say what the records hold."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import _rivals, design
from bench._rivals import Problem
from runtime.geometry import Geometry
from runtime.physics.rcwa import Solver
from runtime.sampler import load
from runtime.score import misrouted_power
from runtime.target import Target

CELL = Geometry(period_nm=(2000.0, 2000.0), harmonics=3, dtype="complex128")
TRUTH = np.random.default_rng(3).integers(0, 2, (4, 4)).astype(np.uint8)
TARGET = Target.from_arrays(*Solver(CELL, 3).solve(TRUTH, 250.0), 250.0)
START = TRUTH ^ np.eye(4, dtype=np.uint8)
RIVALS: dict[str, tuple[_rivals.Method, int]] = {
    "random": (_rivals.random_search, 60),
    "hill": (functools.partial(_rivals.hill_climbing, start=START), 300),
    "genetic": (_rivals.genetic_algorithm, 300),
    "topology": (_rivals.topology_optimisation, 250),
}

NEEDS = {"genetic": "pymoo", "topology": "torch"}


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("coarse", [None, 2])
def test_a_rival_spends_its_budget_and_its_scores_are_solved(name: str, coarse: int | None) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    method, budget = RIVALS[name]
    problem = Problem(TARGET, CELL, 4, budget, coarse)
    record = _rivals.run(problem, method, 1)
    assert budget - 1 <= record["solves"] <= budget, "a gradient takes two"
    solves, seconds, scores = zip(*record["history"], strict=True)
    assert list(solves) == sorted(set(solves))
    assert list(seconds) == sorted(seconds)
    assert list(scores) == sorted(set(scores), reverse=True)
    solver = Solver(CELL, 3)
    patterns = [np.frombuffer(key, np.uint8).reshape(4, 4) for key in problem.known]
    truth = [float(misrouted_power(*solver.solve(pattern, 250.0), TARGET)) for pattern in patterns]
    assert min(abs(score - scores[-1]) for score in truth) < 1e-12
    if coarse is None:
        assert scores[-1] == pytest.approx(min(truth), abs=1e-12)
        assert _rivals.run(Problem(TARGET, CELL, 4, budget), method, 1)["history"][-1][2] == scores[-1], "the same seed, the same search"


def test_search_finds_more_than_chance() -> None:
    def median(name: str) -> float:
        runs = [_rivals.run(Problem(TARGET, CELL, 4, 300), RIVALS[name][0], seed) for seed in range(5)]
        return float(np.median([run["history"][-1][2] for run in runs]))

    assert median("hill") < 1e-9 < median("random")
    pytest.importorskip(NEEDS["genetic"])
    assert median("genetic") < median("random") / 2


def test_ours_is_the_samplers_own_search(small_bundle: Path, small_data: Path) -> None:
    from runtime.data import load as load_data

    data = load_data(small_data)
    (target,) = design.targets(data, 1)
    with load(small_bundle, backend="onnxruntime", device="cpu", threads=1) as sampler:
        found: dict[bool, dict[str, Any]] = {}
        for refine in (False, True):
            problem = Problem(target, data.geometry, data.xx.shape[-1], 12)
            found[refine] = _rivals.run(problem, functools.partial(_rivals.ours, sampler=sampler, n=16, refine=refine), 3)
        best = sampler.design(target, 16, refine=True, budget=12, seed=3)[0]
    assert found[True]["history"][-1][2] == best.score
    assert all(record["solves"] <= 12 for record in found.values())
    assert found[True]["history"][-1][2] <= found[False]["history"][0][2]


def test_tables_hold_the_medians_of_what_was_found_by_then() -> None:
    histories = [[[1, 0.5, 0.4], [6, 3.0, 0.2]], [[2, 1.0, 0.3], [500, 60.0, 0.1]], [[1, 0.1, 0.5]]]
    records = [{"history": rows, "solves": 500, "seconds": 70.0} for rows in histories]
    assert design.medians(records, 0, (1, 4, 8, 500, 1000)) == [0.5, 0.4, 0.3, 0.2, None]
    assert design.medians(records, 1, (2, 40)) == [0.4, 0.3]
    ours = [{"history": [[4, 1.0, 0.25], [9, 2.0, score]], "solves": 9, "seconds": 2.0} for score in (0.2, 0.1, 0.3)]
    said = design.table({design.OURS: ours, "random": records})
    assert said.endswith("best rival: random, 0.200 after 500 solves; ours reaches that after 9 solves")


def test_the_script_goes_on_where_it_was_stopped(small_bundle: Path, small_data: Path, tmp_path: Path) -> None:
    arguments = [
        *("--data", small_data, "--train-data", small_data, "--bundle", small_bundle, "--backend", "onnxruntime", "--out", tmp_path),
        *("--targets", "2", "--solves", "8", "-n", "8", "--methods", design.OURS, "random"),
    ]
    script = Path(design.__file__)

    def run() -> subprocess.CompletedProcess[str]:
        done = subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    first = run()
    assert "median misrouted power after so many solves" in first.stdout
    assert (tmp_path / "design.png").stat().st_size > 10_000
    kept = tmp_path / "random.1.json"
    changed = json.loads(kept.read_text()) | {"history": [[1, 0.5, 0.0]]}
    kept.write_text(json.dumps(changed))
    (tmp_path / "random.0.json").unlink()
    second = run()
    assert json.loads(kept.read_text()) == changed, "a result that is there is not searched again"
    assert "random, target 1 at" in second.stderr
    assert json.loads((tmp_path / "random.0.json").read_text())["solves"] == 8
