"""fp16 and int8 beside fp32, with the surrogate: what they are made of, how far they are apart, and that the runtime takes them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.bundle import export
from export.precision import half
from runtime.data import load as load_data
from runtime.errors import DataError
from runtime.evaluate import evaluate
from runtime.files import write_npz
from runtime.sampler import load
from runtime.search import shortlist
from runtime.target import Target
from train import networks
from train.loop import train
from train.recipes import RECIPES

SMALL = {"channels": 16, "components": 8, "hidden": 16, "blocks": 1, "tokens": 8, "embedding": 16}
FILES = {"denoiser": ("fp32", "fp16", "int8"), "encoder": ("fp32", "fp16"), "surrogate": ("fp32", "fp16", "int8")}


@pytest.fixture(scope="module")
def surrogate_run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = dataclasses.replace(
        RECIPES["surrogate"], network_arguments=SMALL, epochs=3, batch_size=32, precision="fp32", validation_fraction=0.2, warmup_steps=2
    )
    run = tmp_path_factory.mktemp("run") / "surrogate"
    train(small_data, run, recipe, progress=False)
    return run


@pytest.fixture(scope="module")
def full(small_run: Path, surrogate_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with everything."""
    out = tmp_path_factory.mktemp("bundle") / "full"
    return export(small_run, out, precisions=("fp32", "fp16", "int8"), surrogate=surrogate_run, force=True)


def named(name: str, precision: str) -> str:
    return f"{name}.onnx" if precision == "fp32" else f"{name}.{precision}.onnx"


def test_every_network_in_every_precision(full: Path) -> None:
    manifest = json.loads((full / "manifest.json").read_text())
    written = {named(name, precision) for name, precisions in FILES.items() for precision in precisions}
    assert {name for name in manifest["files"] if name.endswith(".onnx")} == written
    for entry in manifest["networks"].values():
        assert set(entry["files"]) == {"fp32", "fp16", "int8"}
    assert manifest["networks"]["encoder"]["files"]["int8"] == "encoder.onnx", "it runs once a target"
    assert manifest["max_batch"] == 256
    for name in written:
        model = onnx.load_from_string((full / name).read_bytes())
        onnx.checker.check_model(model, full_check=True)
        assert {value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]} <= {
            onnx.TensorProto.FLOAT,
            onnx.TensorProto.INT64,
        }, f"{name} does not speak float32"
        assert str(Path.cwd()).encode() not in (full / name).read_bytes()
    report = json.loads((full / "parity.json").read_text())["precisions"]
    assert {"fp32", "fp16", "int8"} <= set(report)
    for precision in ("fp16", "int8"):
        rows = report[precision]["onnxruntime cpu"]
        assert rows["trajectory"]["finite"]
        assert 0 < rows["networks"]["denoiser"]["64"]["output"]["mean_abs"] < {"fp16": 0.01, "int8": 0.3}[precision]
    card = (full / "README.md").read_text()
    assert "| int8 | onnxruntime cpu |" in card
    assert "Surrogate (ranks candidates" in card


def test_half_is_half_inside(full: Path) -> None:
    for name in FILES:
        sizes = [(full / named(name, precision)).stat().st_size for precision in ("fp32", "fp16")]
        assert sizes[1] < 0.8 * sizes[0], name
        model = onnx.load_from_string((full / named(name, "fp16")).read_bytes())
        weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) >= 2 and np.prod(tensor.dims) > 100]
        assert all(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in weights if tensor.name != "prior"), name


def test_int8_quantizes_the_convolutions_behind_the_first(full: Path) -> None:
    model = onnx.load_from_string((full / "denoiser.int8.onnx").read_bytes())
    made = {output: node for node in model.graph.node for output in node.output}
    spatial = [node for node in model.graph.node if node.op_type == "Conv" and len(node.input) > 1]
    quantized = [node for node in spatial if made.get(node.input[1]) is not None and made[node.input[1]].op_type == "DequantizeLinear"]
    assert len(quantized) == 2 * 2, "two in each of two blocks"
    assert all(made[node.input[0]].op_type == "DequantizeLinear" for node in quantized)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_runtime_samples_and_ranks_with_them(full: Path, small_data: Path, precision: str) -> None:
    data = load_data(small_data)
    target = Target.from_arrays(data.Rm[0], data.Tm[0], float(data.h[0]), name="one", geometry=data.geometry)
    with load(full, "onnxruntime", "cpu", precision, self_test=True) as sampler:
        assert sampler.precision == precision
        assert sampler.design(target, 5, top=1)[0].verified
        assert sampler.surrogate is not None
        assert sampler.surrogate.precision == precision


def test_ranking_solves_what_the_surrogate_picks(full: Path, small_data: Path, surrogate_run: Path) -> None:
    data = load_data(small_data)
    target = Target.from_arrays(data.Rm[0], data.Tm[0], float(data.h[0]), name="one", geometry=data.geometry)
    patterns = np.concatenate([data.xx[:1], np.roll(data.xx[:1], 2, axis=1), data.xx[:20]])
    with load(full, "onnxruntime", "cpu") as sampler:
        assert "surrogate" not in sampler.networks, "who does not rank does not wait for it"
        picked = sampler.shortlist(patterns, target)
        assert len(picked) == 4
        assert not set(picked) & {1, 2}, "shifted copies of the first"
        surrogate = sampler.surrogate
        assert surrogate is not None
        found = surrogate({"pattern": patterns[:, None].astype(np.float32), "height_nm": np.full((22, 1), target.height_nm, np.float32)})
        np.testing.assert_allclose(found["R"].sum((1, 2)) + found["T"].sum((1, 2)), 1, atol=1e-5)
        apart = 0.5 * (np.abs(found["R"] - target.R).sum((1, 2)) + np.abs(found["T"] - target.T).sum((1, 2)))
        order = [k for k in np.argsort(apart, kind="stable") if k not in (1, 2)]
        assert picked.tolist() == order[:4]
        result = evaluate(data, sampler, limit=2, n=8)
        assert result["ranked"]["solves"] <= 4
        assert all(r >= b for r, b in zip(result["per_target"]["ranked"], result["per_target"]["best_of_8"], strict=True))
    np.testing.assert_array_equal(shortlist(patterns, target, None), np.delete(np.arange(22), [1, 2]))


def test_designs_are_the_best_of_what_the_surrogate_picks(full: Path, small_data: Path) -> None:
    data = load_data(small_data)
    target = Target.from_arrays(data.Rm[3], data.Tm[3], float(data.h[3]), name="one", geometry=data.geometry)
    with load(full, "onnxruntime", "cpu", "fp32") as sampler:
        patterns = sampler.propose(target, 30, steps=6)
        for top, solves in ((2, 4), (6, 6)):
            counted: list[tuple[int, int]] = []
            found = sampler.design(target, 30, top=top, steps=6, on_solve=lambda *done: counted.append(done))  # noqa: B023
            assert counted[-1] == (solves, solves)
            assert len(found) == top
            picked = shortlist(patterns, target, sampler.surrogate, solves)
            assert {design.candidate for design in found} <= set(picked.tolist())
            assert [design.score for design in found] == sorted(design.score for design in found if design.score is not None)
            for settings in ({"batch_size": 7}, {"deadline_s": 1e6}, {"workers": 1}):
                again = sampler.design(target, 30, top=top, steps=6, **settings)
                assert [(d.candidate, d.score) for d in again] == [(d.candidate, d.score) for d in found], settings
        hurried = sampler.design(target, 30, top=2, steps=6, deadline_s=0.0)
        assert 1 <= len(hurried) <= 2
        assert all(design.verified for design in hurried)
        every = sampler.design(target, 30, top=30, steps=6)
        assert every[0].score == min(design.score for design in every if design.score is not None)


def test_the_half_twin_leaves_the_network_alone() -> None:
    torch.manual_seed(0)
    network = networks.build("surrogate", {"size": 5, "orders": 3, **SMALL}).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    twin = half(network)
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert twin.get_buffer("prior").dtype == torch.float32
    assert twin.get_parameter("conv_in.conv.weight").dtype == torch.float16
    pattern, height = torch.randint(0, 2, (3, 1, 5, 5)).float(), torch.tensor([[1.0], [0.5], [0.2]])
    with torch.no_grad():
        for found, wanted in zip(twin(pattern, height), network(pattern, height), strict=True):
            assert (found - wanted).abs().max() < 1e-3


def test_runs_that_do_not_belong_together(small_run: Path, surrogate_run: Path, small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds a surrogate .*name it with --surrogate"):
        export(surrogate_run, tmp_path / "bundle")
    with pytest.raises(DataError, match=r"holds a denoiser .*name a surrogate's run"):
        export(small_run, tmp_path / "bundle", surrogate=small_run)
    data = load_data(small_data)
    write_npz(tmp_path / "low.npz", **data.take(data.h < 250).arrays())
    recipe = dataclasses.replace(
        RECIPES["surrogate"], network_arguments=SMALL, epochs=1, batch_size=32, precision="fp32", validation_fraction=0.2
    )
    train(tmp_path / "low.npz", tmp_path / "run", recipe, progress=False)
    with pytest.raises(DataError, match=r"knows heights of .* train both on the same data"):
        export(small_run, tmp_path / "bundle", surrogate=tmp_path / "run")
    assert not (tmp_path / "bundle").exists()
