"""Further maps beside R and T: in data, in targets of every form, in what the network sees, and absent where nobody names them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from runtime import report
from runtime.bundle import Bundle
from runtime.channels import Channel, fault
from runtime.condition import Condition
from runtime.data import DataSet, load, reorder_lab
from runtime.design import Design
from runtime.errors import BundleError, DataError, GeometryError, TargetError
from runtime.geometry import Geometry
from runtime.pairs import Pair, asked
from runtime.target import Target

SECOND = Geometry(wavelength_nm=1480.0)
SIDE = 5


def data(count: int = 3, seed: int = 0) -> DataSet:
    rng = np.random.default_rng(seed)
    R, T, R_2, T_2 = rng.dirichlet(np.ones(4 * SIDE**2), count).reshape(count, 4, SIDE, SIDE).swapaxes(0, 1).astype(np.float32)
    xx, h = rng.integers(0, 2, (count, 4, 4)).astype(np.uint8), rng.integers(50, 600, count).astype(np.float32)
    extra = {"Rm_1480": R_2, "Tm_1480": T_2, "heat": 300 * R_2}
    return DataSet(xx, h, R, T, Geometry(), extra, {"1480": SECOND})


def write(path: Path, samples: DataSet, **change: Any) -> Path:
    np.savez(path, **{key: value for key, value in {**samples.arrays(), **change}.items() if value is not None})
    return path


class TestData:
    def test_only_what_is_named_is_loaded(self, tmp_path: Path) -> None:
        samples = data()
        path = write(tmp_path / "a.npz", samples)
        assert load(path).extra == {}
        found = load(path, extra=["heat", "Tm_1480"])
        assert list(found.extra) == ["heat", "Tm_1480"]
        assert np.array_equal(found.extra["heat"], samples.extra["heat"])
        assert found.extra["heat"].dtype == np.float32
        assert found.geometries == {"1480": SECOND}
        assert load(path, extra=["heat"]).geometries == {}
        part = found.take(np.array([2, 0]))
        assert np.array_equal(part.extra["Tm_1480"], samples.extra["Tm_1480"][[2, 0]])
        assert part.geometries == {"1480": SECOND}
        assert load(write(tmp_path / "again.npz", found), extra=["heat", "Tm_1480"]).geometries == {"1480": SECOND}
        assert found.wanted(1)["Tm_1480"].geometry == SECOND
        assert found.wanted(1)["heat"].geometry is None
        assert found.channel_geometries() == {"heat": None, "Tm_1480": SECOND.to_dict()}

    def test_a_missing_map_is_named_with_what_the_file_has(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.npz", data(), heat=None)
        with pytest.raises(DataError, match=r"a\.npz lacks the further map 'heat'; it has xx, h, Rm, Tm, geometry, Rm_1480, Tm_1480, geom"):
            load(path, extra=["Rm_1480", "heat"])
        assert list(load(path, extra=["Rm_1480", "heat"], optional=True).extra) == ["Rm_1480"]

    @pytest.mark.parametrize(
        ("maps", "words"),
        [
            (np.full((3, 5, 5), -1e-6), "'heat' holds values from -1e-06 to -1e-06; a further map runs from 0"),
            (np.full((3, 5, 5), 1e31), "'heat' holds values from 1e\\+31"),
            (np.zeros((3, 7, 7)), r"'Rm' has shape \(3, 5, 5\) and 'heat' \(3, 7, 7\); expected the same"),
            (np.zeros((5, 5)), r"'heat' \(5, 5\)"),
            (np.full((3, 5, 5), np.nan), "'heat' holds values that are not finite"),
            (np.full((3, 5, 5), "x"), "'heat' holds values that are not finite numbers"),
        ],
    )
    def test_maps_that_are_none(self, maps: np.ndarray, words: str, tmp_path: Path) -> None:
        path = write(tmp_path / "a.npz", data(), heat=maps)
        load(path, extra=["Rm_1480"])
        with pytest.raises(DataError, match=words):
            load(path, extra=["heat"])

    def test_a_geometry_that_is_none(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.npz", data(), geometry_1480=np.array("{}"))
        with pytest.raises(DataError, match=r"a\.npz: 'geometry_1480': geometry lacks"):
            load(path, extra=["Rm_1480"])

    def test_shards(self, tmp_path: Path) -> None:
        parts = [data(2, 1), data(3, 2)]
        for i, part in enumerate(parts):
            write(tmp_path / f"shard-{i}.npz", part)
        found = load(tmp_path, extra=["heat"])
        assert np.array_equal(found.extra["heat"], np.concatenate([part.extra["heat"] for part in parts]))
        write(tmp_path / "shard-1.npz", dataclasses.replace(parts[1], geometries={"1480": Geometry(wavelength_nm=1470.0)}))
        with pytest.raises(DataError, match="differ in their further maps or in the geometries"):
            load(tmp_path, extra=["Rm_1480"])
        write(tmp_path / "shard-1.npz", parts[1], heat=None)
        with pytest.raises(DataError, match="differ in their further maps"):
            load(tmp_path, extra=["heat"], optional=True)

    def test_the_labs_files(self, tmp_path: Path) -> None:
        samples = data()
        for i in range(3):
            maps = {"Rm": samples.Rm[i], "Tm": samples.Tm[i], "Tm_1480": samples.extra["Tm_1480"][i]}
            lab = {key: reorder_lab(value).ravel() for key, value in maps.items()}
            savemat(tmp_path / f"Si_MS_Scat_samp_{i}.mat", {"xx": samples.xx[i].ravel(), "h": samples.h[i], **lab})
        found = load(tmp_path, extra=["Tm_1480"])
        assert np.array_equal(found.extra["Tm_1480"], samples.extra["Tm_1480"])
        assert load(tmp_path, extra=["heat"], optional=True).extra == {}
        with pytest.raises(DataError, match=r"samp_0\.mat lacks the key 'heat'; expected .*, found .*Tm_1480"):
            load(tmp_path, extra=["heat"])


def wish(**fields: Any) -> dict[str, Any]:
    sample = data()
    return {"Rm": sample.Rm[0], "Tm": sample.Tm[0], "h": 300.0, **{key: maps[0] for key, maps in sample.extra.items()}, **fields}


class TestTargets:
    def test_npz(self, tmp_path: Path) -> None:
        mask = np.zeros((SIDE, SIDE))
        mask[1, 2] = 1
        np.savez(tmp_path / "a.npz", **wish(mask_Tm_1480=mask, geometry_1480=np.array(SECOND.to_json())))
        target = Target.load(tmp_path / "a.npz")
        assert sorted(target.extra) == ["Rm_1480", "Tm_1480"]  # a key that says nothing of itself is not one of ours
        assert np.array_equal(target.extra["Tm_1480"].wanted, np.where(mask, wish()["Tm_1480"], 0))
        assert np.array_equal(target.extra["Tm_1480"].mask, mask)
        assert target.extra["Rm_1480"].mask.all()
        assert target.extra["Rm_1480"].geometry == SECOND
        assert not target.partial
        assert np.array_equal(Target.load(tmp_path / "a.npz", channels=["heat"]).extra["heat"].wanted, wish()["heat"])

    def test_mat_in_the_labs_convention(self, tmp_path: Path) -> None:
        values = {key: reorder_lab(value) if np.ndim(value) else value for key, value in wish().items()}
        savemat(tmp_path / "a.mat", values)
        with h5py.File(tmp_path / "b.mat", "w", userblock_size=512) as file:
            for key, value in values.items():
                file[key] = np.atleast_2d(value).T
        with (tmp_path / "b.mat").open("r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM")
        for name in ("a.mat", "b.mat"):
            target = Target.load(tmp_path / name, channels=["heat"])
            assert sorted(target.extra) == ["Rm_1480", "Tm_1480", "heat"]
            for key, channel in target.extra.items():
                assert np.array_equal(channel.wanted, wish()[key]), key

    @pytest.mark.parametrize("others", ["any", 0])
    def test_json(self, others: Any) -> None:
        orders = {"T(1,0)": 0.4}
        target = Target.from_dict({"height_nm": 300, "orders": orders, "others": others, "channels": {"Tm_1480": {"(-1, 2)": 0.3}}})
        channel = target.extra["Tm_1480"]
        assert channel.wanted[-1 + 11, 2 + 11] == channel.wanted.sum() == 0.3
        assert channel.mask.sum() == (1 if others == "any" else 529)
        assert Target.from_dict({"height_nm": 300, "orders": orders, "channels": {"heat": {"(15,0)": 7}}}).orders == 15

    @pytest.mark.parametrize(
        ("channels", "words"),
        [
            (3, "'channels' is 3; it must be an object"),
            ({"Tm_1480": 3}, r"'channels.Tm_1480' is 3; it must be an object such as {\"\(1,0\)\": 0.4}"),
            ({"Tm_1480": {"T(1,0)": 0.3}}, r"'channels.Tm_1480' names 'T\(1,0\)'; write an order as \(m,n\)"),
            ({"Tm_1480": {"(1,0)": "x"}}, r"'channels.Tm_1480.\(1,0\)' is 'x'; it must be a finite number"),
            ({"Tm_1480": {"(1,0)": -0.1}}, "'Tm_1480' asks for -0.1 to 0; a further map runs from 0"),
            ({"Tm 1480": {}}, "'channels' names 'Tm 1480'; a name has"),
            ({"Tm": {}}, "'channels' names 'Tm', which means something else"),
        ],
    )
    def test_json_that_is_none(self, channels: Any, words: str) -> None:
        with pytest.raises(TargetError, match=words):
            Target.from_dict({"height_nm": 300, "orders": {"T(1,0)": 0.4}, "channels": channels})

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (np.zeros((7, 7)), r"'heat' has shape \(7, 7\); it must be \(5, 5\), like the other maps"),
            (np.full((5, 5), -1e-9), "'heat' asks for -1e-09"),
            (np.full((5, 5), np.inf), "'heat' holds inf"),
            (Channel(np.zeros((5, 5)), np.ones((3, 3))), r"'mask_heat' has shape \(3, 3\)"),
        ],
    )
    def test_maps_that_are_none(self, value: Any, words: str) -> None:
        with pytest.raises(TargetError, match=words):
            Target.from_arrays(wish()["Rm"], wish()["Tm"], 300, extra={"heat": value})

    def test_a_file_with_a_geometry_that_is_none(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", **wish(geometry_1480=np.array("nonsense")))
        with pytest.raises(TargetError, match=r"a\.npz: 'geometry_1480': geometry is not JSON"):
            Target.load(tmp_path / "a.npz")

    def test_resized(self) -> None:
        mask = np.zeros((SIDE, SIDE), bool)
        mask[2:4, 2] = True
        target = Target.from_arrays(wish()["Rm"], wish()["Tm"], 300, extra={"heat": Channel(wish()["heat"], mask)})
        wide = target.resized(3).extra["heat"]
        assert wide.wanted.shape == wide.mask.shape == (7, 7)
        assert np.array_equal(wide.wanted[1:-1, 1:-1], target.extra["heat"].wanted)
        assert wide.mask.sum() == 2
        single = np.zeros((SIDE, SIDE))
        single[2, 2] = 0.5
        narrow = Target.from_arrays(single, single, 300, extra={"heat": Channel(wish()["heat"], mask)})
        assert np.array_equal(narrow.resized(1).extra["heat"].mask, mask[1:-1, 1:-1])
        with pytest.raises(TargetError, match="'heat' asks for orders beyond 1"):
            Target.from_arrays(single, single, 300, extra={"heat": wish()["heat"]}).resized(1)

    def test_a_pair_is_a_target_of_its_own(self) -> None:
        mask = np.zeros((SIDE, SIDE), bool)
        mask[3, 2] = True
        target = Target.from_arrays(
            wish()["Rm"], wish()["Tm"], 300, extra={"Tm_1480": Channel(wish()["Tm_1480"], mask), "heat": wish()["heat"]}
        )
        part = asked(target, {"1480": SECOND, "y": Geometry(polarisation="y")})
        assert list(part) == ["1480"]
        assert part["1480"].strongest(9) == [("T", 1, 0)]
        assert (part["1480"].geometry, part["1480"].height_nm) == (SECOND, 300)


class TestCondition:
    def constants(self) -> Condition:
        samples = data(40)
        return Condition.measure("orders", samples.Rm, samples.Tm, samples.h, 0, extra=samples.extra)

    def test_means_of_every_map_share_the_mirrors(self) -> None:
        condition, heat = self.constants(), data(40).extra["heat"]
        assert condition.channels == ("Rm_1480", "Tm_1480", "heat")
        mean = heat.mean(axis=0)
        assert condition.mean_channels[2] == pytest.approx((mean + mean[::-1] + mean[:, ::-1] + mean[::-1, ::-1]) / 4, rel=1e-5)

    def test_the_unit_of_a_map_drops_out(self) -> None:
        samples, seen = data(40), []
        for unit in (1.0, 1e6):
            extra = {"heat": unit * samples.extra["heat"]}
            condition = Condition.measure("orders", samples.Rm, samples.Tm, samples.h, 0, extra=extra)
            seen.append(condition.arrays(samples.Rm, samples.Tm, samples.h, extra=extra)["light"])
        assert seen[0] == pytest.approx(seen[1], rel=1e-4)
        assert (seen[0][:, 2] > 0).any()

    def test_through_json(self) -> None:
        condition, samples = self.constants(), data()
        again = Condition.from_dict(json.loads(json.dumps(condition.to_dict())))
        for name, array in condition.arrays(samples.Rm, samples.Tm, samples.h, extra=samples.extra).items():
            assert np.array_equal(again.arrays(samples.Rm, samples.Tm, samples.h, extra=samples.extra)[name], array)

    @pytest.mark.parametrize(
        "change",
        [
            {"channels": ["heat"]},
            {"channels": ["Rm", "b", "c"]},
            {"channels": None},
            {"mean_channels": [[[1.0]]] * 3},
            {"mean_channels": [[[-1.0] * SIDE] * SIDE] * 3},
            {"mean_channels": [[[float("inf")] * SIDE] * SIDE] * 3},
            {"layout": "planes", "canvas": 9},
        ],
    )
    def test_constants_that_do_not_go_together(self, change: dict[str, Any]) -> None:
        with pytest.raises(BundleError, match="export the bundle again"):
            Condition.from_dict({**self.constants().to_dict(), **change})

    def test_an_unknown_channel_is_refused_by_name(self) -> None:
        samples = data()
        with pytest.raises(TargetError, match=r"the channel 'cold' .*it knows Rm_1480, Tm_1480, heat.*leave it out"):
            self.constants().arrays(samples.Rm, samples.Tm, samples.h, extra={"cold": samples.Rm})

    def test_the_shipped_bundle_sees_what_it_always_saw(self) -> None:
        """Byte for byte the array of the release before there were channels."""
        bundle = Bundle.open()
        condition = bundle.condition
        assert bundle.channels == {}
        assert not {"channels", "mean_channels"} & set(condition.to_dict())
        rng = np.random.default_rng(0)
        power = rng.dirichlet(np.ones(2 * 23 * 23), 5).reshape(5, 2, 23, 23)
        masks = rng.random((5, 2, 23, 23)) < 0.5
        light = np.zeros((5, 4, 23, 23), np.float32)
        for channel, mean in enumerate((condition.mean_R, condition.mean_T)):
            amplitude = np.sqrt(np.maximum(power[:, channel], 0) / np.where(mean > 0, mean, 1))
            light[:, channel] = np.where(masks[:, channel] & (mean > 0), amplitude, 0)
            light[:, 2 + channel] = masks[:, channel]
        found = condition.arrays(power[:, 0], power[:, 1], np.full(5, 300.0), masks[:, 0], masks[:, 1])
        assert found["light"].tobytes() == light.tobytes()
        assert set(found) == {"light", "height"}
        target = Target.from_arrays(power[0, 0], power[0, 1], 300, masks[0, 0], masks[0, 1])
        assert condition.for_target(target)["light"].tobytes() == light[:1].tobytes()
        with pytest.raises(TargetError, match="it knows none beside R and T"):
            condition.for_target(Target.from_arrays(power[0, 0], power[0, 1], 300, extra={"heat": power[0, 0]}))


def test_what_no_solver_checks_is_said() -> None:
    """Of the maps asked for one was solved, one not in time, and for one nobody knows how."""
    maps = np.full((SIDE, SIDE), 0.02)
    extra = {"Tm_1480": maps, "Tm_y": maps, "heat": 300 * maps, "cold": Channel(maps, np.zeros((SIDE, SIDE)))}
    target = Target.from_arrays(maps, maps, 300, extra=extra)
    pairs = {"1480": Pair(SECOND, maps, maps, 0.25), "y": Pair(Geometry(polarisation="y"))}
    designs = [Design(np.eye(4, dtype=np.uint8), 300, maps, maps, 0.5, True, 0, 0, Geometry(), pairs)]
    lines = report.table(designs, target).splitlines()
    assert lines[1].split()[:7] == ["rank", "misrouted", "power", "at", "1480", "at", "y"]
    assert lines[3].split()[:5] == ["1", "0.500", "0.250", "-", "verified"]
    assert lines[-2:] == [
        "Ranked by R and T alone; 'at 1480' is the misrouted power of Rm_1480 and Tm_1480.",
        "Asked for and not verified, since the training data did not say how it was solved: heat.",
    ]
    assert report.channel_words(designs, target)["channels_not_verified"] == ["heat"]
    assert report.to_dict(designs[0], target, 1)["scores_by_channel"] == {"1480": 0.25, "y": None}


def test_names() -> None:
    assert fault(["Rm_1480", "heat", "x" * 63]) is None
    assert fault(("heat",)) is None
    for names in ("heat", None, [3], ["1480"], ["a b"], ["x" * 64], ["path"], ["geometry_1480"], ["heat\n"], ["wärme"]):
        assert fault(names) is not None, names


def test_geometries_of_a_bundle_are_checked(small_bundle: Path, folder: Path, rewrite: Any) -> None:
    side = np.zeros((7, 7)).tolist()

    def more(manifest: dict[str, Any]) -> None:
        manifest["condition"] |= {"channels": ["heat", "Tm_1480"], "mean_channels": [side, side]}
        manifest["channels"] = {"Tm_1480": SECOND.to_dict(), "heat": None}

    rewrite(folder, more)
    assert list(Bundle.open(folder).channels.items()) == [("heat", None), ("Tm_1480", SECOND)]  # in the network's order
    rewrite(folder, lambda manifest: manifest["channels"]["Tm_1480"].update(wavelength_nm=-1))
    with pytest.raises((BundleError, GeometryError), match=r"manifest\.json: geometry field 'wavelength_nm'"):
        Bundle.open(folder)
