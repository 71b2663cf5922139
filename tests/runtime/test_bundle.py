"""Bundles: found, opened and read; a file that was altered, lost or led astray is refused by name before an engine sees it."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from runtime import bundle as room
from runtime.bundle import Bundle, digest, find
from runtime.errors import BundleError
from runtime.strict_json import LARGEST_JSON

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


def device_instead(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit flipped": (flip, "damaged"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"damaged: it has \d+ bytes and the manifest .* cut short"),
    "emptied": (lambda path: path.write_bytes(b""), r"damaged: it has 0 bytes and the manifest states \d+, so it was cut short"),
    "grown": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), r"damaged: it has \d+ bytes .* so something was added"),
    "missing": (Path.unlink, "missing or is not a regular file"),
    "a link": (link, "missing or is not a regular file"),
    "a link to a device": (device_instead, "missing or is not a regular file"),
    "a folder": (folder_instead, "missing or is not a regular file"),
    "a pipe": (pipe_instead, "missing or is not a regular file"),
}
NOT_ON_WINDOWS = {"a link": "links need a privilege", "a link to a device": "no /dev", "a pipe": "no pipes in folders"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", SPOILED)
def test_spoiled_file_is_named(folder: Path, name: str, kind: str) -> None:
    spoil, words = SPOILED[kind]
    if os.name == "nt" and kind in NOT_ON_WINDOWS:
        pytest.skip(f"Windows: {NOT_ON_WINDOWS[kind]}")
    spoil(folder / name)
    opened = Bundle.open(folder)
    with pytest.raises(BundleError, match=words) as caught:
        opened.read(name)
    assert str(folder / name) in str(caught.value)
    for other in FILES:
        if other != name:
            opened.read(other)


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither links without a privilege nor pipes in folders")
@pytest.mark.parametrize("spoil", [link, device_instead, folder_instead, pipe_instead])
def test_a_manifest_that_is_no_regular_file_is_refused(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder / "manifest.json")
    with pytest.raises(BundleError, match=r"manifest\.json is missing or is not a regular file"):
        Bundle.open(folder)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_the_bundle_itself_may_be_reached_through_links(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "by another name").symlink_to(folder)
    (tmp_path / "and another").symlink_to(tmp_path / "by another name")
    read_all(tmp_path / "and another")


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither links without a privilege nor pipes in folders")
@pytest.mark.parametrize("spoil", [link, device_instead, folder_instead, pipe_instead])
def test_a_file_exchanged_after_it_was_looked_at_is_refused_and_blocks_nobody(
    folder: Path, spoil: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, path = Bundle.open(folder), folder / "golden.npz"
    look = os.lstat

    def look_and_exchange(name: Path) -> os.stat_result:
        seen = look(name)
        spoil(path)
        return seen

    monkeypatch.setattr(room.os, "lstat", look_and_exchange)
    with pytest.raises(BundleError, match=r"golden\.npz (is missing or is not a regular file|cannot be read)"):
        opened.read("golden.npz")


def test_a_file_that_grows_or_shrinks_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, path = Bundle.open(folder), folder / "golden.npz"
    whole, look = path.read_bytes(), os.fstat

    def read(become: bytes) -> bytes:
        def look_and_change(number: int) -> os.stat_result:
            seen = look(number)
            path.write_bytes(become)
            return seen

        path.write_bytes(whole)
        with monkeypatch.context() as patch:
            patch.setattr(room.os, "fstat", look_and_change)
            return opened.read("golden.npz")

    assert read(whole + b"more") == whole
    with pytest.raises(BundleError, match=r"golden\.npz is damaged: it became shorter"):
        read(whole[:-1])


def test_a_manifest_larger_than_any_is_not_read(folder: Path) -> None:
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(LARGEST_JSON + 1)
    with pytest.raises(BundleError, match=rf"manifest\.json has {LARGEST_JSON + 1} bytes, more than the {LARGEST_JSON} that are read"):
        Bundle.open(folder)


def test_a_disk_that_fails_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(folder)

    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(room.os, "open", fail)
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read: Input/output error; copy"):
        opened.read("golden.npz")


def test_files_that_are_not_listed_are_not_read(folder: Path) -> None:
    (folder / "extra.txt").write_text("x")
    with pytest.raises(BundleError, match=r"has no file 'extra\.txt'; it has README\.md, denoiser\.onnx"):
        Bundle.open(folder).read("extra.txt")
    with pytest.raises(BundleError, match=r"has no file '\.\./x'"):
        Bundle.open(folder).read("../x")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a": 1, "a": 1}', b" " * (LARGEST_JSON + 1)])
def test_json_file_that_is_none(folder: Path, content: bytes, put: Callable[[Path, str, bytes], None]) -> None:
    put(folder, "scheduler_config.json", content)
    with pytest.raises(BundleError, match=r"scheduler_config\.json is not JSON"):
        Bundle.open(folder).json("scheduler_config.json")


@pytest.mark.parametrize("content", [b"[]", b"3", b'"text"', b"null"])
def test_json_file_that_is_no_object(folder: Path, content: bytes, put: Callable[[Path, str, bytes], None]) -> None:
    put(folder, "scheduler_config.json", content)
    with pytest.raises(BundleError, match=r"scheduler_config\.json holds a JSON \w+; expected an object"):
        Bundle.open(folder).json("scheduler_config.json")


def test_diffusers_writes_numbers_that_are_not_finite_into_its_configs(folder: Path, put: Callable[[Path, str, bytes], None]) -> None:
    put(folder, "scheduler_config.json", b'{"lambda_min_clipped": -Infinity}')
    assert Bundle.open(folder).json("scheduler_config.json") == {"lambda_min_clipped": -math.inf}


def test_networks_come_whole_and_none_with_data_elsewhere(folder: Path, put: Callable[[Path, str, bytes], None]) -> None:
    opened = Bundle.open(folder)
    for name in ("encoder", "denoiser"):
        assert opened.network(name, "fp32") == (folder / f"{name}.onnx").read_bytes()
    with pytest.raises(BundleError, match="has no denoiser in fp16; it has fp32"):
        opened.network("denoiser", "fp16")
    model = onnx.load_from_string(opened.read("denoiser.onnx"))
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    put(folder, "denoiser.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match=r"denoiser\.onnx keeps the data of a tensor in another file; export") as caught:
        Bundle.open(folder).network("denoiser", "fp32")
    assert str(folder / "denoiser.onnx") in str(caught.value)
    assert Bundle.open(folder).read("denoiser.onnx") == model.SerializeToString()
