"""Every form of a target through ``infer`` and ``verify``, and impossible requests, which are refused before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

RANGES = """height_nm = 250
[orders]
"T(1,0)" = {min = 0.1}
"T(0,0)" = [0.1, 0.2]
"R(0,0)" = {value = 0.3, sigma = 0.01}
"R(1,0)" = {max = 0.2}
"""


@pytest.mark.usefixtures("no_picture")
def test_every_form_is_designed_and_verified(
    small_bundle: Path,
    target: Path,
    tmp_path: Path,
    run: Callable[..., Result],
    ok: Callable[[Result], Result],
    names: Callable[[Path], list[str]],
    quick: list[str],
) -> None:
    (tmp_path / "ranges.toml").write_text(RANGES)
    (tmp_path / "seen.csv").write_text("# height_nm = 250\n# noise = 0.05\nkind,m,n,efficiency\nT,0,0,0.4\n")
    out = tmp_path / "out"
    forms = [tmp_path / "ranges.toml", tmp_path / "seen.csv", target, "deflector:height_nm=200:efficiency=0.1", "mirror:height_nm=200"]
    said = ok(run("infer", *forms, "--out", out, "--bundle", small_bundle, "--top", 1, *quick)).stdout
    assert names(out) == ["deflector_height_nm=200_efficiency=0.1", "mirror_height_nm=200", "ranges", "seen", "wish"]
    line = next(line for line in said.splitlines() if "wanted" in line)
    assert line.split() == ["wanted", "0.280-0.320", "0.100-0.200", ">=0.100", "<=0.200"]
    document = json.loads((out / "ranges" / "designs.json").read_text())
    asked = {(o["side"], o["m"], o["n"]): (o["wanted"], o.get("wanted_range")) for o in document["designs"][0]["strongest_orders"]}
    assert asked == {
        ("R", 0, 0): (0.3, [0.28, 0.32]),
        ("T", 0, 0): (0.15, [0.1, 0.2]),
        ("T", 1, 0): (0.1, [0.1, 1.0]),
        ("R", 1, 0): (0.1, [0.0, 0.2]),
    }
    for form, folder in zip(forms, ("ranges", "seen", "wish", *names(out)[:2]), strict=True):
        designs = out / folder / "designs.npz"
        again = json.loads(ok(run("verify", designs, "--target", form, "--json")).stdout)
        with np.load(designs) as saved:
            assert again["designs"][0]["score"] == pytest.approx(float(saved["score"][0]), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", 'height_nm = 250\n[orders]\n"T(2,0)" = {min = 0.1}', "order T(2,0) is asked at least 0.1, but it is evanescent"),
        ("a.csv", "# height_nm = 250\nkind,m,n,efficiency\nR,5,0,0.1", "order R(5,0) is asked 0.1, but it is evanescent"),
        ("a.json", '{"height_nm": 250, "orders": {"R(4,0)": {"min": 0.2}}}', "order R(4,0) is asked 0.2, but the maps here end at order 3"),
        ("a.toml", 'height_nm = 250\n[orders]\n"T(1,0)" = {min = 0.6}\n"R(0,0)" = [0.5, 0.9]', "efficiencies in 'orders' add up to 1.1"),
        ("a.toml", 'preset = "deflector"\nheight_nm = 700', "the height is 700 nm, outside the"),
        ("a.toml", 'preset = "mirror"\nheight_nm = 200\ngeometry = {wavelength_nm = 1550.0}', "geometry lacks the field 'period_nm'"),
    ],
)
def test_impossible_requests(
    name: str, text: str, words: str, small_bundle: Path, tmp_path: Path, run: Callable[..., Result], sentence: Callable[..., str]
) -> None:
    (tmp_path / name).write_text(text)
    result = run("infer", tmp_path / name, "--out", tmp_path / "out", "--bundle", small_bundle, "-n", "100000")  # hours, if it began
    assert words in sentence(result, 2)
    assert not (tmp_path / "out").exists()


def test_another_geometry_and_presets_that_do_not_fit(
    small_bundle: Path, sample: dict[str, np.ndarray], tmp_path: Path, run: Callable[..., Result], sentence: Callable[..., str]
) -> None:
    geometry = json.loads(str(sample["geometry"])) | {"wavelength_nm": 1310.0}
    (tmp_path / "a.json").write_text(json.dumps({"preset": "mirror", "height_nm": 200, "geometry": geometry}))
    for target, words in (
        (tmp_path / "a.json", "the target's geometry is not the bundle's: wavelength_nm is 1310.0"),
        ("splitter-2x2:height_nm=200", "is asked at least 0.045, but it is evanescent at 1550 nm with a period of 2000 x 2000 nm"),
        ("deflektor", "or a preset (deflector, "),
    ):
        said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, "-n", "100000"), 2)
        assert words in said
    again = sentence(run("infer", "mirror", "mirror", "--out", tmp_path / "out", "--bundle", small_bundle), 2)
    assert "two targets are called 'mirror'" in again
