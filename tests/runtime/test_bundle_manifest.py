"""A bundle's manifest: what is altered, missing, of another format or leads out of the bundle is refused by name."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import bundle as room
from runtime.bundle import Bundle, digest
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


@pytest.mark.parametrize("version", [2, 0, "1", None, [1]])
def test_unknown_format(folder: Path, version: object, rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]) -> None:
    rewrite(folder, lambda m: m.update(format=version))
    with pytest.raises(BundleError, match=r"manifest\.json has format .*reads format 1"):
        Bundle.open(folder)


@pytest.mark.parametrize("key", sorted(room._REQUIRED.keys() - {"format", "digest"}))
def test_missing_field_is_named(folder: Path, key: str, rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]) -> None:
    rewrite(folder, lambda m: m.pop(key))
    with pytest.raises(BundleError, match=f"lacks '{key}'"):
        Bundle.open(folder)


def test_missing_digest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digest"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="lacks 'digest'"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/etc/hostname", "sub/file", "..", ".", "", ".hidden", "..\\outside", "C:\\x", "C:x", "a:stream", "x\0y"]
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


@pytest.mark.parametrize("entry", [None, 3, [], {}, {"sha256": None}, "x"])
def test_files_without_hash_are_refused(
    folder: Path, entry: object, rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]
) -> None:
    rewrite(folder, lambda m: m["files"].update({"denoiser.onnx": entry}))
    with pytest.raises(BundleError, match=r"lacks the sha256 of 'denoiser\.onnx'"):
        Bundle.open(folder)


def test_network_files(folder: Path, rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]) -> None:
    opened = Bundle.open(folder)
    assert opened.network_file("denoiser", "fp32") == "denoiser.onnx"
    with pytest.raises(BundleError, match="has no denoiser in fp16; it has fp32"):
        opened.network_file("denoiser", "fp16")
    with pytest.raises(BundleError, match="has no surrogate in fp32; it has none"):
        opened.network_file("surrogate", "fp32")
    for entry in (None, 3, {}, {"files": 3}, {"files": {"fp32": 3}}):
        rewrite(folder, lambda m, entry=entry: m["networks"].update(denoiser=entry))  # type: ignore[misc]
        with pytest.raises(BundleError, match="the network 'denoiser' lacks its files"):
            Bundle.open(folder)


@pytest.mark.parametrize("key", ["scheduler", "steps", "guidance_scale"])
def test_incomplete_sampling_settings(folder: Path, key: str, rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]) -> None:
    rewrite(folder, lambda m: m["sampling"].pop(key))
    with pytest.raises(BundleError, match=f"'sampling' lacks '{key}'"):
        Bundle.open(folder)


@pytest.mark.parametrize(("key", "value"), [("window", [0]), ("window", [0, -1]), ("window", ["0", 0]), ("sample_shape", [1, 5])])
def test_shapes_that_are_none(
    folder: Path, key: str, value: list[object], rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]
) -> None:
    rewrite(folder, lambda m: m.update({key: value}))
    with pytest.raises(BundleError, match=f"'{key}' is "):
        Bundle.open(folder)


def test_geometry_and_condition_errors_name_the_field(
    folder: Path, rewrite: Callable[[Path, Callable[[dict[str, Any]], object]], None]
) -> None:
    rewrite(folder, lambda m: m["geometry"].update(wavelength_nm=-1))
    with pytest.raises(BundleError, match=r"manifest\.json: .*'wavelength_nm'"):
        Bundle.open(folder)
    rewrite(folder, lambda m: m["geometry"].update(wavelength_nm=1550.0))
    rewrite(folder, lambda m: m["condition"].pop("mean_R"))
    with pytest.raises(BundleError, match="mean_R"):
        Bundle.open(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_manifest_with_a_good_digest_ends_in_success_or_a_bundle_error(folder: Path, data: st.DataObject) -> None:
    """A digest proves that nothing was altered since it was made, not that what was written makes sense."""
    original = json.loads((folder / "manifest.json").read_text())
    manifest = copy.deepcopy(original)
    place: Any = manifest
    key = data.draw(st.sampled_from(["format", "geometry", "condition", "networks", "sampling", "files", "window", "sample_shape"]))
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
        place, key = place[key], data.draw(st.sampled_from(sorted(place[key])))
    place[key] = data.draw(JSON)
    manifest["digest"] = digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    try:
        opened = Bundle.open(folder)
        for network in opened.manifest["networks"]:
            opened.read(opened.network_file(network, "fp32"))
        opened.json("scheduler_config.json")
        opened.arrays("golden.npz")
    except BundleError as error:
        assert str(error).strip()  # noqa: PT017
    finally:
        (folder / "manifest.json").write_text(json.dumps(original))
