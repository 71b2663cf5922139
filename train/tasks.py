"""What differs between the systems that the one loop trains: metasurfaces, and images or points."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime import data as cells
from runtime import labels, pixels, samples
from runtime.condition import Condition
from runtime.data import DataSet
from runtime.errors import DataError
from runtime.labels import Labels
from runtime.samples import SampleSet
from runtime.search import canonical

from .recipes import Recipe

Data = DataSet | SampleSet
Conditioning = Condition | Labels


def load(source: str | Path, recipe: Recipe, convention: str = "lab") -> Data:
    """The data set ``source`` as the recipe's network needs it; ``convention`` is of the lab's files. Raises DataError."""
    if recipe.layout != labels.LAYOUT:
        return cells.load(source, convention, extra=recipe.channels)
    found = samples.load(source, pixels.size_for(recipe.canvas, recipe.crop), pixels.COLOURS.get(recipe.colours, 0))
    if recipe.labelled and not found.classes:
        raise DataError(f"the recipe {recipe.name} is told each sample's class and {source} has none; name data with classes")
    if recipe.objective == "restoration" and (found.x.dtype != np.uint8 or found.shape[1:] == (1, 1)):
        what = "points" if found.shape[1:] == (1, 1) else str(found.x.dtype)
        raise DataError(f"the recipe {recipe.name} denoises images of 8 bits and {source} holds {what}; name pictures, or an .npz of uint8")
    return found.only(recipe.classes) if recipe.classes else found


def fitted(recipe: Recipe, data: Data) -> Recipe:
    """The recipe with its network made for the data: patterns (n x n) and order maps (2M+1 x 2M+1), or samples and classes.

    Raises:
        DataError: the recipe states another size, or its canvas is too small.
    """
    if isinstance(data, SampleSet):
        shape = [data.shape[0], recipe.canvas, recipe.canvas] if recipe.crop else list(data.shape)
        return _stated(recipe, {"shape": shape, "classes": len(data.classes) if recipe.labelled else 0})
    n, side = data.xx.shape[-1], data.Rm.shape[-1]
    if recipe.layout == "planes":
        if max(n, side) > recipe.canvas:
            raise DataError(
                f"patterns of {n} x {n} with order maps of {side} x {side} do not fit the canvas of {recipe.canvas}; raise 'canvas'"
            )
        return recipe
    maps = {"maps": 2 + len(recipe.channels)} if recipe.channels or "maps" in recipe.network_arguments else {}
    return _stated(recipe, {"size": n, "orders": side // 2, **maps})


def whole(recipe: Recipe, data: Data) -> Data:
    """The data as the network sees them where nothing is cut out of them: images of a recipe that crops, scaled to its canvas."""
    if not recipe.crop or not isinstance(data, SampleSet):
        return data
    return dataclasses.replace(data, x=pixels.scaled(data.x, recipe.canvas))


def _stated(recipe: Recipe, arguments: Mapping[str, Any]) -> Recipe:
    for name, value in arguments.items():
        stated = recipe.network_arguments.get(name, value)
        if stated != value:
            raise DataError(f"the recipe's network has {name} {stated} and the data have {value}; leave '{name}' out of network_arguments")
    return dataclasses.replace(recipe, network_arguments={**recipe.network_arguments, **arguments})


def measure(recipe: Recipe, part: Data) -> Conditioning:
    """The condition constants of a training part."""
    if isinstance(part, SampleSet):
        # Noise is stated where black is 0 and white is 1, and that is what the network sees.
        return Labels((), 0.0, 255.0) if recipe.objective == "restoration" else part.labels(recipe.labelled)
    conditioning = recipe.network_arguments.get("conditioning", "concatenated")
    return Condition.measure(recipe.layout, part.Rm, part.Tm, part.h, recipe.canvas, conditioning, part.extra)


def conditioning(fields: Mapping[str, Any]) -> Conditioning:
    """Condition constants from a run's condition.json. Raises BundleError."""
    return Labels.from_dict(fields) if fields.get("layout") == labels.LAYOUT else Condition.from_dict(fields)


def identities(data: Data) -> Iterator[bytes]:
    """What tells each sample from the others: of a cell its pattern modulo cyclic shifts and its height."""
    if isinstance(data, SampleSet):
        yield from data.identities()
        return
    for pattern, height in zip(canonical(data.xx), data.h, strict=True):
        yield np.packbits(pattern).tobytes() + np.float32(height).tobytes()


def contents(data: Data) -> list[np.ndarray]:
    """The arrays that make up a data set."""
    if isinstance(data, SampleSet):
        return [data.x, data.label]
    return [data.xx, data.h, data.Rm, data.Tm, *(data.extra[key] for key in sorted(data.extra))]


def facts(recipe: Recipe, data: Data) -> dict[str, Any]:
    """What a run's data.json says of the samples."""
    if isinstance(data, SampleSet):
        return {"sample_shape": list(recipe.network_arguments.get("shape", data.shape))}
    channels = {"channels": data.channel_geometries()} if data.extra else {}
    return {"pattern_size": int(data.xx.shape[-1]), "geometry": data.geometry.to_dict(), **channels}


def inputs(recipe: Recipe) -> list[str]:
    """The names of what the recipe's network is called with."""
    if recipe.objective == "scattering":
        return ["pattern", "height_nm"]
    if recipe.objective == "restoration":
        return ["sample"]
    told = {"planes": ["planes"], "orders": ["light", "height"], labels.LAYOUT: ["label"]}
    return ["sample", "timestep", *told[recipe.layout]]
