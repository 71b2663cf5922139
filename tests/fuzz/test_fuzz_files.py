"""Files of every format, spoiled: what reads them ends in success or in one sentence of ours, and in nothing else."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from runtime import data, samples
from runtime.errors import DataError, MetascatterError, TargetError
from runtime.target import Target
from tests.fuzzing import counted, fuzz, one_sentence, spoiled

RNG = np.random.default_rng(0)
TEXT = {
    ".json": b'{"height_nm": 300, "noise": 0.005, "orders": {"T(1,0)": 0.2, "T(0,1)": [0.05, 0.1], "R(0,0)": {"max": 0.3}}}',
    ".toml": b'height_nm = 300\nnoise = 0.005\n\n[orders]\n"T(1,0)" = {min = 0.08}\n"T(0,1)" = [0.05, 0.10]\n"R(0,0)" = 0.10\n',
    ".csv": b"# height_nm = 300\n# noise = 0.005\nkind,m,n,efficiency,sigma\nT,1,0,0.212,0.01\nT,0,0,0.051,\nR,-2,3,0.001,0\n",
}


def arrays() -> dict[str, np.ndarray]:
    """A target of 5 x 5 orders with everything that a file may hold."""
    maps = 0.9 * RNG.dirichlet(np.ones(50)).reshape(2, 5, 5)
    masks = {"mask_R": np.ones((5, 5), bool), "mask_T": np.eye(5, dtype=bool)}
    return {"Rm": maps[0], "Tm": maps[1], "h": np.float64(300.0), "noise": np.float64(0.01), "convention": np.array("metascatter"), **masks}


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def picture(form: str) -> bytes:
    image = pytest.importorskip("PIL.Image")
    pixels = np.arange(9 * 7 * 3, dtype=np.uint8).reshape(9, 7, 3)
    return written(lambda stream: image.fromarray(pixels).save(stream, form))


def compressed_mat(stream: io.BytesIO) -> None:
    savemat(stream, {**arrays(), "convention": "lab"}, do_compression=True)


TARGETS = {
    **TEXT,
    ".npz": written(lambda stream: np.savez(stream, **arrays())),  # type: ignore[arg-type]
    ".mat": written(lambda stream: savemat(stream, {**arrays(), "convention": "lab"})),
    "-compressed.mat": written(compressed_mat),
}
GREY, LABEL = RNG.integers(0, 256, (6, 4, 3)).astype(np.uint8), np.array([0, 1, 2, 0, 1, 2], np.uint8)
SAMPLES = {
    "images-idx3": idx(GREY),
    "labels-idx1": idx(LABEL),
    "images.gz": gzip.compress(idx(GREY)),
    "data_batch_1.bin": b"".join(bytes([k]) + bytes(RNG.integers(0, 256, 3072).astype(np.uint8)) for k in range(3)),
    "x.npz": written(lambda stream: np.savez(stream, x=GREY[:, None], label=LABEL, classes=np.array(["a", "b", "c"]))),
}


@pytest.mark.parametrize("suffix", TARGETS)
def test_the_files_to_spoil_are_good_ones(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(TARGETS[suffix])
    assert Target.load(path).height_nm == 300


@pytest.mark.parametrize("suffix", TARGETS)
@fuzz(60)
@given(values=st.data())
@counted
def test_a_target_or_a_sentence(suffix: str, tmp_path: Path, values: st.DataObject) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(values.draw(spoiled(TARGETS[suffix])))
    try:
        target = Target.load(path)
    except TargetError as error:
        one_sentence(error, path.name)
    else:
        assert np.isfinite(target.R).all()
        assert np.isfinite(target.T).all()
        assert 0 < target.height_nm < np.inf


DTYPES = st.sampled_from(["u1", "i4", "f4", "f8", "c8", "b", "U3", "S2", "M8[s]", "f2", "V4"])
SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@st.composite
def any_array(draw: st.DrawFn) -> np.ndarray:
    """An array of any kind and shape, of odd values."""
    shape, dtype = draw(SHAPES), np.dtype(draw(DTYPES))
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    return np.frombuffer((draw(st.binary(min_size=1, max_size=16)) * (count + 1))[:count], dtype).reshape(shape)


@fuzz(120)
@given(
    st.dictionaries(st.sampled_from(["Rm", "Tm", "h", "noise", "mask_R", "sigma_T", "geometry", "convention", "Rm_a"]), any_array()),
    st.booleans(),
)
@counted
def test_arrays_of_any_kind_are_a_target_or_a_sentence(tmp_path: Path, some: dict[str, np.ndarray], mat: bool) -> None:
    path = tmp_path / ("a.mat" if mat else "a.npz")
    content = {**arrays(), **some}
    try:
        if mat:
            savemat(path, {key: value for key, value in content.items() if value.dtype.kind not in "V"})
        else:
            np.savez(path, **content)  # type: ignore[arg-type]
    except (TypeError, ValueError, NotImplementedError):
        return  # SciPy does not write it, so nobody has such a file
    try:
        Target.load(path)
    except TargetError as error:
        one_sentence(error)


@pytest.mark.parametrize("name", SAMPLES)
@fuzz(60)
@given(values=st.data())
@counted
def test_samples_or_a_sentence(name: str, tmp_path: Path, values: st.DataObject) -> None:
    for other, content in SAMPLES.items():
        if other != name and "idx" in name:
            (tmp_path / other).write_bytes(content)
    path = tmp_path / name
    path.write_bytes(values.draw(spoiled(SAMPLES[name])))
    beside = tmp_path / "images-idx3" if name == "labels-idx1" else path
    try:
        found = samples.load(beside)
    except DataError as error:
        one_sentence(error)
    else:
        assert found.x.ndim == 4
        assert len(found.label) == len(found) > 0
        assert -1 <= found.label.min() <= found.label.max() < max(1, len(found.classes))


@fuzz(150)
@given(st.dictionaries(st.sampled_from(["x", "label", "classes"]), any_array()))
@counted
def test_arrays_of_any_kind_are_samples_or_a_sentence(tmp_path: Path, some: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "x.npz", **{"x": GREY, "label": LABEL, **some})  # type: ignore[arg-type]
    try:
        found = samples.load(tmp_path / "x.npz")
    except DataError as error:
        one_sentence(error)
    else:
        assert found.x.ndim == 4
        assert len(found.label) == len(found) > 0


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@fuzz(30)
@given(values=st.data())
@counted
def test_pictures_or_a_sentence(form: str, tmp_path: Path, values: st.DataObject) -> None:
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(values.draw(spoiled(picture(form))))
    try:
        found = samples.load(tmp_path, 4)
    except DataError as error:
        one_sentence(error)
    else:
        assert found.shape[1:] == (4, 4)


@fuzz(60)
@given(values=st.data())
@counted
def test_a_data_set_or_a_sentence(small_npz: bytes, tmp_path: Path, values: st.DataObject) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(values.draw(spoiled(small_npz)))
    try:
        found = data.load(path)
    except MetascatterError as error:
        one_sentence(error)
    else:
        assert found.Rm.shape == found.Tm.shape


@fuzz(150)
@given(st.dictionaries(st.sampled_from(["xx", "h", "Rm", "Tm", "geometry", "Rm_a", "Tm_a", "heat"]), any_array()))
@counted
def test_arrays_of_any_kind_are_a_data_set_or_a_sentence(small_npz: bytes, tmp_path: Path, some: dict[str, np.ndarray]) -> None:
    with np.load(io.BytesIO(small_npz)) as file:
        whole = {key: file[key] for key in file.files}
    np.savez(tmp_path / "data.npz", **{**whole, **some})
    try:
        data.load(tmp_path / "data.npz", extra=["heat", "Rm_a"], optional=True)
    except MetascatterError as error:
        one_sentence(error)


@pytest.fixture(scope="module")
def small_npz() -> bytes:
    """Three cells of 4 x 4 pixels, not solved: a reader does not know."""
    from runtime.geometry import Geometry

    maps = 0.5 * RNG.dirichlet(np.ones(25), (2, 3)).reshape(2, 3, 5, 5).astype(np.float32)
    content: dict[str, Any] = {"xx": RNG.integers(0, 2, (3, 4, 4)).astype(np.uint8), "h": np.array([200, 300, 400], np.float32)}
    content |= {"Rm": maps[0], "Tm": maps[1], "geometry": np.array(Geometry(harmonics=2).to_json())}
    return written(lambda stream: np.savez(stream, **content))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["x", "y", "li", "substrate"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@fuzz(200)
@given(
    fields=st.dictionaries(
        st.sampled_from(["wavelength_nm", "period_nm", "index_pillar", "polarisation", "theta_deg", "rule", "harmonics", "dtype", "odd"]),
        JSON,
    )
)
@counted
def test_a_geometry_or_a_sentence(fields: dict[str, Any]) -> None:
    from runtime.geometry import Geometry

    whole = {**Geometry().to_dict(), **fields}
    try:
        found = Geometry.from_json(json.dumps(whole))
    except MetascatterError as error:
        one_sentence(error)
    else:
        assert found == Geometry.from_json(found.to_json())
