"""A run folder becomes a bundle: the same bytes every time, equal to PyTorch, and nothing about this machine."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export import parity, yardsticks
from export.bundle import export
from export.unpack import unpack
from runtime.bundle import Bundle, digest
from runtime.data import load as load_data
from runtime.errors import BundleError, DataError, TargetError
from runtime.files import write_npz
from runtime.sampler import load
from runtime.target import Target
from train import checkpoint, networks
from train.loop import train
from train.recipes import RECIPES, Recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def assert_fit_to_ship(
    manifest: Callable[[Path], dict[str, Any]], contents: Callable[[Path], dict[str, bytes]]
) -> Callable[[Path, set[str]], None]:
    """What holds for every bundle."""

    def assert_fit_to_ship(bundle: Path, graphs: set[str]) -> None:
        found = manifest(bundle)
        assert found["digest"] == digest(found)
        assert set(found["files"]) == {p.name for p in bundle.iterdir()} - {"manifest.json"}
        assert {name for name in found["files"] if name.endswith(".onnx")} == graphs
        opened = Bundle.open(bundle)
        secrets = {str(ROOT), os.getcwd(), str(Path.home()), os.path.expanduser("~/"), "/tmp/", "site-packages", ".venv"}
        for name, content in contents(bundle).items():
            if name != "manifest.json":
                assert opened.read(name) == content
                assert found["files"][name]["bytes"] == len(content)
            for secret in secrets - {"/"}:
                assert secret.encode() not in content, f"{name} names {secret}"
        for name in graphs - {"sampler.onnx"}:
            model = onnx.load_from_string((bundle / name).read_bytes())
            described = found["networks"][name.split(".")[0]]
            for kind, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
                assert [value.name for value in values] == list(described[kind]), f"{name}: {kind}"
                for value in values:
                    first, *rest = value.type.tensor_type.shape.dim
                    assert first.dim_param, f"{name}: {value.name} has a fixed batch"
                    assert [side.dim_value for side in rest] == described[kind][value.name]["shape"][1:], f"{name}: {value.name}"
            for tensor in model.graph.initializer:
                assert tensor.data_location != onnx.TensorProto.EXTERNAL, f"{name}: {tensor.name} lies outside the file"
                assert not tensor.external_data
            assert not any(node.metadata_props or node.doc_string for node in model.graph.node), f"{name} carries the exporter's notes"
        report = json.loads((bundle / "parity.json").read_text())
        assert (report["bound_fp32"], report["bound_ranked"]["fp16"], report["bound_ranked"]["int8"]) == (1e-4, 0.002, 0.01)
        rows = report["precisions"]["fp32"]["onnxruntime cpu"]
        assert set(rows["networks"]) == set(found["networks"])
        for name, batches in rows["networks"].items():
            assert set(batches) == {"1", "7", "64"}, name
            for batch, outputs in batches.items():
                assert set(outputs) == set(found["networks"][name]["outputs"])
                for output, row in outputs.items():
                    assert row["finite"] is True
                    assert 0 <= row["mean_abs"] <= row["max_abs"] <= 1e-4, f"{name}.{output} at batch {batch}"
        assert len(rows["timesteps"]) == 8
        assert {"0", "999"} <= set(rows["timesteps"])
        assert all(row["max_abs"] <= 1e-4 for row in rows["timesteps"].values())
        assert rows["trajectory"]["flipped"] == 0
        assert rows["trajectory"]["ranked_change"] == 0
        load(bundle, "onnxruntime", "cpu", "fp32", self_test=True).close()
        assert set(found["versions"]) == {"metascatter", "torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "numpy"}
        assert found["window"] == [(found["sample_shape"][1] - found["pattern_size"]) // 2] * 2

    return assert_fit_to_ship


def assert_a_gpu_runs_it_whole(model: onnx.ModelProto, name: str) -> None:
    """No arithmetic on shapes: ONNX Runtime puts it on the CPU, and a session that may not fall back to the CPU is then refused.

    Holds for the default recipe. In lab2023 the exporter's attention computes with shapes (Shape -> Slice -> Concat -> Reshape).
    """
    shapes = {node.output[0] for node in model.graph.node if node.op_type in ("Shape", "Size")}
    for node in model.graph.node:
        for place, value in enumerate(node.input):
            if value in shapes:
                assert (node.op_type, place) in {("Reshape", 1), ("Expand", 1)}, f"{name}: {node.op_type} computes with a shape"


def test_the_small_bundle_is_fit_to_ship(small_bundle: Path, assert_fit_to_ship: Callable[[Path, set[str]], None]) -> None:
    assert_fit_to_ship(small_bundle, {"denoiser.onnx", "encoder.onnx"})
    for name in ("denoiser.onnx", "encoder.onnx"):
        assert_a_gpu_runs_it_whole(onnx.load_from_string((small_bundle / name).read_bytes()), name)


def test_the_same_run_gives_the_same_bytes(
    small_run: Path, small_bundle: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    """In a folder of another name, and started from another folder."""
    said: list[str] = []
    again = export(small_run, tmp_path / "deeper" / "again", say=said.append)
    assert again == tmp_path / "deeper" / "again"
    first, second = contents(small_bundle), contents(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert [line for line in said if line.startswith("exporting")] == ["exporting encoder.onnx", "exporting denoiser.onnx"]


def test_the_graphs_are_pytorchs_network_with_averaged_weights(small_run: Path, small_bundle: Path, small_recipe: Recipe) -> None:
    """Independently of the parity report: the whole network at once, on inputs it was never shown, at batches never tried."""
    network = networks.build(small_recipe.network, small_recipe.network_arguments)
    network.load_state_dict(checkpoint.load_weights(checkpoint.latest(small_run), "ema"))
    network.eval()
    data = load_data(small_run / "calibration.npz")
    rng = np.random.default_rng(1)
    with load(small_bundle, "onnxruntime", "cpu") as sampler:
        for count in (1, 2, 33, 100):
            arrays = sampler.bundle.condition.arrays(data.Rm[:count], data.Tm[:count], data.h[:count])
            sample = rng.standard_normal((count, 1, 5, 5), np.float32)
            timestep = rng.integers(0, 1000, count)
            encoded = sampler.networks["encoder"](arrays)
            found = sampler.networks["denoiser"]({"sample": sample, "timestep": timestep, **encoded})["output"]
            with torch.no_grad():
                wanted = network(torch.from_numpy(sample), torch.from_numpy(timestep), *(torch.from_numpy(v) for v in arrays.values()))
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4, rtol=0, err_msg=f"batch {count}")
    averaged, last = (checkpoint.load_weights(checkpoint.latest(small_run), name) for name in ("ema", "model"))
    assert any(not torch.equal(averaged[key], last[key]) for key in last), "the two sets of weights differ"


def test_the_manifest_says_where_it_comes_from(
    small_run: Path, small_bundle: Path, small_recipe: Recipe, manifest: Callable[[Path], dict[str, Any]]
) -> None:
    found = manifest(small_bundle)
    state = json.loads((checkpoint.latest(small_run) / "state.json").read_text())
    rows = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    assert found["recipe"] == small_recipe.to_dict()
    assert found["training"]["steps"] == state["step"]
    assert found["training"]["validation_loss"] == rows[-1]["validation_loss"]
    assert found["training"]["data"] == "small.npz"
    assert found["metrics"] is None
    assert found["sampling"] == {"scheduler": "ddim", "steps": 32, "guidance_scale": 1.0, "eta": 0.0}
    assert (small_bundle / "scheduler_config.json").read_bytes() == (small_run / "scheduler_config.json").read_bytes()
    card = (small_bundle / "README.md").read_text()
    for text in ("5 x 5 pixels", "2000 x 2000 nm", "32 steps", "Not evaluated", "not where it comes from"):
        assert text in card, f"the model card lacks '{text}'"


def test_golden_samples_are_pytorchs(small_bundle: Path, manifest: Callable[[Path], dict[str, Any]]) -> None:
    golden = Bundle.open(small_bundle).arrays("golden.npz")
    for name, part in manifest(small_bundle)["networks"].items():
        for kind, values in (("in", part["inputs"]), ("out", part["outputs"])):
            for key, entry in values.items():
                value = golden[f"{name}.{kind}.{key}"]
                assert value.shape == (4, *entry["shape"][1:])
                assert value.dtype.name == entry["dtype"]
                assert np.isfinite(value).all()


@pytest.mark.usefixtures("quick")
def test_evaluation_stands_in_manifest_and_card(small_run: Path, tmp_path: Path, manifest: Callable[[Path], dict[str, Any]]) -> None:
    part = {"median": 0.123, "q25": 0.1, "q75": 0.2, "under": {"0.02": 0.0, "0.05": 0.25, "0.10": 0.5}, "solves": 64}
    results = {
        "targets": 8,
        "n": 64,
        "seed": 0,
        "ranked": part,
        "oracle": {"targets": 3, "best_of_1": part, "best_of_64": None},
        "baselines": {"random_best_of_64": part, "nearest_training": None, "bundle": {**part, "name": "lab2023"}},
        "by_height_nm": [{"lo": 100.0, "hi": 400.0, "count": 8, "ranked": 0.123, "random_best_of_64": None, "bundle": 0.2}],
        "per_target": {"ranked": [0.1, 0.2, 0.3, 0.4], "random_best_of_64": [0.2, 0.2, 0.4], "bundle": [0.3, 0.3, 0.3, 0.3]},
        "sampler": {"scheduler": "ddim", "steps": 5, "guidance_scale": 2.0, "precision": "fp32", "device": "cpu"},
        "seconds": {"sampling": 0.8},
    }
    path = tmp_path / "e.json"
    path.write_text(json.dumps(results))
    bundle = export(small_run, tmp_path / "bundle", evaluation=path)
    assert manifest(bundle)["metrics"] == results
    card = (bundle / "README.md").read_text()
    assert "8 held-out targets, 64 candidates each" in card
    assert "Ranked beats random best of 64 on 2 of 3 targets." in card
    assert "A step of 64 candidates took 20 ms there (ddim, 5 steps, guidance scale 2, fp32 on cpu)" in card
    assert "GFLOP a row: encoder 0.000, denoiser 0.0" in card
    assert "Ranked beats bundle `lab2023` on 2 of 4 targets." in card
    assert "random patterns: on the first 3 targets alone" in card
    assert "| 100 to 400 | 8 | 0.123 | - | 0.200 |" in card
    assert "| best of 1 | 0.123 | 0.100 to 0.200 | 25% | 50% | 64 |" in card
    for content, words in (("{", "cannot be read"), ("[]", "lacks the field 'targets'"), ('{"targets": 3}', "lacks the field 'n'")):
        path.write_text(content)
        with pytest.raises(DataError, match=rf"e\.json {words}.*evaluate --json"):
            export(small_run, tmp_path / "other", evaluation=path)


@pytest.mark.slow
def test_lab2023_exports_samples_and_comes_back(
    small_data: Path,
    tmp_path: Path,
    manifest: Callable[[Path], dict[str, Any]],
    assert_fit_to_ship: Callable[[Path, set[str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The seed's network, architecture unchanged, from training to samples, in every precision; it has no mask and says so."""
    for name, value in (("ENGINES", ("onnxruntime",)), ("STEPS", 3), ("BATCHES", (1, 7, 64))):
        monkeypatch.setattr(parity, name, value)
    monkeypatch.setattr(yardsticks, "CANDIDATES", 1)
    data = load_data(small_data)
    recipe = dataclasses.replace(RECIPES["lab2023"], epochs=1, validation_fraction=0.2)
    write_npz(tmp_path / "tiny.npz", **data.take(slice(0, 40)).arrays())
    run = tmp_path / "lab"
    last = train(tmp_path / "tiny.npz", run, recipe, progress=False)
    assert int(last.name.split("-")[1]) <= 2
    bundle = export(run, tmp_path / "bundle", precisions=("fp32", "fp16", "int8"), fused=3, force=True)
    assert_fit_to_ship(bundle, {"denoiser.onnx", "denoiser.fp16.onnx", "denoiser.int8.onnx", "sampler.onnx"})
    found = manifest(bundle)
    assert found["fused"]["inputs"].keys() == {"noise", "Rm", "Tm", "height_nm"}, "no mask, no guidance"
    assert found["fused"]["inputs"]["noise"]["shape"] == [4, "batch", 1, 32, 32], "ddpm adds noise at every step"
    assert (found["sample_shape"], found["window"], found["pattern_size"]) == ([1, 32, 32], [13, 13], 5)
    assert found["sampling"] == {"scheduler": "ddpm", "steps": 1000, "guidance_scale": 1.0, "eta": 0.0}
    k = int(np.argmin(np.abs(data.h - 250)))
    full = Target.from_arrays(data.Rm[k], data.Tm[k], float(data.h[k]), name="full", geometry=data.geometry)
    with load(bundle, "onnxruntime", "cpu") as sampler:
        samples = sampler.sample(sampler.condition(full), 3, steps=3)
        assert samples.shape == (3, 1, 32, 32)
        patterns = sampler.patterns(samples)
        np.testing.assert_array_equal(patterns, (samples[:, 0, 13:18, 13:18] > 0).astype(np.uint8))
        design = sampler.design(full, 3, top=1, steps=3)[0]
        assert design.verified
        assert design.pattern.shape == (5, 5)
        mask = np.zeros((7, 7), bool)
        mask[3, 3] = True
        partial = Target.from_arrays(full.R, full.T, full.height_nm, ~mask & False, mask, name="partial")
        with pytest.raises(TargetError, match=r"lab2023.*has no mask input"):
            sampler.design(partial, 3, steps=3)
        with pytest.raises(BundleError, match=r"lab2023.*guidance_scale must be 1"):
            sampler.design(full, 3, steps=3, guidance_scale=2)
    with pytest.raises(BundleError, match=r"lab2023 was not trained without condition; guidance_scale must be 1"):
        export(run, tmp_path / "other", sampling={"guidance_scale": 2.0})
    # Its attention's weights lie transposed in the file, under names of the exporter's.
    unpack(Bundle.open(bundle), tmp_path / "again")
    weights, was = (checkpoint.load_weights(checkpoint.latest(path)) for path in (tmp_path / "again", run))
    assert weights.keys() == was.keys()
    assert all(torch.equal(weights[key], was[key]) for key in was)
