"""The programs in examples/ that use a fused sampler without Python propose what Python proposes for the same target and noise."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.fused import fuse
from runtime.sampler import load
from runtime.score import misrouted_power
from runtime.target import Target

EXAMPLES = Path(__file__).parents[1] / "examples"
ORDERS = {"T(1,0)": 0.3, "R(-1,2)": 0.05, "R(0,0)": 0.2}
COUNT, SEED, SCALE, STEPS = 6, 4, 2.0, 4


class Case(NamedTuple):
    """A fused sampler, a target and noise on disk, and what Python makes of them."""

    model: Path
    target: Path
    noise: Path
    patterns: np.ndarray  # (COUNT, 5, 5)
    scores: np.ndarray  # (COUNT,)


def surrogate(opset: int, R: np.ndarray, T: np.ndarray) -> bytes:
    """A stand-in whose every efficiency is proportional to the share of pillars: ``R``, ``T`` (7, 7) times that."""
    nodes = [
        helper.make_node("ReduceMean", ["pattern", "axes"], ["share"], "share", keepdims=1),
        helper.make_node("Squeeze", ["share", "one"], ["shares"], "shares"),
        helper.make_node("Mul", ["shares", "by_R"], ["R"], "R"),
        helper.make_node("Mul", ["shares", "by_T"], ["T"], "T"),
    ]
    constants = {"axes": np.array([1, 2, 3]), "one": np.array([1]), "by_R": R[None], "by_T": T[None]}
    entries = {"pattern": ["batch", 1, 5, 5], "height_nm": ["batch", 1], "R": ["batch", 7, 7], "T": ["batch", 7, 7]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in entries.items()]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "surrogate", values[:2], values[2:], weights)
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()
    return content


@pytest.fixture(scope="module")
def case(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("fused")
    fields = {"height_nm": 210, "orders": ORDERS}
    target = Target.from_dict(fields)
    R, T = (np.random.default_rng(2).random((2, 7, 7)) / 50).astype(np.float32)
    with load(small_bundle, "onnxruntime", "cpu", "fp32", threads=1) as sampler:
        table = sampler.plan(STEPS, "sde-dpmsolver++")
        graphs = {name: sampler.bundle.network(name, "fp32") for name in ("denoiser", "encoder")}
        (opset,) = {entry.version for entry in onnx.load_from_string(graphs["denoiser"]).opset_import if not entry.domain}
        graphs["surrogate"] = surrogate(opset, R, T)
        model = fuse(table, sampler.bundle.condition, graphs, sample_shape=(1, 5, 5), window=(0, 0), pattern_size=5)
        patterns = sampler.propose(target, COUNT, seed=SEED, steps=STEPS, scheduler="sde-dpmsolver++", guidance_scale=SCALE)
    noise = np.zeros((STEPS + 1, COUNT, 1, 5, 5), np.float32)
    for c in range(COUNT):
        generator = np.random.Generator(np.random.Philox(key=[SEED, c]))
        for k in (0, *(1 + np.flatnonzero(table.needs_noise))):
            noise[k, c] = generator.standard_normal((1, 5, 5), dtype=np.float32)
    (folder / "sampler.onnx").write_bytes(model)
    (folder / "target.json").write_text(json.dumps(fields))
    (folder / "noise.f32").write_bytes(noise.astype("<f4").tobytes())
    share = patterns.mean(axis=(1, 2))[:, None, None]
    scores = np.asarray(misrouted_power(share * R, share * T, target.resized(3)))
    assert len(np.unique(patterns, axis=0)) > 1  # one pattern for all would tell nothing of the order of candidates
    return Case(folder / "sampler.onnx", folder / "target.json", folder / "noise.f32", patterns, scores)


def shown(case: Case) -> str:
    """What both programs print: the pattern of the best score, and the score."""
    best = int(np.argmin(case.scores))
    rows = ["".join(".#"[pillar] for pillar in row) for row in case.patterns[best]]
    return "\n".join([*rows, f"misrouted power, predicted: {case.scores[best]:.3f}", ""])


def call(arguments: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in arguments], cwd=folder, capture_output=True, text=True, timeout=240)


# --- Node.js --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, with its package installed."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node.js and npm are not installed")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < 20:
        pytest.skip(f"the example needs Node.js 20; this is {version.strip()}")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "design.mjs"):
        shutil.copy(EXAMPLES / "node" / name, folder)
    done = call([npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0"], folder)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("npm error")), done.stderr[-200:])
        pytest.skip(f"onnxruntime-node cannot be had from npm's registry: {reason}")
    return folder


@pytest.mark.slow
def test_node(node: Path, case: Case) -> None:
    more: list[str | Path] = ["--noise", case.noise, "--guidance-scale", str(SCALE)]
    done = call(["node", "design.mjs", case.model, case.target, "designs.json", *more], node)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown(case)
    designs = json.loads((node / "designs.json").read_text(encoding="utf-8"))
    np.testing.assert_array_equal(designs["patterns"], case.patterns)
    np.testing.assert_allclose(designs["scores"], case.scores, atol=1e-6)
    assert designs["best"] == np.argmin(case.scores)


@pytest.mark.slow
def test_node_draws_noise_of_its_own(node: Path, case: Case) -> None:
    found = []
    for seed in ("1", "1", "2"):
        done = call(["node", "design.mjs", case.model, case.target, "designs.json", "--count", "4", "--seed", seed], node)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((node / "designs.json").read_text(encoding="utf-8"))["patterns"])
    assert np.shape(found[0]) == (4, 5, 5)
    assert found[0] == found[1] != found[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"height_nm": 210, "orders": {"T(9,0)": 0.1}}, "up to 3"),
        ({"height_nm": 210, "orders": {"S(1,0)": 0.1}}, "T(m,n) or R(m,n)"),
        ({"height_nm": 210}, "lacks height_nm or orders"),
    ],
)
def test_node_refuses_a_wrong_target_in_a_sentence(fields: dict, expected: str, node: Path, case: Case, tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text(json.dumps(fields))
    done = call(["node", "design.mjs", case.model, tmp_path / "wrong.json", "designs.json"], node)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


# --- C++ ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's program, where ONNX Runtime's headers are: ONNXRUNTIME_ROOT, CMAKE_PREFIX_PATH, or the system's folders."""
    if shutil.which("cmake") is None or not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
        pytest.skip("CMake or a C++ compiler is not installed")
    folder = tmp_path_factory.mktemp("cpp")
    configured = call(["cmake", "-S", EXAMPLES / "cpp", "-B", "build", "-DCMAKE_BUILD_TYPE=Release"], folder)
    for missing, what in (("ONNXRUNTIME_INCLUDE", "headers are"), ("ONNXRUNTIME_LIBRARY", "library is")):
        if configured.returncode and f"Could not find {missing}" in configured.stderr:
            pytest.skip(f"ONNX Runtime's C++ {what} not installed; set ONNXRUNTIME_ROOT to an unpacked release")
    assert configured.returncode == 0, configured.stderr
    built = call(["cmake", "--build", "build", "--config", "Release"], folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(path for path in (folder / "build").rglob("design*") if path.name in ("design", "design.exe"))


@pytest.mark.slow
def test_cpp(compiled: Path, case: Case, tmp_path: Path) -> None:
    orders = [f"{name}={efficiency}" for name, efficiency in ORDERS.items()]
    more: list[str | Path] = ["--noise", case.noise, "--guidance-scale", str(SCALE)]
    done = call([compiled, case.model, "210", *orders, *more], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown(case)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "expected"), [(["T(9,0)=0.1"], "up to 3"), (["T(1,0)=x"], "give a number"), ([], "usage")])
def test_cpp_refuses_a_wrong_target_in_a_sentence(words: list[str], expected: str, compiled: Path, case: Case, tmp_path: Path) -> None:
    done = call([compiled, case.model, "210", *words], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert expected in done.stderr
