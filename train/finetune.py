"""Starting from the weights of another run: what has to agree, and what is taken over."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runtime.channels import label
from runtime.data import DataSet
from runtime.errors import BundleError, DataError, GeometryError
from runtime.geometry import Geometry
from runtime.labels import Labels
from runtime.samples import SampleSet

from . import checkpoint, tasks
from .channels import geometry_difference
from .distillation import taught_schedule
from .networks import unrolled
from .recipes import Recipe, from_dict, load_recipe, override, quick

# Heights may lie outside the first run's range by this share of it: its own validation samples do, and a network does not stop there.
_BEYOND = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """A run to start from: its recipe, condition constants, geometry, those of further maps by NAME, and newest EMA weights."""

    path: Path
    recipe: Recipe
    condition: tasks.Conditioning
    geometry: Geometry | None
    geometries: Mapping[str, Geometry]

    @classmethod
    def open(cls, path: Path) -> Start:
        """Read a run folder that has a checkpoint.

        Raises:
            DataError: it is none, or is damaged.
        """
        start = cls.read(path)
        checkpoint.state_of(checkpoint.latest(path))
        return start

    @classmethod
    def read(cls, path: Path) -> Start:
        """Read a run folder, whether or not it has a checkpoint. Raises DataError as :meth:`open` does."""
        try:
            condition = tasks.conditioning(read_json(path / "condition.json"))
            facts = read_json(path / "data.json")
            geometry = None if isinstance(condition, Labels) else Geometry.from_dict(facts["geometry"])
            stated = {label(name): fields for name, fields in facts.get("channels", {}).items() if fields is not None}
            geometries = {name: Geometry.from_dict(fields) for name, fields in stated.items() if name is not None}
        except (KeyError, TypeError, BundleError, GeometryError) as error:
            raise DataError(f"{path} is no whole run folder ({error}); name the folder that 'cli.py train --out' wrote") from None
        return cls(path, recipe_of(path), condition, geometry, geometries)

    def check(self, recipe: Recipe, data: tasks.Data, source: str) -> None:
        """See that ``recipe``, made for ``data``, can go on from this run.

        Raises:
            DataError: another architecture or another cell, or heights that the network was never shown.
        """
        pairs = [(name, getattr(self.recipe, name), getattr(recipe, name)) for name in ("network", "layout", "canvas", "channels")]
        mine, theirs = self.recipe.network_arguments, recipe.network_arguments
        if recipe.objective == "distillation":
            mine, theirs = taught(mine), taught(theirs)
        pairs += [(f"network_arguments.{name}", mine.get(name), theirs.get(name)) for name in sorted({*mine, *theirs})]
        pairs += [(f"scheduler.{name}", self.recipe.scheduler.get(name), recipe.scheduler.get(name)) for name in ("prediction_type",)]
        for name, before, now in pairs:
            if before != now:
                raise DataError(
                    f"{self.path} was trained with '{name}' {before!r} and this recipe has {now!r}; leave --recipe out to take over its own"
                )
        if isinstance(self.condition, Labels):
            assert isinstance(data, SampleSet), "of one layout"
            if recipe.labelled and data.classes != self.condition.classes:
                raise DataError(f"{source} has the classes {', '.join(data.classes)} and {self.path} {', '.join(self.condition.classes)}")
            return
        assert isinstance(data, DataSet)
        assert self.geometry is not None
        if data.Rm.shape[-1] // 2 != self.condition.orders:
            raise DataError(
                f"{source} has order maps up to {data.Rm.shape[-1] // 2} and {self.path} on orders up to {self.condition.orders}"
            )
        difference = geometry_difference(data, self.geometry, self.geometries)
        if difference:
            raise DataError(f"{source} has another geometry than {self.path} ({difference}); start from a run of the same geometry")
        low, high = self.condition.height_range_nm
        slack = _BEYOND * (high - low)
        if data.h.min() < low - slack or data.h.max() > high + slack:
            raise DataError(
                f"{source} has heights of {data.h.min():g} to {data.h.max():g} nm and {self.path} was trained on {low:g} to {high:g} nm; "
                "leave out the samples beyond"
            )

    def facts(self) -> dict[str, Any]:
        """For the run's data.json and the model card."""
        return {"run": self.path.resolve().name, "steps": checkpoint.step_of(checkpoint.latest(self.path))}


def load_into(network: nn.Module, path: Path) -> None:
    """Give ``network`` the newest EMA weights of the run ``path``.

    Raises:
        DataError: the weights are damaged, or are of another network.
    """
    newest = checkpoint.latest(path)
    try:
        network.load_state_dict(checkpoint.load_weights(newest))
    except RuntimeError as error:
        reason = checkpoint.misfit(error)
        raise DataError(f"the weights of {newest} do not fit the recipe's network ({reason}); name another run") from None


def teacher_weights(path: Path) -> dict[str, torch.Tensor]:
    """From whom a few-step model learns that starts from the run ``path``: that run's own weights, or its teacher's. Raises DataError."""
    if recipe_of(path).objective == "distillation":
        return checkpoint.load_weights(path, "teacher")
    return checkpoint.load_weights(checkpoint.latest(path))


def recipe_for(
    name: str | None, resumed: Path | None, init: Path | None, overrides: Mapping[str, Any], hurry: bool = False, data: bool = False
) -> Recipe:
    """The recipe a command means: the one named, else that of the run it goes on with or starts from, else ``default``.

    A few-step model has the network and the noise schedule of the run it learns from, whatever its recipe says of them; but it may make
    several passes in a call, of whose path the schedule is then (``unrolled.retimed``), its timesteps are spaced ``trailing``, and samples
    are clipped at the end alone.
    Where it starts from another few-step model, it goes on learning from the teacher of that one.
    ``hurry`` takes the quick settings of a recipe that is named, but for their data where ``data`` are named as well.

    Raises:
        DataError: no such recipe, quick settings of none, a few-step model without a run to learn from, or another recipe that is to start
            from one.
    """
    before = resumed if resumed is not None and (resumed / "recipe.json").exists() else init
    taken = None if before is None else recipe_of(before)
    if name is None and taken is not None:
        if hurry:
            raise DataError(f"{before} has its own settings, and --quick is of a recipe; name the --recipe, or shorten the run by --epochs")
        return override(taken, overrides, "the command line")
    recipe = load_recipe(name or "default")
    recipe = override(quick(recipe, data) if hurry else recipe, overrides, "the command line")
    if recipe.objective != "distillation":
        if taken is not None and taken.objective == "distillation" and before == init:
            raise DataError(
                f"{before} holds a few-step model, which has its guidance in it, and the recipe {recipe.name} would teach it another; "
                "name the run it learnt from with --init"
            )
        return recipe
    if taken is None:
        raise DataError(f"the recipe {recipe.name} learns from a trained model; name its run with --init")
    if taken.objective == "scattering":
        raise DataError(f"{before} holds a surrogate, which samples nothing; name the run of a denoiser with --init")
    kept = {key: getattr(taken, key) for key in ("network", "layout", "canvas", "channels")}
    # A step of the sampler has to begin where the one before arrived, the first at the last timestep.
    scheduler = {**taught_schedule(taken), "clip_sample": False, "timestep_spacing": "trailing"}
    arguments, asked = taught(taken.network_arguments), recipe.network_arguments
    passes, power = unrolled.passes(asked), unrolled.power(asked)
    if passes > 1 or power != 1:
        if taken.network != "spectral" or scheduler.get("prediction_type") != "v_prediction":
            raise DataError(
                f"{before} has the network '{taken.network}', and only 'spectral' with the prediction_type 'v_prediction' makes {passes} "
                f"passes in a call and cuts its path by the power {power:g}; set network_arguments.unrolled to {{ passes = 1 }} in a "
                "recipe file"
            )
        arguments[unrolled.ARGUMENT] = {"scheduler": scheduler, "calls": recipe.sampling_steps, "passes": passes, "power": power}
        scheduler = unrolled.retimed(scheduler, recipe.sampling_steps * passes, power)
    return override(
        dataclasses.replace(recipe, **kept, network_arguments=arguments, scheduler=scheduler), {}, f"the recipe {recipe.name} for {before}"
    )


def taught(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The network's arguments of who teaches a few-step model with these: the same ones, and one pass in a call."""
    return {key: value for key, value in arguments.items() if key != unrolled.ARGUMENT}


def recipe_of(path: Path) -> Recipe:
    """The recipe of a run folder. Raises DataError where there is none."""
    fields = read_json(path / "recipe.json")
    if not isinstance(fields, dict):
        raise DataError(f"{path / 'recipe.json'} holds no recipe; name the folder that 'cli.py train --out' wrote")
    return from_dict(fields, str(path / "recipe.json"))


def read_json(path: Path) -> Any:
    """A JSON file of a run.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; name the folder that 'cli.py train --out' wrote") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
