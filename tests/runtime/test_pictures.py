"""The picture: what is drawn where, read from the artists, and a PNG of the expected size."""

import dataclasses
import struct
import subprocess
import sys

import numpy as np
import pytest

from runtime.design import Design
from runtime.drawing import DPI, heading, panels
from runtime.errors import BackendError, DataError
from runtime.geometry import Geometry
from runtime.pictures import design_picture, draw
from runtime.target import Target

pytest.importorskip("matplotlib")

M = 11


def maps(**orders):
    """R, T with the efficiencies given as T_1_0=0.5; a minus sign is written as 'm'."""
    made = {"R": np.zeros((2 * M + 1, 2 * M + 1)), "T": np.zeros((2 * M + 1, 2 * M + 1))}
    for name, value in orders.items():
        side, m, n = name.split("_")
        made[side][int(m.replace("m", "-")) + M, int(n.replace("m", "-")) + M] = value
    return made["R"], made["T"]


def design(solved=True, **changes):
    pattern = np.zeros((10, 10), np.uint8)
    pattern[7, 2] = 1
    R, T = maps(T_1_0=0.5, T_0_m2=0.1, R_m8_1=0.3, R_0_0=0.1)
    made = Design(pattern, 312.0, R, T, 0.083, True, 5, 17, Geometry())
    if not solved:
        changes = {"R": None, "T": None, "score": None, "verified": False} | changes
    return dataclasses.replace(made, **changes)


def full():
    R, T = maps(T_1_0=0.6, R_m8_1=0.4)
    return Target.from_arrays(R, T, 312.0, name="full")


def partial():
    R, T = maps(T_1_0=0.4, T_m1_0=0.4)
    mask = np.zeros_like(T, bool)
    mask[M - 1 : M + 2, M] = True
    return Target.from_arrays(R, T, 312.0, np.zeros_like(mask), mask, name="partial")


def png_size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def at(axes, x, y):
    """What the image in ``axes`` shows at data coordinates (x, y), as matplotlib lays it out."""
    (image,) = axes.images
    left, right, bottom, top = image.get_extent()
    values: np.ndarray = np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)
    assert image.origin == "lower"
    return values[int((y - bottom) / (top - bottom) * values.shape[0]), int((x - left) / (right - left) * values.shape[1])]


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_the_png_has_a_row_per_design_up_to_four(tmp_path, count):
    path = tmp_path / "designs.png"
    design_picture([design()] * count, full(), path)
    width, height = png_size(path)
    figure = draw([design()] * count, full())
    inches = figure.get_size_inches()
    assert abs(width - inches[0] * DPI) <= 1
    assert abs(height - inches[1] * DPI) <= 1
    assert len(figure.axes) == 6 * min(count, 4)
    from matplotlib.image import imread

    pixels = imread(path)
    assert len(np.unique(pixels[..., 0])) > 50
    assert [file.name for file in tmp_path.iterdir()] == ["designs.png"]


def test_the_pattern_has_x_right_and_y_up_three_times_over():
    axes = draw([design()], full()).axes[0]
    for cell in (-4.0, 0.0, 4.0):
        assert at(axes, cell + 7.5 * 0.4, 2.5 * 0.4) == 1
        assert at(axes, cell + 2.5 * 0.4, 7.5 * 0.4) == 0
    assert np.asarray(axes.images[0].get_array()).sum() == 9
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x (µm)", "y (µm)")
    (outline,) = axes.patches
    assert (outline.get_xy(), outline.get_width(), outline.get_height()) == ((0, 0), 4.0, 4.0)


def test_order_maps_have_m_right_n_up_and_share_one_scale():
    _, target_T, achieved_T, target_R, achieved_R, _ = draw([design()], full()).axes
    assert (at(target_T, 1, 0), at(achieved_T, 1, 0), at(achieved_T, 0, -2)) == (0.6, 0.5, 0.1)
    assert (at(target_R, -8, 1), at(achieved_R, -8, 1)) == (0.4, 0.3)
    assert len({id(axes.images[0].norm) for axes in (target_T, achieved_T, target_R, achieved_R)}) == 1
    assert target_T.images[0].norm.vmax == 0.6
    assert target_T.get_xlabel() == "order m"
    assert target_T.get_ylabel() == "order n"


def test_maps_are_cut_to_the_orders_that_carry_power():
    _, T, _, R, *_ = draw([design()], full()).axes
    assert T.get_xlim() == (-2.5, 2.5)
    assert R.get_ylim() == (-8.5, 8.5)
    assert np.isfinite([at(T, m, n) for m in range(-2, 3) for n in range(-2, 3)]).sum() == 21  # m^2 + n^2 <= 5 in air
    assert np.isnan(at(T, 2, 2))
    assert np.isnan(at(R, 8, 8))


def test_a_shifted_box_keeps_its_labels_under_oblique_incidence():
    geometry = Geometry(theta_deg=60.0, incidence="cover", index_substrate=1.5)
    R, T = maps(R_m4_0=0.2, T_m1_1=0.3)
    axes = draw([design(geometry=geometry, R=R, T=T)], full()).axes
    assert at(axes[4], -4, 0) == 0.2
    assert at(axes[2], -1, 1) == 0.3
    assert axes[4].get_xlim()[0] == -4.5


def test_a_partial_target_is_framed_where_asked_and_hatched_elsewhere():
    target_T, achieved_T, target_R, achieved_R = panels(design(), partial())
    assert (target_T.asked.sum(), target_T.hatched.sum(), achieved_T.asked.sum(), achieved_T.hatched.sum()) == (3, 18, 3, 0)
    assert np.isfinite(target_T.values).sum() == 3
    assert np.isfinite(achieved_T.values).sum() == 21
    assert (target_T.total, achieved_T.total, achieved_R.total) == ("asked 0.80", "asked 0.50, rest 0.10", "rest 0.40")
    assert target_R.note == "no reflected order asked for"
    assert target_R.hatched.sum() == 249
    assert any("hatched" in text.get_text() for text in draw([design()], partial()).texts)


def test_a_full_target_is_neither_framed_nor_hatched():
    for panel in panels(design(), full()):
        assert not panel.asked.any()
        assert not panel.hatched.any()
    assert not any("hatched" in text.get_text() for text in draw([design()], full()).texts)


@pytest.mark.parametrize("target", [full(), partial()])
def test_an_unsolved_design_says_so(tmp_path, target):
    _, achieved_T, _, achieved_R = panels(design(solved=False), target)
    assert achieved_T.note == achieved_R.note == "not solved"
    assert np.isnan(achieved_T.values).all()
    design_picture([design(solved=False), design()], target, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 20_000


def test_the_heading_says_score_height_and_verification():
    assert heading(design()) == "misrouted power 0.083   ·   height 312 nm   ·   verified by RCWA"
    assert heading(design(solved=False)) == "score unknown   ·   height 312 nm   ·   not verified"
    words = [text.get_text() for text in draw([design(), design(score=0.2)], full()).texts]
    assert "Target full" in words
    assert "2" in words
    assert sum("misrouted power" in line for line in words) == 2


def test_no_order_propagating_and_all_power_nowhere_still_draw(tmp_path):
    dark = Geometry(period_nm=(300.0, 300.0), index_substrate=3.48, theta_deg=60.0)  # total reflection: nothing in air
    zero = np.zeros((2 * M + 1, 2 * M + 1))
    design_picture([design(geometry=dark, R=zero, T=zero)], full(), tmp_path / "x.png")
    assert panels(design(geometry=dark), full())[0].note == "no order propagates"


def test_maps_of_another_order_count_are_cut_or_left_blank():
    small = design(R=np.full((3, 3), 0.1), T=np.full((3, 3), 0.1))
    achieved = panels(small, full())[1].values
    assert np.isfinite(achieved).sum() == 9
    large = design(R=np.pad(design().R, 2), T=np.pad(design().T, 2))
    np.testing.assert_array_equal(panels(large, full())[1].values, panels(design(), full())[1].values)


def test_names_are_drawn_as_they_are(tmp_path):
    for name in ("a$b$c\\frac", "a_{", "x" * 300):
        design_picture([design()], dataclasses.replace(full(), name=name), tmp_path / "x.png")


def test_drawing_touches_no_global_state():
    code = (
        "import sys; sys.path.insert(0, '.'); import tests.runtime.test_pictures as t, matplotlib as m; before = m.rcParams.copy();"
        "t.draw([t.design()], t.full()); assert 'matplotlib.pyplot' not in sys.modules; assert m.rcParams.copy() == before"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_refusals_leave_no_file(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no design"):
        design_picture([], full(), tmp_path / "x.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        design_picture([design()], full(), tmp_path / "file" / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendError, match=r"metascatter\[lab\]"):
        design_picture([design()], full(), tmp_path / "x.png")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
