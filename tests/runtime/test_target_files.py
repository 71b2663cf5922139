"""The three forms of a target on disk: what each holds comes back in DESIGN.md's order, every fault is a sentence with file and field."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from runtime.errors import TargetError
from runtime.geometry import Geometry
from runtime.target import Target

SIDE, M = 23, 11


def write(path: Path, fields: Any) -> Path:
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields), encoding="utf-8")
    return path


class TestNpz:
    def test_round_trip(self, tmp_path: Path, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        R, T = maps(R0_m1=0.2, T2_1=0.7)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[2 + M, 1 + M] = True
        geometry = Geometry(polarisation="y")
        np.savez(tmp_path / "beam.npz", Rm=R, Tm=T, h=np.float32(250), mask_R=R > 0, mask_T=mask, geometry=np.array(geometry.to_json()))
        target = Target.load(tmp_path / "beam.npz")
        assert target.name == "beam"
        assert target.height_nm == 250
        assert target.geometry == geometry
        assert target.strongest(9) == [("T", 2, 1), ("R", 0, -1)]
        assert (target.R == R).all()
        assert (target.T == T).all()
        assert (target.mask_T == mask).all()

    def test_one_sample_of_a_data_set_is_a_target(self, tmp_path: Path, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        R, T = maps(T2_1=1.0)
        np.savez(tmp_path / "one.npz", xx=np.zeros((1, 10, 10), np.uint8), Rm=R[None], Tm=T[None], h=np.array([250.0]))
        target = Target.load(str(tmp_path / "one.npz"))
        assert target.wanted("T", 2, 1) == 1
        assert not target.partial
        assert target.geometry is None

    def test_convention_of_the_file_and_of_the_caller(self, tmp_path: Path, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        R, T = maps(T2_1=1.0)
        mask = T > 0
        np.savez(tmp_path / "lab.npz", Rm=R, Tm=T, h=250, mask_R=mask, mask_T=mask, convention=np.array("lab"))
        # data[i, j] is order (-(j - M), -(i - M)): [2 + M, 1 + M] is order (-1, -2).
        assert Target.load(tmp_path / "lab.npz").strongest(1) == [("T", -1, -2)]
        assert Target.load(tmp_path / "lab.npz", "metascatter").strongest(1) == [("T", 2, 1)]
        assert Target.load(tmp_path / "lab.npz").mask_T[M - 1, M - 2]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"Tm": None}, ["'Tm'", "Rm, Tm, h"]),
            ({"h": None}, ["'h'", "Rm, Tm, h"]),
            ({"Rm": np.zeros((4, 23, 23))}, ["'Rm'", "4 samples"]),
            ({"Rm": np.zeros((22, 22))}, ["'Rm'", "(22, 22)"]),
            ({"Tm": np.full((23, 23), np.nan)}, ["'Tm'", "nan"]),
            ({"Tm": np.pad([[2.0]], M)}, ["'Rm' and 'Tm'", "add up to 2"]),
            ({"Rm": np.pad([[-0.5]], M)}, ["'Rm'", "-0.5", "R(0,0)"]),
            ({"h": np.float64(-1)}, ["'h'", "above 0"]),
            ({"h": np.array([1.0, 2.0])}, ["'h'", "2 values"]),
            ({"h": np.array("high")}, ["'h'", "real numbers"]),
            ({"mask_R": np.ones((5, 5))}, ["'mask_R'", "(5, 5)"]),
            ({"geometry": np.array("{")}, ["geometry", "JSON"]),
            ({"geometry": np.array('{"wavelength_nm": 1550.0}')}, ["geometry", "period_nm"]),
            ({"convention": np.array("matlab")}, ["'convention'", "'matlab'", "lab"]),
        ],
    )
    def test_refusals(
        self,
        tmp_path: Path,
        change: dict[str, Any],
        words: list[str],
        maps: Callable[..., tuple[np.ndarray, np.ndarray]],
        plain: Callable[[str], bool],
    ) -> None:
        R, T = maps(T0_0=0.5)
        arrays = {key: value for key, value in {"Rm": R, "Tm": T, "h": np.float64(300), **change}.items() if value is not None}
        np.savez(tmp_path / "beam.npz", **arrays)
        with pytest.raises(TargetError) as caught:
            Target.load(tmp_path / "beam.npz")
        text = str(caught.value)
        assert text.startswith(str(tmp_path / "beam.npz"))
        assert plain(text)
        for word in words:
            assert word in text

    @pytest.mark.parametrize("bare", [False, True])
    def test_a_pickle_is_refused_and_never_run(self, tmp_path: Path, bare: bool) -> None:
        path, ran = tmp_path / "evil.npz", tmp_path / "ran"

        class Payload:
            def __reduce__(self) -> Any:
                return (Path.touch, (ran,))

        if bare:
            path.write_bytes(pickle.dumps(Payload()))
        else:
            np.savez(path, Rm=np.array([Payload()], dtype=object), Tm=np.zeros((SIDE, SIDE)), h=300)
        with pytest.raises(TargetError, match=r"evil\.npz (holds pickled|is not an \.npz)"):
            Target.load(path)
        assert not ran.exists()
        if bare:  # the payload is live: what was refused would have run
            pickle.loads(path.read_bytes())
            assert ran.exists()


class TestMat:
    @pytest.mark.parametrize("shape", [(23, 23), (1, 529), (529, 1)])
    def test_lab_convention_by_default(self, tmp_path: Path, shape: tuple[int, int]) -> None:
        data = np.zeros((SIDE, SIDE))
        data[3, 14] = 0.8
        savemat(tmp_path / "t.mat", {"Rm": np.zeros(shape), "Tm": data.reshape(shape), "h": 300})
        target = Target.load(tmp_path / "t.mat")
        assert target.wanted("T", -(14 - M), -(3 - M)) == 0.8
        assert target.T.sum() == 0.8
        assert target.height_nm == 300
        assert not target.partial

    def test_the_files_own_convention_and_the_callers(self, tmp_path: Path, maps: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        R, T = maps(T2_1=0.8)
        savemat(tmp_path / "t.mat", {"Rm": R, "Tm": T, "h": 300, "convention": "metascatter"})
        assert Target.load(tmp_path / "t.mat").strongest(1) == [("T", 2, 1)]
        assert Target.load(tmp_path / "t.mat", "lab").strongest(1) == [("T", -1, -2)]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"Rm": None}, ["'Rm'", "Rm, Tm, h"]),
            ({"Rm": np.zeros((1, 528))}, ["'Rm'", "528 values"]),
            ({"Tm": np.zeros((9, 23, 23))}, ["'Tm'", "(9, 23, 23)", "one map"]),
            ({"Tm": np.zeros((1, 441))}, ["'Rm'", "'Tm'", "(21, 21)"]),
            ({"Tm": "text"}, ["'Tm'", "numeric"]),
            ({"Tm": np.full((23, 23), np.nan)}, ["'Tm'", "nan"]),
            ({"h": 0}, ["'h'", "above 0"]),
            ({"h": np.zeros((0, 0))}, ["'h'", "0 values"]),
            ({"convention": "MATLAB"}, ["'convention'", "'MATLAB'"]),
        ],
    )
    def test_refusals(
        self,
        tmp_path: Path,
        change: dict[str, Any],
        words: list[str],
        maps: Callable[..., tuple[np.ndarray, np.ndarray]],
        plain: Callable[[str], bool],
    ) -> None:
        R, T = maps(T0_0=0.5)
        savemat(tmp_path / "beam.mat", {k: v for k, v in {"Rm": R, "Tm": T, "h": 300.0, **change}.items() if v is not None})
        with pytest.raises(TargetError) as caught:
            Target.load(tmp_path / "beam.mat")
        text = str(caught.value)
        assert text.startswith(str(tmp_path / "beam.mat"))
        assert plain(text)
        for word in words:
            assert word in text

    def test_damaged_file(self, tmp_path: Path) -> None:
        (tmp_path / "beam.mat").write_bytes(b"not MATLAB at all" * 20)
        with pytest.raises(TargetError, match=r"beam\.mat cannot be read as a MATLAB file"):
            Target.load(tmp_path / "beam.mat")


class TestJson:
    def test_only_the_orders_named_are_asked_for(self, tmp_path: Path) -> None:
        target = Target.load(write(tmp_path / "split.json", {"height_nm": 300, "orders": {"T(1,0)": 0.4, "T( -1, +0 )": 0.1, "R(0,0)": 0}}))
        assert (target.name, target.orders, target.height_nm, target.geometry) == ("split", 11, 300.0, None)
        assert target.partial
        assert target.strongest(9) == [("T", 1, 0), ("T", -1, 0), ("R", 0, 0)]
        assert target.mask_T.sum() == 2
        assert target.mask_R.sum() == 1
        assert target.T[1 + M, M] == 0.4

    def test_others_0_asks_for_every_order(self, tmp_path: Path) -> None:
        target = Target.load(write(tmp_path / "a.json", {"height_nm": 300, "orders": {"T(0,1)": 0.9}, "others": 0}))
        assert not target.partial
        assert target.T.sum() + target.R.sum() == 0.9

    def test_geometry_large_orders_and_a_byte_order_mark(self, tmp_path: Path) -> None:
        fields = {"height_nm": 300, "orders": {"R(0,-14)": 0.9}, "others": "any", "geometry": Geometry(harmonics=15).to_dict()}
        target = Target.load(write(tmp_path / "a.json", "\ufeff" + json.dumps(fields)))
        assert target.orders == 14
        assert target.R[14, 0] == 0.9
        assert target.geometry == Geometry(harmonics=15)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{", ["JSON"]),
            ("[" * 100000, ["JSON"]),
            ("[1]", ["[1]", "object"]),
            ('{"orders": {"T(0,0)": 1}}', ["'height_nm'"]),
            ('{"height_nm": 300}', ["'orders'"]),
            ('{"height_nm": 300, "orders": {"T(0,0)": 1}, "hight": 3}', ["unknown", "'hight'", "height_nm, orders, others, geometry"]),
            ('{"height_nm": 300, "height_nm": 301, "orders": {"T(0,0)": 1}}', ["'height_nm' twice"]),
            ('{"height_nm": 300, "orders": {"T(0,0)": 1, "T(0,0)": 0.5}}', ["'T(0,0)' twice"]),
            ('{"height_nm": 300, "orders": {"T(0,0)": 1, "T(-0, 0)": 0.5}}', ["'T(-0, 0)' twice"]),
            ('{"height_nm": 300, "orders": {"T[0,0]": 1}}', ["'orders'", "'T[0,0]'", "T(m,n)"]),
            ('{"height_nm": 300, "orders": {"T(0.5,0)": 1}}', ["'orders'", "'T(0.5,0)'"]),
            ('{"height_nm": 300, "orders": {"T(61,0)": 1}}', ["'orders'", "T(61,0)", "60"]),
            ('{"height_nm": 300, "orders": ["T(0,0)"]}', ["'orders'", "object"]),
            ('{"height_nm": 300, "orders": {}}', ["no order is asked for"]),
            ('{"height_nm": 300, "orders": {"T(0,0)": "much"}}', ["'orders.T(0,0)'", "'much'", "finite number"]),
            ('{"height_nm": 300, "orders": {"T(0,0)": true}}', ["'orders.T(0,0)'", "True"]),
            ('{"height_nm": 300, "orders": {"T(0,0)": null}}', ["'orders.T(0,0)'", "None"]),
            ('{"height_nm": 300, "orders": {"T(0,0)": NaN}}', ["'orders.T(0,0)'", "nan"]),
            ('{"height_nm": 300, "orders": {"T(0,0)": 1e999}}', ["'orders.T(0,0)'", "inf"]),
            ('{"height_nm": 1' + "0" * 400 + ', "orders": {"T(0,0)": 1}}', ["'height_nm'", "finite number"]),
            ('{"height_nm": 1' + "0" * 5000 + ', "orders": {"T(0,0)": 1}}', ["JSON"]),
            ('{"height_nm": "300", "orders": {"T(0,0)": 1}}', ["'height_nm'", "'300'"]),
            ('{"height_nm": 0, "orders": {"T(0,0)": 1}}', ["'height_nm'", "above 0"]),
            ('{"height_nm": 300, "orders": {"T(0,0)": 0.8, "R(0,0)": 0.8}}', ["'orders'", "add up to 1.6"]),
            ('{"height_nm": 300, "orders": {"R(2,-1)": -0.2}}', ["'orders'", "R(2,-1)", "-0.2"]),
            ('{"height_nm": 300, "orders": {"T(0,0)": 1}, "others": 0.1}', ["'others'", "0.1", '"any" or 0']),
            ('{"height_nm": 300, "orders": {"T(0,0)": 1}, "others": false}', ["'others'", "False"]),
            ('{"height_nm": 300, "orders": {"T(0,0)": 1}, "geometry": {"wavelength": 3}}', ["geometry", "'wavelength'"]),
            ('{"height_nm": 300, "orders": {"T(0,0)": 1}, "geometry": 3}', ["geometry", "object"]),
        ],
    )
    def test_refusals(self, tmp_path: Path, text: str, words: list[str], plain: Callable[[str], bool]) -> None:
        path = write(tmp_path / "beam.json", text)
        with pytest.raises(TargetError) as caught:
            Target.load(path)
        assert str(caught.value).startswith(str(path))
        assert plain(str(caught.value))
        for word in words:
            assert word in str(caught.value)

    def test_text_in_another_encoding(self, tmp_path: Path) -> None:
        (tmp_path / "beam.json").write_bytes(b'{"height_nm": 300, "orders": {"\xff": 1}}')
        with pytest.raises(TargetError, match=r"beam\.json is not JSON"):
            Target.load(tmp_path / "beam.json")


@pytest.mark.parametrize("suffix", [".npz", ".mat", ".json"])
def test_missing_file_and_folder(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(TargetError, match=rf"nothing\{suffix} does not exist"):
        Target.load(tmp_path / f"nothing{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(TargetError, match=rf"folder\{suffix} (is a folder|does not exist)"):
        Target.load(tmp_path / f"folder{suffix}")


def test_unknown_form_and_convention(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"beam\.txt ends in '\.txt'; a target is a \.json, \.toml, \.mat, \.npz or \.csv file"):
        Target.load(tmp_path / "beam.txt")
    with pytest.raises(TargetError, match="convention is 'matlab'; it must be metascatter or lab"):
        Target.load(tmp_path / "beam.mat", "matlab")
