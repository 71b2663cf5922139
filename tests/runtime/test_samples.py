"""Images and points: every reader gives what was written, and damaged files end in a sentence."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import sample_pictures
from runtime.errors import BundleError, DataError, TargetError
from runtime.labels import Labels
from runtime.manifest import digest, read_manifest
from runtime.samples import CIFAR10, SampleSet, load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 5, 5)).astype(np.uint8)
LABEL = np.array([2, 0, 1, 1, 0, 2])


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def test_digits_and_points_need_no_download() -> None:
    pytest.importorskip("sklearn")
    digits, roll = load("digits"), load("swiss-roll")
    assert digits.x.shape == (1797, 1, 8, 8)
    assert digits.x.max() == 255
    assert digits.classes == tuple("0123456789")
    assert np.bincount(digits.label).min() > 170
    assert (roll.shape, roll.classes) == ((2, 1, 1), ())
    radius, angle = np.hypot(roll.x[:, 0, 0, 0], roll.x[:, 1, 0, 0]), np.arctan2(roll.x[:, 1, 0, 0], roll.x[:, 0, 0, 0])
    turns = (radius - angle) / (2 * np.pi)  # a spiral r = t at the angle t, but for the noise
    assert np.abs(turns - np.rint(turns)).mean() < 0.12


def test_mnists_files(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(GREY))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABEL))
    found = load(tmp_path / "train-images-idx3-ubyte")
    assert np.array_equal(found.x[:, 0], GREY)
    assert found.label.tolist() == LABEL.tolist()
    packed = tmp_path / "images.gz"
    packed.write_bytes(gzip.compress(idx(GREY)))
    alone = load(packed)
    assert np.array_equal(alone.x, found.x)
    assert (alone.classes, set(alone.label)) == ((), {-1})


def test_cifars_binary_version(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (4, 3, 32, 32)).astype(np.uint8)
    rows = np.concatenate([np.array([[3], [9], [0], [3]], np.uint8), pixels.reshape(4, -1)], axis=1)
    (tmp_path / "data_batch_1.bin").write_bytes(rows[:3].tobytes())
    (tmp_path / "data_batch_2.bin").write_bytes(rows[3:].tobytes())
    found = load(tmp_path)
    assert np.array_equal(found.x, pixels)
    assert [CIFAR10[k] for k in found.label] == ["cat", "truck", "airplane", "cat"]
    cats = found.only(["truck", "cat"])
    assert (cats.label.tolist(), cats.classes) == ([1, 0, 1], ("truck", "cat"))
    with pytest.raises(DataError, match="no class 'dragon'"):
        found.only(["dragon"])


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, level in (("a", 10), ("b", 200)):
        (tmp_path / name).mkdir()
        for k in range(2):
            image.fromarray(np.full((9, 7), level + k, np.uint8)).save(tmp_path / name / f"{k}.png")
    found = load(tmp_path, 4)
    assert found.x.shape == (4, 1, 4, 4)
    assert found.x[:, 0, 0, 0].tolist() == [10, 11, 200, 201]
    assert (found.label.tolist(), found.classes) == ([0, 0, 1, 1], ("a", "b"))
    plain = load(tmp_path / "a")
    assert (plain.shape, plain.classes) == ((1, 7, 7), ())
    (tmp_path / "a" / "2.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(DataError, match=r"2\.png cannot be read as a picture"):
        load(tmp_path / "a")


def test_npz_files_and_back(tmp_path: Path) -> None:
    path = tmp_path / "points.npz"
    points = RNG.standard_normal((8, 2)).astype(np.float32)
    np.savez(path, x=points)
    assert load(path).x.shape == (8, 2, 1, 1)
    labelled = SampleSet(GREY[:, None], LABEL, ("x", "y", "z"))
    np.savez(path, **labelled.arrays())  # type: ignore[arg-type]
    again = load(path)
    assert np.array_equal(again.x, labelled.x)
    assert (again.label.tolist(), again.classes) == (LABEL.tolist(), labelled.classes)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing", None, "there is no data set"),
        ("odd.bin", b"12345", "no rows of a label and 3072 bytes"),
        ("short-images", idx(GREY)[:-3], "neither .npz nor an IDX file"),
        ("text.txt", b"hello there, world", "neither .npz nor an IDX file"),
        ("nothing", b"", "neither .npz nor an IDX file"),
        ("broken.gz", gzip.compress(idx(GREY))[:-9], "cannot be read"),
        ("labels-only", idx(LABEL), "expected the images of an IDX file"),
    ],
)
def test_what_is_no_data_is_said(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        load(tmp_path / name)


def test_bad_arrays_and_folders_are_said(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for arrays, words in (
        ({"y": GREY}, "lacks the key 'x'"),
        ({"x": np.zeros(3)}, "expected \\(N, channels, height, width\\)"),
        ({"x": np.full((3, 2), np.nan)}, "of finite numbers"),
        ({"x": GREY, "label": np.array([0, 1])}, "expected \\(6,\\)"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=words):
            load(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        load(tmp_path / "empty")


def test_labels_say_what_is_asked() -> None:
    labels = Labels(("cat", "dog"), 127.5, 127.5)
    assert labels.arrays(np.array([1, -1]))["label"].tolist() == [[0, 1], [0, 0]]
    assert not labels.unconditional(labels.arrays(np.array([1])))["label"].any()
    assert [labels.number(name) for name in ("dog", 1, "0", None)] == [1, 1, 0, -1]
    assert np.array_equal(labels.to_network(np.array([0, 255], np.uint8)), [-1, 1])
    assert np.allclose(labels.to_data(labels.to_network(np.arange(256))), np.arange(256), atol=1e-4)
    assert Labels.from_dict(labels.to_dict()) == labels
    with pytest.raises(TargetError, match="no class 'cow'; it knows cat, dog"):
        labels.number("cow")
    alone = Labels()
    assert alone.arrays(np.array([0])) == {}
    with pytest.raises(BundleError, match="nothing to guide it by"):
        alone.unconditional({})
    for fields in ({}, {"classes": ["a", "a"]}, {"classes": "ab"}, {"scale": 0.0}, {"offset": float("nan")}):
        base = labels.to_dict() if fields else {}
        with pytest.raises(BundleError):
            Labels.from_dict({**base, **fields})


def test_a_mosaic_holds_every_image_in_order() -> None:
    page = sample_pictures.mosaic(GREY[:, None], 3)
    assert page.shape == (13, 19, 3)
    assert np.array_equal(page[7:12, 13:18, 0], GREY[5])
    assert (page[0] == 255).all()
    assert (page[:, 6] == 255).all()


def test_pictures_and_animations_appear(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    points = RNG.standard_normal((30, 2, 1, 1))
    sample_pictures.draw(tmp_path / "a.png", "both", [("points", points), ("images", GREY[:, None])])
    assert (tmp_path / "a.png").stat().st_size > 5000
    sample_pictures.animate(tmp_path / "a.gif", "points", [(f"{k}", points * k) for k in range(1, 4)])
    with image.open(tmp_path / "a.gif") as moving:
        assert moving.n_frames == 3


@pytest.fixture
def manifest(small_bundle: Path) -> dict[str, Any]:
    """The manifest of a metasurface's bundle made one of images."""
    fields: dict[str, Any] = json.loads((small_bundle / "manifest.json").read_text())
    for key in ("geometry", "pattern_size", "window", "channels"):
        fields.pop(key, None)
    return {**fields, "task": "samples", "condition": Labels(("a", "b")).to_dict()}


def read(manifest: dict[str, Any]) -> dict[str, Any]:
    return read_manifest(json.dumps({**manifest, "digest": digest(manifest)}).encode(), "manifest.json")


def test_a_manifest_of_images_needs_no_geometry(manifest: dict[str, Any]) -> None:
    assert read(manifest)["condition"]["classes"] == ["a", "b"]
    with pytest.raises(BundleError, match="lacks 'geometry'"):
        read({**manifest, "task": "metasurface"})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("layout", [None, "orders", "planes"]),
        ("classes", [None, 3, "ab", [3], [""], ["x" * 201], ["a", "a"], ["a"] * 1001]),
        ("offset", [None, "0", True, 1e9]),
        ("scale", [None, 0, -1, "1", 1e9]),
    ],
)
def test_a_manifest_of_images_is_held_against_its_schema(manifest: dict[str, Any], field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(BundleError, match=f"manifest.json: 'condition/{field}'"):
            read({**manifest, "condition": {**manifest["condition"], field: value}})
    del manifest["condition"][field]
    with pytest.raises(BundleError, match=f"lacks 'condition/{field}'"):
        read(manifest)
