"""The fused sampler in a bundle: listed, hashed, described as it is, and the same bytes from the same networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export import yardsticks
from export.bundle import export
from export.fused import fuse
from export.graph import Graph, value
from runtime.bundle import Bundle
from runtime.errors import BundleError
from runtime.sampler import load

SIZE, SIDE = 5, 7


def test_it_is_described_as_it_is(fused_bundle: Path) -> None:
    bundle = Bundle.open(fused_bundle)
    content, told = bundle.read("sampler.onnx"), bundle.manifest["fused"]
    assert str(Path.cwd()).encode() not in content
    assert (told["file"], told["scheduler"], told["steps"]) == ("sampler.onnx", "dpmsolver++", 6)
    assert told["equal"] >= 0.9
    graph = onnx.load_from_string(content).graph
    for described, values in ((told["inputs"], graph.input), (told["outputs"], graph.output)):
        assert list(described) == [value.name for value in values]
    assert told["inputs"]["noise"] == {"shape": ["batch", 1, SIZE, SIZE], "dtype": "float32"}
    assert told["inputs"]["mask"] == {"shape": ["targets", 2, SIDE, SIDE], "dtype": "bool"}
    assert told["outputs"]["pattern"] == {"shape": ["batch", SIZE, SIZE], "dtype": "uint8"}
    networks = {name: bundle.network(name, "fp32") for name in ("encoder", "denoiser")}
    with load(fused_bundle, "onnxruntime", "cpu") as sampler:
        again = fuse(sampler.plan(6), bundle.condition, networks, sample_shape=(1, SIZE, SIZE), window=(0, 0), pattern_size=SIZE)
    assert again == content


@pytest.mark.usefixtures("quick")
def test_one_that_samples_otherwise_is_not_shipped(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yardsticks, "BOUND_FUSED", 1e-12)
    with pytest.raises(BundleError, match=r"only \d+% of sampler\.onnx's samples equal .*no bundle was written"):
        export(small_run, tmp_path / "bundle", fused=4)
    assert not (tmp_path / "bundle").exists()


def test_nodes_without_names_are_laid_in() -> None:
    """ONNX does not ask for names, but ONNX Runtime wants those there are to differ."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    nodes = [helper.make_node("Neg", ["x"], ["z"]), helper.make_node("Exp", ["z"], ["y"])]
    part = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    g = Graph()
    (first,) = g.lay_in(part, "a/", {"x": "input"})
    (second,) = g.lay_in(part, "b/", {"x": first})
    g.op("Identity", second, name="output")
    made = g.graph("twice", [value("input", ["batch", 2])], [value("output", ["batch", 2])])
    model = helper.make_model(made, opset_imports=part.opset_import, ir_version=10)
    given = np.ones((3, 2), np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"input": given})[0], np.exp(-np.exp(-given)), rtol=1e-6)
