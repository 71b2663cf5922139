"""Bundle -> run folder, the way back from ``export``: a laboratory that has a bundle alone fine-tunes from there.

An ONNX file keeps most parameters under their names, but the exporter folds some: reshaped, transposed, under a number. So the same
network with random parameters is exported again and the two files are laid side by side: where a random parameter went, the bundle's own
came from. What was read back has to give the bundle's golden outputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from runtime.bundle import Bundle
from runtime.errors import BundleError, DataError
from runtime.files import atomic_directory, write_json
from runtime.selftest import TOLERANCE, difference
from train import checkpoint, networks
from train.networks.surrogate import Surrogate
from train.recipes import from_dict

from .onnx import EXAMPLE_BATCH, Part, parts, restorer_part, surrogate_part, to_onnx

Say = Callable[[str], None]
NETWORKS = ("denoiser", "surrogate")


def unpack(bundle: Bundle, out: Path, which: str = "denoiser", say: Say = lambda _: None) -> Path:
    """Write the network ``which`` of ``bundle`` as a run folder to start from with ``--init``, and return its checkpoint.

    The optimiser's state and the training samples are not in a bundle, so such a run can be neither resumed nor, if it is a denoiser,
    exported again untrained.

    Raises:
        BundleError: the bundle has no such network or a few-step model, another exporter made it, or what was read back gives other
            outputs.
        DataError: ``out`` is there already.
    """
    if out.exists():
        raise DataError(f"{out} is there already; name a new folder with --out")
    manifest = bundle.manifest
    entry = manifest if which == "denoiser" else manifest.get("surrogate")
    if entry is None:
        raise BundleError(f"the bundle {bundle.path} has no surrogate; leave --network out for its denoiser")
    history = dict(entry["training"])
    recipe = from_dict(entry["recipe"], str(bundle.path / "manifest.json"))
    if recipe.objective == "distillation":
        raise BundleError(
            f"{bundle.path} holds a few-step model without its teacher, so no training goes on from it; unpack its teacher's bundle"
        )
    network = networks.build(recipe.network, recipe.network_arguments)
    if isinstance(network, Surrogate):
        network.measure(bundle.condition)
    made = _parts(network, which, bundle)
    _randomize(network)
    parameters = dict(network.named_parameters())
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for name, part in made.items():
        say(f"reading back {name}.onnx")
        pairs += _pairs(to_onnx(part), bundle.network(name, "fp32"), f"{bundle.path / name}.onnx")
    found = _read_back(parameters, pairs)
    if isinstance(network, Surrogate):
        found |= _factors(network, pairs)
    lost = next((name for name in parameters if name not in found), None)
    if lost is not None:
        raise BundleError(f"the exporter made something else of the weights '{lost}' of {bundle.path}; it cannot be unpacked")
    network.load_state_dict({**network.state_dict(), **found})
    _require_golden(made, bundle)
    with atomic_directory(out) as work:
        facts = {key: history[key] for key in ("data", "training_samples", "validation_samples", "digest", "init", "mix") if key in history}
        shape: dict[str, Any] = {"sample_shape": manifest["sample_shape"]}
        if bundle.designs:
            shape = {"pattern_size": manifest["pattern_size"], "geometry": manifest["geometry"]}
            shape |= {"channels": manifest["channels"]} if "channels" in manifest else {}
        write_json(work / "data.json", {**facts, **shape})
        write_json(work / "condition.json", bundle.conditioning.to_dict())
        write_json(work / "machine.json", history["machine"])
        if recipe.scheduled:
            (work / "scheduler_config.json").write_bytes(bundle.read("scheduler_config.json"))
        row = {"step": history["steps"], "epoch": history["epochs"], **{k: history[k] for k in ("loss", "validation_loss", "seconds")}}
        (work / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        state = network.state_dict()
        checkpoint.save(work, int(history["steps"]), state, state, {"state": {}, "param_groups": []})
        write_json(work / "recipe.json", recipe.to_dict())
    return checkpoint.latest(out)


def _parts(network: nn.Module, which: str, bundle: Bundle) -> dict[str, Part]:
    if which == "surrogate":
        return surrogate_part(network, int(bundle.manifest["pattern_size"]))
    shape = tuple(bundle.manifest["sample_shape"])
    if bundle.restores:
        return restorer_part(network, shape)
    nothing = bundle.conditioning.nothing().items()
    return parts(network, shape, {key: torch.from_numpy(np.repeat(value, EXAMPLE_BATCH, axis=0)) for key, value in nothing})


def _randomize(network: nn.Module) -> None:
    """No two parameters, nor two of their elements in order, shall be alike."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=draws) + 0.5)


def _pairs(template: bytes, content: bytes, where: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The constants of ``template``, the ONNX file of random parameters, each with the bundle's own in its place."""
    drawn, own = (onnx.load_from_string(file).graph.initializer for file in (template, content))
    if [(t.name, t.dims, t.data_type) for t in drawn] != [(t.name, t.dims, t.data_type) for t in own]:
        raise BundleError(
            f"{where} was written by another version of the exporter, or for another network; install the versions that its manifest names"
        )
    return [(numpy_helper.to_array(t), numpy_helper.to_array(o)) for t, o in zip(drawn, own, strict=True)]


def _read_back(parameters: Mapping[str, nn.Parameter], pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    """The bundle's values of those parameters that are constants, whatever their shape there."""
    found = {}
    for random, value in pairs:
        for name, parameter in parameters.items():
            wanted = parameter.detach().numpy()
            if random.size == wanted.size and np.array_equal(random.ravel(), wanted.ravel()):
                found[name] = torch.from_numpy(value.reshape(wanted.shape).copy())
            elif random.size == wanted.size and wanted.ndim == 2 and np.array_equal(random.ravel(), wanted.T.ravel()):
                found[name] = torch.from_numpy(value.reshape(wanted.T.shape).T.copy())
    return found


@torch.no_grad()
def _factors(network: Surrogate, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    """The surrogate's ``position`` and the weights of what reads it, of which the file holds the products alone.

    Any factors of that product make the same network; these are of its singular value decomposition, shared out evenly.
    """
    readers = [f"gates.{k}.light" for k in range(len(network.gates))] + ["place"]
    products = []
    for name in readers:
        drawn = network.get_submodule(name)(network.position).numpy()
        own = [value for random, value in pairs if random.shape == drawn.shape and np.allclose(random, drawn, rtol=1e-4)]
        if len(own) != 1:
            raise BundleError(f"the exporter made something else of the surrogate's weights '{name}.weight'; it cannot be unpacked")
        products.append(own[0][0].astype(np.float64))
    tokens = network.position.shape[1]
    left, strength, right = np.linalg.svd(np.concatenate(products), full_matrices=False)
    root = np.sqrt(strength[:tokens])
    weights = np.split(left[:, :tokens] * root, np.cumsum([len(product) for product in products])[:-1])
    made = {f"{name}.weight": weight[:, :, None] for name, weight in zip(readers, weights, strict=True)}
    made["position"] = (root[:, None] * right[:tokens])[None]
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in made.items()}


def _require_golden(made: Mapping[str, Part], bundle: Bundle) -> None:
    golden = bundle.arrays("golden.npz")
    for name, part in made.items():
        found = part({key: torch.from_numpy(golden[f"{name}.in.{key}"]) for key in part.inputs})
        outputs = {key: golden[f"{name}.out.{key}"] for key in found}
        relative, _ = difference({key: value.numpy() for key, value in found.items()}, outputs)
        if not relative <= TOLERANCE["fp32"]:
            raise BundleError(f"the {name} read back from {bundle.path} differs from its golden outputs by {relative:.1e}; report this")
