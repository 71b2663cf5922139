"""The UNet of the seed document: its size, what it is told, and that it leaves PyTorch unharmed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.onnx import parts, to_onnx
from export.precision import half
from runtime.backends import Choice
from train import networks
from train.class_recipes import CLASS_RECIPES
from train.networks.attention_unet import AttentionUNet
from train.recipes import RECIPES, quick

SMALL = {"width": 8, "embedding": 16, "heads": 2}


def small(shape: tuple[int, int, int], classes: int, **more: object) -> AttentionUNet:
    torch.manual_seed(0)
    made = networks.build("attention_unet", {"shape": list(shape), "classes": classes, **SMALL, **more})
    assert isinstance(made, AttentionUNet)
    return made.eval()


def test_it_has_the_documents_23_million_parameters() -> None:
    with torch.device("meta"):
        network = networks.build("attention_unet", {"shape": [3, 64, 64], "classes": 10})
        assert sum(p.numel() for p in network.parameters()) == 23_335_556
        made = network(torch.zeros(1, 3, 64, 64), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 10))
    assert made.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 24)])
def test_it_hears_time_and_class(shape: tuple[int, int, int]) -> None:
    network = small(shape, 3)
    sample, label = torch.randn(2, *shape), torch.eye(3)[:2]
    made = [network(sample, torch.tensor(t), told) for t, told in (([5, 5], label), ([400, 5], label), ([5, 5], label.flip(0)))]
    assert made[0].shape == sample.shape
    later, other = ((made[k] - made[0]).abs().amax(dim=(1, 2, 3)) > 1e-3 for k in (1, 2))
    assert later.tolist() == [True, False]
    assert other.tolist() == [True, True]
    bare = network(sample, torch.tensor([5, 5]), torch.zeros(2, 3))
    assert torch.allclose(bare, network(sample, torch.tensor([5, 5])), atol=1e-6), "zeros are the null condition"


def test_attention_is_what_reaches_across_the_image() -> None:
    """Without it, and without its groups' common mean, a corner is out of reach of the finest level's convolutions."""
    for attention in (True, False):
        network = small((1, 64, 64), 0, attention=attention)
        level = network.up_attention[-1]
        x = torch.randn(1, 8, 16, 16, requires_grad=True)
        level(x)[0, :, 0, 0].sum().backward()
        assert x.grad is not None
        assert bool(x.grad[0, :, 15, 15].abs().sum() > 0) is attention


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"shape": [1, 28, 28]}, "28 x 28 cannot be halved 3 times"), ({"shape": [1, 8, 8], "width": 10}, "divisible by 4 heads")],
)
def test_sizes_that_do_not_divide_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        networks.build("attention_unet", arguments)


def test_engines_and_half_precision_agree_with_pytorch(tmp_path: Path) -> None:
    """8 x 8 pixels, of which the lowest level sees one, and a batch of fixed size: what OpenVINO compiles."""
    from export.parity import opened

    network = small((1, 8, 8), 3, width=16, heads=4)
    part = parts(network, (1, 8, 8), {"label": torch.zeros(2, 3)})["denoiser"]
    rng = np.random.default_rng(0)
    given = {
        "sample": 3 * rng.standard_normal((4, 1, 8, 8), dtype=np.float32),
        "timestep": np.array([0, 3, 200, 499]),
        "label": np.eye(4, 3, dtype=np.float32),
    }
    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    expected = part(tensors)["output"].numpy()
    graph = {"denoiser": to_onnx(part)}
    for backend in ("onnxruntime", "openvino"):
        pytest.importorskip(backend)
        found = opened(Choice(backend, "cpu", "fp32"), graph)["denoiser"](given)["output"]
        assert np.abs(found - expected).max() < 1e-4, backend
    rounded = half(network)(*tensors.values()).detach().float().numpy()
    assert 1e-6 < np.abs(rounded - expected).max() < 0.02


def test_the_documents_settings_are_in_the_recipes() -> None:
    for name in CLASS_RECIPES:
        recipe = RECIPES[name]
        schedule = [recipe.scheduler[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")]
        assert schedule == [500, 1e-4, 0.02, "linear"]
        assert (recipe.batch_size, recipe.lr, recipe.optimizer, recipe.epochs, recipe.mirrors) == (64, 1e-3, "adam", 500, True)
        simple = name.endswith("-simple")
        assert (recipe.condition_dropout, recipe.guidance_scale) == ((0, 1) if simple else (0.1, 3))
        hurried, own = quick(recipe), quick(recipe, data=True)
        assert (hurried.data, hurried.mirrors) == ("digits", False)
        assert (own.data, own.mirrors, own.classes) == (recipe.data, True, recipe.classes)
        assert own.epochs == hurried.epochs < 500
