"""infer's options about making its designs, and the commands tolerance and gds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from runtime import design
from runtime.design import Design
from runtime.geometry import Geometry
from runtime.physics.rcwa import Solver
from runtime.target import Target
from tests.conftest import ORDERS, SIZE, SMALL

pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A ``designs.npz`` of three solved designs, and the target they are measured by: what the second one does."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2, (3, SIZE, SIZE)).astype(np.uint8)
    maps = [Solver(SMALL, ORDERS).solve(pattern, 300.0) for pattern in patterns]
    folder = tmp_path_factory.mktemp("saved")
    np.savez(folder / "wish.npz", Rm=maps[1][0], Tm=maps[1][1], h=300.0, geometry=np.array(SMALL.to_json()))
    designs = [
        Design(pattern, 300.0, *found, 0.5, True, 0, k, SMALL) for k, (pattern, found) in enumerate(zip(patterns, maps, strict=True))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.design.WRITERS", design.WRITERS[:1])
        design.save(designs, Target.load(folder / "wish.npz"), folder)
    return folder / "designs.npz", folder / "wish.npz"


def test_infer_ranks_by_worst_case_and_says_how_the_designs_are_made(
    small_bundle: Path, target: Path, tmp_path: Path, run: Callable[..., Result], ok: Callable[[Result], Result], quick: list[str]
) -> None:
    command = ["infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *quick, "--top", 2]
    text = ok(run(*command, "--robust", "--fabricable", "--no-corners", "--mat-convention", "metascatter")).stdout
    for words in (
        "narrowest pillar",
        "corner contacts",
        "pillar edges +20 nm",
        "worst case",
        "No corner contacts: ",
        "Ranked by worst case.",
    ):
        assert words in text
    document = json.loads((tmp_path / "out" / "designs.json").read_text(encoding="utf-8"))
    assert document["ranked_by"] == "no corner contacts first, then worst case of the tolerances"
    found = [(one["fabrication"]["corner_contacts"] > 0, one["tolerance"]["worst"]["score"]) for one in document["designs"]]
    assert len(found) == 2
    assert found == sorted(found)
    from runtime.data import read_mat

    content = read_mat(tmp_path / "out" / "designs.mat", ("worst_case",), ("convention",))
    assert str(content["convention"].item()) == "metascatter"
    np.testing.assert_allclose(content["worst_case"][:, 0], [score for _, score in found], atol=1e-6)


def test_tolerance_solves_designs_from_a_file(saved: tuple[Path, Path], run: Callable[..., Result], ok: Callable[[Result], Result]) -> None:
    designs, wish = saved
    text = ok(run("tolerance", designs, "--target", wish)).stdout
    (row,) = [line for line in text.splitlines() if line.startswith("as designed")]
    assert row.split()[-2] == "0.000", "the second is the target itself"
    document = json.loads(ok(run("tolerance", designs, "--target", wish, "--json")).stdout)
    curve = document["designs"][1]["tolerance"]["parameters"]["height"]
    assert curve["shifts"] == [-15.0, 0.0, 15.0]
    R, T = Solver(SMALL, ORDERS).solve(design.read(designs)[1].pattern, 315.0)
    wanted = Target.load(wish)
    assert curve["scores"][2] == pytest.approx((abs(R - wanted.R).sum() + abs(T - wanted.T).sum()) / 2, abs=1e-5)
    assert document["designs"][0]["fabrication"]["min_solid_nm"] == 400.0


def test_tolerance_refuses_a_target_of_another_geometry(
    saved: tuple[Path, Path], tmp_path: Path, run: Callable[..., Result], sentence: Callable[..., str]
) -> None:
    with np.load(saved[1]) as arrays:
        np.savez(tmp_path / "other.npz", **{**arrays, "geometry": np.array(Geometry().to_json())})
    assert "period_nm" in sentence(run("tolerance", saved[0], "--target", tmp_path / "other.npz"), 2)


@pytest.mark.parametrize("suffix", [".gds", ".oas"])
def test_gds_writes_one_design_over_an_area(
    suffix: str, saved: tuple[Path, Path], tmp_path: Path, run: Callable[..., Result], ok: Callable[[Result], Result]
) -> None:
    gdstk = pytest.importorskip("gdstk")
    out = tmp_path / f"mask{suffix}"
    options = ("--design", 2, "--area-um", 21, 8, "--layer", 7, "--datatype", 2, "--unit-nm", 0.5)
    text = ok(run("gds", saved[0], "--out", out, *options)).stdout
    second = design.read(saved[0])[1]
    assert f"DESIGN_2: 10 x 4 cells, 20 x 8 µm, layer 7/2, label 'metascatter {second.digest} h=300nm'" in text
    assert str(out) in text
    library = gdstk.read_oas(out) if suffix == ".oas" else gdstk.read_gds(out)
    assert library.precision == pytest.approx(0.5e-9)
    (top,) = library.top_level()
    assert top.name == "DESIGN_2"
    assert top.labels[0].text == f"metascatter {second.digest} h=300nm"
    assert top.area() == pytest.approx(40 * 4.0 * second.pattern.mean())
    assert {(polygon.layer, polygon.datatype) for polygon in top.references[0].cell.polygons} == {(7, 2)}


def test_gds_writes_all_designs(
    saved: tuple[Path, Path], tmp_path: Path, run: Callable[..., Result], ok: Callable[[Result], Result]
) -> None:
    gdstk = pytest.importorskip("gdstk")
    ok(run("gds", saved[0], "--out", tmp_path / "all.gds"))
    tops = gdstk.read_gds(tmp_path / "all.gds").top_level()
    assert [cell.name for cell in tops] == ["DESIGN_1", "DESIGN_2", "DESIGN_3"]
    assert tops[0].references[0].repetition.columns == 50


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "mask.dxf"], "neither in .gds"),
        (["--out", "mask.gds", "--design", 4], "holds 3 designs"),
        (["--out", "mask.gds", "--area-um", 1, 100], "unit cells of 2 x 2 µm"),
        (["--out", "mask.gds", "--unit-nm", 3], "no whole number of database units"),
    ],
)
def test_gds_refuses_in_one_sentence(
    options: list[object],
    words: str,
    saved: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Result],
    sentence: Callable[..., str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in sentence(run("gds", saved[0], *options), 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fabricable"], "--min-width-nm W, --no-corners or both"),
        (["--no-corners"], "limits for --fabricable"),
        (["--min-width-nm", 400], "limits for --fabricable"),
        (["--robust", "--no-verify"], "leave out --no-verify"),
        (["--tolerance", "--no-verify"], "leave out --no-verify"),
    ],
)
def test_infer_refuses_options_that_would_do_nothing(
    options: list[object], words: str, target: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    result = run("infer", target, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "out").exists()
