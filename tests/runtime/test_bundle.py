"""Bundles: found, opened and read; a file that was altered, lost or led astray is refused by name before an engine sees it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import bundle as room
from runtime.bundle import Bundle, digest, find
from runtime.errors import BundleError

FILES = ["README.md", "denoiser.onnx", "encoder.onnx", "golden.npz", "parity.json", "scheduler_config.json"]


@pytest.fixture
def put(rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]) -> Callable[[Path, str, bytes], None]:
    """Replace a file and its hash."""

    def put(folder: Path, name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        rewrite(folder, lambda m: m["files"].update({name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}))

    return put


def read_all(folder: Path) -> None:
    opened = Bundle.open(folder)
    for name in opened.manifest["files"]:
        opened.read(name)


def test_a_whole_bundle_opens_and_every_file_reads(small_bundle: Path) -> None:
    opened = Bundle.open(small_bundle)
    assert sorted(opened.manifest["files"]) == FILES
    assert sorted(path.name for path in small_bundle.iterdir()) == sorted([*FILES, "manifest.json"])
    for name in FILES:
        assert opened.read(name) == (small_bundle / name).read_bytes()
    assert opened.geometry.period_nm == (2000.0, 2000.0)
    assert opened.condition.orders == 3
    assert opened.manifest["digest"] == digest(opened.manifest)


def test_bundle_may_be_read_only_and_under_any_name(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "a name with spaces ü"
    folder.rename(place)
    for path in place.iterdir():
        path.chmod(0o444)
    place.chmod(0o555)
    try:
        read_all(place)
    finally:
        place.chmod(0o755)


def test_missing_folder_file_and_manifest_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"there is no bundle at .*nowhere"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match=r"there is no bundle at .*file"):
        Bundle.open(tmp_path / "file")
    with pytest.raises(BundleError, match=r"is no bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="there is no bundle at"):
        Bundle.open(tmp_path / ("x" * 300))


def test_without_the_shipped_bundle_the_sentence_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "__file__", str(tmp_path / "runtime" / "bundle.py"))
    with pytest.raises(BundleError, match="--bundle"):
        find(None)


@pytest.mark.parametrize("place", ["runtime/bundles", "bundles"])
def test_the_shipped_bundle_is_found_installed_and_in_a_checkout(
    place: str, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "__file__", str(tmp_path / "runtime" / "bundle.py"))
    shutil.copytree(small_bundle, tmp_path / place / room.DEFAULT)
    assert find(None).resolve() == (tmp_path / place / room.DEFAULT).resolve()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    """The very same bytes, but somewhere else."""
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit flipped": (flip, "damaged"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
    "emptied": (lambda path: path.write_bytes(b""), "damaged"),
    "grown": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "damaged"),
    "missing": (Path.unlink, "missing or is not a regular file"),
    "a link": (link, "missing or is not a regular file"),
    "a folder": (folder_instead, "missing or is not a regular file"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", SPOILED)
def test_spoiled_file_is_named(folder: Path, name: str, kind: str) -> None:
    spoil, words = SPOILED[kind]
    if kind == "a link" and os.name == "nt":
        pytest.skip("links need a privilege on Windows")
    spoil(folder / name)
    opened = Bundle.open(folder)
    with pytest.raises(BundleError, match=words) as caught:
        opened.read(name)
    assert str(folder / name) in str(caught.value)
    for other in FILES:
        if other != name:
            opened.read(other)


def test_a_manifest_that_is_a_link_is_refused(folder: Path) -> None:
    link(folder / "manifest.json")
    with pytest.raises(BundleError, match=r"manifest\.json is missing or is not a regular file"):
        Bundle.open(folder)


def test_a_file_larger_than_any_bundle_file_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_LARGEST", 50_000)
    with pytest.raises(BundleError, match=r"denoiser\.onnx has \d+ bytes, more than any bundle file"):
        Bundle.open(folder).read("denoiser.onnx")


def test_files_that_are_not_listed_are_not_read(folder: Path) -> None:
    (folder / "extra.txt").write_text("x")
    with pytest.raises(BundleError, match=r"has no file 'extra\.txt'; it has README\.md, denoiser\.onnx"):
        Bundle.open(folder).read("extra.txt")
    with pytest.raises(BundleError, match=r"has no file '\.\./x'"):
        Bundle.open(folder).read("../x")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_json_file_that_is_none(folder: Path, content: bytes, put: Callable[[Path, str, bytes], None]) -> None:
    put(folder, "scheduler_config.json", content)
    with pytest.raises(BundleError, match=r"scheduler_config\.json is not JSON"):
        Bundle.open(folder).json("scheduler_config.json")


def npz(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def pickled() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.array([{"x": 1}], object))
    return stream.getvalue()


def alone() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"PK\x03\x04", alone(), pickled(), npz(**{"a.npy": b"\x93NUMPY"}), npz(**{"a.npy": b"\x93NUMPY\x01\x00\x02\x00{}"})],
    ids=["empty", "text", "half a zip", "one array", "pickled", "no header", "bad header"],
)
def test_npz_file_that_is_none(folder: Path, content: bytes, put: Callable[[Path, str, bytes], None]) -> None:
    put(folder, "golden.npz", content)
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read as \.npz"):
        Bundle.open(folder).arrays("golden.npz")


def test_npz_member_that_is_no_array(folder: Path, put: Callable[[Path, str, bytes], None]) -> None:
    put(folder, "golden.npz", npz(text=b"hello"))
    with pytest.raises(BundleError, match=r"golden\.npz: 'text' is not an array"):
        Bundle.open(folder).arrays("golden.npz")


def test_arrays_come_back_as_written(small_bundle: Path) -> None:
    with np.load(small_bundle / "golden.npz") as file:
        expected = {key: file[key] for key in file.files}
    found = Bundle.open(small_bundle).arrays("golden.npz")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_altered_bytes_end_in_success_or_a_bundle_error(folder: Path, data: st.DataObject) -> None:
    """And success only where nothing was altered, or white space and the like in the manifest."""
    name = data.draw(st.sampled_from([*FILES, "manifest.json", "manifest.json", "manifest.json"]))
    original = (folder / name).read_bytes()
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["set", "set", "insert", "delete"])):
            case "set":
                content[at] = data.draw(st.integers(0, 255))
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=5))
            case "delete" if len(content) > 1:
                del content[at]
    (folder / name).write_bytes(content)
    try:
        read_all(folder)
    except BundleError as error:
        assert name in str(error), "the error names the file that was altered"  # noqa: PT017
    else:
        same = json.loads(bytes(content)) == json.loads(original) if name == "manifest.json" else bytes(content) == original
        assert same, f"{name} was altered and nobody noticed"
    finally:
        (folder / name).write_bytes(original)
