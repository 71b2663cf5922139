"""The picture of an evaluation: what is drawn is what was measured, and what would fail late is refused early."""

from __future__ import annotations

import struct
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import evaluate_measures as measures
from runtime.errors import BackendError, DataError
from runtime.evaluate import picture
from runtime.evaluate_picture import check, draw
from runtime.geometry import Geometry
from runtime.pictures import DPI

pytest.importorskip("matplotlib")

HEIGHTS = np.array([50, 60, 300, 300, 590, 600.0])


def result(**changes: Any) -> dict[str, Any]:
    """An evaluation of six targets, two of them with all candidates solved."""
    columns: dict[str, list[float]] = {
        "ranked": [0.0, 0.0, 0.1, 0.2, 0.2, 0.3],
        **{f"best_of_{k}": [0.1 / k, 0.2 / k] for k in measures.ORACLES},
        measures.RANDOM_NAME: [0.25, 0.3],
        "nearest_training": [0.2, 0.2, 0.25, 0.3, 0.3, 0.35],
    }
    edges = measures.band_edges(HEIGHTS)
    calibration = measures.Calibration()
    calibration.add(50, np.array([0.1, 0.2, 0.3]), np.array([0.11, 0.19, 0.33]), 0.0)
    calibration.add(60, np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.1, 0.3]), 0.1)
    scores = {"image_accuracy": 0.0, "precision": 0.5, "recall": 0.5, "unequal_pixels": 20.0}
    made = {
        "targets": 6,
        "ranked": measures.summary(columns["ranked"], 4),
        "oracle": {"targets": 2},
        "by_height_nm": measures.bands(edges, HEIGHTS, columns, None),
        "lab_scores": {"plain": scores, "modulo_shift": {**scores, "unequal_pixels": 10.0}},
        "surrogate": measures.surrogate_error([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], edges, HEIGHTS),
        "calibration": calibration.result(),
        "noise_robustness": [{"level": x, "noise": x / 2, **measures.summary([0.1, 0.1 + x], 4)} for x in measures.NOISE],
        "seed_protocol": {
            "targets": 6,
            "levels": [
                {"level": 0.2, "timestep": None, "steps": 0, **dict.fromkeys(scores)},
                {"level": 0.4, "timestep": 399, "steps": 8, **scores, "unequal_pixels": 1.0},
                {"level": 0.6, "timestep": 599, "steps": 12, **scores, "unequal_pixels": 9.0},
            ],
        },
        "geometry": Geometry().to_dict(),
        "n": 64,
        "sampler": {"scheduler": "ddim", "steps": 20},
        "per_target": {"height_nm": HEIGHTS.tolist(), **columns},
    }
    return {**made, **changes}


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_the_panels_show_what_was_measured() -> None:
    import matplotlib

    before = matplotlib.rcParams.copy()
    figure = draw(result())
    assert matplotlib.rcParams.copy() == before, "no global state"
    shares, heights, solves, calibration, noise, protocol = figure.axes[:6]
    # A third of the targets is met exactly, five of six to 0.2.
    x, y = lines(shares)["ranked"]
    assert [y[np.searchsorted(x, score, side="right") - 1] for score in (0.0, 0.15, 0.2, 0.5)] == pytest.approx([100 / 3, 50, 500 / 6, 100])
    assert lines(shares)["best of 64 random (first 2 targets)"][1][-1] == 100
    assert lines(heights)["ranked"][1] == pytest.approx([0.0, np.nan, 0.15, np.nan, 0.25], nan_ok=True)
    assert lines(heights)["surrogate's own error"][1] == pytest.approx([0.015, np.nan, 0.035, np.nan, 0.055], nan_ok=True)
    assert [label.get_text().split("\n")[1] for label in heights.get_xticklabels()] == ["n = 2", "n = 0", "n = 2", "n = 0", "n = 2"]
    assert "first 2 targets" in solves.get_title(loc="left")
    assert calibration.collections[0].get_offsets().shape == (6, 2)
    assert any("Spearman 0.75" in text.get_text() for text in calibration.texts)
    assert lines(noise)["ranked, with quartiles"] == ([0, 5, 10, 20], pytest.approx([0.1, 0.125, 0.15, 0.2]))
    assert lines(noise)["the target with noise itself"][1] == [0, 0.025, 0.05, 0.1]
    assert "starts from the answer" in protocol.get_title(loc="left")
    assert lines(protocol)["from the stored pattern under noise"] == ([0.4, 0.6], [1, 9])
    assert lines(protocol)["the same modulo cyclic shift"][1] == [10, 10]
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 5, "each line of the first two panels once"


def test_what_was_not_measured_is_said() -> None:
    made = result(surrogate=None, calibration=None, noise_robustness=None, seed_protocol=None, lab_scores=None)
    made["per_target"] = {name: made["per_target"][name] for name in ("height_nm", "ranked")}
    figure = draw(made)
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert words == ["no surrogate", "left out", "left out"]


@pytest.mark.parametrize("name", ["e.png", "e.svg"])
def test_the_file_is_what_its_suffix_says(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / name
    picture(result(), path)
    assert [p.name for p in path.parent.iterdir()] == [name]
    if name == "e.png":
        assert struct.unpack(">II", path.read_bytes()[16:24]) == (int(11.2 * DPI), int(7.2 * DPI))
    else:
        assert xml.etree.ElementTree.parse(path).getroot().tag.endswith("svg")


def test_what_would_fail_after_the_work_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("e.txt", "e"):
        with pytest.raises(DataError, match=r"expected one of \.png, \.svg, \.pdf"):
            check(tmp_path / name)
    (tmp_path / "f.png").mkdir()
    with pytest.raises(DataError, match=r"f\.png is a folder"):
        check(tmp_path / "f.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendError, match=r"metascatter\[lab\]"):
        check(tmp_path / "e.png")
