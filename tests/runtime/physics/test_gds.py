"""GDSII written with rectangles and one array reference, read back with gdstk."""

import numpy as np
import pytest

from runtime.errors import BackendError, DataError
from runtime.geometry import Geometry
from runtime.physics import gds

gdstk = pytest.importorskip("gdstk")

RANDOM = (np.random.default_rng(3).random((10, 10)) < 0.5).astype(np.uint8)
ISLANDS = np.zeros((10, 10), np.uint8)  # a ring with a pillar inside, a pillar that touches the ring's corner, a lone one
ISLANDS[1:6, 1:6] = 1
ISLANDS[2:5, 2:5] = 0
ISLANDS[3, 3] = ISLANDS[6, 6] = ISLANDS[8, 1] = 1


def written(tmp_path, patterns, geometry=None, **settings):
    path = tmp_path / "designs.gds"
    gds.write_gds(patterns, geometry or Geometry(), path, **settings)
    return gdstk.read_gds(path)


def read_back(path):
    return gdstk.read_oas(path) if path.suffix == ".oas" else gdstk.read_gds(path)


def covered(polygons, x, y):
    return any(polygon.contain((x, y)) for polygon in polygons)


@pytest.mark.parametrize("pattern", [RANDOM, ISLANDS, np.ones((10, 10)), np.eye(10), np.zeros((10, 10)), np.ones((1, 1))])
def test_rectangles_tile_the_pattern_exactly_once(pattern):
    count = np.zeros(pattern.shape, int)
    for i0, j0, i1, j1 in gds.rectangles(pattern):
        assert i0 < i1
        assert j0 < j1
        count[i0:i1, j0:j1] += 1
    np.testing.assert_array_equal(count, pattern)


def test_rectangles_are_few_where_they_can_be():
    assert gds.rectangles(np.ones((10, 10))) == [(0, 0, 10, 10)]
    assert len(gds.rectangles(np.eye(10))) == 10  # touching corners join nothing
    bar = np.zeros((4, 4), np.uint8)
    bar[1:3] = 1
    assert gds.rectangles(bar) == [(1, 0, 3, 4)]


@pytest.mark.parametrize("pattern", [RANDOM, ISLANDS])
def test_area_is_the_fill_factor_and_every_pixel_lies_where_the_pattern_says(tmp_path, pattern):
    library = written(tmp_path, pattern, Geometry(period_nm=(4000.0, 3000.0)))
    assert (library.unit, library.precision) == (1e-6, 1e-9)
    unit = next(cell for cell in library.cells if cell.name == "UNIT_1")
    assert unit.area() == pytest.approx(pattern.mean() * 12.0, rel=1e-9)
    assert {(p.layer, p.datatype) for p in unit.polygons} == {(1, 0)}
    assert all(len(p.points) == 4 for p in unit.polygons)
    for (i, j), pillar in np.ndenumerate(pattern):
        assert covered(unit.polygons, (i + 0.5) * 0.4, (j + 0.5) * 0.3) == bool(pillar)


def test_one_pillar_sits_at_x_i_y_j(tmp_path):
    pattern = np.zeros((10, 10), np.uint8)
    pattern[7, 2] = 1
    (polygon,) = next(cell for cell in written(tmp_path, pattern).cells if cell.name == "UNIT_1").polygons
    np.testing.assert_allclose(polygon.bounding_box(), [(2.8, 0.8), (3.2, 1.2)], atol=1e-9)


# Written by hand from the axes: pattern[i, j] fills x in [i, i+1] and y in [j, j+1] pixels. Seen from the air, x right and y up:
#   y 1.2 to 1.8  . # .
#   y 0.6 to 1.2  . . #        a pillar at [1, 2], one at [2, 1], and a bar from [0, 0] to [1, 0]
#   y 0.0 to 0.6  # # .        (corners touch between [1, 2] and [2, 1], and between [1, 0] and [2, 1])
ASYMMETRIC = np.array([[1, 0, 0], [1, 0, 1], [0, 1, 0]], np.uint8)
BY_HAND = [((0.0, 0.0), (0.8, 0.6)), ((0.4, 1.2), (0.8, 1.8)), ((0.8, 0.6), (1.2, 1.2))]


@pytest.mark.parametrize("suffix", [".gds", ".oas"])
def test_an_asymmetric_pattern_has_the_coordinates_written_by_hand(tmp_path, suffix):
    path = tmp_path / f"hand{suffix}"
    gds.write_gds(ASYMMETRIC, Geometry(period_nm=(1200.0, 1800.0)), path, labels=["metascatter 0123456789ab h=310nm"], layer=7, datatype=3)
    library = read_back(path)
    unit, top = (next(cell for cell in library.cells if cell.name == name) for name in ("UNIT_1", "DESIGN_1"))
    boxes = sorted((tuple(np.round(low, 9)), tuple(np.round(high, 9))) for low, high in (p.bounding_box() for p in unit.polygons))
    assert boxes == BY_HAND
    assert {(p.layer, p.datatype) for p in unit.polygons} == {(7, 3)}
    (reference,) = top.references
    assert reference.origin == (0, 0)
    assert (reference.repetition.columns, reference.repetition.rows) == (83, 56)
    assert reference.repetition.spacing == pytest.approx((1.2, 1.8))
    (label,) = top.labels
    assert (label.text, label.origin, label.layer, label.texttype) == ("metascatter 0123456789ab h=310nm", (0, 0), 7, 3)
    assert not unit.labels
    assert [cell.name for cell in library.top_level()] == ["DESIGN_1"]
    # The cell beside the first holds the same, one period on.
    flat = top.copy("FLAT").flatten()
    assert flat.area() == pytest.approx(83 * 56 * 4 * 0.4 * 0.6)
    assert covered(flat.polygons[:30000], 1.2 + 0.6, 1.5)


@pytest.mark.parametrize("suffix", [".gds", ".oas"])
def test_ranks_name_the_cells_and_equal_patterns_are_equal_files(tmp_path, suffix):
    for name in ("a", "b"):
        gds.write_gds(np.stack([RANDOM, ISLANDS]), Geometry(), tmp_path / f"{name}{suffix}", ranks=[3, 5])
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert sorted(cell.name for cell in read_back(tmp_path / f"a{suffix}").top_level()) == ["DESIGN_3", "DESIGN_5"]


def test_the_database_unit_is_the_one_asked_for_or_one_that_fits(tmp_path):
    assert written(tmp_path, RANDOM, unit_nm=5.0).precision == pytest.approx(5e-9)
    assert written(tmp_path, RANDOM, Geometry(period_nm=(4000.5, 4000.0))).precision == pytest.approx(0.5e-9)
    library = written(tmp_path, RANDOM, Geometry(period_nm=(1000 / 3, 400.0)))
    assert library.precision == pytest.approx(1e-12)
    (top,) = library.top_level()
    assert top.references[0].repetition.spacing[0] == pytest.approx(1 / 3, abs=1e-6)
    with pytest.raises(DataError, match=r"4000.5 x 4000 nm, is no whole number .* such as 0.5 nm"):
        gds.write_gds(RANDOM, Geometry(period_nm=(4000.5, 4000.0)), tmp_path / "x.gds", unit_nm=1.0)
    with pytest.raises(DataError, match="database unit"):
        gds.write_gds(RANDOM, Geometry(), tmp_path / "x.gds", unit_nm=0.0)
    with pytest.raises(DataError, match="coarser"):
        gds.write_gds(RANDOM, Geometry(), tmp_path / "x.gds", repeat=(1000, 1000), unit_nm=0.001)
    assert not (tmp_path / "x.gds").exists()


def test_pixels_off_the_database_grid_still_tile_without_gaps(tmp_path):
    unit = next(cell for cell in written(tmp_path, np.tril(np.ones((7, 7))), Geometry()).cells if cell.name == "UNIT_1")
    joined = gdstk.boolean(unit.polygons, [], "or", precision=1e-6)
    assert len(joined) == 1
    assert joined[0].area() == pytest.approx(unit.area(), rel=1e-9)
    assert all(np.allclose(1000 * p.points, np.round(1000 * p.points), atol=1e-6) for p in unit.polygons)


def test_an_area_holds_whole_cells():
    assert gds.repeat_within(Geometry(), (100.0, 250.0)) == (25, 62)
    assert gds.repeat_within(Geometry(period_nm=(100.0, 300.0)), (0.3, 0.9)) == (3, 3)
    for area in ((3.9, 100.0), (100.0, 1e9)):
        with pytest.raises(DataError, match="unit cells of 4 x 4 µm"):
            gds.repeat_within(Geometry(), area)


def test_islands_survive_and_corners_do_not_merge(tmp_path):
    unit = next(cell for cell in written(tmp_path, ISLANDS).cells if cell.name == "UNIT_1")
    assert covered(unit.polygons, 3.5 * 0.4, 3.5 * 0.4)
    lone = [p for p in unit.polygons if np.allclose(p.bounding_box(), [(2.4, 2.4), (2.8, 2.8)])]
    assert len(lone) == 1


def test_the_array_spans_100_um_by_one_reference(tmp_path):
    library = written(tmp_path, RANDOM)
    (top,) = library.top_level()
    (reference,) = top.references
    assert top.name == "DESIGN_1"
    assert not top.polygons
    assert (reference.repetition.columns, reference.repetition.rows) == (25, 25)
    assert reference.repetition.spacing == pytest.approx((4.0, 4.0))
    assert top.area() == pytest.approx(625 * 16 * RANDOM.mean())


def test_the_repeat_follows_the_period_or_the_caller(tmp_path):
    assert gds.default_repeat(Geometry(period_nm=(3000.0, 250_000.0))) == (33, 1)
    (top,) = written(tmp_path, RANDOM, repeat=(3, 2)).top_level()
    assert (top.references[0].repetition.columns, top.references[0].repetition.rows) == (3, 2)


def test_several_patterns_become_top_cells_by_rank(tmp_path):
    library = written(tmp_path, np.stack([RANDOM, ISLANDS, 1 - RANDOM]))
    tops = {cell.name: cell for cell in library.top_level()}
    assert list(tops) == ["DESIGN_1", "DESIGN_2", "DESIGN_3"]
    assert tops["DESIGN_2"].area() == pytest.approx(625 * 16 * ISLANDS.mean())


def test_equal_patterns_are_equal_files(tmp_path):
    gds.write_gds(RANDOM, Geometry(), tmp_path / "a.gds")
    gds.write_gds(RANDOM, Geometry(), tmp_path / "b.gds")
    assert (tmp_path / "a.gds").read_bytes() == (tmp_path / "b.gds").read_bytes()
    assert gdstk.gds_timestamp(tmp_path / "a.gds").year == 2000


@pytest.mark.parametrize("pattern", [RANDOM * 2, RANDOM[:5], RANDOM[0], np.zeros((0, 10, 10)), np.full((4, 4), np.nan)])
def test_what_is_no_pattern_is_refused(tmp_path, pattern):
    with pytest.raises(DataError, match="of 0 and 1"):
        gds.write_gds(pattern, Geometry(), tmp_path / "x.gds")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("repeat", [(0, 1), (1, 40000)])
def test_a_repeat_that_gdsii_cannot_count_is_refused(tmp_path, repeat):
    with pytest.raises(DataError, match="unit cells"):
        gds.write_gds(RANDOM, Geometry(), tmp_path / "x.gds", repeat=repeat)


def test_without_gdstk_one_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gdstk", None)
    with pytest.raises(BackendError, match=r"metascatter\[lab\]"):
        gds.write_gds(RANDOM, Geometry(), tmp_path / "x.gds")
    assert not list(tmp_path.iterdir())
