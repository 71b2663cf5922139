"""Ways to search for a cell that scatters as wanted, each spending RCWA solves on one target; bench/design.py compares them.

A :class:`Problem` counts the solves, keeps the best design so far and says when the budget is spent. Methods know nothing of each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from runtime.design import Design
from runtime.geometry import Geometry
from runtime.physics.rcwa import Solver
from runtime.physics.verify import one_blas_thread
from runtime.refine import GRADIENT
from runtime.sampler import Sampler
from runtime.score import misrouted_power
from runtime.search import promises, unique
from runtime.target import Target

STREAM = 0x64657369676E  # not the stream data sets are drawn from: one of the same seed would hold the answers
COARSE = 8  # harmonics: a sixth of the time of 11, scores within 0.01 of theirs
POPULATION = 20  # of the genetic algorithm
KICK = 5  # flips with which hill climbing leaves a local optimum
ITERATIONS, CHECKED, SHARPEST = 50, 10, 32.0  # topology optimisation: steps from one start, steps between two solves, last slope


class Spent(Exception):
    """The budget of solves is used up."""


class Problem:
    """One target, its solver, and the record of a search.

    Args:
        target: in the data's number of orders, at its height.
        geometry: the data's own; every score that counts is solved with its truncation.
        size: n of the n x n patterns.
        solves: the budget.
        coarse: harmonics to search with; a pattern is then solved at the data's own where it is the best by them.
    """

    def __init__(self, target: Target, geometry: Geometry, size: int, solves: int, coarse: int | None = None) -> None:
        self.target, self.geometry, self.size, self.solves = target, geometry, size, solves
        self.solver = Solver(geometry, target.orders)
        self.coarse = None if coarse is None else Solver(dataclasses.replace(geometry, harmonics=coarse), target.orders)
        self.best, self.promising = np.inf, np.inf
        self.spent = 0
        self.known: dict[bytes, float] = {}
        self.history: list[tuple[int, float, float]] = []  # solves, seconds of CPU, misrouted power: each better than the one before
        self.started = time.process_time()

    def spend(self, count: int = 1) -> None:
        """Take solves from the budget. Raises Spent."""
        if self.spent + count > self.solves:
            raise Spent
        self.spent += count

    def tell(self, score: float, solves: int | None = None) -> None:
        """A design was solved at the data's own truncation."""
        if score < self.best:
            self.best = score
            self.history.append((self.spent if solves is None else solves, time.process_time() - self.started, score))

    def score(self, pattern: np.ndarray) -> float:
        """Misrouted power of a pattern (n, n), by the truncation that the search uses; known patterns cost nothing. Raises Spent."""
        pattern = np.ascontiguousarray(pattern, np.uint8)
        key = pattern.tobytes()
        if key not in self.known:
            if self.coarse is None:
                self.known[key] = self.solved(pattern)
            else:
                self.spend()
                found = float(misrouted_power(*self.coarse.solve(pattern, self.target.height_nm), self.target))
                self.known[key] = found
                if found < self.promising:
                    self.promising = found
                    self.solved(pattern)
        return self.known[key]

    def solved(self, pattern: np.ndarray) -> float:
        """Misrouted power of a pattern (n, n) at the data's own truncation. Raises Spent."""
        self.spend()
        found = float(misrouted_power(*self.solver.solve(pattern, self.target.height_nm), self.target))
        self.tell(found)
        return found


Method = Callable[[Problem, int], None]


def random_search(problem: Problem, seed: int) -> None:
    """Patterns of fair coins."""
    rng = np.random.default_rng((STREAM, seed))
    while True:
        problem.score(rng.integers(0, 2, (problem.size, problem.size)))


def hill_climbing(problem: Problem, seed: int, start: np.ndarray) -> None:
    """Flips in random order, kept where they help; from a local optimum ``KICK`` random flips of the best lead on."""
    rng = np.random.default_rng((STREAM, seed))
    best = here = np.array(start, np.uint8)
    lowest = at = problem.score(here)
    while True:
        stuck = True
        for place in rng.permutation(here.size):
            flipped = here.copy()
            flipped.flat[place] ^= 1
            found = problem.score(flipped)
            if found < at:
                here, at, stuck = flipped, found, False
        if at < lowest:
            best, lowest = here, at
        if stuck:
            here = best.copy()
            here.flat[rng.choice(here.size, KICK, replace=False)] ^= 1
            at = problem.score(here)


def genetic_algorithm(problem: Problem, seed: int) -> None:
    """pymoo's, on bits: tournaments, two-point crossover, bit-flip mutation, no duplicates."""
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.mutation.bitflip import BitflipMutation
    from pymoo.operators.sampling.rnd import BinaryRandomSampling
    from pymoo.optimize import minimize

    class Bits(ElementwiseProblem):
        def __init__(self) -> None:
            super().__init__(n_var=problem.size**2, n_obj=1, xl=0, xu=1, vtype=bool)

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *rest: Any, **more: Any) -> None:
            out["F"] = problem.score(x.reshape(problem.size, problem.size))

    algorithm = GA(
        pop_size=POPULATION,
        sampling=BinaryRandomSampling(),
        crossover=TwoPointCrossover(),
        mutation=BitflipMutation(),
        eliminate_duplicates=True,
    )
    minimize(Bits(), algorithm, ("n_gen", 10**6), seed=seed, verbose=False)


def topology_optimisation(problem: Problem, seed: int) -> None:
    """Adam on grey pixels behind a sigmoid that sharpens, from random starts, by the gradient of ``train/rcwa.py``.

    It searches with ``COARSE`` harmonics. A gradient counts as two solves, as in our own search. The pattern at the threshold is
    solved every ``CHECKED`` steps.
    """
    import torch

    from train.rcwa import TorchSolver, misrouted_power

    geometry = dataclasses.replace(problem.geometry, harmonics=min(COARSE, problem.geometry.harmonics))
    solver = TorchSolver(geometry, problem.target.orders, dtype=torch.complex64)
    generator = torch.Generator().manual_seed(seed)
    while True:
        levels = (0.5 * torch.randn(1, problem.size, problem.size, dtype=torch.float64, generator=generator)).requires_grad_()
        optimiser = torch.optim.Adam([levels], lr=0.1)
        for step in range(1, ITERATIONS + 1):
            problem.spend(GRADIENT)
            optimiser.zero_grad()
            slope = 2.0 * (SHARPEST / 2.0) ** (step / ITERATIONS)
            R, T = solver.solve(torch.sigmoid(slope * levels), [problem.target.height_nm])
            misrouted_power(R, T, problem.target).sum().backward()
            optimiser.step()
            if step % CHECKED == 0:
                problem.score((levels[0].detach() > 0).numpy())


def ours(problem: Problem, seed: int, sampler: Sampler, n: int, refine: bool) -> None:
    """``Sampler.design`` with the budget; without refinement the candidates solved in the order in which the surrogate ranks them."""
    if not refine:
        if sampler.surrogate is None:
            candidates = sampler.propose(problem.target, n, seed=seed)
        else:
            found = sampler.propose(problem.target, n, seed=seed)
            candidates = found[unique(found)]
            candidates = candidates[np.argsort(promises(candidates, problem.target, sampler.surrogate), kind="stable")]
        for pattern in candidates:
            problem.score(pattern)
        return
    done = 0

    def solved(count: int, total: int) -> None:
        nonlocal done
        done = count

    def better(design: Design) -> None:
        assert design.score is not None
        problem.tell(design.score, done)

    sampler.design(problem.target, n, refine=True, budget=problem.solves, seed=seed, workers=1, on_solve=solved, on_best=better)
    problem.spent = done


def run(problem: Problem, method: Method, seed: int) -> dict[str, Any]:
    """Search until the budget is spent or the method ends; the record as JSON values."""
    with one_blas_thread(), contextlib.suppress(Spent):
        method(problem, seed)
    return {"solves": problem.spent, "seconds": time.process_time() - problem.started, "history": problem.history}
