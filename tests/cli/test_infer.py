"""infer: results alone on stdout, its files for every target, the same again for the same seed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from scipy.io import savemat

from runtime.data import reorder_lab
from runtime.design import read
from runtime.target import Target

ALL = ["design.png", "design.svg", "designs.gds", "designs.json", "designs.mat", "designs.npz", "designs.png"]


@pytest.fixture
def deflector(tmp_path: Path) -> Path:
    path = tmp_path / "deflector.json"
    path.write_text('{"height_nm": 300, "orders": {"T(1,0)": 0.2, "T(0,0)": 0.1}}')
    return path


def test_infer_leaves_its_files_and_prints_a_table(
    small_bundle: Path,
    target: Path,
    tmp_path: Path,
    run: Callable[..., Result],
    ok: Callable[[Result], Result],
    names: Callable[[Path], list[str]],
    quick: list[str],
) -> None:
    result = ok(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *quick, "--top", 3))
    assert names(tmp_path / "out") == ALL
    assert all((tmp_path / "out" / name).stat().st_size > 100 for name in ALL)
    assert (tmp_path / "out" / "designs.png").read_bytes().startswith(b"\x89PNG")
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("wish: pillars ")
    assert "misrouted power" in lines[1]
    assert "wanted" in lines[2]
    assert [line.split()[0] for line in lines[3:6]] == ["1", "2", "3"]
    assert all("verified" in line and "not verified" not in line for line in lines[3:6])
    assert re.search(r"6 candidates in [0-9.]+ s by (openvino|onnxruntime) on cpu in (fp32|bf16)", result.stdout)
    for name in ALL:
        assert str(tmp_path / "out" / name) in result.stdout
    designs = read(tmp_path / "out" / "designs.npz")
    assert [f"{design.score:.3f}" for design in designs] == [line.split()[1] for line in lines[3:6]]


def test_infer_json_is_the_whole_of_stdout(
    small_bundle: Path, target: Path, tmp_path: Path, spawn: Callable[..., subprocess.CompletedProcess[str]], quick: list[str]
) -> None:
    done = spawn("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *quick, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no bar where stderr is no terminal"
    document = json.loads(done.stdout)
    assert document["target"] == "wish"
    assert sorted(Path(path).name for path in document["files"]) == ALL
    assert document["missing"] == {}
    assert [design["rank"] for design in document["designs"]] == [1, 2, 3, 4]
    stored = read(tmp_path / "out" / "designs.npz")
    for design, kept in zip(document["designs"], stored, strict=True):
        assert design["score"] == kept.score
        assert design["verified"] is True
        assert design["pattern"] == ["".join(map(str, row)) for row in kept.pattern.tolist()]


@pytest.mark.usefixtures("no_picture")
def test_infer_again_gives_the_same_designs(
    small_bundle: Path,
    target: Path,
    tmp_path: Path,
    run: Callable[..., Result],
    ok: Callable[[Result], Result],
    names: Callable[[Path], list[str]],
    quick: list[str],
) -> None:
    for folder in ("a", "b"):
        ok(run("infer", target, "--out", tmp_path / folder, "--bundle", small_bundle, *quick, "--seed", 5))
    for name in ALL:
        assert name == "designs.gds" or (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    ok(run("infer", target, "--out", tmp_path / "a", "--bundle", small_bundle, *quick, "--seed", 6))
    assert names(tmp_path / "a") == ALL
    assert read(tmp_path / "a" / "designs.npz")[0].seed == 6


@pytest.mark.usefixtures("no_picture")
def test_several_targets_are_a_list_and_folders(
    small_bundle: Path,
    target: Path,
    deflector: Path,
    tmp_path: Path,
    run: Callable[..., Result],
    ok: Callable[[Result], Result],
    names: Callable[[Path], list[str]],
    quick: list[str],
) -> None:
    result = ok(run("infer", target, deflector, "--out", tmp_path / "out", "--bundle", small_bundle, *quick, "--json"))
    documents = json.loads(result.stdout)
    assert [document["target"] for document in documents] == ["wish", "deflector"]
    assert names(tmp_path / "out") == ["deflector", "wish"]
    for document in documents:
        assert names(tmp_path / "out" / document["target"]) == ALL
        assert document["directory"] == str(tmp_path / "out" / document["target"])
    table = ok(run("infer", target, deflector, "--out", tmp_path / "out", "--bundle", small_bundle, *quick)).stdout
    assert "deflector: pillars 300 nm high, 2 orders asked, the others free" in table
    assert "T(1,0)" in table


@pytest.mark.usefixtures("no_picture")
def test_infer_without_verification(
    small_bundle: Path, target: Path, tmp_path: Path, run: Callable[..., Result], ok: Callable[[Result], Result], quick: list[str]
) -> None:
    result = ok(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *quick, "--no-verify"))
    assert result.stdout.count("not verified") == 4
    assert "not solved" in result.stdout
    document = json.loads(
        ok(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *quick, "--no-verify", "--json")).stdout
    )
    for design in document["designs"]:
        assert (design["score"], design["verified"]) == (None, False)
        assert all(order["achieved"] is None for order in design["strongest_orders"])


@pytest.mark.usefixtures("no_picture")
def test_lab_files_are_read_in_the_labs_convention(
    small_bundle: Path,
    sample: dict[str, np.ndarray],
    tmp_path: Path,
    run: Callable[..., Result],
    ok: Callable[[Result], Result],
    quick: list[str],
) -> None:
    lab = {"Rm": reorder_lab(sample["Rm"]).reshape(1, -1), "Tm": reorder_lab(sample["Tm"]).reshape(1, -1), "h": sample["h"]}
    savemat(tmp_path / "lab.mat", lab)
    document = json.loads(
        ok(run("infer", tmp_path / "lab.mat", "--out", tmp_path / "o", "--bundle", small_bundle, *quick, "--json")).stdout
    )
    wanted = Target.from_arrays(sample["Rm"], sample["Tm"], float(sample["h"]))
    for order in document["designs"][0]["strongest_orders"]:
        assert order["wanted"] == pytest.approx(wanted.wanted(order["side"], order["m"], order["n"]), abs=1e-6)


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("excursion", ["negative", "total"])
def test_small_excursions_are_warned_about(
    excursion: str,
    small_bundle: Path,
    sample: dict[str, np.ndarray],
    tmp_path: Path,
    run: Callable[..., Result],
    ok: Callable[[Result], Result],
    quick: list[str],
) -> None:
    Tm = sample["Tm"].copy()
    if excursion == "negative":
        Tm[3, 4] = -0.005
    else:
        Tm *= 1.03 / (sample["Rm"].sum() + Tm.sum())
        Tm += np.where(Tm == Tm.max(), 1.03 - sample["Rm"].sum() - Tm.sum(), 0)
    np.savez(tmp_path / "wish.npz", **{**sample, "Tm": Tm})  # type: ignore[arg-type]
    result = ok(run("infer", tmp_path / "wish.npz", "--out", tmp_path / "out", "--bundle", small_bundle, *quick, "--json"))
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Warning: ")
    assert "wish" in lines[0]
    assert json.loads(result.stdout)["designs"]


@pytest.mark.parametrize("missing", [("matplotlib",), ("gdstk",), ("matplotlib", "gdstk")])
def test_files_whose_extra_is_missing_are_named(
    missing: tuple[str, ...],
    small_bundle: Path,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    run: Callable[..., Result],
    ok: Callable[[Result], Result],
    names: Callable[[Path], list[str]],
    quick: list[str],
) -> None:
    if "matplotlib" not in missing:
        request.getfixturevalue("no_picture")
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    of = {"matplotlib": ["designs.png", "design.png", "design.svg"], "gdstk": ["designs.gds"]}
    absent = {name for package in missing for name in of[package]}
    result = ok(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *quick, "--json"))
    assert names(tmp_path / "out") == sorted(set(ALL) - absent)
    assert json.loads(result.stdout)["missing"] == dict.fromkeys(absent, "lab")
    lines = result.stderr.strip().splitlines()
    assert len(lines) == len(absent)
    for name in absent:
        assert any(name in line and "metascatter[lab]" in line for line in lines)
