"""Recipes: everything that defines a training run, as one flat record that is also the JSON or TOML on disk."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import DataError

from .class_recipes import CLASS_RECIPES
from .recipe_checks import check
from .sample_recipes import LINEAR, SAMPLE_RECIPES


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of one run. ``cli.py train`` flags of the same name override a recipe's value.

    ``objective`` is ``denoising`` (a pattern from noise, given the light), ``distillation`` (the same in ``sampling_steps`` calls, learnt
    from ``teacher_steps`` of the run it starts from, whose sampling is guided by ``guidance_scale``), ``restoration`` (an image of 8 bits
    from the same under noise of the standard deviation ``noise_sigma``, black being 0 and white 1, in one step) or ``scattering`` (the
    light, given a pattern); the last two have no scheduler. ``scheduler`` holds diffusers' scheduler settings, as they will stand in
    ``scheduler_config.json``. ``masks`` is the share of training targets of which only some orders are asked for, ``condition_dropout`` the
    share of which nothing is asked (classifier-free guidance). ``height_power`` p shows samples as often as height**p says: tall pillars,
    in which light scatters many times, are what takes long to learn. ``sampling_steps`` is the bundle's default. ``channels`` are keys of
    further maps in the data that the network is conditioned on beside ``Rm`` and ``Tm``; see ``runtime.channels``.
    ``coupling`` says which noise a pattern is shown with: ``independent``, or ``shift`` for each pattern in that cyclic shift of it which
    lies nearest to the noise (``symmetry.nearest_shift``), with which fewer steps do and samplers should add no noise of their own.
    ``min_snr_gamma`` weights the timesteps of the denoising loss as arXiv 2303.09556 does (the paper takes 5); 0 weights all alike.
    ``target_noise`` is the relative standard deviation of Gaussian noise on the efficiencies a denoiser is shown, for targets that are
    measured. ``compile`` runs the network through ``torch.compile``, which is for GPUs: on a CPU it gained nothing. ``mix_share`` is the
    share of each batch that comes from the mixed-in data when a run is fine-tuned. ``training_samples`` above 0 trains on so many of the
    training part alone, the same ones for every seed and the fewer among the more: for learning curves.

    The layout ``labels`` is of images and points (``runtime.samples``): ``data`` is the set to take where none is named, ``classes`` the
    only classes of it, none for all, and with ``labelled`` the network is told each sample's class. ``canvas`` is then the side to which
    pictures in a folder are scaled, ``colours`` makes them ``grey`` or ``rgb`` (empty: as they are), ``mirrors`` swaps left and right and
    ``flips`` top and bottom, each in half of what is shown. With ``crop`` above 0 what is shown is a random square of the image, its side
    at least that share of the image's, scaled to the canvas. ``guidance_scale`` is the bundle's default.
    ``quick`` are the values of other fields that ``--quick`` takes.
    """

    name: str
    network: str
    network_arguments: dict[str, Any]
    layout: str
    canvas: int
    scheduler: dict[str, Any]
    sampling_scheduler: str
    sampling_steps: int
    batch_size: int
    lr: float
    epochs: int
    objective: str = "denoising"
    loss: str = "mse"
    optimizer: str = "adam"
    lr_schedule: str = "constant"
    warmup_steps: int = 0
    gradient_clip: float = 0.0
    ema_decay: float = 0.999
    precision: str = "fp32"
    mirrors: bool = False
    flips: bool = False
    crop: float = 0.0
    colours: str = ""
    masks: float = 0.0
    condition_dropout: float = 0.0
    height_power: float = 0.0
    coupling: str = "independent"
    guidance_scale: float = 1.0
    teacher_steps: int = 0
    min_snr_gamma: float = 0.0
    target_noise: float = 0.0
    compile: bool = False
    mix_share: float = 0.5
    validation_fraction: float = 0.08
    training_samples: int = 0
    seed: int = 0
    channels: list[str] = dataclasses.field(default_factory=list)
    data: str = ""
    classes: list[str] = dataclasses.field(default_factory=list)
    labelled: bool = False
    noise_sigma: float = 0.0
    quick: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def scheduled(self) -> bool:
        """Whether the network is told a timestep of a noise schedule."""
        return self.objective in ("denoising", "distillation")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


_SCHEDULER = {**LINEAR, "beta_schedule": "squaredcos_cap_v2"}

# How our own networks learn.
_LEARNING: dict[str, Any] = {
    "batch_size": 128,
    "lr": 1e-3,
    "optimizer": "adamw",
    "lr_schedule": "cosine",
    "warmup_steps": 200,
    "gradient_clip": 1.0,
    "ema_decay": 0.9995,
    "precision": "bf16",
    "mirrors": True,
    "validation_fraction": 0.03,
}

RECIPES = {
    # The seed paper's network, objective and hyper-parameters; integers in the condition, test-set statistics, unmapped patterns,
    # the untrained last timestep and the leaking evaluation are mended.
    "lab2023": Recipe(
        name="lab2023",
        network="lab2023",
        network_arguments={},
        layout="planes",
        canvas=32,
        scheduler={**_SCHEDULER, "prediction_type": "epsilon", "timestep_spacing": "leading"},
        sampling_scheduler="ddpm",
        sampling_steps=1000,
        batch_size=20,
        lr=3e-4,
        epochs=50,
    ),
    # Native grid, light in Fourier space, symmetry augmentation, partial targets, v-prediction.
    "default": Recipe(
        name="default",
        network="spectral",
        network_arguments={"channels": 64, "components": 32, "hidden": 96, "blocks": 8, "tokens": 64, "embedding": 192},
        layout="orders",
        canvas=0,
        scheduler={**_SCHEDULER, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        sampling_scheduler="dpmsolver++",
        sampling_steps=20,
        epochs=66,
        masks=0.25,
        condition_dropout=0.1,
        **_LEARNING,
    ),
    # 2 calls of 3 passes each in place of the 20 guided steps of the run it starts from; the network is that run's.
    "consistency": Recipe(
        name="consistency",
        network="spectral",
        network_arguments={"unrolled": {"passes": 3, "power": 2}},
        layout="orders",
        canvas=0,
        scheduler={**_SCHEDULER, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        sampling_scheduler="ddim",
        sampling_steps=2,
        epochs=12,
        objective="distillation",
        teacher_steps=12,
        loss="l1",
        guidance_scale=5.0,
        masks=0.25,
        **{**_LEARNING, "batch_size": 64, "lr": 3e-4, "ema_decay": 0.999},
    ),
    # Pattern and height -> R, T: what ranks candidates without a solver.
    "surrogate": Recipe(
        name="surrogate",
        network="surrogate",
        network_arguments={"channels": 64, "components": 48, "hidden": 128, "blocks": 6, "tokens": 32, "embedding": 128},
        layout="orders",
        canvas=0,
        scheduler={},
        sampling_scheduler="",
        sampling_steps=0,
        epochs=40,
        objective="scattering",
        loss="l1",
        **_LEARNING,
    ),
    **{name: Recipe(name=name, **fields) for name, fields in {**SAMPLE_RECIPES, **CLASS_RECIPES}.items()},
}


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name, or from a ``.json`` or ``.toml`` file, with fields overridden.

    A file may name a built-in recipe to start from in its field ``base``.

    Raises:
        DataError: unknown recipe, unknown field, or a value out of its choices.
    """
    if name in RECIPES:
        recipe = RECIPES[name]
    elif Path(name).suffix in (".json", ".toml"):
        recipe = _from_file(Path(name))
    else:
        raise DataError(f"there is no recipe '{name}'; choose {', '.join(RECIPES)} or name a .json or .toml file")
    return override(recipe, overrides or {}, "the command line")


def from_dict(fields: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from all its fields.

    Raises:
        DataError: unknown or missing field, or a value out of its choices.
    """
    needed = [f.name for f in dataclasses.fields(Recipe) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    missing = [name for name in needed if name not in fields]
    if missing:
        raise DataError(f"{where} lacks the field '{missing[0]}'; add it or name a 'base' recipe")
    unknown = sorted(set(fields) - {f.name for f in dataclasses.fields(Recipe)})
    if unknown:
        raise DataError(f"{where} has the unknown field '{unknown[0]}'")
    return override(Recipe(**dict(fields)), {}, where)


def _from_file(path: Path) -> Recipe:
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"the recipe {path} cannot be read ({error})") from None
    base = fields.pop("base", None)
    if base is None:
        return from_dict(fields, str(path))
    if base not in RECIPES:
        raise DataError(f"{path}: there is no recipe '{base}' to start from; choose {', '.join(RECIPES)}")
    return override(RECIPES[base], {"name": path.stem, **fields}, str(path))


def quick(recipe: Recipe, data: bool = False) -> Recipe:
    """The recipe with its quick settings; with ``data`` of its own named, without those that are of the quick settings' data.

    Raises:
        DataError: it has none.
    """
    if not recipe.quick:
        raise DataError(f"the recipe {recipe.name} has no quick settings; leave --quick out, or shorten it with --epochs")
    settings = {key: value for key, value in recipe.quick.items() if not (data and key in ("data", "classes", "mirrors"))}
    return override(recipe, settings, f"'quick' of the recipe {recipe.name}")


def override(recipe: Recipe, fields: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with other values in some fields; None leaves a field, and the tables ``scheduler`` and ``network_arguments`` are merged.

    Raises:
        DataError: unknown field, or a value of another kind or out of its choices; ``where`` says who wrote it.
    """
    fields = {key: value for key, value in fields.items() if value is not None}
    unknown = sorted(set(fields) - {f.name for f in dataclasses.fields(Recipe)})
    if unknown:
        raise DataError(f"{where} has the unknown recipe field '{unknown[0]}'")
    for key in ("scheduler", "network_arguments"):
        if isinstance(fields.get(key), Mapping):
            fields = {**fields, key: {**getattr(recipe, key), **fields[key]}}
    recipe = dataclasses.replace(recipe, **fields)
    check(recipe, where)
    return recipe
