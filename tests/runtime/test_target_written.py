"""Targets that people write: .toml beside .json, presets, measured .csv."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from runtime.errors import TargetError
from runtime.geometry import Geometry, propagating
from runtime.presets import PRESETS, name_of
from runtime.target import Target, check_orders
from runtime.target_csv import read_csv
from runtime.target_ranges import SIGMAS

M = 11
WISHES = st.one_of(
    st.floats(0, 0.2),
    st.lists(st.floats(0, 0.2), min_size=2, max_size=2).map(sorted),
    st.fixed_dictionaries({"min": st.floats(0, 0.2)}),
    st.fixed_dictionaries({"max": st.floats(0, 1)}),
    st.fixed_dictionaries({"value": st.floats(0, 0.2), "sigma": st.floats(0, 0.1)}),
    st.just("any"),
)
ORDERS = st.tuples(st.sampled_from("RT"), st.integers(-12, 12), st.integers(-12, 12))


def toml(value: Any) -> str:
    """A value as TOML writes it; unlike JSON's its tables have equals signs."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value)


def same(a: Target, b: Target) -> bool:
    arrays = [(a.mask_R, b.mask_R), (a.mask_T, b.mask_T), (a.R, b.R), (a.T, b.T), *zip(a.limits, b.limits, strict=True)]
    return a.height_nm == b.height_nm and a.geometry == b.geometry and all(np.array_equal(*pair) for pair in arrays)


def refused(path: Path, text: str, plain: Callable[[str], bool]) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TargetError) as caught:
        Target.load(path)
    assert str(caught.value).startswith(str(path))
    assert plain(str(caught.value))
    return str(caught.value)


class TestToml:
    @settings(max_examples=40, deadline=None)
    @given(st.dictionaries(ORDERS, WISHES, min_size=1, max_size=4), st.sampled_from([0, "any"]), st.floats(0, 0.02))
    def test_says_the_same_as_json(self, tmp_path_factory: pytest.TempPathFactory, orders: Any, others: Any, noise: float) -> None:
        fields = {
            "height_nm": 300,
            "others": others,
            "noise": noise,
            "orders": {f"{k}({m},{n})": wish for (k, m, n), wish in orders.items()},
        }
        folder = tmp_path_factory.mktemp("forms")
        (folder / "a.json").write_text(json.dumps(fields))
        (folder / "a.toml").write_text("\n".join(f"{name} = {toml(value)}" for name, value in fields.items()))
        if others == "any" and all(wish == "any" for wish in orders.values()):
            with pytest.raises(TargetError, match="no order is asked for"):
                Target.load(folder / "a.toml")
            return
        first = Target.load(folder / "a.json")
        assert same(first, Target.load(folder / "a.toml"))
        for (kind, m, n), wish in orders.items():
            mask = (first.mask_R if kind == "R" else first.mask_T)[m + first.orders, n + first.orders]
            assert mask == (wish != "any")
            if isinstance(wish, float):
                assert first.range_of(kind, m, n) == pytest.approx((max(wish - SIGMAS * noise, 0), wish + SIGMAS * noise))
            elif isinstance(wish, dict) and "sigma" in wish:
                assert first.range_of(kind, m, n)[1] == pytest.approx(min(wish["value"] + SIGMAS * wish["sigma"], 1))
        assert first.mask_R.sum() + first.mask_T.sum() == (
            2 * first.R.size - sum(wish == "any" for wish in orders.values()) if others == 0 else sum(w != "any" for w in orders.values())
        )

    def test_a_document_with_tables(self, tmp_path: Path) -> None:
        geometry = "".join(f"{name} = {toml(value)}\n" for name, value in Geometry(polarisation="y").to_dict().items())
        (tmp_path / "a.toml").write_text(f'\ufeffheight_nm = 250\n[orders]\n"T(1, 0)" = {{min = 0.1}}\n[geometry]\n{geometry}', "utf-8")
        target = Target.load(tmp_path / "a.toml")
        assert target.geometry == Geometry(polarisation="y")
        assert target.range_of("T", 1, 0) == (0.1, 1.0)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("height_nm = 300\n[orders]\nT(1,0) = 0.4", ["is not TOML", "line 3", 'quotation marks, "T(1,0)" = 0.4']),
            ("height_nm = 300\nheight_nm = 200", ["is not TOML"]),
            ('height_nm = 300\n[orders]\n"T(1,0)" = 0.4\n"T(+1,0)" = 0.4', ["'T(+1,0)' twice"]),
            ('height_nm = 300\n[orders]\n"T(1,0)" = nan', ["'orders.T(1,0)'", "finite number"]),
            ("height_nm = 2026-05-01\n[orders]", ["'height_nm'", "finite number"]),
            ('height_nm = 300\n[orders]\n"T(1,0)" = [0.5, 0.3]', ["'orders.T(1,0)'", "from 0.5 to 0.3"]),
            ('height_nm = 300\n[orders]\n"T(1,0)" = [0.3]', ["1 values", "[least, most]"]),
            ('height_nm = 300\n[orders]\n"T(1,0)" = {max = 1.1}', ["from 0 to 1.1"]),
            ('height_nm = 300\n[orders]\n"T(1,0)" = {least = 0.1}', ["'orders.T(1,0)'", "min, max or both"]),
            ('height_nm = 300\n[orders]\n"T(1,0)" = {value = 0.1, sigma = -0.1}', ["'orders.T(1,0).sigma'", "-0.1"]),
            ('height_nm = 300\n[orders]\n"T(1,0)" = "free"', ["'orders.T(1,0)'", "'free'"]),
            ('height_nm = 300\nnoise = -1\n[orders]\n"T(1,0)" = 0.1', ["'noise'", "-1"]),
            ('height_nm = 300\n[orders]\n"T(1,0)" = {min = 0.6}\n"R(0,0)" = [0.5, 0.7]', ["lower ends", "add up to 1.1"]),
            ('height_nm = 300\n[orders]\n[channels.Tm_a]\n"(1,0)" = [0.1, 0.2]', ["'channels.Tm_a'", "range in (1,0)"]),
            ('height_nm = 300\norder = [1, 0]\n[orders]\n"T(1,0)" = 0.1', ["'order' belongs to a preset"]),
            ('preset = "lens"', ["no preset 'lens'", "deflector, splitter-2x2"]),
            ("preset = 3", ["no preset 3"]),
            ('preset = "deflector"\norder = [0, 0]', ["'order' is (0,0)"]),
            ('preset = "splitter 2x2"\norder = [1, 0]', ["'order' is (1,0)", "0 in neither direction"]),
            ('preset = "mirror"\norder = [1, 0]', ["mirror has no 'order'"]),
            ('preset = "deflector"\norder = [1.5, 0]', ["'order' is [1.5, 0]", "two whole numbers"]),
            ('preset = "deflector"\nefficiency = 0', ["'efficiency' is 0"]),
        ],
    )
    def test_refusals(self, tmp_path: Path, text: str, words: list[str], plain: Callable[[str], bool]) -> None:
        said = refused(tmp_path / "beam.toml", text, plain)
        for word in words:
            assert word in said


LEAVES = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["any", "T(1,0)", "deflector", ""])
NAMES = st.sampled_from(["T(1,0)", "R(0,0)", "min", "max", "value", "sigma", "Tm_a", "(1,0)"])
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6)
FIELDS = st.sampled_from(["height_nm", "orders", "others", "noise", "preset", "order", "efficiency", "geometry", "channels"])


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(FIELDS, TREES))
def test_whatever_a_document_holds_is_a_target_or_a_sentence(fields: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target = Target.from_dict({"height_nm": 300, "orders": {"T(1,0)": 0.1}, **fields})
        except TargetError:
            return
    assert target.mask_R.any() or target.mask_T.any()
    assert target.R.sum() + target.T.sum() <= 1 + 1e-9
    low_R, low_T, high_R, high_T = target.limits
    for low, shown, high in ((low_R, target.R, high_R), (low_T, target.T, high_T)):
        assert (low >= 0).all()
        assert (low <= shown + 1e-12).all()
        assert (shown <= high + 1e-12).all()


class TestPresets:
    @pytest.mark.parametrize("name", PRESETS)
    def test_can_be_asked_of_the_reference_geometry(self, name: str) -> None:
        target = Target.load(name)
        check_orders(target, Geometry())
        assert (target.name, target.height_nm) == (name, 300)
        R, T = propagating(Geometry(), target.orders)
        assert not (target.mask_R & ~R).any()
        assert not (target.mask_T & ~T).any()
        assert target.limits.low_R.sum() + target.limits.low_T.sum() < 1
        assert target.R.sum() + target.T.sum() < 1

    def test_deflector(self, tmp_path: Path) -> None:
        (tmp_path / "a.toml").write_text('preset = "deflector"\norder = [1, -1]\nefficiency = 0.4\nheight_nm = 200')
        target = Target.load(tmp_path / "a.toml")
        assert same(target, Target.load("deflector:efficiency=0.4:order=1,-1:height_nm=200"))
        assert target.height_nm == 200
        assert target.mask_T.sum() == 3
        assert target.mask_R.sum() == 0
        assert [target.range_of("T", *order) for order in ((1, -1), (-1, 1), (0, 0))] == [(0.4, 1), (0, 0.04), (0, 0.1)]

    def test_beams_are_equal_and_add_up_to_the_efficiency(self) -> None:
        for spoken, beams in (("splitter-2x2:order=2,1:efficiency=0.2", 4), ("equal-3x3:efficiency=0.45", 9)):
            target = Target.load(spoken)
            asked = target.T[target.limits.low_T > 0]
            assert len(asked) == beams
            assert asked == pytest.approx(asked.sum() / beams)
            assert asked.sum() == pytest.approx(float(spoken.rpartition("=")[2]))
        assert Target.load("splitter-2x2:order=2,1").wanted("T", -2, 1) > 0

    def test_orders_add_to_a_preset_and_overrule_it(self) -> None:
        orders = {"R(0,0)": {"max": 0.1}, "T(0,0)": "any"}
        target = Target.from_dict({"preset": "Zero-order suppressor", "orders": orders})
        assert target.range_of("R", 0, 0) == (0, 0.1)
        assert not target.mask_T.any()

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("deflector:order=1", "'order=1' is no parameter of a preset; write deflector:height_nm=300:efficiency=0.2:order=1,1"),
            ("mirror:height_nm", "'height_nm' is no parameter"),
            ("mirror:efficiency=0.2:efficiency=0.3", "'efficiency=0.3' is no parameter"),
            ("mirror:height_nm=nan", "'height_nm' is nan"),
            ("deflectr", r"deflectr has no ending; a target is .* or a preset \(deflector, "),
        ],
    )
    def test_refusals(self, text: str, words: str) -> None:
        with pytest.raises(TargetError, match=words):
            Target.load(text)

    def test_names_are_names_of_folders(self) -> None:
        assert name_of(Path("a/b.toml")) == "b"
        assert name_of(Path("splitter 2x2:order=1,1")) == "splitter-2x2_order=1,1" == Target.load("splitter 2x2:order=1,1").name


class TestCsv:
    HEAD = "# height_nm = 300\nkind,m,n,efficiency,sigma\n"

    def test_measured_orders(self, tmp_path: Path) -> None:
        text = "# by Anna, run 7\n# height_nm = 300\n# noise = 0.005\nkind,m,n,efficiency,sigma\nT,1,0,0.2,0.01\n\nR,0,-1,0.1,\n"
        (tmp_path / "a.csv").write_text(text)
        target = Target.load(tmp_path / "a.csv")
        assert (target.name, target.height_nm, target.orders) == ("a", 300, M)
        assert target.strongest(9) == [("T", 1, 0), ("R", 0, -1)]
        assert target.range_of("T", 1, 0) == pytest.approx((0.18, 0.22))
        assert target.range_of("R", 0, -1) == pytest.approx((0.09, 0.11))

    @pytest.mark.parametrize(
        "text",
        ["# height_nm = 300,5;;;\r\nm;n;kind;efficiency\r\n1;0;T;0,25\r\n", "#height_nm=300.5\nkind\tm\tn\tefficiency\nT\t1\t0\t0.25"],
    )
    def test_as_spreadsheets_write_it(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
        target = Target.load(tmp_path / "a.csv")
        assert target.height_nm == 300.5
        assert target.range_of("T", 1, 0) == (0.25, 0.25)
        assert target.ranges is None

    @settings(max_examples=40, deadline=None)
    @given(st.dictionaries(ORDERS, st.tuples(st.floats(0, 0.05), st.none() | st.floats(0, 0.05)), min_size=1, max_size=8), st.booleans())
    def test_both_conventions_and_the_same_as_json(self, tmp_path_factory: pytest.TempPathFactory, orders: Any, lab: bool) -> None:
        path = tmp_path_factory.mktemp("csv") / "a.csv"
        named = {(k, -n, -m) if lab else (k, m, n): value for (k, m, n), value in orders.items()}  # as the file is to call them
        lines = [f"{k},{m},{n},{value!r},{'' if sigma is None else repr(sigma)}" for (k, m, n), (value, sigma) in named.items()]
        convention = "lab" if lab else "metascatter"
        path.write_text(f"# noise = 0.001\n# others = 0\n# convention = {convention}\n" + self.HEAD + "\n".join(lines))
        expected = Target.from_dict(
            {
                "height_nm": 300,
                "others": 0,
                "orders": {f"{k}({m},{n})": {"value": v, "sigma": 0.001 if s is None else s} for (k, m, n), (v, s) in orders.items()},
            }
        )
        assert same(Target.load(path), expected)
        turned = Target.load(path, "metascatter" if lab else "lab")
        assert np.array_equal(turned.T, expected.T.T[::-1, ::-1])

    def test_the_labs_rows_and_columns_are_those_of_its_mat(self, tmp_path: Path) -> None:
        data = np.zeros((23, 23))
        data[3, 14] = 0.8
        savemat(tmp_path / "a.mat", {"Rm": 0 * data, "Tm": data, "h": 300.0})
        (tmp_path / "a.csv").write_text(self.HEAD + f"T,{3 - M},{14 - M},0.8,\n")
        assert np.array_equal(read_csv(tmp_path / "a.csv", "lab").T, Target.load(tmp_path / "a.mat").T)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", ["no line that names the columns"]),
            ("# height_nm = 300\nT,1,0,0.2", ["line 2", "columns", "kind, m, n, efficiency"]),
            ("kind,m,n,efficiency\nT,1,0,0.2", ["does not say the height", "# height_nm = 300"]),
            ("# hight_nm = 300\n", ["line 1", "'hight_nm'", "height_nm, noise, others, convention"]),
            ("# height_nm = 300\n" + HEAD, ["line 2", "'height_nm' a second time"]),
            (HEAD, ["no order is asked for"]),
            (HEAD + "T,1,0", ["line 3", "3 cells"]),
            (HEAD + "T,1,0,0.2,0.1,9", ["line 3", "6 cells"]),
            (HEAD + "S,1,0,0.2,", ["line 3", "'kind' is 'S'"]),
            (HEAD + "T,1.5,0,0.2,", ["line 3", "'m' is '1.5'"]),
            (HEAD + "T,1,61,0.2,", ["line 3", "'n' is '61'"]),
            (HEAD + "T,1,0,much,", ["line 3", "'efficiency' is 'much'"]),
            (HEAD + "T,1,0,inf,", ["line 3", "'efficiency' is inf"]),
            (HEAD + "T,1,0,0.2,-0.1", ["line 3", "standard deviation is -0.1"]),
            (HEAD + "T,1,0,0.2,\nT,+1,0,0.2,", ["line 4", "T(1,0) a second time"]),
            (HEAD + "T,1,0,0.7,0.01\nR,0,0,0.6,0.01", ["lower ends", "add up to 1.26"]),
            ("# others = some\n" + HEAD + "T,1,0,0.2,", ["'others' is 'some'", "any or 0"]),
            ("# convention = mine\n" + HEAD + "T,1,0,0.2,", ["'convention' is 'mine'"]),
            ("# noise = loud\n" + HEAD + "T,1,0,0.2,", ["'noise' is 'loud'"]),
            (HEAD + 'T,1,0,"0.2\n",', ["quotation marks"]),
        ],
    )
    def test_refusals(self, tmp_path: Path, text: str, words: list[str], plain: Callable[[str], bool]) -> None:
        said = refused(tmp_path / "beam.csv", text, plain)
        for word in words:
            assert word in said

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.sampled_from(["T", "R", "1", "0", "-1", "0.2", "9", "x", ",", ";", '"', "\n", "#", "=", "noise", "\x00", " "]), max_size=20
        )
    )
    def test_whatever_stands_in_it_is_a_target_or_a_sentence(self, tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
        path = tmp_path_factory.getbasetemp() / "any.csv"
        path.write_text(self.HEAD + "T,0,0,0.1,\n" + "".join(parts))
        try:
            target = Target.load(path)
        except TargetError:
            return
        assert target.wanted("T", 0, 0) == 0.1

    def test_missing_and_not_text(self, tmp_path: Path) -> None:
        with pytest.raises(TargetError, match=r"no\.csv does not exist"):
            Target.load(tmp_path / "no.csv")
        (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
        with pytest.raises(TargetError, match=r"b\.csv is not CSV text"):
            Target.load(tmp_path / "b.csv")
