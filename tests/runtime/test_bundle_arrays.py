"""The arrays of a bundle: they come back as written, and a file that lies about what it holds is refused before it takes memory."""

from __future__ import annotations

import hashlib
import io
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle import Bundle
from runtime.errors import BundleError


@pytest.fixture
def put(rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]) -> Callable[[Path, bytes], None]:
    """Replace the golden outputs and their hash."""

    def put(folder: Path, content: bytes) -> None:
        (folder / "golden.npz").write_bytes(content)
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        rewrite(folder, lambda m: m["files"].update({"golden.npz": entry}))

    return put


def npz(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile remarks upon names that stand there twice
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(text: bytes, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


def claims(shape: str, descr: str = "<f8") -> bytes:
    """A file whose header promises more than it holds."""
    return npz(("a.npy", header(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()) + bytes(64)))


NO_NPZ = {
    "empty": b"",
    "text": b"text",
    "half a zip": b"PK\x03\x04",
    "one array": npy(np.zeros(3)),
    "pickled": npz(("a.npy", npy(np.array([{"x": 1}], object)))),
    "no header": npz(("a.npy", b"\x93NUMPY")),
    "bad header": npz(("a.npy", header(b"{}"))),
    "unknown version": npz(("a.npy", header(b"{}", b"\x09\x00"))),
    "header that is code": npz(("a.npy", header(b"__import__('os').abort()"))),
    "larger than itself": claims("(9,)"),
    "terabytes": claims("(1000000, 1000000)"),
    "more than 64 bits": claims("(10000000000, 10000000000)"),
    "negative size": claims("(-1,)"),
    "no size at all": claims("(1000000,)", "|S0"),
    "texts": npz(("a.npy", npy(np.array(["x"])))),
}


@pytest.mark.parametrize("kind", NO_NPZ)
def test_npz_file_that_is_none(folder: Path, kind: str, put: Callable[[Path, bytes], None]) -> None:
    put(folder, NO_NPZ[kind])
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read as \.npz"):
        Bundle.open(folder).arrays("golden.npz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npz(("text", b"hello")), "'text' is not an array"),
        (npz(("a.npy", npy(np.zeros(3))), ("a.npy", npy(np.ones(3)))), "'a' stands there twice"),
        (npz(("a.npy", npy(np.zeros(3))), method=zipfile.ZIP_LZMA), "'a' .* packed in a way"),
    ],
    ids=["text", "twice", "lzma"],
)
def test_npz_member_that_is_no_array(folder: Path, content: bytes, words: str, put: Callable[[Path, bytes], None]) -> None:
    put(folder, content)
    with pytest.raises(BundleError, match=rf"golden\.npz: {words}"):
        Bundle.open(folder).arrays("golden.npz")


def test_an_npz_that_unpacks_to_more_than_any_is_not_unpacked(folder: Path, put: Callable[[Path, bytes], None]) -> None:
    zeros = npz(*((f"{n}.npy", bytes(1 << 24)) for n in range(17)), method=zipfile.ZIP_DEFLATED)
    put(folder, zeros)
    opened = Bundle.open(folder)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=r"golden\.npz: its arrays have 285212672 bytes, more than the 268435456 that are unpacked"):
            opened.arrays("golden.npz")
        assert tracemalloc.get_traced_memory()[1] < 10 * len(zeros)
    finally:
        tracemalloc.stop()


def test_arrays_come_back_as_written(small_bundle: Path) -> None:
    with np.load(small_bundle / "golden.npz") as file:
        expected = {key: file[key] for key in file.files}
    found = Bundle.open(small_bundle).arrays("golden.npz")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
