"""The figure of one design: what its axes show, and equal files for equal designs."""

from __future__ import annotations

import dataclasses
import sys
import xml.dom.minidom
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.design import Design
from runtime.errors import BackendError, DataError
from runtime.figure import Bar, bars, design_figure, draw, write
from runtime.geometry import Geometry
from runtime.target import Target
from runtime.tolerance import PARAMETERS, Curve, Tolerance

pytest.importorskip("matplotlib")

M = 4
SIDE = 2 * M + 1


def maps(**orders: float) -> tuple[np.ndarray, np.ndarray]:
    """R, T with the efficiencies given as T_1_0=0.5; a minus sign is written as 'm'."""
    made = {"R": np.zeros((SIDE, SIDE)), "T": np.zeros((SIDE, SIDE))}
    for name, value in orders.items():
        side, m, n = name.split("_")
        made[side][int(m.replace("m", "-")) + M, int(n.replace("m", "-")) + M] = value
    return made["R"], made["T"]


def full() -> Target:
    R, T = maps(T_1_0=0.6, R_m3_1=0.4)
    return Target.from_arrays(R, T, 310.0, name="full")


def partial() -> Target:
    R, T = maps(T_1_0=0.4)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[M : M + 2, M] = True  # T(0,0) is asked to be 0
    return Target.from_arrays(R, T, 310.0, ~mask & False, mask, name="partial")


def curve(**scores: float) -> Curve:
    return Curve((-2.0, 0.0, 2.0), (scores.get("low", 0.1), 0.05, scores.get("high", 0.1)))


def design(solved: bool = True, known: bool = False) -> Design:
    R, T = maps(T_1_0=0.5, T_0_m2=0.2, R_m3_1=0.25, R_0_0=0.05)
    pattern = np.zeros((6, 6), np.uint8)
    pattern[1:4, 2] = 1
    made = Design(pattern, 310.0, R, T, 0.05, True, 0, 0, Geometry(harmonics=4))
    if not solved:
        made = dataclasses.replace(made, R=None, T=None, score=None, verified=False)
    curves = {name: curve(high=0.3 if name == "wavelength" else 0.1) for name in PARAMETERS}
    return dataclasses.replace(made, tolerance=Tolerance(curves)) if known else made


@pytest.fixture(scope="module")
def drawn() -> Any:
    """A figure of a partial target, tolerances included."""
    return draw(design(known=True), partial())


def words(figure: Any) -> set[str]:
    import matplotlib.text

    return {text.get_text() for text in figure.findobj(matplotlib.text.Text)}


def test_a_range_is_a_bar_between_its_ends() -> None:
    fields = {"height_nm": 310, "orders": {"T(1,0)": {"min": 0.4}, "T(0,-2)": [0.1, 0.15], "R(0,0)": 0.05}}
    asked = Target.from_dict(fields).resized(M)
    found = {bar.name: bar for bar in bars(design(), asked)}
    assert found["T(1,0)"].ends == (0.4, 1.0)
    assert found["T(0,−2)"].ends == (0.1, 0.15)
    assert found["R(0,0)"].ends is None
    chart = draw(design(), asked).axes[1]
    drawn = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in chart.patches]
    assert any(x == pytest.approx((0.1, 0.15)) for x in drawn)
    assert next(x for x in drawn if x[0] == pytest.approx(0.4))[1] > chart.get_xlim()[1], "at least 0.4 runs to the edge"


def test_bars_are_the_strongest_asked_then_the_strongest_that_come_besides() -> None:
    assert bars(design(), partial()) == [
        Bar("T(1,0)", 0.4, 0.5),
        Bar("T(0,0)", 0.0, 0.0),
        Bar("R(−3,1)", None, 0.25),
        Bar("T(0,−2)", None, 0.2),
        Bar("R(0,0)", None, 0.05),
    ]
    assert bars(design(), full()) == [
        Bar("T(1,0)", 0.6, 0.5),
        Bar("R(−3,1)", 0.4, 0.25),
        Bar("T(0,−2)", 0.0, 0.2),
        Bar("R(0,0)", 0.0, 0.05),
    ]
    assert bars(design(solved=False), partial()) == [Bar("T(1,0)", 0.4, None), Bar("T(0,0)", 0.0, None)]


def test_a_target_of_many_orders_leaves_room_for_what_was_not_asked_or_not_wanted() -> None:
    R, T = (np.full((SIDE, SIDE), 1 / (2 * SIDE**2)) for _ in range(2))
    made = bars(design(), Target.from_arrays(R, T, 310.0))
    assert len(made) == 8
    assert Bar("T(1,0)", R[0, 0], 0.5) in made


def test_the_bars_are_as_long_as_their_values(drawn: Any) -> None:
    axes = drawn.axes[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["T(1,0)", "T(0,0)", "R(−3,1)", "T(0,−2)", "R(0,0)"]
    lengths = {(round(bar.get_y() + bar.get_height() / 2, 2), bar.get_width()) for bar in axes.patches}
    assert {(-0.19, 0.4), (0.19, 0.5), (2.0, 0.25), (3.0, 0.2)} <= lengths
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the strongest on top"
    assert {"■ wanted", "■ achieved", "■ not asked"} <= words(drawn)


def test_the_order_maps_share_one_scale_and_a_full_target_leaves_nothing_out() -> None:
    figure = draw(design(), full())
    assert not {"■ not asked", "misrouted power"} & words(figure)
    images = [axes.images[0] for axes in figure.axes if axes.get_xlabel() == "order m"]
    assert len(images) == 4
    assert {image.norm.vmax for image in images} == {0.6}
    assert len({id(image.norm) for image in images}) == 1


def test_the_tolerance_panels_show_the_curves_and_mark_the_worst(drawn: Any) -> None:
    known = design(known=True)
    fans = [axes for axes in drawn.axes if axes.get_xlabel().endswith((" (nm)", " (°)"))]
    assert len(fans) == 5
    assert len({axes.get_ylim() for axes in fans}) == 1
    assert known.tolerance is not None
    for axes, found in zip(fans, known.tolerance.curves.values(), strict=True):
        lines = [(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in axes.lines]
        assert (found.shifts, found.scores) in lines
    assert {"worst 0.300", "misrouted power"} <= words(drawn)
    assert ((2.0,), (0.3,)) in [(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in fans[2].lines]


def test_the_heading_names_what_is_shown(drawn: Any) -> None:
    found = words(drawn)
    assert any(design().digest in line and "wavelength 1550 nm" in line for line in found)
    assert {"partial", "misrouted power 0.050   ·   height 310 nm   ·   verified by RCWA"} <= found


def test_no_word_is_cut_off_and_none_lies_on_another(drawn: Any) -> None:
    drawn.canvas.draw()
    width, height = drawn.canvas.get_width_height()
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn.texts if text.get_text()]
    for axes in drawn.axes:
        boxes += [(label.get_text(), label.get_window_extent()) for label in (axes.xaxis.label, axes.yaxis.label) if label.get_text()]
        boxes += [(label.get_text(), label.get_window_extent()) for label in axes.get_xticklabels() if label.get_text()]
    for word, box in boxes:
        assert box.x0 >= 0, word
        assert box.y0 >= 0, word
        assert box.x1 <= width, word
        assert box.y1 <= height, word
    for i, (word, box) in enumerate(boxes):
        for other, second in boxes[:i]:
            assert not box.overlaps(second), (word, other)


def test_equal_designs_are_equal_svgs(drawn: Any, tmp_path: Path) -> None:
    """Parts of an SVG that matplotlib names at random are numbered."""
    write(drawn, tmp_path / "a.svg")
    design_figure(design(known=True), partial(), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]


def test_the_svg_is_whole(drawn: Any, tmp_path: Path) -> None:
    write(drawn, tmp_path / "a.svg")
    parts = xml.dom.minidom.parse(str(tmp_path / "a.svg")).getElementsByTagName("*")
    names = [part.getAttribute("id") for part in parts if part.hasAttribute("id")]
    assert len(names) == len(set(names)) > 50
    references = [part.getAttribute("xlink:href") for part in parts if part.hasAttribute("xlink:href")]
    references += [part.getAttribute("clip-path")[4:-1] for part in parts if part.hasAttribute("clip-path")]
    local = [reference[1:] for reference in references if reference.startswith("#")]
    assert len(local) > 50
    assert set(local) <= set(names)


def test_an_unsolved_design_and_a_dark_one_still_draw() -> None:
    dark = Geometry(period_nm=(300.0, 300.0), theta_deg=60.0, harmonics=4)  # total reflection: nothing in air
    zero = np.zeros((SIDE, SIDE))
    for made in (design(solved=False), dataclasses.replace(design(), geometry=dark, R=zero, T=zero)):
        figure = draw(made, partial())
        figure.canvas.draw()
        assert "not solved" in words(figure) or "no order propagates" in words(figure)


def test_refusals_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        design_figure(design(), partial(), tmp_path / "file" / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendError, match=r"metascatter\[lab\]"):
        design_figure(design(), partial(), tmp_path / "x.png")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
