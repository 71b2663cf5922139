"""The model repository: what Triton's own schema reads in it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from export.triton import write_repository
from runtime.bundle import Bundle
from runtime.errors import BundleError, DataError

TYPES = {"TYPE_FP32": onnx.TensorProto.FLOAT, "TYPE_INT64": onnx.TensorProto.INT64, "TYPE_UINT8": onnx.TensorProto.UINT8,
         "TYPE_BOOL": onnx.TensorProto.BOOL}  # fmt: skip


def parsed(path: Path) -> Any:
    """A config.pbtxt by the schema that Triton publishes."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(), schema.ModelConfig()), schema


def test_every_model_is_described_as_it_is(fused_bundle: Path, tmp_path: Path) -> None:
    said: list[str] = []
    repository = write_repository(fused_bundle, tmp_path / "models", say=said.append)
    names = {"metascatter_encoder", "metascatter_denoiser", "metascatter_sampler"}
    assert {path.name for path in repository.iterdir()} == names
    assert "tritonserver --model-repository=" in said[0]
    for name in names:
        config, schema = parsed(repository / name / "config.pbtxt")
        assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 256)
        assert list(config.dynamic_batching.preferred_batch_size) == [8, 64, 256]
        assert [(group.count, schema.ModelInstanceGroup.Kind.Name(group.kind)) for group in config.instance_group] == [(1, "KIND_AUTO")]
        assert config.dynamic_batching.max_queue_delay_microseconds > 0
        graph = onnx.load(repository / name / "1" / "model.onnx").graph
        for described, values in ((config.input, graph.input), (config.output, graph.output)):
            assert [array.name for array in described] == [value.name for value in values]
            for array, value in zip(described, values, strict=True):
                first, *rest = value.type.tensor_type.shape.dim
                assert first.dim_param, f"{value.name}: the batch is its first axis"
                shape = list(array.reshape.shape) if array.HasField("reshape") else list(array.dims)
                assert shape == [side.dim_value for side in rest], value.name
                assert TYPES[schema.DataType.Name(array.data_type)] == value.type.tensor_type.elem_type


def test_what_is_refused(fused_bundle: Path, small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no encoder in fp16"):
        write_repository(small_bundle, tmp_path / "models", precision="fp16")
    assert not (tmp_path / "models").exists()
    (tmp_path / "file").write_text("a file")
    with pytest.raises(DataError, match=r"cannot write .*file"):
        write_repository(small_bundle, tmp_path / "file")
    write_repository(fused_bundle, tmp_path / "models")
    write_repository(small_bundle, tmp_path / "models")
    assert not (tmp_path / "models" / "metascatter_sampler").exists(), "it is replaced whole"


@pytest.mark.parametrize(
    "theirs", ["chapter.tex", "metascatter_thesis/chapter.tex", "metascatter_denoiser/2/model.onnx", "resnet/1/model.onnx"]
)
def test_what_is_not_ours_stays(theirs: str, small_bundle: Path, tmp_path: Path) -> None:
    """Above all another version of a model, or a folder that is named alike."""
    write_repository(small_bundle, tmp_path / "models")
    work = tmp_path / "models" / theirs
    work.parent.mkdir(parents=True, exist_ok=True)
    work.write_text("years of work")
    with pytest.raises(DataError, match=r"models holds something else than a model repository of metascatter \(.*name a new folder"):
        write_repository(small_bundle, tmp_path / "models")
    assert work.read_text() == "years of work"


def test_a_sampler_that_draws_noise_is_refused_by_name(fused_bundle: Path, tmp_path: Path) -> None:
    """Its noise is (K + 1, batch, ...): Triton puts requests together along the first axis."""
    opened = Bundle.open(fused_bundle)
    opened.manifest["fused"]["inputs"]["noise"]["shape"].insert(0, 7)
    opened.manifest["fused"]["scheduler"] = "euler-ancestral"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "open", lambda path: opened)
        with pytest.raises(
            BundleError, match=r"takes noise for every step \(euler-ancestral\).*export it with a scheduler that draws none"
        ):
            write_repository(fused_bundle, tmp_path / "models")
    assert not (tmp_path / "models").exists()
