"""The three forms of a data set, and every fault by file and key."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from runtime.data import DataSet, check, concatenate, load, open_npz, read_mat, reorder_lab, square_map
from runtime.errors import DataError
from runtime.geometry import Geometry

M = 3


def samples(count: int = 4, seed: int = 0, geometry: Geometry | None = None) -> DataSet:
    rng = np.random.default_rng(seed)
    power = rng.dirichlet(np.ones(2 * (2 * M + 1) ** 2), size=count).reshape(count, 2, 2 * M + 1, 2 * M + 1).astype(np.float32)
    return DataSet(
        (rng.random((count, 10, 10)) < 0.5).astype(np.uint8),
        rng.integers(50, 600, count).astype(np.float32),
        power[:, 0],
        power[:, 1],
        geometry or Geometry(),
    )


def same(a: DataSet, b: DataSet) -> bool:
    return a.geometry == b.geometry and all((getattr(a, key) == getattr(b, key)).all() for key in ("xx", "h", "Rm", "Tm"))


def write(path: Path, data: DataSet, **change: Any) -> Path:
    arrays = {key: value for key, value in {**data.arrays(), **change}.items() if value is not None}
    np.savez_compressed(path, **arrays)
    return path


class TestNpz:
    def test_round_trip(self, tmp_path: Path) -> None:
        data = samples(geometry=Geometry(polarisation="y"))
        again = load(write(tmp_path / "a.npz", data))
        assert same(again, data)
        assert [getattr(again, key).dtype for key in ("xx", "h", "Rm", "Tm")] == [np.uint8, np.float32, np.float32, np.float32]
        assert len(again) == 4
        two = [2, 0]
        assert same(again.take(np.array(two)), DataSet(data.xx[two], data.h[two], data.Rm[two], data.Tm[two], data.geometry))

    def test_shards_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        parts = [samples(seed=i) for i in range(3)]
        for name, part in (("shard-00002", parts[2]), ("shard-00000", parts[0]), ("shard-00001", parts[1])):
            write(tmp_path / f"{name}.npz", part)
        assert same(load(tmp_path), concatenate(parts))
        assert (concatenate(parts).h[4:8] == parts[1].h).all()

    def test_a_half_written_temporary_in_the_folder_is_no_shard(self, tmp_path: Path) -> None:
        # What simulate leaves after kill -9: files.atomic_file's hidden name.
        write(tmp_path / "shard-00000.npz", samples())
        (tmp_path / ".shard-00001.0123456789ab.npz").write_bytes(b"PK\x03\x04half")
        assert same(load(tmp_path), samples())

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"xx": None}, ["'xx'", "xx, h, Rm, Tm and geometry"]),
            ({"geometry": None}, ["'geometry'"]),
            ({"geometry": np.array("{}")}, ["lacks the field 'wavelength_nm'"]),
            ({"xx": np.zeros((4, 10, 9), np.uint8)}, ["'xx'", "(4, 10, 9)", "(N, n, n)"]),
            ({"xx": np.zeros((0, 10, 10), np.uint8)}, ["'xx'", "N above 0"]),
            ({"xx": np.uint8(3)}, ["'xx'", "()"]),
            ({"xx": np.full((4, 10, 10), 2)}, ["'xx'", "0 and 1"]),
            ({"h": np.zeros(3)}, ["'h'", "(3,)", "(4,)"]),
            ({"h": np.array([100.0, 100, 0, 100])}, ["'h'", "0 nm or less"]),
            ({"h": np.array([100.0, 100, np.nan, 100])}, ["'h'", "finite"]),
            ({"Rm": np.zeros((4, 6, 6))}, ["'Rm'", "(4, 6, 6)"]),
            ({"Tm": np.zeros((3, 7, 7))}, ["'Tm'", "(3, 7, 7)"]),
            ({"Tm": np.zeros((4, 9, 9))}, ["'Rm'", "(4, 7, 7)", "'Tm'", "(4, 9, 9)"]),
            ({"Tm": np.full((4, 7, 7), np.inf)}, ["'Tm'", "finite"]),
            ({"Rm": np.zeros((4, 7, 7), complex)}, ["'Rm'", "finite numbers"]),
            ({"h": np.array(["a", "b", "c", "d"])}, ["'h'", "finite numbers"]),
        ],
    )
    def test_refusals(self, tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
        path = write(tmp_path / "a.npz", samples(), **change)
        with pytest.raises(DataError) as caught:
            load(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)

    def test_shards_that_do_not_belong_together(self, tmp_path: Path) -> None:
        other = {"wavelength": samples(geometry=Geometry(wavelength_nm=1500)), "solver": samples(geometry=Geometry(harmonics=9))}
        with pytest.raises(DataError, match=r"differ in geometry \(wavelength_nm is 1500.0 in one and 1550.0"):
            concatenate([samples(), other["wavelength"]])
        with pytest.raises(DataError, match=r"differ in geometry \(solver settings\)"):
            concatenate([samples(), other["solver"]])
        small = samples()
        with pytest.raises(DataError, match="differ in the shape"):
            concatenate([samples(), DataSet(small.xx[:, :8, :8], small.h, small.Rm, small.Tm, small.geometry)])

    def test_empty_folder_and_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"holds neither \.npz shards nor \.mat files"):
            load(tmp_path)
        with pytest.raises(DataError, match=r"a\.npz does not exist"):
            load(tmp_path / "a.npz")


class TestOpenNpz:
    def test_every_truncation_is_one_sentence(self, tmp_path: Path) -> None:
        whole = write(tmp_path / "whole.npz", samples()).read_bytes()
        path = tmp_path / "cut.npz"
        for length in {*range(0, len(whole), 97), len(whole) - 1}:
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match=r"cut\.npz (cannot be read as|is not an) \.npz"):
                open_npz(path)

    def test_flipped_bytes_are_an_error_or_another_readable_file(self, tmp_path: Path) -> None:
        whole = write(tmp_path / "whole.npz", samples()).read_bytes()
        path, refused = tmp_path / "bad.npz", 0
        rng = np.random.default_rng(0)
        for _ in range(300):
            damaged = bytearray(whole)
            for position in rng.integers(0, len(whole), 3):
                damaged[position] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            try:
                open_npz(path)
            except DataError:
                refused += 1
        # The zip checksum sees every change in the contents; a few in unused header fields do no harm.
        assert refused > 250

    def test_pickles_are_refused_and_never_run(self, tmp_path: Path) -> None:
        ran = tmp_path / "ran"

        class Payload:
            def __reduce__(self) -> Any:
                return (os.mkdir, (str(ran),))

        np.savez(tmp_path / "object.npz", xx=np.array([Payload()], dtype=object))
        (tmp_path / "bare.npz").write_bytes(pickle.dumps(Payload()))
        with zipfile.ZipFile(tmp_path / "member.npz", "w") as archive:
            archive.writestr("xx.npy", pickle.dumps(Payload()))
        with pytest.raises(DataError, match=r"object\.npz holds pickled Python objects, which could run code"):
            open_npz(tmp_path / "object.npz")
        with pytest.raises(DataError, match=r"bare\.npz is not an \.npz file"):
            open_npz(tmp_path / "bare.npz")
        with pytest.raises(DataError, match=r"member\.npz: 'xx(\.npy)?' is not an array"):
            open_npz(tmp_path / "member.npz")
        assert not ran.exists()

    def test_a_single_array_file_and_a_folder(self, tmp_path: Path) -> None:
        with (tmp_path / "a.npz").open("wb") as file:
            np.save(file, np.zeros(3))
        with pytest.raises(DataError, match=r"a\.npz is not an \.npz file .*write it with numpy\.savez"):
            open_npz(tmp_path / "a.npz")
        with pytest.raises(DataError, match="is a folder"):
            open_npz(tmp_path)


class TestMat:
    def write(self, path: Path, data: DataSet, i: int, **change: Any) -> None:
        rows = {key: getattr(data, key)[i].reshape(1, -1) for key in ("xx", "Rm", "Tm")}
        fields = {**rows, "h": data.h[i], **change}
        savemat(path, {key: value for key, value in fields.items() if value is not None})

    def test_the_labs_folder_in_the_order_of_its_numbers(self, tmp_path: Path) -> None:
        data = samples(12)
        for i in range(12):
            self.write(tmp_path / f"Si_MS_Scat_samp_{i + 1}.mat", data, i)
        assert same(load(tmp_path, convention="metascatter"), data)
        lab = load(tmp_path, geometry=Geometry(polarisation="y"))
        assert lab.geometry == Geometry(polarisation="y")
        assert (lab.xx == data.xx).all()
        # data[i, j] is order (m, n) = (-(j - M), -(i - M)), so order (1, -2) stands at [M + 2, M - 1].
        assert (lab.Tm[:, M + 1, M - 2] == data.Tm[:, M + 2, M - 1]).all()
        with pytest.raises(DataError, match="convention is 'matlab'; it must be metascatter or lab"):
            load(tmp_path, convention="matlab")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"Tm": None}, ["lacks the key 'Tm'", "xx, h, Rm, Tm"]),
            ({"h": np.zeros(2)}, ["'h' has 2 values"]),
            ({"Rm": np.zeros(48)}, ["'Rm' has 48 values"]),
            ({"Rm": np.zeros(49, complex)}, ["'Rm' is not a numeric array"]),
            ({"Tm": {"a": 1}}, ["'Tm' is not a numeric array"]),
        ],
    )
    def test_refusals(self, tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
        self.write(tmp_path / "Si_MS_Scat_samp_1.mat", samples(), 0, **change)
        with pytest.raises(DataError, match=r"Si_MS_Scat_samp_1\.mat") as caught:
            load(tmp_path)
        for word in words:
            assert word in str(caught.value)

    def test_sizes_that_differ(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a_1.mat", samples(), 0)
        self.write(tmp_path / "a_2.mat", samples(), 1, xx=np.zeros((1, 64)))
        with pytest.raises(DataError, match="differ in size"):
            load(tmp_path)

    def test_matlab_73(self, tmp_path: Path) -> None:
        """As MATLAB writes it: HDF5 behind a 512-byte header, axes reversed, text as 16-bit numbers."""
        data, path = samples(), tmp_path / "a_1.mat"
        with h5py.File(path, "w", userblock_size=512) as file:
            for key, values in (
                ("xx", data.xx[0]),
                ("Rm", reorder_lab(data.Rm[0])),
                ("Tm", reorder_lab(data.Tm[0])),
                ("h", data.h[:1, None]),
            ):
                file[key] = np.asarray(values, np.float64).T
            file["convention"] = np.array([[ord(letter)] for letter in "lab"], np.uint16)
            file["convention"].attrs["MATLAB_class"] = np.bytes_("char")
        with path.open("r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM")
        found = load(tmp_path)
        for key in ("xx", "h", "Rm", "Tm"):
            assert np.array_equal(getattr(found, key)[0], getattr(data, key)[0]), key
        assert read_mat(path, ("h",), optional=("convention",))["convention"].item() == "lab"
        with pytest.raises(DataError, match=r"a_1\.mat lacks the key 'absent'"):
            read_mat(path, ("absent",))

    def test_matlab_73_without_h5py(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "h5py", None)
        (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM")
        with pytest.raises(
            DataError, match=r"new\.mat is a MATLAB 7\.3 file; install metascatter\[lab\] to read it, or save it with '-v7'"
        ):
            read_mat(tmp_path / "new.mat", ("xx",))

    def test_garbage(self, tmp_path: Path) -> None:
        (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" * 50)
        with pytest.raises(DataError, match=r"new\.mat cannot be read as a MATLAB 7\.3 file"):
            read_mat(tmp_path / "new.mat", ("xx",))
        (tmp_path / "bad.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124, b" ") + b"\x00\x01IM" + b"\xff" * 50)
        with pytest.raises(DataError, match=r"bad\.mat cannot be read as a MATLAB file"):
            read_mat(tmp_path / "bad.mat", ("xx",))

    def test_optional_keys(self, tmp_path: Path) -> None:
        savemat(tmp_path / "a.mat", {"h": 3.0, "convention": "lab"})
        assert set(read_mat(tmp_path / "a.mat", ("h",))) == {"h"}
        assert read_mat(tmp_path / "a.mat", ("h",), optional=("convention", "absent"))["convention"].item() == "lab"


def test_reorder_lab_is_its_own_inverse() -> None:
    maps = np.random.default_rng(0).random((2, 7, 7))
    assert (reorder_lab(reorder_lab(maps)) == maps).all()
    for m in range(-M, M + 1):
        for n in range(-M, M + 1):
            assert (reorder_lab(maps)[:, m + M, n + M] == maps[:, M - n, M - m]).all()


def test_square_map() -> None:
    values = np.arange(9.0)
    for shape in ((3, 3), (1, 9), (9, 1)):
        assert square_map(values.reshape(shape), "x").tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    for count in (0, 8, 10):
        with pytest.raises(DataError, match=f"x has {count} values"):
            square_map(np.zeros(count), "x")


def test_check_converts_dtypes() -> None:
    data = samples()
    checked = check(DataSet(data.xx.astype(bool), data.h.astype(int), data.Rm.astype(float), data.Tm, data.geometry), "x")
    assert (checked.xx.dtype, checked.h.dtype, checked.Rm.dtype) == (np.uint8, np.float32, np.float32)
    assert (checked.xx == data.xx).all()
