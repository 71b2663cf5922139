"""Thousands of spoiled bundles, used as the sampler uses one: each ends in success or in one BundleError, and in nothing else.

What was altered without its hash or digest being made anew never ends in success, and the error names the altered file.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundle import Bundle, digest
from runtime.errors import BundleError
from runtime.geometry import propagating
from runtime.manifest import FIELDS
from runtime.schedulers import plan
from tests.fuzzing import counted, fuzz

FILES = ["README.md", "denoiser.onnx", "encoder.onnx", "golden.npz", "parity.json", "scheduler_config.json"]


class Place:
    """A bundle whose files are spoiled, and what they were."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.original = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.touched: set[str] = set()

    def json(self, name: str) -> Any:
        """A JSON file as it was, to be changed."""
        return json.loads(self.original[name])

    def write(self, name: str, content: bytes) -> None:
        self.touched.add(name)
        (self.folder / name).write_bytes(content)

    def instead(self, name: str, make: Callable[[Path], object]) -> None:
        """Something else where a file was."""
        self.touched.add(name)
        (self.folder / name).unlink()
        make(self.folder / name)

    def write_sealed(self, manifest: dict[str, Any], **files: bytes) -> None:
        """A manifest with a digest that matches, and files with hashes that match."""
        for name, content in files.items():
            manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            self.write(name, content)
        self.write("manifest.json", json.dumps({**manifest, "digest": digest(manifest)}).encode())

    def restore(self) -> None:
        for path in list(self.folder.iterdir()):
            if path.name in self.touched or path.name not in self.original:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for name in self.touched:
            (self.folder / name).write_bytes(self.original[name])
        self.touched.clear()

    def outcome(self) -> str | None:
        """None where everything of the bundle can be used, else the sentence that says why not."""
        try:
            use(self.folder)
        except BundleError as error:
            sentence = str(error)
        else:
            return None
        assert sentence.isprintable(), sentence
        assert 10 < len(sentence) < 1000
        return sentence


def use(folder: Path) -> None:
    """All that a sampler, its self-test and the doctor do with a bundle, short of an engine."""
    opened = Bundle.open(folder)
    for name in opened.manifest["files"]:
        opened.read(name)
    sampling = opened.manifest["sampling"]
    config = opened.json("scheduler_config.json")
    plan(config, sampling["steps"], sampling["scheduler"], float(sampling.get("eta", 0.0)))
    opened.arrays("golden.npz")
    for network, entry in opened.manifest["networks"].items():
        for precision in entry["files"]:
            opened.network(network, precision)
    condition = opened.condition
    nothing = np.zeros((1, 2 * condition.orders + 1, 2 * condition.orders + 1))
    arrays = condition.arrays(nothing, nothing, np.array([condition.height_range_nm[0]]))
    assert all(np.isfinite(value).all() for value in arrays.values())
    propagating(opened.geometry, condition.orders)
    size, (row, column) = opened.manifest["pattern_size"], opened.manifest["window"]
    sample = np.zeros(opened.manifest["sample_shape"], np.float32)
    assert sample[0, row : row + size, column : column + size].shape == (size, size)


@pytest.fixture(scope="module")
def place(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(Path(shutil.copytree(small_bundle, tmp_path_factory.mktemp("fuzz") / "bundle")))


@pytest.fixture(autouse=True)
def warnings_are_no_errors() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def altered(data: st.DataObject, original: bytes) -> bytes:
    """Bytes with one to three places changed."""
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        if not content:
            break
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["set", "flip", "insert", "delete", "cut", "copy"])):
            case "set":
                content[at] = data.draw(st.integers(0, 255))
            case "flip":
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del content[at : at + data.draw(st.integers(1, 20))]
            case "cut":
                del content[at:]
            case "copy":
                content[at:at] = content[at : at + data.draw(st.integers(1, 200))]
    return bytes(content)


# --- Values of any kind, and what can be done to those that are there -----------------------------------------------

NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 1.0, -0.0, 0.5, 1e-320, 1e300, -1e300, 2**31, 2**63, 2**64, 10**30, 10**100),
    *(math.nan, math.inf, -math.inf, "", "x", "0", "batch", "fp32", "..", "../x", "/etc/passwd", "CON", "\0", "\ud800", "é", "\n"),
    *("x" * 300, "denoiser.onnx", "manifest.json", "orders", "planes", "ddpm", "2" * 64, [], [[]], [0], [1, 5, 5], [-1, 0], ["batch"]),
    *(["batch", 10**12], [1, 10**6, 10**6], [None], {}, {"": 0}, {"files": {}}, {"fp32": "x"}, {"a": {"a": {}}}),
]
# What Python's JSON reader, or one that is less strict, might take for a value.
SPELLINGS = [
    *("NaN", "Infinity", "-Infinity", "1e999", "-0x1", "1" * 5000, '"\\ud800"', "01", "'x'", "1_000", "１", "[" * 500 + "]" * 500),
    *("\ufeff1", "\0", '"\0"', '"a", "task": "b"', '1, "format": 1', "{} //", "[1,]", '{"a": 1,}', "None", "True", "", "+1", ".5", "5."),
]
VALUES = st.sampled_from(NASTY) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def retuned(data: st.DataObject, value: Any) -> Any:
    """A value of the same kind that is a little or much different."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return data.draw(
            st.sampled_from([value + 1, value - 1, -value, value * 2, value / 2, value * 1000, float(value), str(value), [value]])
        )
    if isinstance(value, str):
        return data.draw(
            st.sampled_from([value + "x", value[:-1], value.upper(), value.swapcase(), value + "\0", "." + value, value * 2, [value]])
        )
    items = list(value.items() if isinstance(value, dict) else value)
    match data.draw(st.sampled_from(["reverse", "cut", "double", "other kind"])):
        case "reverse":
            items.reverse()
        case "cut":
            items = items[: len(items) // 2]
        case "double":
            items = items * 2 if isinstance(value, list) else [*items, *((f"{key}2", inner) for key, inner in items)]
        case "other kind":
            return dict(enumerate(items)) if isinstance(value, list) else [inner for _, inner in items]
    return dict(items) if isinstance(value, dict) else items


def restructure(data: st.DataObject, holder: Any, start: list[str] | None = None) -> None:
    """One thing anywhere in a JSON value is replaced, deleted, copied, renamed, exchanged or retuned."""
    path = list(start or [])
    while True:
        keys = list(range(len(holder))) if isinstance(holder, list) else list(holder)
        key: Any = path.pop(0) if path and path[0] in holder else data.draw(st.sampled_from(keys))
        inner = holder[key]
        if not (isinstance(inner, dict | list) and inner) or (not path and not data.draw(st.booleans())):
            break
        holder = inner
    match data.draw(st.sampled_from(["replace", "replace", "retune", "retune", "delete", "copy", "rename", "swap"])):
        case "replace":
            holder[key] = data.draw(VALUES)
        case "retune":
            holder[key] = retuned(data, inner)
        case "delete":
            del holder[key]
        case "copy" if isinstance(holder, list):
            holder.insert(key, inner)
        case "copy":
            holder[data.draw(st.sampled_from([*holder, f"{key}2", "x", ""]))] = copy.deepcopy(inner)
        case "rename" if isinstance(holder, dict):
            holder[data.draw(st.sampled_from([key.upper(), f"{key}2", "../x", ".", "nul", "", "\ud800", "a\nb"]))] = holder.pop(key)
        case _:
            other = data.draw(st.sampled_from(keys))
            holder[key], holder[other] = holder[other], holder[key]


# --- The examples ---------------------------------------------------------------------------------------------------


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
