"""The manifest's schema: every field it names is refused by that name where it is missing or out of bounds, and JSON is read strictly."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import BundleError
from runtime.manifest import FIELDS, LARGEST_FILE, digest, read_manifest
from runtime.strict_json import DEEPEST_JSON, LARGEST_JSON

GONE = object()
NO_OBJECT: list[Any] = [None, 3, "x", [], True]
NO_NAMES: list[Any] = [*NO_OBJECT, {}, {"": {}}, {"a/b": {}}, {"..": {}}, {"x" * 65: {}}]
NO_WHOLE = [None, True, 1.0, "1", [1], -1, 1e400, 10**30]
NO_MAP: list[Any] = [None, 3, [], [[]], [[1, 1]], [[1], [1]], [["1"]], [[True]], [[None]], [[-0.1]], [[1e9]], [[[1]]]]
NO_SHAPE = [None, "batch", [], [1, 2], [2, "batch"], ["batch", 0], ["batch", -1], ["batch", 1.0], ["batch", True], ["batch", "n"]]
TOO_LARGE = [["batch", 1 << 25], ["batch", 1 << 13, 1 << 13], ["batch"] + [1] * 8, ["batch", 10**30]]

WRONG: dict[str, list[Any]] = {
    "task": [None, 3, "", "x" * 201, ["x"]],
    "geometry": NO_OBJECT,
    "condition": NO_OBJECT,
    "condition/layout": [None, 3, "", "circles", "\n", ["orders"]],
    "condition/height_range_nm": [None, 3, [1], [1, 2, 3], ["1", "2"], [0, 1], [-5, 1], [1, 1e10], [True, 2]],
    "condition/mean_R": [*NO_MAP, [[0.0] * 1025] * 1025],
    "condition/mean_T": NO_MAP,
    "condition/scale": [None, [1, 1, 1], [1, 1, 1, "1"], [1, 1, 1, 1e9], {"a": 1}],
    "condition/canvas": [*NO_WHOLE, 1025],
    "condition/height_plane": [None, 3, [1], [1, 2, 3], ["1", "2"], [True, 2], [0, 1e9]],
    "condition/channels": [None, 3, "heat", {"heat": 1}, [3], [""], ["1480"], ["Rm"], ["mask_heat"], ["a-b"], ["a", "a"], ["x" * 64]],
    "condition/mean_channels": [None, 3, {}, [3], [[[-0.1]]], [[[1e31]]], [[["1"]]], [[[1.0]]] * 65],
    "channels": [None, 3, "x", [], {"heat": 3}, {"heat": []}],
    "pattern_size": [*NO_WHOLE, 0, 1025],
    "sample_shape": [
        None,
        3,
        [1, 5],
        [1, 5, 5, 5],
        [0, 5, 5],
        [1, 5, -5],
        [1.0, 5, 5],
        [True, 5, 5],
        ["1", 5, 5],
        [1, 1025, 5],
        [2, 1024, 1024],
    ],
    "window": [None, 0, [0], [0, 0, 0], [0, -1], ["0", 0], [0.0, 0], [False, 0], [0, 1025], [0, 10**30]],
    "max_batch": [*NO_WHOLE, 0, 4097],
    "networks": NO_NAMES,
    "networks/denoiser": NO_OBJECT,
    "networks/encoder": NO_OBJECT,
    "networks/denoiser/files": NO_NAMES,
    "networks/denoiser/files/fp32": [None, 3, "", ["denoiser.onnx"], {}],
    "networks/encoder/inputs": NO_NAMES,
    "networks/encoder/inputs/light": NO_OBJECT,
    "networks/encoder/inputs/light/shape": [*NO_SHAPE, *TOO_LARGE],
    "networks/encoder/inputs/light/dtype": [None, 3, "", "float8", "object", ["float32"]],
    "networks/encoder/outputs": NO_NAMES,
    "networks/encoder/outputs/context": NO_OBJECT,
    "networks/encoder/outputs/context/shape": [*NO_SHAPE, *TOO_LARGE],
    "networks/encoder/outputs/context/dtype": [None, "complex64", {}],
    "networks/denoiser/inputs/sample": NO_OBJECT,
    "networks/denoiser/inputs/timestep": NO_OBJECT,
    "networks/denoiser/outputs/output": NO_OBJECT,
    "sampling": NO_OBJECT,
    "sampling/scheduler": [None, 3, "", "plms", ["ddim"]],
    "sampling/steps": [*NO_WHOLE, 0, 10_001],
    "sampling/guidance_scale": [None, True, "1", [1], 1e4, -1e4, 10**30],
    "sampling/eta": [None, True, "0", -0.1, 1.1],
    "sampling/guidance_interval": [3, "x", [], [1], [1, 2, 3], [2, 1], [-1, 1], ["1", "2"], [True, 2], [1, 10**30]],
    "files": NO_OBJECT,
    "files/golden.npz": NO_OBJECT,
    "files/golden.npz/sha256": [None, 3, "", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n", ["0" * 64]],
    "files/golden.npz/bytes": [*NO_WHOLE, LARGEST_FILE + 1],
}
OPTIONAL = {
    "condition/height_plane",
    "condition/channels",
    "condition/mean_channels",
    "channels",
    "max_batch",
    "sampling/eta",
    "sampling/guidance_interval",
}
NOT_NEEDED = {"networks/encoder", "networks/encoder/inputs/light", "networks/encoder/outputs/context", "files/golden.npz"}
ONLY_ONES = {"networks/denoiser/files/fp32", "networks/denoiser/outputs/output"}  # without them nothing is left


@pytest.fixture
def manifest(small_bundle: Path) -> dict[str, Any]:
    return dict(json.loads((small_bundle / "manifest.json").read_text()))


def put(manifest: dict[str, Any], path: str, value: Any) -> None:
    place: Any = manifest
    *parents, last = path.split("/")
    for name in parents:
        place = place[name]
    if value is GONE:
        place.pop(last)
    else:
        place[last] = value


def sealed(manifest: dict[str, Any]) -> bytes:
    return json.dumps({**manifest, "digest": digest(manifest)}).encode()


def read(manifest: dict[str, Any]) -> dict[str, Any]:
    return read_manifest(sealed(manifest), "manifest.json")


def test_every_field_of_the_schema_is_tried_here() -> None:
    assert [path for path in FIELDS if not fnmatch.filter(WRONG, path)] == []
    assert [path for path in WRONG if not any(fnmatch.fnmatch(path, pattern) for pattern in FIELDS)] == []
    assert {path for path, rule in FIELDS.items() if rule.optional} == OPTIONAL


@pytest.mark.parametrize("path", sorted(WRONG.keys() - OPTIONAL - NOT_NEEDED))
def test_a_missing_field_is_named(path: str, manifest: dict[str, Any]) -> None:
    put(manifest, path, GONE)
    named = f": '{path.rpartition('/')[0]}' is {{}}; expected" if path in ONLY_ONES else f" lacks '{path}'; export the bundle again"
    with pytest.raises(BundleError, match=f"^manifest.json{named}"):
        read(manifest)


@pytest.mark.parametrize("path", sorted(NOT_NEEDED))
def test_what_nothing_else_names_may_be_missing(path: str, manifest: dict[str, Any]) -> None:
    put(manifest, path, GONE)
    read(manifest)


@pytest.mark.parametrize("path", WRONG)
def test_a_field_of_another_kind_or_out_of_bounds_is_named(path: str, manifest: dict[str, Any]) -> None:
    for value in WRONG[path]:
        put(manifest, path, value)
        with pytest.raises(BundleError) as caught:
            read(manifest)
        text = str(caught.value)
        if "is not JSON" in text:  # 1e400 is no number there is
            assert "Infinity" in text
            continue
        assert text.startswith(f"manifest.json: '{path}' is ") or f"'{path}/" in text, f"{value!r}: {text}"
        assert "expected" in text or "lacks" in text
        assert text.isprintable()
        assert len(text) < 500


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("condition/height_plane", GONE),
        ("condition/height_plane", [-0.5, 40.0]),
        ("sampling/eta", GONE),
        ("sampling/eta", 1),
        ("sampling/guidance_interval", None),
        ("sampling/guidance_interval", [0.1, 5]),
        ("sampling/guidance_scale", 3),
        ("sampling/scheduler", "dpmsolver++"),
        ("training", GONE),
        ("metrics", {"anything": [None, True, 1e300]}),
        ("later", {"b": 1}),
        ("condition/later", 3),
        ("networks/denoiser/later", [3]),
        ("networks/denoiser/inputs/sample/later", "x"),
        ("sampling/later", {}),
        ("files/golden.npz/later", "x"),
    ],
)
def test_what_is_optional_or_new_is_accepted(path: str, value: Any, manifest: dict[str, Any]) -> None:
    put(manifest, path, value)
    assert read(manifest) == {**manifest, "digest": digest(manifest)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": [0, 1]}, r"a pattern of 5 pixels .* at \[0, 1\] .* leaves the sample of \[1, 5, 5\]"),
        ({"window": [1, 0]}, "leaves the sample"),
        ({"pattern_size": 6}, "leaves the sample"),
        ({"sample_shape": [1, 8, 8]}, r"'networks/denoiser/inputs/sample/shape' is \['batch', 1, 5, 5\] and 'sample_shape' \[1, 8, 8\]"),
        ({"networks/denoiser/outputs/output/shape": ["batch", 2, 5, 5]}, "'networks/denoiser/outputs/output/shape' is"),
        ({"networks/encoder/files/fp16": "other.onnx"}, "'networks/encoder/files/fp16' is 'other.onnx', which 'files' does not list"),
        ({"networks/encoder/files/fp16": "../other.onnx"}, "which 'files' does not list"),
        ({"files/encoder.onnx": GONE}, "'networks/encoder/files/fp32' is 'encoder.onnx', which 'files' does not list"),
        ({"condition/channels": ["heat"]}, r"'channels' names \[\] and 'condition/channels' \['heat'\]"),
        ({"channels": {"heat": None}}, r"'channels' names \['heat'\] and 'condition/channels' \[\]"),
        ({"condition/layout": "planes", "condition/canvas": 7}, r"'sample_shape' is \[1, 5, 5\] and 'condition/canvas' 7"),
    ],
)
def test_fields_that_contradict_each_other_are_named(change: dict[str, Any], words: str, manifest: dict[str, Any]) -> None:
    for path, value in change.items():
        put(manifest, path, value)
    with pytest.raises(BundleError, match=f"^manifest\\.json: .*{words}"):
        read(manifest)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ('{"a": NaN}', "a number is 'NaN', which is not finite"),
        ("[Infinity]", "not finite"),
        ("-Infinity", "not finite"),
        ("1e999", "a number is '1e999', which is not finite"),
        ("1" * 41, "a whole number has 41 digits"),
        ("-" + "1" * 5000, "a whole number has 5001 digits"),
        ('{"a": 1, "a": 1}', "the name 'a' stands twice"),
        ('[{"b": {"a": 1, "c": 2, "a": 3}}]', "the name 'a' stands twice"),
        ("[" * DEEPEST_JSON + "]" * DEEPEST_JSON, f"nested more than {DEEPEST_JSON} deep"),
        ('{"a":' * DEEPEST_JSON + "0" + "}" * DEEPEST_JSON, f"nested more than {DEEPEST_JSON} deep"),
        ("[" * 50_000 + "]" * 50_000, "recursion"),
        (r'"\ud800"', "surrogates not allowed"),
        (r'{"\udfff": 1}', "surrogates not allowed"),
        (r'{"a\nb": 1}', r"the name 'a\\nb' is too long, or cannot be printed"),
        ('{"' + "a" * 201 + '": 1}', "is too long, or cannot be printed"),
        ("01", "delimiter"),
        ("'a'", "Expecting value"),
        ("1,", "Expecting property name|Illegal trailing comma"),
    ],
)
def test_json_is_read_strictly(extra: str, words: str, manifest: dict[str, Any]) -> None:
    content = sealed(manifest)[:-1] + b', "extra": ' + extra.encode() + b"}"
    with pytest.raises(BundleError, match=rf"^manifest\.json is not JSON \(.*({words})") as caught:
        read_manifest(content, "manifest.json")
    assert str(caught.value).isprintable()


def test_a_field_that_stands_there_twice_is_refused_even_where_both_agree(manifest: dict[str, Any]) -> None:
    content = sealed(manifest)
    with pytest.raises(BundleError, match="the name 'task' stands twice"):
        read_manifest(content[:-1] + b', "task": "metasurface"}', "manifest.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_refused(encoding: str, manifest: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json is not JSON"):
        read_manifest(sealed(manifest).decode().encode(encoding), "manifest.json")


def test_nesting_text_and_numbers_up_to_the_bounds_are_read(manifest: dict[str, Any]) -> None:
    deepest: Any = 0
    for _ in range(DEEPEST_JSON - 2):
        deepest = [deepest]
    manifest["extra"] = {"deep": deepest[0], "seed": (1 << 63) - 1, "text": "ü 𝄞 \0", "small": 5e-324}
    assert read(manifest)["extra"] == manifest["extra"]


def test_a_text_longer_than_any_is_not_even_parsed() -> None:
    with pytest.raises(BundleError, match=rf"is not JSON \({LARGEST_JSON + 1} bytes are more than"):
        read_manifest(b" " * (LARGEST_JSON + 1), "manifest.json")
