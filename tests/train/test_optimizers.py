"""Optimisers: Muon against PyTorch's own and against paper arithmetic, who is a matrix, and byte-identical resumption of each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime.errors import DataError
from train import checkpoint
from train.loop import train
from train.optimizers import OPTIMIZERS, Muon, build, orthogonalised
from train.recipes import RECIPES, Recipe, load_recipe


def test_singular_values_come_near_1_and_vectors_stay() -> None:
    """Of wide and tall matrices alike, each of a stack by itself, whatever their scale."""
    torch.manual_seed(0)
    for shape in ((2, 24, 60), (2, 60, 24)):
        matrices = torch.randn(shape) * torch.tensor([1e-4, 1e3])[:, None, None]
        found = orthogonalised(matrices)
        for matrix, result in zip(matrices, found, strict=True):
            left, _, right = torch.linalg.svd(matrix, full_matrices=False)
            aligned = left.T @ result @ right.T
            values = aligned.diagonal()
            assert values.min() > 0.5
            assert values.max() < 1.3
            assert (aligned - torch.diag(values)).abs().max() < 1e-3
    assert torch.isfinite(orthogonalised(torch.zeros(1, 20, 20))).all(), "no gradient, no step"


def test_a_matrix_takes_the_steps_of_pytorchs_muon() -> None:
    """Which knows matrices alone and computes in bfloat16."""
    torch.manual_seed(0)
    mine, theirs = nn.Linear(40, 24, bias=False), nn.Linear(40, 24, bias=False)
    theirs.load_state_dict(mine.state_dict())
    start = mine.weight.detach().clone()
    own = Muon(mine, lr=0.02)
    reference = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(24, 40)
        mine.weight.grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        own.step()
        reference.step()
    moved = (mine.weight - start).norm()
    assert moved > 0.1
    assert (mine.weight - theirs.weight).norm() < 0.02 * moved


def test_kernels_are_matrices_and_the_rest_is_adamws() -> None:
    """A kernel moves as the matrix (out, in * rows * columns) does; biases and the ends of a network as under AdamW alone."""
    torch.manual_seed(0)

    def made() -> list[nn.Module]:
        torch.manual_seed(1)
        return [nn.Conv2d(1, 20, 3), nn.Conv2d(20, 16, 3), nn.Linear(180, 16, bias=False)]

    (first, kernel, flat), (first_too, kernel_too, flat_too) = made(), made()
    muon, adamw = nn.ModuleList([first, kernel, flat]), nn.ModuleList([first_too, kernel_too, flat_too])
    weight, same = kernel.get_parameter("weight"), flat.get_parameter("weight")
    with torch.no_grad():  # the same numbers in both shapes
        same.copy_(weight.reshape(16, 180))
    optimizers = Muon(muon, lr=0.01), torch.optim.AdamW(adamw.parameters(), lr=0.01)
    for _ in range(3):
        for mine, theirs in zip(muon.parameters(), adamw.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            theirs.grad = mine.grad.clone()
        assert weight.grad is not None
        same.grad = weight.grad.reshape(16, 180).clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(weight.reshape(16, 180), same, atol=1e-6)
    for name in ("0.weight", "0.bias", "1.bias"):
        assert torch.equal(muon.get_parameter(name), adamw.get_parameter(name)), name
    assert not torch.allclose(weight, kernel_too.get_parameter("weight"), atol=1e-3)
    state = optimizers[0].state_dict()["state"]
    assert sorted(len(entry) for entry in state.values()) == [2, 2, 3, 3, 3]
    assert weight.grad is not None, "gradients stay until they are zeroed"


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_a_resumed_run_is_byte_identical(name: str, small_data: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    """With adamw it is the loop's own test. The checkpoint in between holds everything that the optimiser remembers."""
    recipe = dataclasses.replace(small_recipe, optimizer=name)
    whole = train(small_data, tmp_path / "whole", recipe, progress=False)
    train(small_data, tmp_path / "broken", recipe, progress=False, stop_after=3)
    last = train(small_data, tmp_path / "broken", recipe, progress=False, resume=True)
    for part in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"):
        assert (last / part).read_bytes() == (whole / part).read_bytes(), part
    if name == "muon":
        remembered = {key.split(".", 1)[1] for key in checkpoint.load_weights(last, "optimizer")}
        assert remembered == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}


def test_a_recipe_names_its_optimizer() -> None:
    network = nn.Linear(20, 20)
    for name in OPTIMIZERS:
        optimizer = build(load_recipe("default", {"optimizer": name, "lr": 0.5}), network)
        assert {group["lr"] for group in optimizer.param_groups} == {0.5}
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    with pytest.raises(DataError, match=r"'optimizer' is 'sgd'; choose adam, adamw, muon"):
        load_recipe("default", {"optimizer": "sgd"})
    with pytest.raises(DataError, match=r"no optimizer 'sgd'; choose adam, adamw, muon"):
        build(dataclasses.replace(RECIPES["default"], optimizer="sgd"), network)
