"""Many targets one after the other: what is one, in which order, a few rows in memory at a time, and what is refused."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.data import reorder_lab
from runtime.errors import TargetError
from runtime.geometry import Geometry
from runtime.target import Target
from runtime.target_stream import Source, is_many

LINE = '{"height_nm": %d, "orders": {"T(1,0)": 0.2}}\n'


def rows(count: int = 5, side: int = 7) -> dict[str, np.ndarray]:
    """Row k asks for T(0,0) = 0.0001 (k + 1) at 200 + k nm."""
    maps = np.zeros((2, count, side, side), np.float32)
    maps[1, :, side // 2, side // 2] = 1e-4 * (1 + np.arange(count) % 1000)
    return {"Rm": maps[0], "Tm": maps[1], "h": 200.0 + np.arange(count)}


def read(*paths: Path, **settings: Any) -> list[Target]:
    return [item.read() for item in Source(list(paths), **settings)]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_are_targets(save: Callable[..., None], tmp_path: Path) -> None:
    count = 150  # more than are unpacked at a time
    arrays = rows(count)
    save(tmp_path / "many.npz", **arrays, xx=np.ones((count, 5, 5)), note=np.array("of no concern"))
    items = list(Source([tmp_path / "many.npz"]))
    assert [(item.file, item.row) for item in items] == [("many.npz", k) for k in range(count)]
    for k, item in enumerate(items):
        target = item.read()
        assert (target.name, target.height_nm) == (f"many row {k}", 200 + k)
        np.testing.assert_array_equal(target.T, arrays["Tm"][k].astype(float))
        assert not target.partial


def test_what_has_no_rows_holds_for_all(tmp_path: Path) -> None:
    arrays = rows(3)
    mask = np.zeros((7, 7), bool)
    mask[3, 3] = True
    geometry = Geometry(harmonics=3)
    extra = {"Tm_1480": arrays["Tm"] / 2, "mask_Tm_1480": mask, "geometry_1480": np.array(geometry.to_json()), "heat": mask * 0.3}
    shared = {"h": np.array(300.0), "mask_T": mask, "mask_R": np.zeros((3, 7, 7), bool), "noise": np.array([0.0, 0.001, 0.002])}
    np.savez(tmp_path / "many.npz", **{**arrays, **shared, **extra}, geometry=np.array(geometry.to_json()))  # type: ignore[arg-type]
    found = read(tmp_path / "many.npz", channels=["heat"])
    assert [target.height_nm for target in found] == [300, 300, 300]
    assert all(np.array_equal(target.mask_T, mask) and not target.mask_R.any() for target in found)
    assert [target.geometry for target in found] == [geometry] * 3
    assert [round(target.range_of("T", 0, 0)[1] - target.wanted("T", 0, 0), 6) for target in found] == [0, 0.002, 0.004]
    for k, target in enumerate(found):
        np.testing.assert_allclose(target.extra["Tm_1480"].wanted, np.where(mask, arrays["Tm"][k] / 2, 0), atol=1e-9)
        assert target.extra["Tm_1480"].geometry == geometry
        np.testing.assert_allclose(target.extra["heat"].wanted, mask * 0.3)


def test_rows_in_the_labs_convention(tmp_path: Path) -> None:
    arrays = rows(2)
    arrays["Tm"][:, 1, 2] = 0.05
    np.savez(tmp_path / "many.npz", **arrays, convention=np.array("lab"))  # type: ignore[arg-type]
    for own, named in zip(read(tmp_path / "many.npz"), read(tmp_path / "many.npz", convention="metascatter"), strict=True):
        np.testing.assert_array_equal(own.T, reorder_lab(named.T))
        assert not np.array_equal(own.T, named.T)


def test_a_large_file_is_never_in_memory(tmp_path: Path) -> None:
    arrays = rows(20_000)
    np.savez_compressed(tmp_path / "many.npz", **arrays)  # type: ignore[arg-type]
    size = arrays["Rm"].nbytes + arrays["Tm"].nbytes
    tracemalloc.start()
    try:
        assert sum(1 for _ in Source([tmp_path / "many.npz"])) == 20_000
        assert tracemalloc.get_traced_memory()[1] < size / 10
    finally:
        tracemalloc.stop()


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(LINE % 250)
    np.savez(tmp_path / "a.npz", **rows(2))  # type: ignore[arg-type]
    (tmp_path / "c.jsonl").write_text(LINE % 260 + "\n" + LINE % 270)
    (tmp_path / "d.toml").write_text('height_nm = 280\n[orders]\n"T(1,0)" = 0.1\n')
    for other in (".hidden.json", "notes.txt"):
        (tmp_path / other).write_text("nothing")
    items = list(Source([tmp_path, Path("deflector:height_nm=290")]))
    assert [(item.file, item.row) for item in items] == [
        ("a.npz", 0),
        ("a.npz", 1),
        ("b.json", 0),
        ("c.jsonl", 0),
        ("c.jsonl", 1),
        ("d.toml", 0),
        ("deflector_height_nm=290", 0),
    ]
    assert [item.read().height_nm for item in items] == [200, 201, 250, 260, 270, 280, 290]


def test_stdin_is_read_once_and_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe(io.BytesIO):
        lines = 0

        def __next__(self) -> bytes:
            self.lines += 1
            return super().__next__()

    pipe = Pipe("".join(LINE % height for height in (200, 210, 220)).encode())
    monkeypatch.setattr("sys.stdin", type("", (), {"buffer": pipe}))
    source = Source([Path("-")])
    assert not source.repeatable
    first = next(iter(source))
    assert (first.file, first.row, first.read().height_nm, pipe.lines) == ("stdin", 0, 200, 1)
    assert Source([Path("deflector")]).repeatable


def test_what_is_many(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", **rows(1))  # type: ignore[arg-type]
    np.savez(tmp_path / "two.npz", **rows(2))  # type: ignore[arg-type]
    (tmp_path / "broken.npz").write_text("no archive")
    answers = {
        name: is_many([Path("deflector"), tmp_path / name]) for name in ("one.npz", "two.npz", "a.json", "a.jsonl", "broken.npz", "")
    }
    assert answers == {"one.npz": False, "two.npz": True, "a.json": False, "a.jsonl": True, "broken.npz": False, "": True}
    assert is_many([Path("-")])
    assert not is_many([Path("deflector"), Path("mirror")])


def spoiled(tmp_path: Path, **changes: Any) -> Path:
    arrays = {**rows(3), **changes}
    np.savez(tmp_path / "many.npz", **{key: value for key, value in arrays.items() if value is not None})
    return tmp_path / "many.npz"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"Tm": np.zeros((4, 7, 7))}, r"'Tm' has shape \(4, 7, 7\) and 'Rm' 3 rows; give both a row for each target"),
        ({"h": np.array([200.0, 210.0])}, r"'h' has shape \(2,\) and 'Rm' 3 rows"),
        ({"h": None}, "many.npz row 0 lacks the key 'h'"),
        ({"h": np.array([200.0, -5.0, 200.0])}, "many.npz row 1: 'h'"),
        ({"Tm": np.full((3, 7, 7), np.nan)}, "many.npz row 0: 'Tm' holds nan at"),
        ({"Rm": np.zeros((0, 7, 7)), "Tm": np.zeros((0, 7, 7)), "h": np.zeros(0)}, "many.npz has no rows"),
        ({"h": np.array([{}, {}, {}], object)}, "'h' holds pickled Python objects"),
        ({"Rm": np.asfortranarray(np.ones((3, 7, 7)) * 0.001)}, "'Rm' is stored column by column; save numpy.ascontiguousarray of it"),
    ],
)
def test_rows_that_are_wrong_are_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=says):
        read(spoiled(tmp_path, **changes))


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_file_cut_short_is_refused(keep: float, tmp_path: Path) -> None:
    path = spoiled(tmp_path, Rm=np.random.default_rng(0).random((3, 7, 7)) * 0.001)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(TargetError, match="damaged"):
        read(path)


def test_a_bit_that_flipped_is_noticed(tmp_path: Path) -> None:
    path = spoiled(tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(b"Tm.npy") + 300
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(TargetError, match=r"CRC-32 for file 'Tm\.npy'"):
        read(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no target; write one as a JSON object on every line"),
        (LINE % 200 + "{", "lines.jsonl line 2 is not JSON"),
        ("[1]\n", "lines.jsonl line 1 holds"),
        ('{"height_nm": 1, "height_nm": 2}\n', "lines.jsonl line 1 gives 'height_nm' twice"),
        ('\n{"height_nm": 200}\n', "lines.jsonl line 2 lacks the field 'orders'"),
    ],
)
def test_lines_that_are_wrong_are_named(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text(text)
    with pytest.raises(TargetError, match=says):
        read(tmp_path / "lines.jsonl")


def test_places_without_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"holds no target; put \.json, "):
        read(tmp_path)
    with pytest.raises(TargetError, match=r"nowhere\.jsonl cannot be read"):
        read(tmp_path / "nowhere.jsonl")
    with pytest.raises(TargetError, match="does not exist"):
        read(tmp_path / "nowhere.npz")
