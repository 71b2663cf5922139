"""Thousands of spoiled bundles, used as the sampler uses one: each ends in success or in one BundleError, and in nothing else.

What was altered without its hash or digest being made anew never ends in success, and the error names the altered file.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.manifest import FIELDS
from tests.fuzzing import counted, fuzz
from tests.runtime.spoiling import SPELLINGS, Place, altered, restructure

FILES = ["README.md", "denoiser.onnx", "encoder.onnx", "golden.npz", "parity.json", "scheduler_config.json"]


@pytest.fixture(scope="module")
def place(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(Path(shutil.copytree(small_bundle, tmp_path_factory.mktemp("fuzz") / "bundle")))


@pytest.fixture(autouse=True)
def warnings_are_no_errors() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


@fuzz(500)
@given(data=st.data())
@counted
def test_bytes_of_the_manifest(place: Place, data: st.DataObject) -> None:
    content = altered(data, place.original["manifest.json"])
    place.write("manifest.json", content)
    try:
        sentence = place.outcome()
    finally:
        place.restore()
    if sentence is None:
        assert json.loads(content) == place.json("manifest.json"), "the manifest was altered and nobody noticed"
    else:
        assert "manifest.json" in sentence


@fuzz(1200)
@given(data=st.data())
@counted
def test_values_of_the_manifest_with_a_digest_that_matches(place: Place, data: st.DataObject) -> None:
    """A digest proves that nothing was altered since it was made, not that what was written makes sense."""
    fields = data.draw(st.sampled_from([None, *FIELDS]))  # half of the schema lies deep inside
    start = None if fields is None else [part for part in fields.split("/") if part != "*"]
    manifest = place.json("manifest.json")
    restructure(data, manifest, start)
    if data.draw(st.integers(0, 3)) == 0:
        restructure(data, manifest)
    try:
        place.write_sealed(manifest)
        place.outcome()
    finally:
        place.restore()


@fuzz(200)
@given(data=st.data())
@counted
def test_text_of_the_manifest_that_python_would_read(place: Place, data: st.DataObject) -> None:
    """Another value set into the text itself, so that names stand twice and numbers are spelled in every way there is."""
    text = place.original["manifest.json"].decode()
    values = list(re.finditer(r'(?<=: )("[^"\n]*"|[^\s,{\[]+)', text))
    spot = data.draw(st.sampled_from(values))
    written = data.draw(st.sampled_from(SPELLINGS))
    place.write("manifest.json", (text[: spot.start()] + written + text[spot.end() :]).encode())
    try:
        sentence = place.outcome()
    finally:
        place.restore()
    assert sentence is not None
    assert "manifest.json" in sentence


@fuzz(400)
@given(data=st.data())
@counted
def test_files(place: Place, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*FILES, *FILES, "manifest.json"]))
    path, original = place.folder / name, place.original[name]
    kinds = ["alter", "alter", "alter", "empty", "extend", "exchange", "delete", "rename", "folder", "repeat"]
    kind = data.draw(st.sampled_from(kinds if os.name == "nt" else [*kinds, "link", "device", "pipe", "loop", "nowhere"]))
    named = {name}
    try:
        match kind:
            case "alter":
                place.write(name, altered(data, original))
            case "empty":
                place.write(name, b"")
            case "extend":
                place.write(name, original + data.draw(st.binary(min_size=1, max_size=50)))
            case "repeat":
                place.write(name, original * 2)
            case "exchange":
                other = data.draw(st.sampled_from([*place.original]))
                place.write(name, place.original[other])
                place.write(other, original)
                named |= {other}
            case "delete":
                place.instead(name, lambda path: None)
            case "rename":
                other = data.draw(st.sampled_from(["other", name.swapcase(), f"{name}.bak"]))
                place.instead(name, lambda path: (path.parent / other).write_bytes(original))
            case "folder":
                place.instead(name, Path.mkdir)
            case "link":
                elsewhere = place.folder.parent / "elsewhere"
                elsewhere.write_bytes(original)
                place.instead(name, lambda path: path.symlink_to(elsewhere))
            case "device":
                place.instead(name, lambda path: path.symlink_to(data.draw(st.sampled_from(["/dev/zero", "/dev/stdin", "/dev/tty"]))))
            case "pipe":
                place.instead(name, os.mkfifo)
            case "loop":
                place.instead(name, lambda path: path.symlink_to(path.name))
            case "nowhere":
                place.instead(name, lambda path: path.symlink_to("nowhere"))
        same = path.is_file() and not path.is_symlink() and path.read_bytes() == original
        sentence = place.outcome()
    finally:
        place.restore()
    if sentence is None:
        assert same or name == "manifest.json", f"{name} was altered ({kind}) and nobody noticed"
    else:
        assert any(part in sentence for part in named), "the error names the file that was altered"


@fuzz(300)
@given(data=st.data())
@counted
def test_scheduler_configs_with_hashes_that_match(place: Place, data: st.DataObject) -> None:
    config, manifest = place.json("scheduler_config.json"), place.json("manifest.json")
    restructure(data, config)
    manifest["sampling"].update(
        scheduler=data.draw(st.sampled_from(["ddim", "ddpm", "dpmsolver++"])),
        steps=data.draw(st.sampled_from([1, 2, 32, 1000])),
        eta=data.draw(st.sampled_from([0, 0, 0, 1, 0.5])),
    )
    content = json.dumps(config).encode()
    if data.draw(st.integers(0, 4)) == 0:
        content = altered(data, content)
    try:
        place.write_sealed(manifest, **{"scheduler_config.json": content})
        place.outcome()
    finally:
        place.restore()


def header(shape: Any, descr: Any, fortran: Any, version: bytes = b"\x01\x00") -> bytes:
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


@fuzz(400)
@given(data=st.data())
@counted
def test_golden_outputs_with_hashes_that_match(place: Place, data: st.DataObject) -> None:
    original = place.original["golden.npz"]
    if data.draw(st.booleans()):
        content = altered(data, original)
    else:
        with zipfile.ZipFile(io.BytesIO(original)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
        at = data.draw(st.integers(0, len(members) - 1))
        name, inner = members[at]
        match data.draw(st.sampled_from(["alter", "header", "rename", "drop", "twice"])):
            case "alter":
                members[at] = (name, altered(data, inner))
            case "header":
                shape = data.draw(
                    st.sampled_from([(), (3,), (-1,), (10**15,), (10**30, 2), (0, 10**30), (2, 2), (True,), (1.5,), "x", None])
                )
                descr = data.draw(
                    st.sampled_from(["<f4", ">f8", "|O", "|S0", "<U9", "|V8", "<M8[s]", "<f99", "", None, [("a", "<f4")], "?", "<c8"])
                )
                version = data.draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"]))
                members[at] = (name, header(shape, descr, data.draw(st.sampled_from([True, False, 3])), version) + inner[80:])
            case "rename":
                members[at] = (data.draw(st.sampled_from(["x", "../x.npy", "/x.npy", ".npy", "é.npy", "a/b.npy", "x" * 300])), inner)
            case "drop":
                del members[at]
            case "twice":
                members.append((f"again {name}", inner))
        stream = io.BytesIO()
        with zipfile.ZipFile(
            stream, "w", data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))
        ) as archive:
            for name, inner in members:
                archive.writestr(name, inner)
        content = stream.getvalue()
    try:
        place.write_sealed(place.json("manifest.json"), **{"golden.npz": content})
        place.outcome()
    finally:
        place.restore()


@fuzz(300)
@given(data=st.data())
@counted
def test_networks_with_hashes_that_match(place: Place, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["denoiser.onnx", "encoder.onnx"]))
    try:
        place.write_sealed(place.json("manifest.json"), **{name: altered(data, place.original[name])})
        sentence = place.outcome()
    finally:
        place.restore()
    assert sentence is None or name in sentence
