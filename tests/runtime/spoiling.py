"""How a bundle is spoiled: its files written over and put back, bytes altered, values of JSON exchanged for any others."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from runtime.bundle import Bundle, digest
from runtime.errors import BundleError
from runtime.geometry import propagating
from runtime.schedulers import plan


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
