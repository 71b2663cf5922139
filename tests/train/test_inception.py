"""FID and Inception Score by torchmetrics: known answers with networks of a few numbers, and every kind of file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import cli
from runtime.errors import DataError, MetascatterError
from runtime.frechet import distance, moments
from train import inception

RNG = np.random.default_rng(0)


class Tiny(nn.Module):
    """Features: means of quarters of each colour, (N, 12)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


class TinyWithClasses(nn.Module):
    """And logits of four classes by the mean brightness, far apart."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = images.float().flatten(1).mean(1, keepdim=True)
        middle = torch.arange(4, dtype=torch.float32, device=values.device) * 80
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1), -((values - middle) ** 2)


def pictures(count: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (count, channels, 8, 8)).astype(np.uint8)


def plain(count: int, levels: list[int]) -> np.ndarray:
    """Images of one brightness each, one brightness after the other, as samples of classes come."""
    return np.zeros((count, 3, 8, 8), np.uint8) + np.repeat(np.array(levels, np.uint8), count // len(levels))[:, None, None, None]


def fixed_onnx() -> onnx.ModelProto:
    """The same two outputs for images of 16 x 16 and no others."""
    node, number = onnx.helper.make_node, onnx.helper.make_tensor
    nodes = [
        node("AveragePool", ["images"], ["quarters"], kernel_shape=[8, 8], strides=[8, 8]),
        node("Div", ["quarters", "white"], ["shares"]),
        node("Flatten", ["shares"], ["features"]),
        node("GlobalAveragePool", ["images"], ["colours"]),
        node("Flatten", ["colours"], ["flat"]),
        node("ReduceMean", ["flat", "axis"], ["bright"], keepdims=1),
        node("Sub", ["bright", "middle"], ["off"]),
        node("Mul", ["off", "off"], ["square"]),
        node("Neg", ["square"], ["classes"]),
    ]
    constants = [
        number("white", onnx.TensorProto.FLOAT, [1], [255.0]),
        number("middle", onnx.TensorProto.FLOAT, [1, 4], [0.0, 80.0, 160.0, 240.0]),
        number("axis", onnx.TensorProto.INT64, [1], [1]),
    ]
    value = onnx.helper.make_tensor_value_info
    given = value("images", onnx.TensorProto.FLOAT, ["batch", 3, 16, 16])
    made = [value("features", onnx.TensorProto.FLOAT, ["batch", 12]), value("classes", onnx.TensorProto.FLOAT, ["batch", 4])]
    graph = onnx.helper.make_graph(nodes, "fixed", [given], made, constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    torch.jit.script(Tiny()).save(str(folder / "tiny.pt"))
    torch.jit.trace(TinyWithClasses(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).save(str(folder / "classes.pt"))
    onnx.save(fixed_onnx(), folder / "fixed.onnx")
    return folder


def test_identical_sets_are_at_no_distance_and_others_at_our_own(files: Path) -> None:
    scores = inception.load(files / "tiny.pt")
    real, made = pictures(150), (pictures(170) // 2).astype(np.uint8)
    scores.real(real)
    scores.samples(real[::-1].copy())
    assert scores.scores() == {"feature_frechet": pytest.approx(0, abs=1e-6)}
    scores.samples(made)
    mine = [moments(nn.functional.adaptive_avg_pool2d(torch.from_numpy(x) / 255, 2).flatten(1).numpy()) for x in (real, made)]
    assert scores.scores()["feature_frechet"] == pytest.approx(distance(*mine), rel=1e-3)
    assert scores.words == {"feature_frechet": "Fréchet distance of tiny.pt"}, "never FID"


def test_two_gaussians_have_the_closed_form() -> None:
    """One feature, the brightness: between N(80, 4) and N(100, 9) it is 20^2 + (3 - 2)^2."""

    def bright(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return images.float().mean(dim=(2, 3))[:, :1], None

    scores = inception.NetworkScores(bright, {})
    for take, mean, spread in ((scores.real, 80, 2), (scores.samples, 100, 3)):
        values = RNG.standard_normal(4000)
        values = mean + spread * (values - values.mean()) / values.std(ddof=1)
        take((np.zeros((4000, 1, 8, 8)) + values[:, None, None, None] + RNG.random((4000, 1, 8, 8)) - 0.5).round().astype(np.uint8))
    assert scores.scores()["feature_frechet"] == pytest.approx(401, rel=0.002)


def test_inception_scores_of_no_and_of_all_certainty(files: Path) -> None:
    scores = inception.load(files / "classes.pt")
    scores.real(pictures(20))
    for levels, expected in (([0, 80, 160, 240], 4), ([160], 1), ([0, 240], 2)):
        scores.samples(plain(240, levels))
        found = scores.scores()
        assert found["class_score"] == pytest.approx(expected, rel=1e-6)
        assert found["class_score_std"] == pytest.approx(0, abs=1e-6)
    uniform = inception.StreamedInceptionScore(7)
    uniform.update(torch.full((50, 7), 1 / 7))
    assert float(uniform.compute()[0]) == pytest.approx(1, rel=1e-9)


def test_the_streamed_score_is_torchmetrics_own() -> None:
    from torchmetrics.image.inception import InceptionScore

    logits = torch.randn(300, 9)
    theirs = InceptionScore(nn.Identity(), splits=1)
    mine = inception.StreamedInceptionScore(9, splits=1)
    theirs.update(logits)
    for part in logits.split([1, 99, 200]):
        mine.update(part.double().softmax(1))
    assert float(mine.compute()[0]) == pytest.approx(float(theirs.compute()[0]), rel=1e-5)
    assert mine.sums.shape == (1, 9), "and nothing else is kept"


def test_an_onnx_file_is_given_images_of_its_size(files: Path) -> None:
    fixed, free = inception.load(files / "fixed.onnx"), inception.load(files / "classes.pt")
    grey = pictures(100, channels=1)
    for scores in (fixed, free):
        scores.real(plain(63, [0, 90, 200]))
        scores.samples(grey)
    found, expected = fixed.scores(), free.scores()
    assert found["feature_frechet"] == pytest.approx(expected["feature_frechet"], rel=0.1)
    assert found["class_score"] == pytest.approx(expected["class_score"], rel=0.1)
    facts = fixed.facts()
    assert (facts["file"], facts["features"], facts["classes"], facts["inception"]) == ("fixed.onnx", 12, 4, False)
    assert len(facts["sha256"]) == 64


def test_only_the_inception_of_2015_gives_an_fid() -> None:
    def large(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(images), 2048), torch.zeros(len(images), 1008)

    assert inception.NetworkScores(large, {}).words == {"fid": "FID", "inception_score": "Inception Score"}


def test_nvidias_file_is_asked_for_features_and_for_classes(tmp_path: Path) -> None:
    class Theirs(nn.Module):
        """The signature of NVIDIA's."""

        def forward(self, img: torch.Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False):
            flat = img.float().flatten(1)
            if return_features:
                return flat[:, :5]
            return torch.softmax(flat[:, :3] * (0.0 if no_output_bias else 1.0), 1)

    torch.jit.script(Theirs()).save(str(tmp_path / "theirs.pt"))
    scores = inception.load(tmp_path / "theirs.pt")
    assert (scores.size, scores.normalised) == ((5, 3), True)
    scores.real(pictures(8))
    scores.samples(pictures(8))
    assert scores.scores()["class_score"] == pytest.approx(1, rel=1e-6)


def test_torchmetrics_own_inception_takes_torch_fidelitys_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.image import fid

    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    asked: list[Any] = []

    class Stands:
        def __init__(self, *given: Any) -> None:
            asked.extend(given)

        def _torch_fidelity_forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.zeros(len(images), 2048, 1, 1), torch.zeros(len(images), 1008)

    monkeypatch.setattr(fid, "NoTrainInceptionV3", Stands)
    assert list(inception.load(path).words) == ["fid", "inception_score"]
    assert asked == ["inception-v3-compat", ["2048", "logits_unbiased"], str(path)]


def test_mistakes_are_one_sentence(files: Path, tmp_path: Path, small_bundle: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x01")
    for name, words in (
        ("none.pt", "cannot be read"),
        ("a.bin", "is no feature network"),
        ("broken.pt", "cannot be run"),
        ("broken.onnx", "broken.onnx"),
    ):
        with pytest.raises(MetascatterError, match=words):
            inception.load(tmp_path / name)
    with pytest.raises(DataError, match="expected \\(2, number of features\\)"):
        inception.NetworkScores(lambda images: (images, None), {})
    told = CliRunner().invoke(cli.group, ["evaluate", "--bundle", str(small_bundle), "--features", str(files / "tiny.pt")])
    assert (told.exit_code, "--features is for bundles of images that are sampled" in told.output) == (2, True)
