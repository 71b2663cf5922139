"""What evaluate says beside the scores: known networks get known judgements, and the arithmetic is checked by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import evaluate_measures as measures
from runtime import search
from runtime.data import DataSet
from runtime.errors import BundleError, DataError, TargetError
from runtime.evaluate import compared, evaluate, table, wins
from runtime.geometry import Geometry
from runtime.physics.verify import solve_many
from runtime.sampler import Sampler
from runtime.score import misrouted_power, pixels_apart
from runtime.target import Target

GEOMETRY = Geometry(harmonics=3, dtype="complex128")
N, SIZE, M = 6, 4, 5
Predict = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def solved() -> DataSet:
    xx = np.random.default_rng(3).integers(0, 2, (N, SIZE, SIZE), dtype=np.uint8)
    h = np.linspace(100, 400, N).astype(np.float32)
    R, T = solve_many(xx, h, GEOMETRY, M)
    return DataSet(xx, h, R.astype(np.float32), T.astype(np.float32), GEOMETRY)


class Judging:
    """A sampler of coin flips, the true pattern at ``place`` among them, whose surrogate is ``predict``."""

    def __init__(self, data: DataSet, place: int | None = None, predict: Predict | None = None, seed: int = 0) -> None:
        self.data, self.place, self.seed = data, place, seed
        self.settings: list[dict[str, Any]] = []
        self.surrogate = None if predict is None else self._surrogate
        self._predict = predict
        self.bundle = SimpleNamespace(path=f"somewhere/seed{seed}", manifest={"pattern_size": SIZE, "recipe": {"name": "coins"}})

    def _surrogate(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert self._predict is not None
        R, T = self._predict(inputs["pattern"][:, 0].astype(np.uint8), inputs["height_nm"][:, 0])
        return {"R": R, "T": T}

    def propose(self, target: Target, n: int, seed: int, **settings: Any) -> np.ndarray:
        self.settings.append(settings)
        patterns = np.random.default_rng([self.seed, seed]).integers(0, 2, (n, SIZE, SIZE), dtype=np.uint8)
        if self.place is not None:
            patterns[self.place] = self.data.xx[int(np.flatnonzero(self.data.h == np.float32(target.height_nm))[0])]
        return patterns

    def shortlist(self, patterns: np.ndarray, target: Target) -> np.ndarray:
        return search.shortlist(patterns, target, self.surrogate)  # type: ignore[arg-type]


def truth(patterns: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return solve_many(patterns, heights, GEOMETRY, M)


def ignorance(patterns: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Everything goes straight through, whatever the pattern."""
    maps = np.zeros((2, len(patterns), 2 * M + 1, 2 * M + 1))
    maps[1, :, M, M] = 1
    return maps[0], maps[1]


@pytest.fixture(scope="module")
def measured(solved: DataSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A perfect surrogate, on two targets of four with all candidates solved."""
    cache = tmp_path_factory.mktemp("cache")
    return evaluate(solved, Judging(solved, 5, truth), 4, 2, n=12, noise_limit=2, progress=False, cache_dir=cache)


def test_a_perfect_surrogate_ranks_perfectly(measured: dict[str, Any]) -> None:
    assert measured["ranked"]["solves"] == 4
    assert measured["ranked"]["median"] == pytest.approx(0, abs=1e-6)
    assert measured["surrogate"]["mean"] == pytest.approx(0, abs=1e-6)
    calibration = measured["calibration"]
    assert (calibration["targets"], calibration["spearman"]["targets"]) == (2, 2)
    assert calibration["spearman"]["q25"] == pytest.approx(1)
    assert (calibration["loss"], calibration["largest_loss"]) == (0, 0)
    pairs = calibration["pairs"]
    assert len(pairs["solved"]) == 2 * measures.PAIRS
    assert pairs["expected"] == pytest.approx(pairs["solved"], abs=2e-5)
    assert sorted(set(pairs["height_nm"])) == [100, 160]
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def test_a_surrogate_that_knows_nothing_has_no_rank_correlation_and_its_own_error(solved: DataSet, tmp_path: Any) -> None:
    result = evaluate(solved, Judging(solved, 9, ignorance), 2, n=10, noise_limit=0, progress=False, cache_dir=tmp_path)
    calibration = result["calibration"]
    assert calibration["spearman"] is None
    assert calibration["targets"] == 2
    # The first four are solved, and the true pattern is the tenth.
    assert calibration["loss"] == pytest.approx(result["ranked"]["median"], abs=1e-6)
    assert calibration["largest_loss"] == pytest.approx(max(result["per_target"]["ranked"]), abs=1e-6)
    assert calibration["loss"] > 0.01
    astray = [1 - float(T[M, M]) for T in solved.Tm[:2]]
    assert result["surrogate"]["mean"] == pytest.approx(np.mean(astray), abs=1e-5)
    assert result["surrogate"]["median"] == pytest.approx(np.median(astray), abs=1e-5)
    bands = result["surrogate"]["by_height_nm"]
    assert [(band["count"], band["mean"], band["median"]) for band in bands] == [
        (1, *[pytest.approx(astray[0], abs=1e-5)] * 2),
        (1, *[pytest.approx(astray[1], abs=1e-5)] * 2),
        *[(0, None, None)] * 3,
    ]
    assert "Ranking loses" in table(result)
    assert "Spearman" not in table(result)


def test_rank_correlation_by_hand() -> None:
    assert measures.rank_correlation(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 25, 100])) == pytest.approx(1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = (0, 1, -1, 0)
    assert measures.rank_correlation(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == pytest.approx(1 - 6 * 2 / 60)
    assert measures.rank_correlation(np.array([1.0, 2, 3]), np.array([5.0, 5, 5])) is None
    assert measures.rank_correlation(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) is None
    assert measures.rank_correlation(np.array([1.0, 2]), np.array([1.0, 2])) is None


# --- Targets with noise ---------------------------------------------------------------------------------------------


def test_noise_on_a_target_by_hand() -> None:
    R, T = np.full((2, 3, 3), 0.05)
    target = Target.from_arrays(R, T, 200)

    def noisy(level: float, seed: int, index: int) -> np.ndarray:
        found = measures.noisy_target(target, level, seed, index)
        return np.stack([found.R, found.T])

    np.testing.assert_array_equal(noisy(0.01, 1, 4), noisy(0.01, 1, 4))
    assert not np.array_equal(noisy(0.01, 1, 5), noisy(0.01, 1, 4))
    assert not np.array_equal(noisy(0.01, 2, 4), noisy(0.01, 1, 4))
    weak = np.stack([noisy(0.02, 0, i) for i in range(200)])
    assert weak.std() / 0.05 == pytest.approx(0.02, rel=0.1)
    # Where there is less light than before nothing was scaled, and the same noise half as strong is half as far.
    less = [i for i in range(200) if weak[i].sum() < 0.9 - 1e-9]
    assert 50 < len(less) < 150
    np.testing.assert_allclose(2 * (noisy(0.01, 0, less[0]) - 0.05), weak[less[0]] - 0.05, atol=1e-12)
    strong = np.stack([noisy(2.0, 0, i) for i in range(50)])
    assert strong.min() == 0
    assert strong.sum(axis=(1, 2, 3)).max() == pytest.approx(0.9)


def test_scores_under_noise_are_those_of_the_clean_target(measured: dict[str, Any], solved: DataSet) -> None:
    rows = measured["noise_robustness"]
    assert [row["level"] for row in rows] == [0, 0.05, 0.1, 0.2]
    assert [row["targets"] for row in rows] == [2] * 4
    assert rows[0]["median"] == np.median(measured["per_target"]["ranked"][:2])
    moved = [row["noise"] for row in rows]
    assert moved[0] == 0
    assert moved == sorted(moved)
    assert moved[3] > 0.02
    # The true pattern is among the candidates, and the perfect surrogate finds it: exact for the clean target, whatever the noise.
    assert [row["median"] for row in rows] == pytest.approx([0] * 4, abs=1e-6)
    noisy = [measures.noisy_target(target_of(solved, i), 0.2, 0, i) for i in range(2)]
    clean = [float(misrouted_power(t.R, t.T, target_of(solved, i))) for i, t in enumerate(noisy)]
    assert moved[3] == pytest.approx(np.median(clean))


def target_of(data: DataSet, i: int) -> Target:
    return Target.from_arrays(data.Rm[i], data.Tm[i], float(data.h[i]), geometry=data.geometry)


# --- Diversity ------------------------------------------------------------------------------------------------------


def test_pixels_apart_by_hand_and_by_trying_every_shift() -> None:
    one, two = np.zeros((2, 4, 4), np.uint8)
    one[0, 0] = two[1, 1] = two[1, 2] = 1
    assert pixels_apart(np.stack([one, np.roll(one, (2, 3), (0, 1)), two])) == pytest.approx((0 + 1 + 1) / 3)
    patterns = np.random.default_rng(0).integers(0, 2, (5, 4, 4), dtype=np.uint8)
    tried = [
        min(int((np.roll(patterns[i], (a, b), (0, 1)) != patterns[j]).sum()) for a in range(4) for b in range(4))
        for i in range(5)
        for j in range(i)
    ]
    assert pixels_apart(patterns) == pytest.approx(np.mean(tried))
    assert pixels_apart(patterns, limit=2) == tried[0]


def test_diversity_of_one_pattern_and_of_coins(solved: DataSet, measured: dict[str, Any], tmp_path: Any) -> None:
    class Stubborn(Judging):
        def propose(self, target: Target, n: int, seed: int, **settings: Any) -> np.ndarray:
            return np.stack([np.roll(self.data.xx[0], k, axis=0) for k in range(n)])

    diversity = evaluate(solved, Stubborn(solved), 1, n=4, noise_limit=0, progress=False, cache_dir=tmp_path)["diversity"]
    assert (diversity["distinct"], diversity["mean_pixels_apart"]) == (0.25, 0)
    diversity = measured["diversity"]
    assert diversity["mean_pixels_apart"] == pytest.approx(diversity["random_pixels_apart"], abs=0.6), "the candidates are coin flips"


# --- A baseline -----------------------------------------------------------------------------------------------------


def test_a_baseline_is_ranked_the_same_way(solved: DataSet, tmp_path: Any) -> None:
    knowing, coins = Judging(solved, 7, truth), Judging(solved, None, truth, seed=1)
    common = {"limit": 3, "oracle_limit": 1, "n": 10, "seed": 2, "noise_limit": 0, "progress": False, "cache_dir": tmp_path}
    result = evaluate(solved, knowing, baseline=coins, baseline_settings={"steps": 3, "scheduler": None}, steps=9, **common)
    part = result["baselines"]["bundle"]
    assert (part["solves"], part["targets"], part["name"], part["recipe"]) == (4, 3, "seed1", "coins")
    assert part["ranked_by"] == "its own surrogate"
    assert coins.settings == [{"steps": 3}] * 3
    assert knowing.settings == [{"steps": 9}] * 3
    assert part["sampler"] == {"steps": 3, "scheduler": None}
    alone = evaluate(solved, Judging(solved, None, truth, seed=1), **common)
    assert result["per_target"]["bundle"] == alone["per_target"]["ranked"], "same n, same seeds"
    assert (wins(result, "bundle"), compared(result, "bundle")) == (3, 3)
    assert result["by_height_nm"][0]["bundle"] == result["per_target"]["bundle"][0]
    assert "Ranked beats the baseline bundle on 3 of 3 targets." in table(result)

    short = evaluate(solved, knowing, baseline=coins, baseline_limit=2, **common)
    assert short["baselines"]["bundle"]["targets"] == compared(short, "bundle") == 2


def test_a_baseline_without_surrogate_is_ranked_by_ours_and_says_so(solved: DataSet, tmp_path: Any) -> None:
    common = {"limit": 2, "oracle_limit": 1, "n": 10, "noise_limit": 0, "progress": False, "cache_dir": tmp_path}
    bare = Judging(solved, None, None, seed=1)
    result = evaluate(solved, Judging(solved, None, truth), baseline=bare, **common)
    part = result["baselines"]["bundle"]
    assert part["solves"] == 4
    assert part["ranked_by"] == "the surrogate of the bundle under evaluation"
    assert part["ranked_by"] in table(result)
    both = evaluate(solved, Judging(solved), baseline=bare, **common)
    assert both["baselines"]["bundle"]["solves"] == both["ranked"]["solves"] == 10
    assert both["baselines"]["bundle"]["ranked_by"] == "nothing: all were solved"
    bare.bundle.manifest["pattern_size"] = 8
    with pytest.raises(DataError, match="ranks patterns of 4 x 4 pixels, not 8 x 8; export the baseline with a surrogate"):
        evaluate(solved, Judging(solved, None, truth), baseline=bare, **common)


def test_what_a_bundle_cannot_be_asked_is_said_before_any_work(solved: DataSet, sampler: Sampler, data: DataSet) -> None:
    class Never(Judging):
        def propose(self, *arguments: Any, **settings: Any) -> np.ndarray:
            raise AssertionError("sampled first")

    with pytest.raises(TargetError, match="the target's geometry is not the bundle's"):
        evaluate(solved, Never(solved), baseline=sampler, progress=False)
    with pytest.raises(BundleError, match="num_steps is 5000"):
        evaluate(data, Never(data), baseline=sampler, baseline_settings={"steps": 5000}, progress=False)


# --- The seed's protocol --------------------------------------------------------------------------------------------


def test_the_seeds_protocol_starts_from_the_answer_and_says_so(sampler: Sampler, data: DataSet, tmp_path: Any) -> None:
    heights = (data.h > 150) & (data.h < 350)
    settings: dict[str, Any] = {"steps": 10, "scheduler": "ddim", "batch_size": 4}
    some = data.take(np.flatnonzero(heights)[:3])
    result = evaluate(some, sampler, n=2, noise_limit=0, progress=False, cache_dir=tmp_path, **settings)
    protocol = result["seed_protocol"]
    assert protocol["starts_from"].startswith("the answer")
    assert protocol["targets"] == 3
    assert [(row["level"], row["timestep"], row["steps"]) for row in protocol["levels"]] == [
        (level, int(1000 * level) - 1, round(10 * level)) for level in (0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    pixels = [row["unequal_pixels"] for row in protocol["levels"]]
    assert pixels[0] < pixels[-1]
    again = sampler.reconstruct(target_of(some, 1), some.xx[1], 1.0, seed=1, **settings)[0]
    last = [sampler.reconstruct(target_of(some, i), some.xx[i], 1.0, seed=i, **settings)[0] for i in range(3)]
    np.testing.assert_array_equal(again, last[1])
    assert pixels[-1] == np.mean([(one != other).sum() for one, other in zip(last, some.xx, strict=True)])
    assert "STARTS FROM THE ANSWER" in table(result)
    few = evaluate(some, sampler, 1, n=2, steps=2, noise_limit=0, progress=False, cache_dir=tmp_path)["seed_protocol"]["levels"]
    assert [row["timestep"] for row in few] == [None, None, 499, 499, 999]
    assert few[0]["unequal_pixels"] is None


def test_the_table_fits_a_terminal(measured: dict[str, Any], sampler: Sampler, data: DataSet, tmp_path: Any) -> None:
    some = data.take(np.flatnonzero((data.h > 150) & (data.h < 350))[:3])
    result = evaluate(
        some, sampler, 3, 2, n=8, baseline=sampler, noise_limit=1, progress=False, cache_dir=tmp_path, steps=3, train_data=data
    )
    full = {**result, "surrogate": measured["surrogate"], "calibration": measured["calibration"]}
    lines = table(full).splitlines()
    assert max(len(line) for line in lines) <= 100
    for words in ("rank correlation", "are distinct", "no step is that low", "Targets with noise, 1 of them", "unequal, by height"):
        assert any(words.lower() in line.lower() for line in lines), words
