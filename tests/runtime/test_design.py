"""Designs on disk: their files, whole or not at all, and what comes back from them."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest

from runtime import design as room
from runtime.data import load, open_npz, read_mat, reorder_lab
from runtime.design import Design, read, save
from runtime.errors import DataError
from runtime.geometry import Geometry
from runtime.target import Target
from runtime.tolerance import PARAMETERS, Curve, Tolerance

M = 3
FILES = ["designs.npz", "designs.json", "designs.mat", "designs.png", "designs.gds", "design.png", "design.svg"]


@pytest.fixture(autouse=True)
def quick_picture(request, monkeypatch):
    """Tests that do not look at the picture do not draw it: it takes most of a second."""
    monkeypatch.setattr("runtime.figure.draw", lambda design, target: None)
    monkeypatch.setattr("runtime.figure.write", lambda figure, path: path.write_bytes(b"figure"))
    if "all_files" not in request.node.name and "equal_designs" not in request.node.name:
        monkeypatch.setattr("runtime.pictures.design_picture", lambda designs, target, path: path.write_bytes(b"picture"))


def some_maps(rng):
    values = rng.random((2, 2 * M + 1, 2 * M + 1))
    return values / values.sum()


def designs(count=3, solved=True, size=10):
    rng = np.random.default_rng(1)
    made = []
    for k in range(count):
        R, T = some_maps(rng)
        pattern = (rng.random((size, size)) < 0.5).astype(np.uint8)
        made.append(
            Design(pattern, 300.0 + k, R, T, 0.1 * (k + 1), True, 7, 10 * k, Geometry(harmonics=5))
            if solved
            else Design(pattern, 300.0 + k, None, None, None, False, 7, 10 * k, Geometry(harmonics=5))
        )
    return made


def target(masked=False):
    R, T = some_maps(np.random.default_rng(2))
    mask = np.zeros((2 * M + 1, 2 * M + 1), bool)
    mask[M + 1, M] = mask[M, M - 2] = True
    return Target.from_arrays(R, T, 300.0, ~mask & False, mask, name="two") if masked else Target.from_arrays(R, T, 300.0, name="all")


def assert_same(a, b):
    np.testing.assert_array_equal(a.pattern, b.pattern)
    for name in ("R", "T"):
        if getattr(a, name) is None:
            assert getattr(b, name) is None
        else:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("height_nm", "score", "verified", "seed", "candidate", "geometry"):
        assert getattr(a, name) == getattr(b, name)
    assert b.pattern.dtype == np.uint8


@pytest.mark.parametrize("made", [designs(), designs(1), designs(2, solved=False), designs(1) + designs(1, solved=False)])
@pytest.mark.parametrize("masked", [False, True])
def test_all_files_and_the_designs_come_back(tmp_path, made, masked):
    pytest.importorskip("matplotlib")
    pytest.importorskip("gdstk")
    saved = save(made, target(masked), tmp_path / "new" / "folder")
    assert saved.missing == []
    assert [path.name for path in saved.paths] == FILES
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(FILES)
    back = read(tmp_path / "new" / "folder" / "designs.npz")
    assert len(back) == len(made)
    for a, b in zip(made, back, strict=True):
        assert_same(a, b)


def test_the_npz_has_the_contract_s_keys(tmp_path):
    save(designs(1) + designs(1, solved=False), target(), tmp_path)
    arrays = open_npz(tmp_path / "designs.npz")
    assert set(arrays) == {"xx", "h", "score", "Rm", "Tm", "verified", "seed", "candidate", "geometry"}
    assert (arrays["xx"].dtype, arrays["seed"].dtype, arrays["verified"].dtype) == (np.uint8, np.int64, bool)
    assert arrays["Rm"].shape == (2, 2 * M + 1, 2 * M + 1)
    assert np.isnan(arrays["score"][1])
    assert np.isnan(arrays["Tm"][1]).all()
    assert Geometry.from_json(str(arrays["geometry"])) == Geometry(harmonics=5)


def test_unsolved_designs_take_the_target_s_number_of_orders(tmp_path):
    save(designs(2, solved=False), target(), tmp_path)
    assert open_npz(tmp_path / "designs.npz")["Rm"].shape == (2, 2 * M + 1, 2 * M + 1)


def test_the_json_reads_rank_by_rank(tmp_path):
    made = [*designs(2), *designs(1, solved=False)]
    save(made, target(masked=True), tmp_path)
    document = json.loads((tmp_path / "designs.json").read_text(encoding="utf-8"))
    assert document["target"] == "two"
    assert Geometry.from_dict(document["geometry"]) == Geometry(harmonics=5)
    assert [entry["rank"] for entry in document["designs"]] == [1, 2, 3]
    first, last = document["designs"][0], document["designs"][2]
    assert (first["score"], first["height_nm"], first["verified"], first["seed"], first["candidate"]) == (0.1, 300.0, True, 7, 0)
    np.testing.assert_array_equal([[int(pixel) for pixel in row] for row in first["pattern"]], made[0].pattern)
    orders = {(o["side"], o["m"], o["n"]): (o["wanted"], o["achieved"]) for o in first["strongest_orders"]}
    assert set(orders) == {("T", 1, 0), ("T", 0, -2)}
    assert orders["T", 0, -2] == (round(target().T[M, M - 2], 6), round(made[0].T[M, M - 2], 6))
    assert last["score"] is None
    assert last["strongest_orders"][0]["achieved"] is None


def test_the_mat_stacks_designs_in_the_lab_s_convention(tmp_path):
    made = designs(3)
    save(made, target(), tmp_path)
    content = read_mat(tmp_path / "designs.mat", ("xx", "h", "Rm", "Tm", "score", "seed"), ("convention", "geometry"))
    assert (content["xx"].shape, content["h"].shape, content["Rm"].shape) == ((3, 100), (3, 1), (7, 7, 3))
    assert str(content["convention"].item()) == "lab"
    assert Geometry.from_json(str(content["geometry"].item())) == Geometry(harmonics=5)
    for k, design in enumerate(made):
        np.testing.assert_array_equal(content["xx"][k].reshape(10, 10), design.pattern)
        assert content["h"][k, 0] == design.height_nm
        np.testing.assert_array_equal(reorder_lab(content["Tm"][:, :, k]), design.T)
        assert content["Rm"][M - 2, M + 1, k] == design.R[M - 1, M + 2]  # data[i, j] is order (-(j - M), -(i - M))


def test_the_mat_in_our_own_convention_says_so_and_reads_the_same(tmp_path):
    made = designs(2)
    save(made, target(), tmp_path, mat_convention="metascatter")
    content = read_mat(tmp_path / "designs.mat", ("Rm", "Tm"), ("convention",))
    assert str(content["convention"].item()) == "metascatter"
    for k, design in enumerate(made):
        np.testing.assert_array_equal(content["Tm"][:, :, k], design.T)
    save(made[:1], target(), tmp_path, mat_convention="metascatter")
    np.testing.assert_allclose(Target.load(tmp_path / "designs.mat").R, made[0].R, atol=1e-12)
    with pytest.raises(DataError, match="lab or metascatter"):
        save(made, target(), tmp_path, mat_convention="ours")


def test_the_digest_names_what_is_made(tmp_path):
    gdstk = pytest.importorskip("gdstk")
    first, second = designs(2)
    same = dataclasses.replace(first, score=0.9, R=None, T=None, verified=False, candidate=3, pattern=first.pattern.astype(float))
    assert same.digest == first.digest
    others = [
        second,
        dataclasses.replace(first, height_nm=300.5),
        dataclasses.replace(first, geometry=Geometry()),
        dataclasses.replace(first, pattern=first.pattern.T),
    ]
    assert len({design.digest for design in [first, *others]}) == 5
    save([first, second], target(), tmp_path)
    document = json.loads((tmp_path / "designs.json").read_text(encoding="utf-8"))
    labels = [label.text for cell in gdstk.read_gds(tmp_path / "designs.gds").top_level() for label in cell.labels]
    assert labels == [f"metascatter {entry['digest']} h={entry['height_nm']:g}nm" for entry in document["designs"]]
    assert [entry["digest"] for entry in document["designs"]] == [design.digest for design in read(tmp_path / "designs.npz")]


def test_the_worst_case_is_in_the_mat_where_it_is_known(tmp_path):
    curve = Curve((-1.0, 0.0, 1.0), (0.4, 0.1, 0.2))
    known = dataclasses.replace(designs(1)[0], tolerance=Tolerance(dict.fromkeys(PARAMETERS, curve)))
    save([known, designs(2)[1]], target(), tmp_path, ranking="worst case")
    content = read_mat(tmp_path / "designs.mat", ("worst_case",))
    np.testing.assert_array_equal(content["worst_case"], [[0.4], [np.nan]])
    document = json.loads((tmp_path / "designs.json").read_text(encoding="utf-8"))
    assert document["ranked_by"] == "worst case"
    assert document["designs"][0]["tolerance"]["worst"]["score"] == 0.4
    assert document["designs"][0]["fabrication"]["fill_factor"] == known.pattern.mean()


def test_one_design_s_mat_is_a_sample_and_a_target_of_the_lab_s_form(tmp_path):
    (made,) = designs(1)
    save([made], target(), tmp_path)
    content = read_mat(tmp_path / "designs.mat", ("xx", "h", "Rm", "Tm"))
    assert (content["xx"].shape, content["h"].size, content["Tm"].shape) == ((1, 100), 1, (7, 7))
    wanted = Target.load(tmp_path / "designs.mat")
    np.testing.assert_allclose(wanted.T, made.T, atol=1e-12)
    for name in FILES:
        if name != "designs.mat":
            (tmp_path / name).unlink()
    np.testing.assert_array_equal(load(tmp_path).xx[0], made.pattern)


def test_what_matlab_reads_of_unsolved_designs_is_nan(tmp_path):
    save(designs(2, solved=False), target(), tmp_path)
    content = read_mat(tmp_path / "designs.mat", ("score", "Rm", "verified"))
    assert np.isnan(content["score"]).all()
    assert np.isnan(content["Rm"]).all()
    assert not content["verified"].any()


def test_equal_designs_are_equal_files(tmp_path):
    for folder in ("a", "b"):
        save(designs(), target(), tmp_path / folder)
    for name in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize(("package", "files"), [("matplotlib", ["designs.png", "design.png", "design.svg"]), ("gdstk", ["designs.gds"])])
def test_a_missing_extra_is_reported_and_no_old_file_is_left_beside_the_new(tmp_path, monkeypatch, package, files):
    for file in files:
        (tmp_path / file).write_bytes(b"of other designs")
    monkeypatch.setitem(sys.modules, package, None)
    saved = save(designs(), target(), tmp_path)
    assert saved.missing == [(file, "lab") for file in files]
    assert sorted([path.name for path in saved.paths] + files) == sorted(FILES)
    assert not any((tmp_path / file).exists() for file in files)
    assert len(read(tmp_path / "designs.npz")) == 3


@pytest.mark.parametrize("failing", range(len(FILES)))
def test_a_failure_leaves_what_stood_there(tmp_path, monkeypatch, failing):
    save(designs(1), target(), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(path, *_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    writers = list(room.WRITERS)
    writers[failing] = (writers[failing][0], None, fail)
    monkeypatch.setattr(room, "WRITERS", tuple(writers))
    with pytest.raises(KeyboardInterrupt):
        save(designs(3), target(), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        save(designs(1), target(), tmp_path / "file")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([], "no design"),
        (designs(1) + designs(1, size=8), "differ"),
        ([designs(1)[0], dataclasses.replace(designs(1)[0], geometry=Geometry())], "differ"),
        ([designs(1)[0], dataclasses.replace(designs(1)[0], R=np.zeros((3, 3)), T=np.zeros((3, 3)))], "differ"),
        ([dataclasses.replace(designs(1)[0], pattern=np.full((4, 4), 2))], "0 and 1"),
        ([dataclasses.replace(designs(1)[0], R=None)], "not finite"),
        ([dataclasses.replace(designs(1)[0], R=None, T=None)], "verified"),
        ([dataclasses.replace(designs(1)[0], height_nm=-5.0)], "'h'"),
    ],
)
def test_designs_that_do_not_go_together_are_refused(tmp_path, made, words):
    with pytest.raises(DataError, match=words):
        save(made, target(), tmp_path)
    assert not list(tmp_path.iterdir())


def changed(tmp_path, **changes):
    """A designs.npz with keys replaced, or left out where None."""
    arrays = room.to_arrays(designs(2), target()) | changes
    path = tmp_path / "designs.npz"
    with path.open("wb") as stream:
        np.savez(stream, **{key: value for key, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize("key", ["xx", "h", "score", "Rm", "Tm", "verified", "seed", "geometry"])
def test_a_missing_key_is_named(tmp_path, key):
    with pytest.raises(DataError, match=f"lacks the key '{key}'"):
        read(changed(tmp_path, **{key: None}))


def test_a_file_without_candidates_is_read(tmp_path):
    assert [design.candidate for design in read(changed(tmp_path, candidate=None))] == [-1, -1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("xx", np.full((2, 10, 10), 2)),
        ("xx", np.zeros((2, 10, 9))),
        ("xx", np.array("text")),
        ("xx", np.zeros((0, 10, 10))),
        ("h", np.array([1.0])),
        ("h", np.array([1.0, np.nan])),
        ("h", np.array(["a", "b"])),
        ("score", np.zeros((2, 2))),
        ("verified", np.array([0.5, 1.0])),
        ("seed", np.array([1.5, 2.5])),
        ("candidate", np.array([1])),
        ("Rm", np.zeros((2, 4, 4))),
        ("Rm", np.zeros((2, 5, 5))),
        ("Tm", np.full((2, 7, 7), np.inf)),
        ("Tm", np.full((2, 7, 7), np.nan)),
        ("geometry", np.array("{}")),
        ("geometry", np.array("not json")),
    ],
)
def test_a_malformed_key_is_named(tmp_path, key, value):
    path = changed(tmp_path, **{key: value})
    with pytest.raises(DataError, match=r"designs\.npz") as refusal:
        read(path)
    assert key in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_claim_of_verification_without_scattering_is_refused(tmp_path):
    nothing = np.full((2, 7, 7), np.nan)
    with pytest.raises(DataError, match="verified"):
        read(changed(tmp_path, Rm=nothing, Tm=nothing))


def test_pickles_damage_and_absence_are_refused(tmp_path):
    with pytest.raises(DataError, match="pickled"):
        read(changed(tmp_path, score=np.array([{}, None], object)))
    path = changed(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read"):
        read(path)
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere.npz")
