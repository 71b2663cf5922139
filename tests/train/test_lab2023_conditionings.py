"""The seed's three ways to tell its network the light: what each sees, and each from training to samples without PyTorch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from export import parity, yardsticks
from export.bundle import export
from runtime.condition import CONDITIONINGS, Condition
from runtime.data import load as load_data
from runtime.errors import DataError, TargetError
from runtime.files import write_npz
from runtime.sampler import load
from runtime.target import Target
from train import networks
from train.loop import train
from train.networks import lab2023
from train.networks.lab2023 import Lab2023UNet
from train.recipes import load_recipe


def measured(conditioning: str, canvas: int = 32) -> tuple[Condition, np.ndarray]:
    """Constants of 50 random maps of 7 x 7 with 1 to 50 nm, and the planes of those maps."""
    R, T = np.random.default_rng(0).random((2, 50, 7, 7)) * np.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    height = np.arange(1.0, 51.0)
    condition = Condition.measure("planes", R, T, height, canvas, conditioning)
    return condition, condition.arrays(R, T, height)["planes"]


def test_the_height_takes_the_range_of_the_other_channels() -> None:
    own, planes = measured("concatenated", canvas=7)
    shared, others = measured("shared_range", canvas=7)
    assert np.array_equal(planes[:, :2], others[:, :2]), "R and T are standardised as ever"
    assert (planes[:, 2].min(), planes[:, 2].max()) == (-1, 1)
    assert others[:, 2].min() == pytest.approx(others[:, :2].min(), abs=1e-6)
    assert others[:, 2].max() == pytest.approx(others[:, :2].max(), abs=1e-6)
    # Linear in between: a quarter of the way up is a quarter of the way up.
    low, high = shared.height_plane
    quarter = shared.arrays(np.zeros((1, 7, 7)), np.zeros((1, 7, 7)), np.array([13.25]))["planes"][0, 2]
    assert quarter == pytest.approx(np.full((7, 7), low + (high - low) / 4), abs=1e-6)
    again = Condition.from_dict(json.loads(json.dumps(shared.to_dict())))
    assert again.height_plane == shared.height_plane
    before = {key: value for key, value in own.to_dict().items() if key != "height_plane"}
    assert Condition.from_dict(before).height_plane == (-1, 1), "as bundles were written before there was a choice"


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_network_sees_both_maps_and_the_height(conditioning: str) -> None:
    torch.manual_seed(0)
    network = Lab2023UNet(conditioning).eval()
    planes = torch.from_numpy(measured(conditioning)[1][:1])
    sample, timestep = torch.randn(1, 1, 32, 32), torch.tensor([500])
    with torch.no_grad():
        found = network(sample, timestep, planes)
        assert found.shape == (1, 1, 32, 32)
        for channel in range(3):
            changed = planes.clone()
            changed[:, channel, 13:20, 13:20] += 1
            assert (network(sample, timestep, changed) - found).abs().max() > 1e-4, channel
        assert (network(sample, timestep - 400, planes) - found).abs().max() > 1e-4


def test_by_class_the_unet_itself_sees_the_sample_alone() -> None:
    network = Lab2023UNet("class")
    assert (network.unet.config.in_channels, network.unet.config.class_embed_type) == (1, "identity")
    # One linear layer to the width of the time embedding; the UNet is the seed's but for its three channels less.
    assert sum(p.numel() for p in network.parameters()) == 4_645_537 - 3 * 32 * 9 + (2 * 32 * 32 + 1) * 128 + 128
    assert networks.build("lab2023", {}).state_dict().keys() == Lab2023UNet("shared_range").state_dict().keys()


def test_another_conditioning_is_refused_before_anything_is_written(small_data: Path, tmp_path: Path) -> None:
    words = r"no conditioning 'mixed'; choose concatenated, class, shared_range"
    recipe = load_recipe("lab2023", {"network_arguments": {"conditioning": "mixed"}, "validation_fraction": 0.2})
    with pytest.raises(DataError, match=words):
        train(small_data, tmp_path / "run", recipe, progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match=words):
        networks.build("lab2023", {"conditioning": "mixed"})
    with pytest.raises(DataError, match=r"the network lab2023 has no argument 'channels'.*it has conditioning"):
        networks.build("lab2023", {"channels": 3})
    with pytest.raises(DataError, match="no network 'lab2024'; choose lab2023, spectral, surrogate"):
        networks.build("lab2024", {})


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["class", "shared_range"])
def test_trained_exported_and_sampled_without_pytorch(
    conditioning: str, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``concatenated`` in tests/export, where the whole UNet is; here two of its blocks. The recipe is a file, as a person writes it."""
    two = {"layers_per_block": 1, "block_out_channels": (32, 32)}
    two |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    monkeypatch.setattr(lab2023, "UNet2DModel", lambda **arguments: UNet2DModel(**{**arguments, **two}))
    for name, value in (("ENGINES", ("onnxruntime",)), ("STEPS", 2), ("BATCHES", (1, 7)), ("TIMESTEPS", 2)):
        monkeypatch.setattr(parity, name, value)
    monkeypatch.setattr(yardsticks, "CANDIDATES", 1)
    data = load_data(small_data)
    write_npz(tmp_path / "tiny.npz", **data.take(slice(0, 24)).arrays())
    (tmp_path / "mine.toml").write_text(f'base = "lab2023"\n[network_arguments]\nconditioning = "{conditioning}"\n')
    recipe = dataclasses.replace(load_recipe(str(tmp_path / "mine.toml")), epochs=1, validation_fraction=0.2)
    run = tmp_path / "run"
    train(tmp_path / "tiny.npz", run, recipe, progress=False)
    # parity, which export measures, compares ONNX with PyTorch; the fused sampler is compared with the Python one there too.
    bundle = export(run, tmp_path / "bundle", fused=2)
    saved = json.loads((run / "condition.json").read_text())
    assert (saved["height_plane"] == [-1, 1]) == (conditioning == "class")
    k = int(np.argmin(np.abs(data.h - 250)))
    full = Target.from_arrays(data.Rm[k], data.Tm[k], float(data.h[k]), name="full", geometry=data.geometry)
    with load(bundle, "onnxruntime", "cpu") as sampler:
        planes = sampler.condition(full)["planes"]
        assert planes[0, 2, 16, 16] == pytest.approx(
            Condition.from_dict(saved).arrays(full.R[None], full.T[None], data.h[k : k + 1])["planes"][0, 2, 16, 16]
        )
        design = sampler.design(full, 2, top=1, steps=2)[0]
        assert design.verified
        mask = np.zeros((7, 7), bool)
        mask[3, 3] = True
        partial = Target.from_arrays(full.R, full.T, full.height_nm, ~mask & False, mask, name="partial")
        with pytest.raises(TargetError, match=r"lab2023.*has no mask input"):
            sampler.design(partial, 2, steps=2)
