"""A bundle's manifest: what is altered, missing, of another format or leads out of the bundle is refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle import Bundle
from runtime.errors import BundleError


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_truncated_manifest(folder: Path, size: int) -> None:
    path = folder / "manifest.json"
    content = path.read_bytes().rstrip()
    path.write_bytes(content[:size])
    with pytest.raises(BundleError, match=r"manifest\.json is not JSON"):
        Bundle.open(folder)


@pytest.mark.parametrize("content", [b"[]", b"3", b'"text"', b"null"])
def test_manifest_of_another_kind(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json has format None"):
        Bundle.open(folder)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' * 50_000])
def test_manifest_that_is_no_text_or_nested_without_end(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json is not JSON"):
        Bundle.open(folder)


@pytest.mark.parametrize("key", ["pattern_size", "window", "condition", "geometry", "sampling", "files", "networks", "recipe"])
def test_altered_manifest_is_told_by_its_digest(folder: Path, key: str) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    value = manifest[key]
    if isinstance(value, dict):
        value["added"] = {"files": {}, "sha256": ""}
    else:
        manifest[key] = [9, 9] if isinstance(value, list) else 9
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"manifest\.json was altered.*digest"):
        Bundle.open(folder)


@pytest.mark.parametrize("version", [2, 0, "1", 1.0, True, None, [1], "x" * 10_000])
def test_unknown_format(folder: Path, version: object, rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]) -> None:
    rewrite(folder, lambda m: m.update(format=version))
    with pytest.raises(BundleError, match=r"manifest\.json has format .*reads format 1"):
        Bundle.open(folder)


def test_missing_digest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digest"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="lacks 'digest'"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/etc/hostname", "sub/file", "..", ".", "", ".hidden", "..\\outside", "C:\\x", "C:x", "a:stream"]
)
def test_names_that_lead_out_of_the_bundle_are_refused(
    folder: Path, name: str, rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]
) -> None:
    (folder.parent / "outside.txt").write_text("secret")
    entry = {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}
    rewrite(folder, lambda m: m["files"].update({name: entry}))
    with pytest.raises(BundleError, match="outside the bundle; do not use") as caught:
        Bundle.open(folder)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "CON",
        "nul.onnx",
        "Com1",
        "lpt9.tar.gz",
        "a.",
        "a ",
        "a\n",
        "a*",
        "a?",
        "a|b",
        '"',
        "<",
        "x" * 129,
        "ü.onnx",
        "\ud800",
        "x\0y",
        "x" * 300,
    ],
)
def test_names_that_not_every_system_can_store_are_refused(
    folder: Path, name: str, rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]
) -> None:
    rewrite(folder, lambda m: m["files"].update({name: m["files"]["golden.npz"]}))
    with pytest.raises(BundleError, match=r"which not every system can store; do not use|is not JSON \(.*(surrogates|the name )") as caught:
        Bundle.open(folder)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["Golden.NPZ", "manifest.json", "MANIFEST.JSON"])
def test_names_that_some_systems_take_for_one_are_refused(
    folder: Path, name: str, rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]
) -> None:
    rewrite(folder, lambda m: m["files"].update({name: m["files"]["golden.npz"]}))
    with pytest.raises(BundleError, match=f"names the file '{name}' twice"):
        Bundle.open(folder)


def test_network_files(small_bundle: Path) -> None:
    opened = Bundle.open(small_bundle)
    assert opened.network_file("denoiser", "fp32") == "denoiser.onnx"
    with pytest.raises(BundleError, match="has no denoiser in fp16; it has fp32"):
        opened.network_file("denoiser", "fp16")
    with pytest.raises(BundleError, match="has no surrogate in fp32; it has none"):
        opened.network_file("surrogate", "fp32")


def test_geometry_and_condition_errors_name_the_field(
    folder: Path, rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]
) -> None:
    rewrite(folder, lambda m: m["geometry"].update(wavelength_nm=-1))
    with pytest.raises(BundleError, match=r"manifest\.json: .*'wavelength_nm'"):
        Bundle.open(folder)
    rewrite(folder, lambda m: m["geometry"].update(wavelength_nm=1550.0))
    rewrite(folder, lambda m: m["condition"].pop("mean_R"))
    with pytest.raises(BundleError, match=r"manifest\.json lacks 'condition/mean_R'"):
        Bundle.open(folder)
