"""evaluate: known samplers get known scores, the baselines known answers, and the JSON has the contract's fields."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from runtime import baselines
from runtime import evaluate_measures as measures
from runtime.baselines import nearest_training, random_scores
from runtime.data import DataSet
from runtime.errors import Cancelled, DataError, MetascatterError
from runtime.evaluate import compared, evaluate, table, wins
from runtime.files import cache_directory
from runtime.geometry import Geometry
from runtime.physics.verify import solve_many
from runtime.score import misrouted_power
from runtime.target import Target

GEOMETRY = Geometry(harmonics=3, dtype="complex128")
N, SIZE, M = 6, 4, 5


def solved(count: int, seed: int, geometry: Geometry = GEOMETRY, size: int = SIZE) -> DataSet:
    rng = np.random.default_rng(seed)
    xx = rng.integers(0, 2, (count, size, size), dtype=np.uint8)
    h = np.linspace(100, 400, count).astype(np.float32)
    R, T = solve_many(xx, h, geometry, M)
    return DataSet(xx, h, R.astype(np.float32), T.astype(np.float32), geometry)


def target_of(data: DataSet, i: int) -> Target:
    return Target.from_arrays(data.Rm[i], data.Tm[i], float(data.h[i]), geometry=data.geometry)


class Knowing:
    """A sampler that hides the true pattern of each target, shifted, at ``place`` among others."""

    def __init__(self, data: DataSet, place: int | None, size: int = SIZE) -> None:
        self.data, self.place, self.size = data, place, size
        self.calls: list[dict] = []

    def propose(self, target: Target, n: int = 64, **settings) -> np.ndarray:
        self.calls.append(settings)
        patterns = np.random.default_rng(settings["seed"]).integers(0, 2, (n, self.size, self.size), dtype=np.uint8)
        if self.place is not None and self.place < n:
            i = int(np.flatnonzero(self.data.h == np.float32(target.height_nm))[0])
            patterns[self.place] = np.roll(self.data.xx[i], (1, 2), axis=(0, 1))
        return patterns


@pytest.fixture(scope="module")
def data() -> DataSet:
    return solved(N, 1)


@pytest.fixture(scope="module")
def train(data) -> DataSet:
    return solved(12, 2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def result(data, train, cache) -> dict:
    return evaluate(data, Knowing(data, place=5), n=64, train_data=train, progress=False, cache_dir=cache)


def test_the_true_pattern_scores_zero(result):
    assert result["ranked"]["median"] == pytest.approx(0, abs=1e-6)
    assert result["ranked"]["under"] == {"0.02": 1, "0.05": 1, "0.10": 1}
    assert result["oracle"]["best_of_64"]["median"] == pytest.approx(0, abs=1e-6)
    assert result["oracle"]["best_of_8"]["median"] == pytest.approx(0, abs=1e-6), "place 5 is among the first 8"
    assert result["oracle"]["best_of_1"]["median"] > 0.02
    assert result["lab_scores"]["modulo_shift"]["image_accuracy"] == 1
    assert result["lab_scores"]["plain"]["image_accuracy"] < 1, "the pattern came shifted"
    assert result["ranked"]["solves"] == 64


def test_every_field_of_the_contract_is_there_and_is_json(result):
    again = json.loads(json.dumps(result, allow_nan=False))
    assert again == result
    assert again["targets"] == N
    assert again["refined"] is None
    summaries = [
        again["ranked"],
        *(again["oracle"][f"best_of_{k}"] for k in (1, 8, 64)),
        again["baselines"]["random_best_of_64"],
        again["baselines"]["nearest_training"],
    ]
    for summary in summaries:
        assert set(summary) == {"median", "q25", "q75", "under", "solves", "targets"}
        assert set(summary["under"]) == {"0.02", "0.05", "0.10"}
        assert 0 <= summary["q25"] <= summary["median"] <= summary["q75"] <= 1
    assert [s["solves"] for s in summaries] == [64, 1, 8, 64, 64, 0]
    assert len(again["by_height_nm"]) == 5
    for band in again["by_height_nm"]:
        assert {"lo", "hi", "count", "ranked", "best_of_1", "best_of_8", "best_of_64", "random_best_of_64", "nearest_training"} <= set(band)
    assert sum(band["count"] for band in again["by_height_nm"]) == N
    assert (again["by_height_nm"][0]["lo"], again["by_height_nm"][-1]["hi"]) == (100, 400)
    for scores in again["lab_scores"].values():
        assert set(scores) == {"image_accuracy", "precision", "recall", "unequal_pixels"}
    assert Geometry.from_dict(again["geometry"]) == GEOMETRY
    assert (again["n"], again["seed"]) == (64, 0)
    assert set(again["seconds"]) == {"sampling", "solving", "random_baseline", "noise_robustness"}
    assert 0.5 < again["diversity"]["distinct"] <= 1
    assert len(again["per_target"]["ranked"]) == N


def test_the_table_is_for_people(result):
    text = table(result)
    assert max(len(line) for line in text.splitlines()) < 100
    for word in (
        "Misrouted power on 6 targets",
        "lower is better",
        "nearest training sample",
        "best of 64 random patterns",
        "100 to 160",
        "100 %",
    ):
        assert word in text


def test_without_extras(data, cache):
    """Few candidates, no training data, the oracle on one target alone, another number of pixels than the data's."""
    result = evaluate(data, Knowing(data, None, size=5), limit=3, oracle_limit=1, n=9, noise_limit=0, progress=False, cache_dir=cache)
    assert result["targets"] == 3
    assert result["oracle"]["targets"] == 1
    assert result["oracle"]["best_of_8"]["solves"] == 8
    assert result["oracle"]["best_of_64"] is None
    assert result["baselines"]["nearest_training"] is None
    assert result["lab_scores"] is None
    assert len(result["per_target"]["best_of_8"]) == len(result["per_target"]["random_best_of_64"]) == 1
    assert result["baselines"]["random_best_of_64"]["targets"] == compared(result, "random_best_of_64") == 1
    assert wins(result, "random_best_of_64") <= 1
    assert "ranked, the first" in table(result)
    assert "Of the first 1 targets alone: first 1, first 8, random." in table(result)
    assert result["noise_robustness"] is None
    assert (result["surrogate"], result["calibration"], result["seed_protocol"]) == (None, None, None)
    assert "bundle" not in result["baselines"]
    assert sum(band["best_of_8"] is not None for band in result["by_height_nm"]) == 1
    assert result["by_height_nm"][4]["count"] == 0
    assert result["by_height_nm"][4]["ranked"] is None
    json.dumps(result, allow_nan=False)
    assert "refined" not in table(result)


def test_settings_reach_the_sampler(data, cache):
    sampler = Knowing(data, 0)
    event = threading.Event()
    result = evaluate(
        data, sampler, limit=2, n=2, seed=7, steps=5, guidance_scale=1.5, progress=False, cache_dir=cache, cancel=event, noise_limit=0
    )
    assert [call["seed"] for call in sampler.calls] == [7, 8]
    assert sampler.calls[0]["steps"] == 5
    assert sampler.calls[0]["guidance_scale"] == 1.5
    assert sampler.calls[0]["stop"]() is False
    assert "scheduler" not in sampler.calls[0]
    assert result["sampler"] == {"steps": 5, "guidance_scale": 1.5}
    event.set()
    with pytest.raises(Cancelled):
        evaluate(data, sampler, n=2, progress=False, cache_dir=cache, cancel=event)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"oracle_limit": 0}, {"n": 0}, {"baseline_limit": 0}, {"noise_limit": -1}])
def test_numbers_out_of_range_are_refused(data, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(DataError, match=f"{name} is {value}; it must be {value + 1} or more"):
        evaluate(data, Knowing(data, 0), progress=False, **wrong)


def test_a_sampler_of_the_wrong_count_is_refused(data, cache):
    class Short:
        def propose(self, target, n, **settings):
            return np.zeros((n - 1, SIZE, SIZE), np.uint8)

    with pytest.raises(DataError, match=r"shape \(7, 4, 4\); expected \(8, N, N\)"):
        evaluate(data, Short(), n=8, progress=False, cache_dir=cache)


def test_the_random_baseline_is_solved_once(data, cache, result, monkeypatch):
    target = target_of(data, 0)
    first = random_scores(target, 0, SIZE, GEOMETRY, cache_dir=cache)
    assert first.min() == result["per_target"]["random_best_of_64"][0]

    def never(*arguments, **settings):
        raise AssertionError("solved again")

    monkeypatch.setattr("runtime.physics.verify.solve_many", never)
    assert np.array_equal(random_scores(target, 0, SIZE, GEOMETRY, cache_dir=cache), first)
    for change in ({"seed": 1}, {"index": 1}, {"count": 32}, {"size": 5}, {"geometry": dataclasses.replace(GEOMETRY, harmonics=4)}):
        with pytest.raises(AssertionError, match="solved again"):
            random_scores(target, **{"index": 0, "size": SIZE, "geometry": GEOMETRY, "cache_dir": cache, **change})
    with pytest.raises(AssertionError, match="solved again"):
        random_scores(dataclasses.replace(target, height_nm=101.0), 0, SIZE, GEOMETRY, cache_dir=cache)


def test_a_damaged_or_closed_cache_is_done_without(data, tmp_path):
    target = target_of(data, 0)
    first = random_scores(target, 0, SIZE, GEOMETRY, 4, cache_dir=tmp_path)
    file = next(tmp_path.rglob("*.json"))
    for text in ("", "{}", "[1]", '{"scores": [1, 2]}', '{"scores": ["a", 1, 1, 1]}'):
        file.write_text(text)
        assert np.array_equal(random_scores(target, 0, SIZE, GEOMETRY, 4, cache_dir=tmp_path), first)
    assert json.loads(file.read_text())["scores"] == first.tolist()
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    assert np.array_equal(random_scores(target, 0, SIZE, GEOMETRY, 4, cache_dir=blocked), first)


def test_the_random_baseline_is_the_misrouted_power_of_coin_flips(data, tmp_path):
    from runtime.physics.simulate import draw

    target = target_of(data, 3)
    patterns, _ = draw(0, 3 * 8, 8, SIZE, (1, 1), stream=baselines._STREAM)
    R, T = solve_many(patterns, target.height_nm, GEOMETRY, M)
    assert np.allclose(random_scores(target, 3, SIZE, GEOMETRY, 8, cache_dir=tmp_path), misrouted_power(R, T, target), atol=1e-12)
    assert not np.array_equal(patterns, draw(0, 3 * 8, 8, SIZE, (1, 1))[0]), "not the patterns of a data set of the same seed"


def test_the_cache_directory_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("METASCATTER_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("METASCATTER_CACHE")
    assert cache_directory().is_absolute()


@pytest.mark.parametrize("axes", [(), (1,), (2,), (1, 2)])
def test_nearest_training_knows_mirror_images(train, axes):
    """A sample's mirror image, solved, is at distance 0 from that sample, whose pattern nobody mirrored."""
    mirrored = np.flip(train.xx[[4, 9]], axes)
    R, T = solve_many(mirrored, train.h[[4, 9]], GEOMETRY, M)
    targets = [Target.from_arrays(r, t, 200) for r, t in zip(R, T, strict=True)]
    scores, indices = nearest_training(targets, train, GEOMETRY)
    assert indices.tolist() == [4, 9]
    assert scores == pytest.approx(0, abs=1e-6)
    oblique = dataclasses.replace(GEOMETRY, theta_deg=10.0)
    scores, _ = nearest_training(targets, dataclasses.replace(train, geometry=oblique), oblique)
    assert (scores > 0.01).all() == bool(axes), "off normal incidence a mirror image is another problem"


def test_nearest_training_is_the_least_misrouted_power(data, train):
    targets = [target_of(data, i) for i in range(N)]
    scores, indices = nearest_training(targets, train, GEOMETRY)
    images = [(train.Rm[:, ::a, ::b], train.Tm[:, ::a, ::b]) for a in (1, -1) for b in (1, -1)]
    every = np.array([[misrouted_power(R, T, target) for R, T in images] for target in targets])
    assert scores == pytest.approx(every.min(axis=(1, 2)), abs=1e-6)
    assert indices.tolist() == every.min(axis=1).argmin(axis=1).tolist()
    mask = np.random.default_rng(0).random((2, 2 * M + 1, 2 * M + 1)) < 0.2
    partial = [Target.from_arrays(data.Rm[i], data.Tm[i], 200, mask[0], mask[1]) for i in range(N)]
    every = np.array([[misrouted_power(R, T, target) for R, T in images] for target in partial])
    assert nearest_training(partial, train, GEOMETRY)[0] == pytest.approx(every.min(axis=(1, 2)), abs=1e-6)


def test_nearest_training_takes_maps_of_another_size(data, train):
    targets = [target_of(data, i) for i in range(N)]
    scores, _ = nearest_training(targets, train, GEOMETRY)
    grown = dataclasses.replace(train, Rm=np.pad(train.Rm, ((0, 0), (2, 2), (2, 2))), Tm=np.pad(train.Tm, ((0, 0), (2, 2), (2, 2))))
    assert np.array_equal(nearest_training(targets, grown, GEOMETRY)[0], scores)
    larger, _ = nearest_training([target.resized(M + 1) for target in targets], train, GEOMETRY)
    assert larger == pytest.approx(scores, abs=1e-12)


def test_training_data_of_another_problem_are_refused_before_any_work(data, train):
    class Never:
        def propose(self, target, n, **settings):
            raise AssertionError("sampled first")

    other = dataclasses.replace(train, geometry=dataclasses.replace(GEOMETRY, wavelength_nm=1300.0))
    with pytest.raises(MetascatterError, match="wavelength_nm is 1300"):
        evaluate(data, Never(), train_data=other, progress=False)


def test_summary_and_bands_by_hand():
    summary = measures.summary([0.01, 0.03, 0.07, 0.2, 0.05], 4)
    assert summary == {
        "median": 0.05,
        "q25": 0.03,
        "q75": 0.07,
        "under": {"0.02": 0.2, "0.05": 0.4, "0.10": 0.8},
        "solves": 4,
        "targets": 5,
    }
    heights = np.array([50, 100, 200, 380, 490, 600], np.float32)
    edges = measures.band_edges(heights)
    patterns = np.zeros((5, 2, 2), np.uint8)
    stored = patterns.copy()
    stored[3, 0, 0] = 1  # one pixel of four unequal, at 380 nm
    bands = measures.bands(edges, heights[:5], {"ranked": [0.1, 0.2, 0.3, 0.4, 0.5]}, (patterns, stored))
    assert [b["lab_scores"] and b["lab_scores"]["plain"]["unequal_pixels"] for b in bands] == [0, 0, None, 1, 0]
    assert [(b["lo"], b["hi"], b["count"], b["ranked"]) for b in bands] == [
        (50, 160, 2, pytest.approx(0.15)),
        (160, 270, 1, 0.3),
        (270, 380, 0, None),
        (380, 490, 1, 0.4),
        (490, 600, 1, 0.5),
    ]
    assert measures.bands(edges, heights, {"ranked": [0.0] * 6}, None)[4]["count"] == 2, "the highest belongs to the last band"
    one = measures.bands(measures.band_edges(np.full(3, 200.0)), np.full(3, 200.0), {"ranked": [0.1, 0.2, 0.3]}, None)
    assert sum(b["count"] for b in one) == 3
