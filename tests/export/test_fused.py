"""The sampler as one ONNX file against the loop in Python: every method, guidance, targets by row, scores, and what the file holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.fused import fuse
from runtime.backends import Load, Model, open_networks
from runtime.condition import Condition
from runtime.data import load as load_data
from runtime.errors import BundleError
from runtime.loop import Guidance, denoise
from runtime.sampler import Sampler, load
from runtime.schedulers import SCHEDULERS, Plan, plan
from runtime.score import misrouted_power
from runtime.target import Target

SHAPE, SEED = (1, 5, 5), 3
METHODS: list[tuple[str, dict[str, float]]] = [(word, {}) for word in SCHEDULERS] + [("ddim", {"eta": 1.0}), ("ddim", {"eta": 0.4})]


@pytest.fixture(scope="module")
def sampler(small_bundle: Path) -> Iterator[Sampler]:
    with load(small_bundle, "onnxruntime", "cpu", "fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def graphs(sampler: Sampler) -> dict[str, bytes]:
    return {name: sampler.bundle.network(name, "fp32") for name in ("denoiser", "encoder")}


@pytest.fixture(scope="module")
def targets(small_data: Path) -> list[Target]:
    """Three targets within the training heights; the second asks for T(1,0) and R(0,0) alone."""
    data = load_data(small_data)
    chosen = np.flatnonzero((data.h > 150) & (data.h < 350))[:3]
    full = [Target.from_arrays(data.Rm[i], data.Tm[i], float(data.h[i])) for i in chosen]
    mask_R, mask_T = np.zeros((2, 7, 7), bool)
    mask_R[3, 3] = mask_T[4, 3] = True
    full[1] = dataclasses.replace(full[1], R=full[1].R * mask_R, T=full[1].T * mask_T, mask_R=mask_R, mask_T=mask_T)
    return full


@pytest.fixture(scope="module")
def fused(sampler: Sampler, graphs: dict[str, bytes]) -> Callable[..., bytes]:
    def fused(table: Plan, more: Mapping[str, bytes] | None = None, **settings: Any) -> bytes:
        made = {**graphs, **(more or {})}
        return fuse(table, sampler.bundle.condition, made, sample_shape=SHAPE, window=(0, 0), pattern_size=5, **settings)

    return fused


def call(model: bytes, table: Plan, targets: list[Target], scales: list[float], count: int, shape: tuple[int, ...] = SHAPE) -> Any:
    """All outputs by name, for the noise that the sampler draws for candidates 0 to ``count`` of the seed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    noise = np.zeros((table.num_steps + 1, count, *shape), np.float32)
    for c in range(count):
        generator = np.random.Generator(np.random.Philox(key=[SEED, c]))
        for k in (0, *(1 + np.flatnonzero(table.needs_noise))):
            noise[k, c] = generator.standard_normal(shape, dtype=np.float32)
    given = {
        "noise": noise if table.needs_noise.any() else noise[0],
        "Rm": np.array([target.R for target in targets], np.float32),
        "Tm": np.array([target.T for target in targets], np.float32),
        "mask": np.array([[target.mask_R, target.mask_T] for target in targets]),
        "height_nm": np.array([target.height_nm for target in targets], np.float32),
        "guidance_scale": np.array(scales, np.float32),
    }
    names = [value.name for value in session.get_outputs()]
    return SimpleNamespace(**dict(zip(names, session.run(None, {i.name: given[i.name] for i in session.get_inputs()}), strict=True)))


def in_python(sampler: Sampler, table: Plan, target: Target, guidance: Guidance, count: int) -> np.ndarray:
    condition = sampler.condition(target)
    free = sampler.encode(sampler.bundle.condition.unconditional(condition)) if guidance.scale != 1 else None
    network, told = sampler.networks["denoiser"], sampler.encode(condition)
    return denoise(network, table, SHAPE, told, free, guidance, SEED, range(count), lambda k, estimate: None)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))


# --- The same samples as the loop in Python -------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "settings"), METHODS)
def test_every_method_samples_as_in_python(
    word: str, settings: dict[str, float], sampler: Sampler, targets: list[Target], fused: Callable[..., bytes]
) -> None:
    table = sampler.plan(5, word, **settings)
    found = call(fused(table), table, targets[:1], [2.0], 3)
    close(found.sample, in_python(sampler, table, targets[0], Guidance(2.0), 3))
    assert found.sample.dtype == np.float32
    np.testing.assert_array_equal(found.pattern, sampler.patterns(found.sample))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("word", ["ddpm", "unipc"])
def test_every_prediction_type(word: str, prediction: str, sampler: Sampler, targets: list[Target], fused: Callable[..., bytes]) -> None:
    table = plan({**sampler.scheduler_config, "prediction_type": prediction, "clip_sample": False}, 4, word)
    close(call(fused(table), table, targets[:1], [1.0], 2).sample, in_python(sampler, table, targets[0], Guidance(), 2))


@pytest.mark.parametrize("ratio", [0.9, 0.5, 1.0, 0.01])
def test_dynamic_thresholding(ratio: float, sampler: Sampler, targets: list[Target], fused: Callable[..., bytes]) -> None:
    table = dataclasses.replace(sampler.plan(4, "ddim"), clip=None, threshold=(ratio, 1.5))
    # Guided this hard the estimate leaves [-1, 1], or there would be nothing to limit.
    wanted = in_python(sampler, table, targets[0], Guidance(9.0), 3)
    close(call(fused(table), table, targets[:1], [9.0], 3).sample, wanted)
    free = dataclasses.replace(table, threshold=None)
    assert np.abs(in_python(sampler, free, targets[0], Guidance(9.0), 3) - wanted).max() > 0.01


def test_the_start_is_scaled(sampler: Sampler, targets: list[Target], fused: Callable[..., bytes]) -> None:
    table = dataclasses.replace(sampler.plan(3, "ddim"), init_noise_sigma=0.5)
    close(call(fused(table), table, targets[:1], [1.0], 2).sample, in_python(sampler, table, targets[0], Guidance(), 2))


# --- Guidance and targets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [(0.0, math.inf), (0.3, 3.0), (1e6, 1e7)])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_guidance(
    scale: float, interval: tuple[float, float], sampler: Sampler, targets: list[Target], fused: Callable[..., bytes]
) -> None:
    table = sampler.plan(6, "dpmsolver++")
    model = fused(table, guidance_interval=interval)
    close(call(model, table, targets[:1], [scale], 2).sample, in_python(sampler, table, targets[0], Guidance(scale, interval), 2))


def test_a_target_and_a_scale_for_every_row(sampler: Sampler, targets: list[Target], fused: Callable[..., bytes]) -> None:
    table, scales = sampler.plan(4, "sde-dpmsolver++"), [1.0, 3.0, 0.5]
    found = call(fused(table), table, targets, scales, 3).sample
    for row, (target, scale) in enumerate(zip(targets, scales, strict=True)):
        close(found[row], in_python(sampler, table, target, Guidance(scale), 3)[row])


@pytest.mark.parametrize("count", [1, 7])
def test_one_partial_target_for_any_batch(count: int, sampler: Sampler, targets: list[Target], fused: Callable[..., bytes]) -> None:
    table = sampler.plan(4, "unipc")
    found = call(fused(table), table, targets[1:2], [3.0], count).sample
    close(found, in_python(sampler, table, targets[1], Guidance(3.0), count))


def test_what_is_not_asked_for_is_ignored(sampler: Sampler, targets: list[Target], fused: Callable[..., bytes]) -> None:
    table, target = sampler.plan(2), targets[1]
    loud = dataclasses.replace(target, R=np.where(target.mask_R, target.R, 0.7), T=np.where(target.mask_T, target.T, np.nan))
    model = fused(table, {"surrogate": surrogate(fused(table))})
    quiet, found = call(model, table, [target], [2.0], 2), call(model, table, [loud], [2.0], 2)
    np.testing.assert_array_equal(found.sample, quiet.sample)
    np.testing.assert_array_equal(found.score, quiet.score)


def test_targets_that_are_neither_one_nor_the_batch_are_refused(
    sampler: Sampler, targets: list[Target], fused: Callable[..., bytes]
) -> None:
    table = sampler.plan(2)
    with pytest.raises(Exception, match="Expand"):  # ONNX Runtime's exceptions share no base class
        call(fused(table), table, targets[:2], [1.0, 1.0], 3)


# --- The layout of the seed -----------------------------------------------------------------------------------------


def planes_denoiser() -> bytes:
    """output = 0.4 sample + (R - T + height planes) / 10 + timestep / 5000, for planes of 9 x 9."""
    constants = {"weights": np.array([0.1, -0.1, 0.1], np.float32).reshape(1, 3, 1, 1), "share": 0.4, "rate": 2e-4}
    nodes = [
        helper.make_node("Conv", ["planes", "weights"], ["seen"]),
        helper.make_node("Mul", ["sample", "share"], ["kept"]),
        helper.make_node("Cast", ["timestep"], ["time"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["time", "rate"], ["slow"]),
        helper.make_node("Reshape", ["slow", "column"], ["late"]),
        helper.make_node("Add", ["kept", "seen"], ["both"]),
        helper.make_node("Add", ["both", "late"], ["output"]),
    ]
    initializers = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array([-1, 1, 1, 1]), "column"))
    image = ["batch", 1, 9, 9]
    inputs = [
        ("sample", TensorProto.FLOAT, image),
        ("timestep", TensorProto.INT64, ["batch"]),
        ("planes", TensorProto.FLOAT, ["batch", 3, 9, 9]),
    ]
    given = [helper.make_tensor_value_info(*entry) for entry in inputs]
    out = helper.make_tensor_value_info("output", TensorProto.FLOAT, image)
    return finished(helper.make_graph(nodes, "planes", given, [out], initializers), 20)


def finished(graph: onnx.GraphProto, opset: int) -> bytes:
    for count, node in enumerate(graph.node):
        node.name = f"node_{count}"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def test_planes(sampler: Sampler, small_data: Path, targets: list[Target]) -> None:
    data, shape, target = load_data(small_data), (1, 9, 9), targets[0]
    condition = Condition.measure("planes", data.Rm, data.Tm, data.h, canvas=9)
    denoiser = planes_denoiser()
    opened = open_networks(
        {"denoiser": Model("denoiser.onnx", ("fp32",), lambda precision: denoiser)}, "onnxruntime", "cpu", "fp32", Load(1)
    )
    table = sampler.plan(4, "ddpm")
    arrays = condition.arrays(target.R[None], target.T[None], np.array([target.height_nm]))
    wanted = denoise(opened.networks["denoiser"], table, shape, arrays, None, Guidance(), SEED, range(3), lambda k, estimate: None)
    graphs = {"denoiser": denoiser, "surrogate": surrogate(denoiser)}
    model = fuse(table, condition, graphs, sample_shape=shape, window=(2, 1), pattern_size=5)
    found = call(model, table, [target], [], 3, shape)
    close(found.sample, wanted)
    np.testing.assert_array_equal(found.pattern, found.sample[:, 0, 2:7, 1:6] > 0)
    np.testing.assert_allclose(found.score, misrouted_power(found.R, found.T, target), atol=1e-6)
    assert [entry.name for entry in onnx.load_from_string(model).graph.input] == ["noise", "Rm", "Tm", "height_nm"]


# --- The verdict of the surrogate -----------------------------------------------------------------------------------


def surrogate(like: bytes) -> bytes:
    """R = a mean(pattern), T = b height_nm / 1000, with maps a and b; of the opset of another file."""
    rng = np.random.default_rng(5)
    maps = {name: (rng.random((1, 7, 7)) / 20).astype(np.float32) for name in ("a", "b")}
    constants = {**maps, "unit": np.float32(1e-3), "axes": np.array([1, 2, 3]), "column": np.array([-1, 1, 1])}
    nodes = [
        helper.make_node("ReduceMean", ["pattern", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "column"], ["means"]),
        helper.make_node("Mul", ["means", "a"], ["R"]),
        helper.make_node("Reshape", ["height_nm", "column"], ["heights"]),
        helper.make_node("Mul", ["heights", "unit"], ["microns"]),
        helper.make_node("Mul", ["microns", "b"], ["T"]),
    ]
    entries = {"pattern": ["batch", 1, 5, 5], "height_nm": ["batch", 1], "R": ["batch", 7, 7], "T": ["batch", 7, 7]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in entries.items()]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    (opset,) = {entry.version for entry in onnx.load_from_string(like).opset_import if not entry.domain}
    return finished(helper.make_graph(nodes, "surrogate", values[:2], values[2:], initializers), opset)


@pytest.mark.parametrize("which", [[0], [1], [0, 1, 2]])
def test_score(which: list[int], sampler: Sampler, graphs: dict[str, bytes], targets: list[Target], fused: Callable[..., bytes]) -> None:
    table = sampler.plan(3, "euler")
    ranking = surrogate(graphs["denoiser"])
    asked = [targets[i] for i in which]
    found = call(fused(table, {"surrogate": ranking}), table, asked, [1.0] * len(asked), 3)
    session = onnxruntime.InferenceSession(ranking, providers=["CPUExecutionProvider"])
    heights = np.broadcast_to([[target.height_nm] for target in asked], (3, 1)).astype(np.float32)
    R, T = session.run(None, {"pattern": found.pattern[:, None].astype(np.float32), "height_nm": heights})
    np.testing.assert_allclose(found.R, R, atol=1e-6)
    np.testing.assert_allclose(found.T, T, atol=1e-6)
    for row in range(3):
        wanted = misrouted_power(R[row], T[row], asked[row % len(asked)])
        assert found.score[row] == pytest.approx(wanted, abs=1e-6)


# --- The file -------------------------------------------------------------------------------------------------------


def test_the_file(sampler: Sampler, graphs: dict[str, bytes], fused: Callable[..., bytes]) -> None:
    table = sampler.plan(20, "dpmsolver++")
    model = fused(table, {"surrogate": surrogate(graphs["denoiser"])})
    loaded = onnx.load_from_string(model)
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in [*loaded.graph.input, *loaded.graph.output]
    }
    assert shapes == {
        "noise": ["batch", 1, 5, 5],
        "Rm": ["targets", 7, 7],
        "Tm": ["targets", 7, 7],
        "mask": ["targets", 2, 7, 7],
        "height_nm": ["targets"],
        "guidance_scale": ["targets"],
        "sample": ["batch", 1, 5, 5],
        "pattern": ["batch", 5, 5],
        "R": ["batch", 7, 7],
        "T": ["batch", 7, 7],
        "score": ["batch"],
    }
    assert [node.op_type for node in loaded.graph.node].count("Loop") == 1
    assert not loaded.metadata_props
    assert not loaded.doc_string
    assert b"/work" not in model
    assert str(Path.home()).encode() + b"/" not in model
    assert model == fused(table, {"surrogate": surrogate(graphs["denoiser"])})


def test_noise_for_every_step_where_the_method_draws_it(sampler: Sampler, fused: Callable[..., bytes]) -> None:
    noise = onnx.load_from_string(fused(sampler.plan(6, "euler-ancestral"))).graph.input[0]
    assert [side.dim_param or side.dim_value for side in noise.type.tensor_type.shape.dim] == [7, "batch", 1, 5, 5]


def test_no_weight_is_kept_twice(sampler: Sampler, graphs: dict[str, bytes], fused: Callable[..., bytes]) -> None:
    """What fusing adds is the same for a network of any size, so a copied weight would show, however small the network."""

    def weights(model: onnx.ModelProto) -> int:
        held = [model.graph, *(a.g for node in model.graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)]
        return sum(int(np.prod(tensor.dims)) for graph in held for tensor in graph.initializer)

    table = sampler.plan(20, "dpmsolver++")
    added = weights(onnx.load_from_string(fused(table))) - sum(weights(onnx.load_from_string(content)) for content in graphs.values())
    assert added < 9 * 20 + 20 + 2 * 2 * 49 + 200  # the table, the timesteps, the mean efficiencies and their mask, and small constants


def test_the_shipped_networks_gain_less_than_a_twentieth() -> None:
    with load(None, "onnxruntime", "cpu", "fp32", threads=1) as shipped:
        graphs = {name: shipped.bundle.network(name, "fp32") for name in ("denoiser", "encoder")}
        manifest, table = shipped.bundle.manifest, shipped.plan(20, "dpmsolver++")
        layout = {key: manifest[key] for key in ("sample_shape", "window", "pattern_size")}
        model = fuse(table, shipped.bundle.condition, graphs, **layout)
    assert len(model) == pytest.approx(sum(map(len, graphs.values())), rel=0.05)


def test_networks_of_different_opsets_are_refused(sampler: Sampler, graphs: dict[str, bytes], fused: Callable[..., bytes]) -> None:
    other = onnx.load_from_string(surrogate(graphs["denoiser"]))
    other.opset_import[0].version += 1
    with pytest.raises(BundleError, match="versions of ONNX"):
        fused(sampler.plan(2), {"surrogate": other.SerializeToString()})
