"""The network of a bundle back in PyTorch, and the loop a user of diffusers would write around it: what the runtime is measured against."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn

from runtime.bundle import Bundle
from runtime.errors import BundleError
from runtime.sampler import Sampler
from runtime.schedulers import SCHEDULERS
from train import networks
from train.recipes import RECIPES, from_dict

MODES = ("eager", "eager, encoder in every step", "eager, bf16 autocast", "compiled")
BOUND = 1e-4  # largest difference of one network call, relative to the larger of 1 and the largest output

Arrays = Mapping[str, np.ndarray]


def build(bundle: Bundle) -> nn.Module:
    """The bundle's network as its recipe describes it, in its pattern size and number of orders, with fresh weights."""
    manifest = bundle.manifest
    recipe = from_dict(manifest["recipe"], str(bundle.path))
    size = {} if recipe.layout == "planes" else {"size": manifest["pattern_size"], "orders": bundle.condition.orders}
    return networks.build(recipe.network, {**recipe.network_arguments, **size}).eval()


def from_bundle(bundle: Bundle) -> nn.Module:
    """The bundle's network in PyTorch, its weights taken from the initializers of the fp32 ONNX files.

    The exporter keeps the names of parameters, but for those of normalisations: ONNX has no scale and shift per channel there, so they
    are the Mul and the Add that follow each InstanceNormalization. They are assigned in the order in which both sides evaluate them.

    Raises:
        BundleError: a parameter that is not in the files, or there in another shape.
    """
    import onnx
    from onnx import numpy_helper

    network = build(bundle)
    found: dict[str, np.ndarray] = {}
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for name in ("encoder", "denoiser"):
        entry = bundle.manifest["networks"].get(name)
        if entry is None:
            continue
        graph = onnx.load_from_string(bundle.read(entry["files"]["fp32"])).graph
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        found.update({key.removeprefix("network."): value for key, value in values.items()})
        pairs += _scales_and_shifts(graph.node, values)
    for key, (scale, shift) in zip(_norms(network, bundle), pairs, strict=False):  # what is left over is found missing below
        found |= {f"{key}.weight": scale.reshape(-1), f"{key}.bias": shift.reshape(-1)}
    state = {}
    for key, parameter in network.state_dict().items():
        if key not in found or found[key].shape != tuple(parameter.shape):
            there = f"there in shape {found[key].shape}" if key in found else "not there"
            raise BundleError(f"the ONNX files of {bundle.path} should hold '{key}' {tuple(parameter.shape)}; it is {there}")
        state[key] = torch.from_numpy(found[key].copy())
    network.load_state_dict(state)
    return network


def _scales_and_shifts(nodes: Any, values: Arrays) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What each InstanceNormalization's output is multiplied with and what is added then, in the order of the graph."""
    for node in nodes:
        if node.op_type != "InstanceNormalization":
            continue
        name, pair = node.output[0], []
        for kind in ("Reshape", "Mul", "Add"):
            node = next((n for n in nodes if n.op_type == kind and name in n.input), None)
            if node is None:
                break
            pair += [values[key] for key in node.input if key != name and key in values and kind != "Reshape"]
            name = node.output[0]
        if len(pair) == 2:
            yield pair[0], pair[1]


@torch.inference_mode()
def _norms(network: nn.Module, bundle: Bundle) -> list[str]:
    """The names of the GroupNorm modules in the order in which a call of the network evaluates them."""
    order: list[str] = []
    norms = [(key, module) for key, module in network.named_modules() if isinstance(module, nn.GroupNorm)]
    hooks = [module.register_forward_hook(lambda *_, key=key: order.append(key)) for key, module in norms]
    condition = bundle.condition.nothing()
    network(torch.zeros(1, *bundle.manifest["sample_shape"]), torch.zeros(1, dtype=torch.int64), *tensors(condition).values())
    for hook in hooks:
        hook.remove()
    return order


@torch.inference_mode()
def differences(network: nn.Module, sampler: Sampler, condition: Arrays) -> dict[str, float]:
    """Largest relative differences (see ``BOUND``) between PyTorch and the runtime, by output, for a batch of 4.

    Raises:
        BundleError: one is above ``BOUND``: whatever would be timed then is not the same network.
    """
    rng = np.random.default_rng(0)
    arrays = {key: np.repeat(value, 4, axis=0) for key, value in condition.items()}
    expected = [value.numpy() for value in encode(network, tensors(arrays)).values()]
    encoded = sampler.encode(arrays)
    inputs = {
        "sample": rng.standard_normal((4, *sampler.bundle.manifest["sample_shape"]), dtype=np.float32),
        "timestep": np.array([0, 333, 666, 999]),
    }
    found = {**encoded, **sampler.networks["denoiser"]({**inputs, **encoded})}
    given = tensors(inputs)
    denoised = denoiser(network)(given["sample"], given["timestep"], *tensors(encoded).values()).numpy()
    result = {
        key: float(np.abs(value - wanted).max() / max(1.0, np.abs(wanted).max()))
        for (key, value), wanted in zip(found.items(), [*expected, denoised], strict=True)
    }
    worst = max(result.values())
    if not worst <= BOUND:
        raise BundleError(
            f"PyTorch with the weights of {sampler.bundle.path} differs from the runtime by {worst:.1e}, more than {BOUND:.0e}"
        )
    return result


def tensors(arrays: Arrays, device: str = "cpu") -> dict[str, torch.Tensor]:
    """NumPy arrays on a device."""
    return {key: torch.from_numpy(np.ascontiguousarray(value)).to(device) for key, value in arrays.items()}


def denoiser(network: Any) -> Any:
    """What is evaluated in every step: all of the network where it has no part that sees the condition alone."""
    return network.denoise if hasattr(network, "encode") else network


def encode(network: Any, condition: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the denoiser takes beside sample and timestep."""
    if not hasattr(network, "encode"):
        return condition
    return dict(zip(("context", "embedding"), network.encode(*condition.values()), strict=True))


def start_noise(shape: tuple[int, ...], n: int, seed: int) -> np.ndarray:
    """The runtime's noise of candidates 0 to n - 1, (n, *shape) float32: Philox with the key (seed, candidate)."""
    generators = [np.random.Generator(np.random.Philox(key=[seed, candidate])) for candidate in range(n)]
    return np.stack([generator.standard_normal(shape, dtype=np.float32) for generator in generators])


def scheduler(config: Mapping[str, Any], word: str) -> Any:
    """diffusers' own scheduler for a word of the runtime's, from the config in the bundle."""
    return getattr(diffusers, SCHEDULERS[word].class_name).from_config(dict(config))


class MetasurfacePipeline(diffusers.DiffusionPipeline):
    """A custom pipeline in the form diffusers' documentation gives.

    Args:
        network: a module of ``train.networks``.
        scheduler: one of diffusers' schedulers.
    """

    network: Any
    scheduler: Any

    def __init__(self, network: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(network=network, scheduler=scheduler)
        self.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def __call__(
        self,
        condition: dict[str, torch.Tensor],
        sample: torch.Tensor,
        num_inference_steps: int,
        *,
        unconditional: dict[str, torch.Tensor] | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, float("inf")),
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        encode_once: bool = True,
        only_steps: int | None = None,
    ) -> np.ndarray:
        """The samples (n, channels, height, width) float32.

        Args:
            condition, unconditional: the network's inputs beside sample and timestep, batch of 1.
            sample: start noise, (n, channels, height, width).
            guidance_scale, guidance_interval: as in :mod:`runtime.loop`; 1 is no guidance.
            encode_once: False calls the whole network, encoder included, in every step.
            only_steps: end after so many steps, to time a long run by its beginning.
        """
        n = len(sample)
        self.scheduler.set_timesteps(num_inference_steps, device=sample.device)
        sample = sample * self.scheduler.init_noise_sigma
        parts = [condition] if guidance_scale == 1 or unconditional is None else [unconditional, condition]
        call = denoiser(self.network) if encode_once else self.network
        encoded = [encode(self.network, part) if encode_once else part for part in parts]
        single = [value.repeat_interleave(n, dim=0) for value in encoded[-1].values()]
        double = [torch.cat([part[key].repeat_interleave(n, dim=0) for part in encoded]) for key in encoded[0]]
        # DDIM's; see runtime.schedulers.samplers.ddim for the second.
        options = {"eta": eta, "use_clipped_model_output": True} if "eta" in inspect.signature(self.scheduler.step).parameters else {}
        low, high = guidance_interval
        for t in self.progress_bar(self.scheduler.timesteps[:only_steps]):
            model_input = self.scheduler.scale_model_input(sample, t)
            if len(parts) == 2 and low <= self._noise_level(t) <= high:
                without, asked = call(torch.cat([model_input] * 2), t.expand(2 * n), *double).chunk(2)
                output = without + guidance_scale * (asked - without)
            else:
                output = call(model_input, t.expand(n), *single)
            sample = self.scheduler.step(output, t, sample, generator=generator, **options).prev_sample
        return sample.float().cpu().numpy()

    def _noise_level(self, t: torch.Tensor) -> float:
        """sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod) at a timestep."""
        level = self.scheduler.alphas_cumprod[int(t)].item()
        return ((1 - level) / level) ** 0.5


class Contender:
    """diffusers' pipeline with a bundle's network and default settings.

    Args:
        mode: a word of ``MODES``. ``eager`` runs the encoder once for a target, which is how one would do it who knows.
        weights: state dict of the network.
        device: of PyTorch.
    """

    def __init__(self, bundle: Bundle, weights: dict[str, torch.Tensor], mode: str = "eager", device: str = "cpu") -> None:
        network: Any = build(bundle)
        network.load_state_dict(weights)
        network.to(device)
        if mode == "compiled":
            if hasattr(network, "encode"):
                network.denoise = torch.compile(network.denoise, fullgraph=True, dynamic=False)
            else:
                network.compile(fullgraph=True, dynamic=False)
        self._bundle, self._mode, self._device = bundle, mode, device
        settings = bundle.manifest["sampling"]
        self._pipeline = MetasurfacePipeline(network, scheduler(bundle.json("scheduler_config.json"), settings["scheduler"]))

    def sample(self, condition: Arrays, n: int, seed: int = 0) -> np.ndarray:
        """n samples from the noise that the runtime starts from, (n, *sample_shape) float32."""
        settings = self._bundle.manifest["sampling"]
        scale, interval = settings["guidance_scale"], settings.get("guidance_interval")
        noise = start_noise(tuple(self._bundle.manifest["sample_shape"]), n, seed)
        free = tensors(self._bundle.condition.unconditional(condition), self._device) if scale != 1 else None
        with torch.autocast(self._device, torch.bfloat16, enabled=self._mode == "eager, bf16 autocast"):
            return self._pipeline(
                tensors(condition, self._device),
                torch.from_numpy(noise).to(self._device),
                settings["steps"],
                unconditional=free,
                guidance_scale=scale,
                guidance_interval=tuple(interval) if interval else (0.0, float("inf")),
                eta=settings.get("eta", 0.0),
                generator=torch.Generator(self._device).manual_seed(seed),
                encode_once=self._mode != "eager, encoder in every step",
            )


class SeedContender:
    """The seed's way: its UNet on 32 x 32 with random weights (they do not change the time), DDPM, all 1000 steps."""

    STEPS = 1000

    def __init__(self, only_steps: int) -> None:
        recipe = RECIPES["lab2023"]
        torch.manual_seed(0)
        network = networks.build(recipe.network, recipe.network_arguments).eval()
        self._pipeline, self._side, self._only = (
            MetasurfacePipeline(network, scheduler(recipe.scheduler, "ddpm")),
            recipe.canvas,
            only_steps,
        )

    def sample(self, n: int, seed: int = 0) -> np.ndarray:
        """Take the first steps of n samples."""
        noise = torch.from_numpy(start_noise((1, self._side, self._side), n, seed))
        planes = {"planes": torch.zeros(1, 3, self._side, self._side)}
        return self._pipeline(planes, noise, self.STEPS, generator=torch.Generator().manual_seed(seed), only_steps=self._only)
