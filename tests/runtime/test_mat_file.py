"""MATLAB files are found whole before SciPy's compiled reader sees them, which ends the process at some that are not."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from runtime import mat_file
from runtime.data import read_mat
from runtime.errors import DataError
from tests.fuzzing import counted, fuzz, spoiled

CONTENT: dict[str, Any] = {
    "Rm": np.arange(25.0).reshape(5, 5),
    "h": 300.0,
    "convention": "lab",
    "mask_R": np.ones((5, 5), bool),
    "small": np.arange(3, dtype=np.uint8),
    "wave": np.ones(3) * 1j,
}


def written(content: dict[str, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    savemat(stream, content, **options)
    return stream.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_names_and_what_can_be_read(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(written({**CONTENT, "s": {"a": 1}, "cell": np.array([1, "x"], object)}, do_compression=packed))
    assert mat_file.variables(path) == {**dict.fromkeys(CONTENT, True), "s": False, "cell": False}
    np.testing.assert_array_equal(read_mat(path, ("Rm", "h"), optional=["small"])["Rm"], CONTENT["Rm"])
    with pytest.raises(DataError, match="'cell' is not a numeric array; write it as double"):
        read_mat(path, ("h",), optional=["cell"])
    with pytest.raises(DataError, match="lacks the key 'Tm'; expected Tm, found Rm, h, convention, mask_R, small, wave, s, cell"):
        read_mat(path, ("Tm",))


def test_bytes_in_the_other_order(tmp_path: Path) -> None:
    """As MATLAB on big-endian machines wrote it: one 2 x 1 double called h."""
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0MI"
    matrix = struct.pack(">IIII", 6, 8, 6, 0) + struct.pack(">IIii", 5, 8, 2, 1)
    matrix += struct.pack(">HH4s", 1, 1, b"h") + struct.pack(">IIdd", 9, 16, 1.5, 2.5)
    (tmp_path / "a.mat").write_bytes(head + struct.pack(">II", 14, len(matrix)) + matrix)
    assert read_mat(tmp_path / "a.mat", ("h",))["h"].tolist() == [[1.5], [2.5]]


# Found by fuzzing: byte and value, at each of which scipy.io.loadmat ends the process by a segmentation fault (SciPy 1.17.1).
KILLERS = [{433: 9}, {320: 0, 688: 14}, {252: 5, 865: 127}]


def killer(changes: dict[int, int]) -> bytes:
    rng = np.random.default_rng(0)
    maps = 0.9 * rng.dirichlet(np.ones(50)).reshape(2, 5, 5)
    content: dict[str, Any] = {"Rm": maps[0], "Tm": maps[1], "h": 300.0, "noise": 0.01, "convention": "lab"}
    content |= {"mask_R": np.ones((5, 5), bool), "c": np.ones(3) * 1j, "u": np.arange(3, dtype=np.uint8)}
    whole = bytearray(written(content))
    for place, value in changes.items():
        whole[place] = value
    return bytes(whole)


@pytest.mark.parametrize("changes", KILLERS)
def test_files_that_kill_scipy_are_refused(changes: dict[int, int], tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(killer(changes))
    with pytest.raises(DataError, match=r"a\.mat cannot be read as a MATLAB file"):
        read_mat(path, ("Rm", "Tm", "h"), ("noise", "convention", "mask_R"))


def test_what_is_found_whole_does_not_kill_scipy(tmp_path: Path) -> None:
    """Many spoiled files, read in a process of its own."""
    whole, places = written(CONTENT), np.random.default_rng(1)
    files = []
    for k in range(300):
        content = bytearray(whole)
        for place in places.integers(128, len(content), 2):
            content[place] = places.integers(0, 20)
        files.append(tmp_path / f"{k}.mat")
        files[-1].write_bytes(content)
    code = """
import sys
from pathlib import Path
from runtime.data import read_mat
from runtime.errors import DataError
read = 0
for path in Path(sys.argv[1]).glob("*.mat"):
    try:
        read_mat(path, ("h",), ("Rm", "convention", "mask_R", "small", "wave"))
        read += 1
    except DataError:
        pass
print(read)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 0, "some are still good"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no file of MATLAB 5 to 7.3"),
        (b"\0\0\0\0" * 50, "no file of MATLAB 5 to 7.3"),
        (b"x" * 124 + b"\0\3IM", "unknown version"),
        (b"x" * 124 + b"\0\1IM" + b"\1", "cut off"),
        (b"x" * 124 + b"\0\1IM" + struct.pack("<II", 9, 0), "an element is of type 9"),
        (b"x" * 124 + b"\0\1IM" + struct.pack("<II", 15, 4) + b"abcd", "compressed variable is damaged"),
        (b"x" * 124 + b"\0\1IM" + struct.pack("<II", 15, 9) + zlib.compress(b"abc" * 9)[:9], "cut off or too large"),
        (b"x" * 124 + b"\0\1IM" + struct.pack("<II", 14, 16) + struct.pack("<IIII", 6, 8, 6, 0), "a variable is cut off"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_mat(tmp_path / "a.mat", ("h",))


@pytest.mark.parametrize("packed", [False, True])
@fuzz(150)
@given(values=st.data())
@counted
def test_variables_or_a_value_error(packed: bool, tmp_path: Path, values: st.DataObject) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(values.draw(spoiled(written(CONTENT, do_compression=packed))))
    try:
        found = mat_file.variables(path)
    except (ValueError, NotImplementedError):
        return
    assert all(isinstance(name, str) for name in found)
