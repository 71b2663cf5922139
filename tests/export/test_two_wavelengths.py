"""A second wavelength from the solver to the design: maps added to data, a network that sees them, its bundle, targets with and without."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import export.bundle as room
from export import parity, yardsticks
from runtime import design
from runtime.channels import Channel
from runtime.data import DataSet, load, open_npz
from runtime.errors import DataError, TargetError
from runtime.evaluate import evaluate
from runtime.files import write_npz
from runtime.geometry import Geometry
from runtime.physics import verify
from runtime.physics.add import add
from runtime.physics.rcwa import Solver
from runtime.sampler import Sampler
from runtime.sampler import load as open_bundle
from runtime.score import misrouted_power
from runtime.target import Target
from train.finetune import recipe_of
from train.loop import train
from train.run import open_run

MAIN = Geometry(period_nm=(2000.0, 2000.0), harmonics=2, dtype="complex128")
SECOND = dataclasses.replace(MAIN, wavelength_nm=1480.0)
SIZE, ORDERS, COUNT = 4, 2, 100
NAMES = ("Rm_1480", "Tm_1480")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 cells of 4 x 4 pixels at 1550 nm, in a file with a key of somebody's own."""
    rng = np.random.default_rng(5)
    patterns = rng.integers(0, 2, (COUNT, SIZE, SIZE)).astype(np.uint8)
    heights = rng.integers(100, 400, COUNT).astype(np.float32)
    solver = Solver(MAIN, ORDERS)
    R, T = (
        np.array(maps, np.float32)
        for maps in zip(*(solver.solve(x, float(h)) for x, h in zip(patterns, heights, strict=True)), strict=True)
    )
    path = tmp_path_factory.mktemp("data") / "one.npz"
    write_npz(path, **DataSet(patterns, heights, R, T, MAIN).arrays(), operator=np.array("somebody"))
    return path


@pytest.fixture(scope="module")
def both(one: Path) -> Path:
    """The same cells, solved at 1480 nm as well by the command's own function."""
    return add(one, one.with_name("both.npz"), "1480", {"wavelength_nm": 1480.0}, workers=1, progress=False)


@pytest.fixture(scope="module")
def two_run(both: Path, small_recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = {key: value for key, value in small_recipe.network_arguments.items() if key not in ("size", "orders")}
    recipe = dataclasses.replace(small_recipe, name="two", channels=list(NAMES), network_arguments=network)
    run = tmp_path_factory.mktemp("run") / "two"
    train(both, run, recipe, progress=False)
    return run


@pytest.fixture(scope="module")
def two_bundle(two_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "ENGINES", ("onnxruntime",))
        patch.setattr(yardsticks, "CANDIDATES", 2)
        return room.export(two_run, tmp_path_factory.mktemp("bundle") / "two", fused=3)


@pytest.fixture(scope="module")
def two(two_bundle: Path) -> Iterator[Sampler]:
    with open_bundle(two_bundle, "onnxruntime", "cpu", "fp32", threads=1, self_test=True) as sampler:
        yield sampler


@pytest.fixture(scope="module")
def data(both: Path) -> DataSet:
    return load(both, extra=NAMES)


@pytest.fixture(scope="module")
def wish(data: DataSet) -> Callable[..., Target]:
    """The target of a sample, with what is given of other wavelengths, by default its own."""

    def wish(**extra: Any) -> Target:
        i = int(np.flatnonzero((data.h > 150) & (data.h < 350))[0])
        return Target.from_arrays(data.Rm[i], data.Tm[i], float(data.h[i]), name="wish", geometry=MAIN, extra=extra or data.wanted(i))

    return wish


class TestAdd:
    def test_all_is_kept_and_the_second_wavelength_is_the_solvers(self, one: Path, both: Path) -> None:
        before, after = open_npz(one), open_npz(both)
        assert set(after) - set(before) == {*NAMES, "geometry_1480"}
        for key, value in before.items():
            assert np.array_equal(after[key], value), key
        assert Geometry.from_json(str(after["geometry_1480"])) == SECOND
        R, T = Solver(SECOND, ORDERS).solve(after["xx"][7], float(after["h"][7]))
        np.testing.assert_allclose(after["Rm_1480"][7], R, atol=1e-7)
        np.testing.assert_allclose(after["Tm_1480"][7], T, atol=1e-7)
        assert np.abs(after["Tm_1480"] - after["Tm"]).max() > 0.05
        assert sorted(path.name for path in both.parent.iterdir()) == ["both.npz", "one.npz"]

    def test_again_it_is_left_as_it_is(self, one: Path, both: Path, caplog: pytest.LogCaptureFixture) -> None:
        content, stamp = both.read_bytes(), both.stat().st_mtime_ns
        with caplog.at_level("INFO", "runtime.physics.add"):
            add(one, both, "1480", {"wavelength_nm": 1480.0}, workers=1)
        assert (both.read_bytes(), both.stat().st_mtime_ns) == (content, stamp)
        assert "already holds" in caplog.text

    @pytest.mark.parametrize(
        ("name", "changes", "words"),
        [
            ("14-80", {"wavelength_nm": 1470.0}, "letters, digits and '_'"),
            ("1480", {"wavelength_nm": 1470.0}, "already has 'Rm_1480'"),
            ("same", {}, "say what differs"),
            ("finer", {"harmonics": 3}, "say what differs"),
            ("wide", {"period_nm": (2100.0, 2100.0)}, "of the same cells"),
            ("blue", {"wavelength_nm": 700.0, "harmonics": 11}, "from -2 to 2 and at 700 nm those up to 5 carry light"),
            ("y", {"polarisation": "y"}, "taken.npz exists and holds other data"),
        ],
    )
    def test_what_cannot_be_added_is_refused(self, name: str, changes: dict[str, Any], words: str, both: Path, tmp_path: Path) -> None:
        shutil.copy(both, tmp_path / "taken.npz")
        with pytest.raises(DataError, match=words):
            add(both, tmp_path / "taken.npz", name, changes, workers=1, progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["taken.npz"]


class TestBundle:
    def test_the_manifest_lists_the_channels_and_their_geometry(self, two: Sampler, two_run: Path) -> None:
        assert list(two.bundle.channels) == list(two.bundle.condition.channels) == list(NAMES)
        assert two.bundle.geometries == {"1480": SECOND}
        assert two.bundle.manifest["networks"]["encoder"]["inputs"]["light"]["shape"] == ["batch", 8, 5, 5]
        assert json.loads((two_run / "data.json").read_text())["channels"]["Tm_1480"]["wavelength_nm"] == 1480.0
        card = (two.bundle.path / "README.md").read_text()
        assert "- Also conditioned on `Tm_1480`, solved with wavelength_nm 1480.0." in card

    def test_light_is_r_t_and_the_channels_and_then_their_masks(self, two: Sampler, wish: Callable[..., Target]) -> None:
        target, condition = wish(), two.bundle.condition
        light = two.condition(target)["light"][0]
        mean = condition.mean_channels[1]
        np.testing.assert_allclose(light[3], np.sqrt(target.extra["Tm_1480"].wanted / np.where(mean > 0, mean, 1)) * (mean > 0), rtol=1e-6)
        assert light[4:].all()

    def test_what_is_not_asked_is_masked(self, two: Sampler, wish: Callable[..., Target]) -> None:
        full = wish()
        mask = np.zeros((5, 5), bool)
        mask[3, 2] = True
        partial = wish(Tm_1480=Channel(full.extra["Tm_1480"].wanted, mask))
        none = dataclasses.replace(full, extra={})
        lights = {name: two.condition(target)["light"][0] for name, target in (("full", full), ("partial", partial), ("none", none))}
        assert [plane.sum() for plane in lights["none"][4:]] == [25, 25, 0, 0]
        assert not lights["none"][2:4].any()
        assert [plane.sum() for plane in lights["partial"][4:]] == [25, 25, 0, 1]
        assert np.flatnonzero(lights["partial"][3]).tolist() == [17]
        for light in lights.values():
            assert np.array_equal(light[:2], lights["full"][:2])

    def test_the_network_sees_the_second_wavelength(self, two: Sampler, wish: Callable[..., Target]) -> None:
        target = wish()
        more = {name: channel.wanted[::-1] for name, channel in target.extra.items()}
        samples = [two.sample(two.condition(t), 3, steps=3) for t in (target, wish(**more), dataclasses.replace(target, extra={}))]
        assert np.abs(samples[0] - samples[1]).max() > 1e-5
        assert np.abs(samples[0] - samples[2]).max() > 1e-5

    def test_nothing_asked_is_the_null_condition_of_guidance(self, two: Sampler, wish: Callable[..., Target]) -> None:
        assert not two.bundle.condition.unconditional(two.condition(wish()))["light"].any()
        assert np.isfinite(two.sample(two.condition(wish()), 2, steps=2, guidance_scale=2.0)).all()

    def test_the_fused_sampler_takes_the_channels_by_name(self, two: Sampler, wish: Callable[..., Target]) -> None:
        inputs = two.bundle.manifest["fused"]["inputs"]
        assert inputs["Tm_1480"]["shape"] == ["targets", 5, 5]
        assert inputs["mask"]["shape"] == ["targets", 4, 5, 5]
        session = onnxruntime.InferenceSession(two.bundle.read("sampler.onnx"), providers=["CPUExecutionProvider"])
        mask = np.zeros((5, 5), bool)
        mask[2] = True
        target = wish(Tm_1480=Channel(wish().extra["Tm_1480"].wanted, mask))
        noise = np.random.Generator(np.random.Philox(key=[0, 0])).standard_normal((1, 1, SIZE, SIZE), dtype=np.float32)
        given = {
            "noise": noise,
            "Rm": target.R[None],
            "Tm": target.T[None],
            "Rm_1480": np.full((1, 5, 5), 0.3),  # not asked for, so not seen
            "Tm_1480": target.extra["Tm_1480"].wanted[None],
            "height_nm": np.array([target.height_nm]),
            "guidance_scale": np.array([1.0]),
        }
        masks = np.stack([target.mask_R, target.mask_T, np.zeros((5, 5), bool), mask])[None]
        found = session.run(["sample"], {**{key: value.astype(np.float32) for key, value in given.items()}, "mask": masks})[0]
        np.testing.assert_allclose(found, two.sample(two.condition(target), 1, steps=3), atol=1e-4)


class TestDesigns:
    def test_designs_are_solved_and_scored_at_the_second_wavelength(
        self, two: Sampler, wish: Callable[..., Target], tmp_path: Path
    ) -> None:
        target = wish()
        designs = two.design(target, n=6, top=2, steps=3, workers=1)
        for made in designs:
            assert made.score == pytest.approx(misrouted_power(*Solver(MAIN, ORDERS).solve(made.pattern, made.height_nm), target))
            pair = made.pairs["1480"]
            R, T = Solver(SECOND, ORDERS).solve(made.pattern, made.height_nm)
            assert pytest.approx(T, abs=1e-9) == pair.T
            asked = Target.from_arrays(target.extra["Rm_1480"].wanted, target.extra["Tm_1480"].wanted, 300)
            assert pair.score == pytest.approx(misrouted_power(R, T, asked))
        assert sorted(designs, key=lambda made: made.score or 0.0) == designs

        design.save(designs, target, tmp_path)
        again = design.read(tmp_path / "designs.npz")
        assert [d.pairs["1480"].score for d in again] == [d.pairs["1480"].score for d in designs]
        assert again[0].pairs["1480"].geometry == SECOND
        checked = verify.verify([dataclasses.replace(d, pairs={"1480": d.pairs["1480"]._replace(score=9.0)}) for d in again], target, 1)
        assert [d.pairs["1480"].score for d in checked] == pytest.approx([d.pairs["1480"].score for d in designs])
        document = json.loads((tmp_path / "designs.json").read_text())
        assert document["designs"][0]["scores_by_channel"] == {"1480": designs[0].pairs["1480"].score}
        assert document["channel_geometries"] == {"1480": SECOND.to_dict()}
        strongest = document["designs"][0]["strongest_orders_by_channel"]["1480"][0]
        maps = getattr(designs[0].pairs["1480"], strongest["side"])
        assert strongest["achieved"] == pytest.approx(maps[strongest["m"] + ORDERS, strongest["n"] + ORDERS], abs=1e-6)

    def test_without_a_second_wavelength_nothing_is_said_of_it(self, two: Sampler, wish: Callable[..., Target], tmp_path: Path) -> None:
        target = dataclasses.replace(wish(), extra={})
        designs = two.design(target, n=4, top=1, steps=2, workers=1)
        assert designs[0].verified
        assert designs[0].pairs == {}
        design.save(designs, target, tmp_path)
        assert not any("1480" in key for key in open_npz(tmp_path / "designs.npz"))
        assert "channel" not in (tmp_path / "designs.json").read_text()

    def test_unverified_designs_know_what_to_be_verified_with(self, two: Sampler, wish: Callable[..., Target], tmp_path: Path) -> None:
        target = wish()
        design.save(two.design(target, n=3, top=2, steps=2, verify=False), target, tmp_path)
        found = design.read(tmp_path / "designs.npz")
        assert [(d.pairs["1480"].geometry, d.pairs["1480"].score) for d in found] == [(SECOND, None)] * len(found)
        assert all(d.pairs["1480"].score is not None for d in verify.verify(found, target, 1))

    @pytest.mark.parametrize(
        ("extra", "words"),
        [
            ({"Tm_1490": np.zeros((5, 5))}, r"'Tm_1490' is not one .*knows Rm_1480, Tm_1480.*leave it out"),
            ({"Tm_1480": np.full((5, 5), 0.2)}, r"at 1480: the efficiencies in 'Rm_1480' and 'Tm_1480' add up to 5"),
            ({"Tm_1480": Channel(np.eye(5) / 9, np.eye(5, dtype=bool), MAIN)}, "'geometry_1480' is not the one .*wavelength_nm is 1550"),
            ({"Tm_1480": np.eye(5) / 9}, r"at 1480: order T\(2,2\) is asked 0.111111, but it is evanescent at 1480 nm"),
        ],
    )
    def test_what_a_bundle_cannot_be_asked(self, extra: dict[str, Any], words: str, two: Sampler, wish: Callable[..., Target]) -> None:
        with pytest.raises(TargetError, match=words):
            two.condition(wish(**extra))

    def test_evaluate_asks_for_what_the_test_file_has(self, both: Path, one: Path, two: Sampler) -> None:
        class Asked:
            surrogate = None

            def __init__(self) -> None:
                self.targets: list[Target] = []

            def propose(self, target: Target, n: int, **settings: Any) -> np.ndarray:
                self.targets.append(two.check(target))
                return np.zeros((n, SIZE, SIZE), np.uint8)

        for path, names in ((both, set(NAMES)), (one, set())):
            asked = Asked()
            held_out = load(path, extra=list(two.bundle.channels), optional=True)
            inside = held_out.take(np.flatnonzero((held_out.h > 150) & (held_out.h < 350))[:1])
            evaluate(inside, asked, n=1, progress=False, workers=1, cache_dir=both.parent / "cache")
            assert {name for target in asked.targets for name in target.extra} == names


class TestFineTuning:
    def test_measured_data_take_over_the_geometry_of_the_second_wavelength(self, data: DataSet, two_run: Path, tmp_path: Path) -> None:
        measured = dataclasses.replace(data.take(data.h < 380), geometries={})
        begun = open_run(tmp_path / "run", recipe_of(two_run), Path("measured"), measured, False, init=two_run)
        assert begun.facts["channels"] == {name: SECOND.to_dict() for name in NAMES}
        assert isinstance(begun.data, DataSet)
        assert begun.data.geometries == {"1480": SECOND}

    def test_another_second_wavelength_is_refused(self, data: DataSet, two_run: Path, tmp_path: Path) -> None:
        other = dataclasses.replace(data, geometries={"1480": dataclasses.replace(SECOND, wavelength_nm=1470.0)})
        with pytest.raises(DataError, match=r"another geometry .*wavelength_nm is 1470.0 in one and 1480.0 in the other at 1480"):
            open_run(tmp_path / "run", recipe_of(two_run), Path("measured"), other, False, init=two_run)
        swapped = dataclasses.replace(recipe_of(two_run), channels=list(NAMES[::-1]))
        with pytest.raises(DataError, match="was trained with 'channels'"):
            open_run(tmp_path / "run", swapped, Path("measured"), data, False, init=two_run)


def test_a_baseline_is_asked_for_what_it_knows(both: Path, two: Sampler) -> None:
    class Baseline:
        bundle = SimpleNamespace(channels={"Rm_1480": None}, path="rival", manifest={"recipe": {"name": "rival"}})
        surrogate = None

        def __init__(self) -> None:
            self.asked: set[str] = set()

        def check(self, target: Target) -> Target:
            self.asked |= set(target.extra)
            return target

        def propose(self, target: Target, n: int, **settings: Any) -> np.ndarray:
            self.check(target)
            return np.zeros((n, SIZE, SIZE), np.uint8)

    rival, held_out = Baseline(), load(both, extra=NAMES)
    inside = held_out.take(np.flatnonzero((held_out.h > 150) & (held_out.h < 350))[:1])
    settings: dict[str, Any] = {"progress": False, "workers": 1, "cache_dir": both.parent / "cache", "noise_limit": 0}
    evaluate(inside, two, n=1, baseline=rival, steps=2, **settings)
    assert rival.asked == {"Rm_1480"}


def test_data_without_the_channels_are_refused_before_anything_is_written(one: Path, small_recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one\.npz lacks the further map 'Rm_1480'; it has xx, h, Rm, Tm, geometry, operator"):
        train(one, tmp_path / "run", dataclasses.replace(small_recipe, channels=list(NAMES)), progress=False)
    assert not (tmp_path / "run").exists()
