"""What the fields of a recipe may hold, one by one and together."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from runtime.channels import fault
from runtime.errors import DataError
from runtime.pixels import COLOURS

if TYPE_CHECKING:
    from .recipes import Recipe

_CHOICES = {
    "objective": ("denoising", "distillation", "restoration", "scattering"),
    "loss": ("mse", "l1", "huber"),
    "optimizer": ("adam", "adamw", "muon"),
    "lr_schedule": ("constant", "cosine"),
    "coupling": ("independent", "shift"),
    "precision": ("fp32", "bf16", "fp16"),
    "layout": ("orders", "planes", "labels"),
    "colours": ("", *COLOURS),
}

# What a field of each annotation may hold; a bool is no number.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "dict[str, Any]": ((dict,), "a table"),
    "list[str]": ((list,), "a list of names"),
}
_POSITIVE = ("batch_size", "epochs", "lr")
_NOT_NEGATIVE = (
    *("warmup_steps", "gradient_clip", "min_snr_gamma", "target_noise", "guidance_scale"),
    *("training_samples", "seed", "canvas", "sampling_steps", "teacher_steps", "noise_sigma"),
)
_SHARES = ("masks", "condition_dropout", "ema_decay", "crop")
_PROPER_SHARES = ("validation_fraction", "mix_share")


def check(recipe: Recipe, where: str) -> None:
    """Refuse a recipe whose values are of another kind, out of their choices or bounds, or do not go together.

    Raises:
        DataError: ``where`` says who wrote it.
    """
    for field in dataclasses.fields(recipe):
        value, (kinds, words) = getattr(recipe, field.name), _KINDS[str(field.type)]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise DataError(f"{where}: '{field.name}' is {value!r}; expected {words}")
    for key, allowed in _CHOICES.items():
        if getattr(recipe, key) not in allowed:
            raise DataError(f"{where}: '{key}' is {getattr(recipe, key)!r}; choose {', '.join(allowed)}")
    wrong = fault(recipe.channels)
    if wrong:
        raise DataError(f"{where}: 'channels' {wrong}")
    if recipe.channels and (recipe.layout != "orders" or recipe.objective == "scattering"):
        what = "the layout 'planes' (lab2023)" if recipe.layout != "orders" else f"the objective '{recipe.objective}'"
        raise DataError(f"{where}: 'channels' names '{recipe.channels[0]}' and {what} has no place for further maps; leave 'channels' out")
    for names, holds, words in (
        (_POSITIVE, lambda value: 0 < value < math.inf, "above 0"),
        (_NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "0 or more"),
        (_SHARES, lambda value: 0 <= value <= 1, "from 0 to 1"),
        (_PROPER_SHARES, lambda value: 0 < value < 1, "above 0 and below 1"),
    ):
        for key in names:
            if not holds(getattr(recipe, key)):
                raise DataError(f"{where}: '{key}' is {getattr(recipe, key)}; it must be {words}")
    if recipe.masks + recipe.condition_dropout > 1:
        raise DataError(f"{where}: 'masks' and 'condition_dropout' are {recipe.masks} and {recipe.condition_dropout}; together at most 1")
    for key, objectives, words in (
        ("min_snr_gamma", ("denoising",), "denoising"),
        ("target_noise", ("denoising", "distillation"), "denoising"),
        ("teacher_steps", ("distillation",), "the objective 'distillation'"),
    ):
        if recipe.objective not in objectives and getattr(recipe, key):
            raise DataError(f"{where}: '{key}' is {getattr(recipe, key)}, which is for {words}; leave it at 0")
    if recipe.coupling != "independent" and (recipe.layout == "labels" or recipe.objective != "denoising"):
        raise DataError(f"{where}: 'coupling' is '{recipe.coupling}', which is for denoisers of metasurfaces; leave it 'independent'")
    if (recipe.objective == "restoration") != (recipe.noise_sigma > 0):
        words = (
            "which is for the objective 'restoration'; leave it at 0" if recipe.noise_sigma else "and the objective 'restoration'; set it"
        )
        raise DataError(f"{where}: 'noise_sigma' is {recipe.noise_sigma}, {words}")
    if recipe.objective == "distillation":
        if recipe.sampling_steps < 1 or recipe.teacher_steps < 1 or recipe.teacher_steps % recipe.sampling_steps:
            raise DataError(
                f"{where}: 'teacher_steps' is {recipe.teacher_steps} and 'sampling_steps' {recipe.sampling_steps}; each step "
                "learns as many of the teacher's, expected a multiple"
            )
        unrolled = recipe.network_arguments.get("unrolled", {"passes": 1})
        if not isinstance(unrolled, dict) or not isinstance(unrolled.get("passes"), int) or unrolled["passes"] < 1:
            raise DataError(f"{where}: 'network_arguments.unrolled' is {unrolled!r}; expected {{'passes': 1}}, or more of them in a call")
        unknown = sorted(set(unrolled) - {"passes", "power", "calls", "scheduler"})
        if unknown:
            raise DataError(f"{where}: 'network_arguments.unrolled' has the unknown field '{unknown[0]}'; it has passes and power")
        if unrolled["passes"] > 1 and "power" not in unrolled:
            # The table of a recipe file is taken whole in place of its base's, and passes of equal parts were never meant by silence.
            raise DataError(f"{where}: 'network_arguments.unrolled' has no 'power'; name it beside 'passes', 1 for equal parts")
        power, steps = unrolled.get("power", 1), recipe.teacher_steps
        if not isinstance(power, int | float) or not 1 <= power <= 4:
            raise DataError(f"{where}: 'network_arguments.unrolled.power' is {power!r}; expected a number from 1, equal parts, to 4")
        timesteps = unrolled.get("scheduler", recipe.scheduler).get("num_train_timesteps", 1000)
        if unrolled["passes"] == power == 1 and timesteps % recipe.sampling_steps:
            raise DataError(
                f"{where}: 'sampling_steps' is {recipe.sampling_steps} and the scheduler has {timesteps} timesteps; its parts "
                "have to be equal, expected a divisor"
            )
        for key, parts in (("teacher_steps", steps), ("network_arguments.unrolled.passes", recipe.sampling_steps * unrolled["passes"])):
            # The narrowest part, the first one, must be a timestep wide.
            if timesteps < parts**power:
                raise DataError(
                    f"{where}: '{key}' cuts the {timesteps} timesteps of the scheduler into {parts} parts by the power {power:g}, of which "
                    "the first is narrower than one; take fewer, or a lower power"
                )
        if recipe.layout != "orders" and recipe.guidance_scale != 1:
            raise DataError(f"{where}: 'guidance_scale' is {recipe.guidance_scale}; a network without a mask is not guided, leave it at 1")
    _check_labels(recipe, where)


def _check_labels(recipe: Recipe, where: str) -> None:
    """What the layout ``labels`` has and what only it has."""
    if recipe.layout != "labels":
        if recipe.objective == "restoration":
            raise DataError(f"{where}: the objective is 'restoration' and the layout '{recipe.layout}'; images have the layout 'labels'")
        for key in ("data", "classes", "labelled", "quick", "flips", "crop", "colours"):
            if getattr(recipe, key):
                raise DataError(f"{where}: '{key}' is {getattr(recipe, key)!r}, which is for the layout 'labels'; leave it out")
        if recipe.guidance_scale != 1 and recipe.objective != "distillation":
            raise DataError(
                f"{where}: 'guidance_scale' is {recipe.guidance_scale}; of metasurfaces it is stated when exporting, leave it at 1"
            )
        return
    if recipe.objective not in ("denoising", "restoration"):
        raise DataError(f"{where}: the objective is '{recipe.objective}' and the layout 'labels'; expected 'denoising' or 'restoration'")
    if recipe.objective == "restoration":
        for key in ("labelled", "scheduler", "sampling_scheduler", "sampling_steps"):
            if getattr(recipe, key):
                raise DataError(
                    f"{where}: '{key}' is {getattr(recipe, key)!r} and a network that denoises in one step has none; leave it out"
                )
    for key in ("masks", "height_power", "target_noise"):
        if getattr(recipe, key):
            raise DataError(f"{where}: '{key}' is {getattr(recipe, key)}, which is for metasurfaces; leave it at 0")
    if recipe.crop and not recipe.canvas:
        raise DataError(f"{where}: 'crop' is {recipe.crop} and 'canvas' 0; state the side in pixels that cut-outs are scaled to")
    guided = recipe.condition_dropout or recipe.guidance_scale != 1
    if guided and not recipe.labelled:
        raise DataError(f"{where}: 'condition_dropout' and 'guidance_scale' need a network that is told the class; set 'labelled' to true")
