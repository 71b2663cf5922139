"""Recipes for images and points: the Swiss roll, digits of a class, one-step denoising, and small images of no class."""

from __future__ import annotations

from typing import Any

# diffusers' settings of a thousand steps, as the documents have them that these recipes come from.
LINEAR = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
}

# No symmetry but left and right, no masks.
SAMPLES: dict[str, Any] = {"layout": "labels", "canvas": 0, "validation_fraction": 0.1}

SAMPLE_RECIPES: dict[str, dict[str, Any]] = {
    # 2-D points along a spiral. With 40 steps the betas must be larger than those of a thousand: noise is all that is left at the end.
    "swiss-roll": {
        "network": "feedforward",
        "network_arguments": {"hidden": 128, "layers": 4, "embedding": 64},
        "scheduler": {
            **LINEAR,
            "num_train_timesteps": 40,
            "beta_start": 0.001,
            "beta_end": 0.3,
            "prediction_type": "epsilon",
            "timestep_spacing": "leading",
            "clip_sample": False,
            "variance_type": "fixed_large",
        },
        "sampling_scheduler": "ddpm",
        "sampling_steps": 40,
        "batch_size": 256,
        "lr": 1e-3,
        "epochs": 500,
        "lr_schedule": "cosine",
        "ema_decay": 0.999,
        "data": "swiss-roll",
        "quick": {"epochs": 150},
        **SAMPLES,
    },
    # Small images in colours, of no class: tiles of two photographs, or any folder of pictures.
    "flowers": {
        "network": "unet",
        "network_arguments": {"channels": [128, 128, 256, 256], "attention": [False, True, True, True], "layers": 2},
        "scheduler": {**LINEAR, "prediction_type": "epsilon", "timestep_spacing": "trailing"},
        "sampling_scheduler": "ddpm",
        "sampling_steps": 1000,
        "batch_size": 128,
        "lr": 2e-4,
        "epochs": 1000,
        "warmup_steps": 1000,
        "gradient_clip": 1.0,
        "ema_decay": 0.9999,
        "mirrors": True,
        "colours": "rgb",
        "data": "photographs",
        "quick": {
            "canvas": 16,
            "epochs": 5,
            "batch_size": 16,
            "lr": 1e-3,
            "lr_schedule": "cosine",
            "warmup_steps": 50,
            "ema_decay": 0.995,
            "sampling_steps": 100,
            "network_arguments": {"channels": [24, 48], "attention": [False, True], "layers": 1, "groups": 8},
        },
        **SAMPLES,
        "canvas": 32,
    },
    # About a hundred grey pictures: what is shown of them is never the same twice.
    "craters": {
        "network": "unet",
        "network_arguments": {"channels": [64, 128, 256, 256], "attention": [False, False, True, True], "layers": 2, "dropout": 0.1},
        "scheduler": {**LINEAR, "prediction_type": "epsilon", "timestep_spacing": "trailing"},
        "sampling_scheduler": "ddpm",
        "sampling_steps": 1000,
        "batch_size": 32,
        "lr": 2e-4,
        "epochs": 20000,
        "warmup_steps": 1000,
        "gradient_clip": 1.0,
        "ema_decay": 0.9999,
        "mirrors": True,
        "flips": True,
        "crop": 0.7,
        "colours": "grey",
        "data": "craters",
        "quick": {
            "canvas": 32,
            "epochs": 150,
            "batch_size": 8,
            "lr": 1e-3,
            "lr_schedule": "cosine",
            "warmup_steps": 50,
            "ema_decay": 0.995,
            "sampling_steps": 100,
            "network_arguments": {"channels": [16, 32, 64], "attention": [False, False, True], "layers": 1, "groups": 8, "dropout": 0.0},
        },
        **SAMPLES,
        "canvas": 64,
    },
    # Images of a class, guided: scikit-learn's digits, or any pictures in a folder per class.
    "digits": {
        "network": "unet",
        "network_arguments": {"channels": [64, 128], "attention": [False, True], "layers": 2},
        "scheduler": {**LINEAR, "num_train_timesteps": 500, "prediction_type": "epsilon", "timestep_spacing": "trailing"},
        "sampling_scheduler": "dpmsolver++",
        "sampling_steps": 20,
        "batch_size": 64,
        "lr": 1e-3,
        "epochs": 500,
        "lr_schedule": "cosine",
        "gradient_clip": 1.0,
        "ema_decay": 0.999,
        "condition_dropout": 0.1,
        "guidance_scale": 3.0,
        "data": "digits",
        "labelled": True,
        "quick": {"epochs": 60, "network_arguments": {"channels": [32, 64], "layers": 1}},
        **SAMPLES,
    },
    # An image from a noisy one in one step: the first half of the exercise that diffusion models are taught with, on MNIST there.
    # Five epochs of the digits are 255 steps (2.8 dB over the best blur), so the quick settings take 40 at ten times the rate (3.7 dB).
    "denoiser": {
        "network": "restoration_unet",
        "network_arguments": {"channels": [64, 128], "attention": [False, False], "layers": 2},
        "scheduler": {},
        "sampling_scheduler": "",
        "sampling_steps": 0,
        "batch_size": 32,
        "lr": 1e-4,
        "epochs": 5,
        "objective": "restoration",
        "noise_sigma": 0.5,
        "data": "digits",
        "quick": {"epochs": 40, "lr": 1e-3, "lr_schedule": "cosine", "network_arguments": {"channels": [32, 64], "layers": 1}},
        **SAMPLES,
    },
}
