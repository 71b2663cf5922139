"""The networks: symmetry by construction, the seed's architecture, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runtime.condition import Condition
from train import networks
from train.networks.lab2023 import Lab2023UNet
from train.networks.spectral import Fourier, LightEncoder
from train.networks.surrogate import Surrogate
from train.objective import Denoising
from train.recipes import RECIPES

SURROGATE = {"channels": 16, "components": 8, "hidden": 16, "blocks": 2, "tokens": 8, "embedding": 16}


def small(size: int = 6, orders: int = 8) -> torch.nn.Module:
    torch.manual_seed(0)
    network = networks.build(
        "spectral",
        {"size": size, "orders": orders, "channels": 16, "components": 8, "hidden": 16, "blocks": 2, "tokens": 8, "embedding": 16},
    )
    with torch.no_grad():  # the last layers of its blocks start at zero, which would hide a fault
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def test_fourier_is_the_orthonormal_dft():
    x = torch.randn(2, 3, 49)
    real, imaginary = Fourier(7)(x)
    expected = torch.fft.fft2(x.reshape(2, 3, 7, 7), norm="ortho").reshape(2, 3, 49)
    assert (torch.complex(real, imaginary) - expected).abs().max() < 1e-5
    assert (Fourier(7).inverse(real, imaginary) - x).abs().max() < 1e-5


@pytest.mark.parametrize(("size", "orders"), [(6, 8), (5, 3), (10, 11), (7, 2)])
def test_orders_fold_onto_their_fourier_component(size, orders):
    encoder = LightEncoder(size, orders, 8, 16)
    side = 2 * orders + 1
    for m, n in ((0, 0), (1, -2), (orders, -orders), (-1, orders)):
        light = torch.zeros(1, 4, side, side)
        light[0, 2, m + orders, n + orders] = 1
        component = encoder.fold(light).sum(1).reshape(size, size)
        assert component[m % size, n % size] == 1
        assert component.sum() == 1


def test_spectral_denoiser_commutes_with_cyclic_shifts():
    network = small()
    sample, light = torch.randn(3, 1, 6, 6), torch.rand(3, 4, 17, 17)
    rest = (torch.tensor([3, 500, 999]), light, torch.rand(3, 1))
    expected = torch.roll(network(sample, *rest), (2, 5), dims=(2, 3))
    found = network(torch.roll(sample, (2, 5), dims=(2, 3)), *rest)
    assert (found - expected).abs().max() < 1e-4
    assert (network(sample, *rest) - expected).abs().max() > 1e-2


def test_spectral_denoiser_sees_light_height_and_time():
    network = small()
    sample, light, height, time = torch.randn(1, 1, 6, 6), torch.rand(1, 4, 17, 17), torch.zeros(1, 1), torch.tensor([500])
    base = network(sample, time, light, height)
    for other in ((sample, time, light * 1.5, height), (sample, time, light, height + 0.5), (sample, time - 100, light, height)):
        assert (network(*other) - base).abs().max() > 1e-4


def test_lab2023_is_the_seeds_network():
    network = Lab2023UNet()
    assert sum(p.numel() for p in network.parameters()) == 4_645_537
    config = network.unet.config
    assert config.block_out_channels == (32, 64, 64, 128)
    assert (config.sample_size, config.in_channels, config.out_channels, config.layers_per_block) == (32, 4, 1, 2)
    assert network(torch.zeros(2, 1, 32, 32), torch.tensor([0, 999]), torch.zeros(2, 3, 32, 32)).shape == (2, 1, 32, 32)


def test_lab2023_recipe_is_the_seeds():
    recipe = RECIPES["lab2023"]
    assert (recipe.lr, recipe.batch_size, recipe.epochs, recipe.loss, recipe.optimizer) == (3e-4, 20, 50, "mse", "adam")
    assert recipe.validation_fraction == 2000 / 25000
    assert (recipe.scheduler["num_train_timesteps"], recipe.scheduler["beta_schedule"], recipe.scheduler["prediction_type"]) == (
        1000,
        "squaredcos_cap_v2",
        "epsilon",
    )
    assert recipe.sampling_steps == 1000


def test_lab2023_planes_lie_where_the_seed_has_them():
    maps = np.zeros((2, 23, 23))
    maps[:, 0, 22] = 1
    condition = Condition.measure("planes", maps, maps, np.array([50.0, 600.0]), 32)
    planes = condition.arrays(maps, maps, np.array([50.0, 600.0]))["planes"]
    assert planes.shape == (2, 3, 32, 32)
    assert planes[0, 0, 4, 26] == planes[0, 0].max() > 0
    assert not planes[:, :, :4].any()
    assert not planes[:, :, 27:].any()
    assert np.unique(planes[1, 2, 4:27, 4:27]) == [1.0]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_network_has_no_loss(prediction_type):
    """Fed the exact answer, the objective is 0; so the network's output means what the scheduler will read it as."""
    objective = Denoising({**RECIPES["default"].scheduler, "prediction_type": prediction_type}, "mse")
    batch = {"sample": torch.randn(8, 1, 4, 4), "noise": torch.randn(8, 1, 4, 4), "timestep": torch.randint(0, 1000, (8,))}
    alpha = objective.scheduler.alphas_cumprod[batch["timestep"]].reshape(-1, 1, 1, 1)
    answer = {
        "epsilon": batch["noise"],
        "sample": batch["sample"],
        "v_prediction": alpha.sqrt() * batch["noise"] - (1 - alpha).sqrt() * batch["sample"],
    }[prediction_type]
    assert objective(lambda noisy, timestep: answer, batch) < 1e-10
    assert objective(lambda noisy, timestep: answer + 1, batch) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(("size", "orders"), [(6, 8), (5, 3), (10, 11), (7, 2)])
def test_the_surrogate_conserves_power_and_knows_no_origin(size: int, orders: int) -> None:
    torch.manual_seed(0)
    network = Surrogate(size, orders, **SURROGATE).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    side = 2 * orders + 1
    means = np.random.default_rng(0).random((2, side, side)).astype(np.float32)
    means[0, 0] = 0  # orders that carry no light
    network.measure(Condition("orders", (100.0, 400.0), means[0], means[1], (0, 1, 0, 1), 0))
    pattern, height = torch.randint(0, 2, (3, 1, size, size)).float(), torch.tensor([[100.0], [250.0], [400.0]])
    with torch.no_grad():
        R, T = network(pattern, height)
        moved = network(pattern.roll((1, 3), (2, 3)), height)
    assert R.shape == T.shape == (3, side, side)
    assert (R.sum((1, 2)) + T.sum((1, 2)) - 1).abs().max() < 1e-5
    assert R[:, 0].max() < 1e-6
    assert (R - moved[0]).abs().max() < 1e-5
    assert (T - moved[1]).abs().max() < 1e-5
    assert (R[0] - R[1]).abs().max() > 1e-4, "it looks at the pattern and the height"


@pytest.mark.parametrize(("size", "orders"), [(6, 8), (5, 3), (10, 11)])
def test_the_surrogate_reads_an_order_at_its_fourier_component(size: int, orders: int) -> None:
    """Unfolding undoes the folding of the light encoder."""
    network = Surrogate(size, orders, **SURROGATE)
    encoder = LightEncoder(size, orders, 8, 16)
    light = torch.randn(2, 4, 2 * orders + 1, 2 * orders + 1)
    folded = encoder.fold(light)[:, : 2 * encoder.blocks**2]
    assert torch.equal(network.unfold(folded), light[:, :2])
