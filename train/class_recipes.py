"""Recipes for CIFAR-10's images of a class: the seed document's first model, its improved one, and diffusers' network in that one's place.

Its settings: 500 timesteps, betas 1e-4 to 0.02, batches of 64, Adam at 1e-3, 500 epochs, images mirrored at random, and where there is
guidance the class left out for 10 % of the samples. ``--quick`` takes scikit-learn's digits, which need no download, and small networks.
"""

from __future__ import annotations

from typing import Any

from .sample_recipes import LINEAR, SAMPLES

_SCHEDULER = {
    **LINEAR,
    "num_train_timesteps": 500,
    "variance_type": "fixed_large",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
}

_COMMON: dict[str, Any] = {
    **SAMPLES,
    "scheduler": _SCHEDULER,
    "batch_size": 64,
    "lr": 1e-3,
    "epochs": 500,
    "mirrors": True,
    "labelled": True,
    "data": "cifar-10-batches-bin",
}

# No attention, no guidance, no averaged weights; every one of the 500 steps is sampled.
_SIMPLE: dict[str, Any] = {
    **_COMMON,
    "network": "attention_unet",
    "network_arguments": {"attention": False, "width": 32},
    "sampling_scheduler": "ddpm",
    "sampling_steps": 500,
    "ema_decay": 0.0,
}

_IMPROVED: dict[str, Any] = {
    **_COMMON,
    "network": "attention_unet",
    "network_arguments": {},
    "sampling_scheduler": "dpmsolver++",
    "sampling_steps": 20,
    "ema_decay": 0.999,
    "condition_dropout": 0.1,
    "guidance_scale": 3.0,
}

_DIFFUSERS: dict[str, Any] = {
    **_IMPROVED,
    "network": "unet",
    "network_arguments": {"channels": [64, 128, 256, 256], "attention": [False, True, True, True]},
}

_DIGITS: dict[str, Any] = {"data": "digits", "mirrors": False}
_AUTOMOBILES = {"classes": ["automobile"]}
_FIVE = {"classes": ["airplane", "automobile", "cat", "horse", "ship"]}


def _quick(classes: list[str], epochs: int, **arguments: Any) -> dict[str, Any]:
    return {"quick": {**_DIGITS, "classes": classes, "epochs": epochs, "network_arguments": arguments}}


CLASS_RECIPES: dict[str, dict[str, Any]] = {
    "automobiles": {**_IMPROVED, **_AUTOMOBILES, **_quick(["3"], 300, width=16)},
    "automobiles-simple": {**_SIMPLE, **_AUTOMOBILES, **_quick(["3"], 300, width=16)},
    "cifar5": {**_IMPROVED, **_FIVE, **_quick([], 60, width=16)},
    "cifar5-simple": {**_SIMPLE, **_FIVE, **_quick([], 60, width=16)},
    "cifar5-diffusers": {**_DIFFUSERS, **_FIVE, **_quick([], 60, channels=[32, 64], attention=[False, True], layers=1)},
}
