"""How far engines and precisions are from PyTorch in fp32: the networks alone, along a trajectory, and in what comes out of it.

Everything is measured on the run's own calibration samples: the networks on training samples noised to every part of the schedule; what
comes out in :mod:`.yardsticks`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from runtime.backends import BACKENDS, Choice, Model, Network, Signature, candidates, open_networks
from runtime.loop import Guidance, NotFinite, denoise
from runtime.schedulers import Plan
from train import tasks

from .onnx import Part

BATCHES = (1, 7, 64)
BOUND = 1e-4  # largest difference of an fp32 network's output from PyTorch's, relative to the larger of 1 and the largest output
# How much worse the median misrouted power of ranked designs may become; files beyond it are not shipped unless forced.
WORSE = {"fp32": 0.002, "fp16": 0.002, "int8": 0.01}
# How far samples, which run from -1 to 1, may move on average where nothing ranks them.
MOVED = {"fp32": 0.01, "fp16": 0.02, "int8": 0.2}
LOST = {"fp32": 0.01, "fp16": 0.05, "int8": 0.5}  # dB of PSNR that images denoised in one step may lose
TIMESTEPS = 8  # at which the denoiser is compared
STEPS = 20  # at most, of a compared trajectory
ENGINES = ("onnxruntime", "openvino", "tensorrt")

Graphs = Mapping[str, Mapping[str, bytes]]  # precision -> network -> ONNX file


class TorchNetwork(Network):
    """A part in PyTorch behind the engines' interface: what they are compared with."""

    def __init__(self, name: str, part: Part) -> None:
        with torch.no_grad():
            outputs = part(part.inputs)

        def declared(arrays: Mapping[str, torch.Tensor]) -> dict[str, Signature]:
            return {key: Signature(tuple(value.shape[1:]), str(value.dtype).removeprefix("torch.")) for key, value in arrays.items()}

        super().__init__(name, "pytorch", "cpu", "fp32", declared(part.inputs), declared(outputs))
        self._part = part

    def _context(self, bucket: int) -> _TorchContext:
        return _TorchContext(self._part)


class _TorchContext:
    def __init__(self, part: Part) -> None:
        self._part = part
        self._fixed: dict[str, np.ndarray] = {}

    def load(self, fixed: Mapping[str, np.ndarray]) -> None:
        self._fixed = dict(fixed)

    def run(self, varying: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._part({key: torch.tensor(value) for key, value in {**self._fixed, **varying}.items()})
        return {key: value.numpy() for key, value in found.items()}

    def close(self) -> None:
        pass


class Comparison(abc.ABC):
    """PyTorch's answers, and the distance of an engine's from them; on what is up to the kinds of it.

    Args:
        parts: the fp32 parts by name, an encoder before the denoiser.
        samples: the run's calibration samples, training ones.
    """

    def __init__(self, parts: Mapping[str, Part], samples: tasks.Data) -> None:
        self.networks = {name: TorchNetwork(name, part) for name, part in parts.items()}
        self.inputs = self._inputs(samples)
        self.outputs = {name: network(self.inputs[name]) for name, network in self.networks.items()}
        rows = {key: value[: max(BATCHES)].copy() for key, value in self.inputs["denoiser"].items()}
        # (name, inputs, PyTorch's output) of the denoiser at single timesteps, or sizes of noise
        self.steps = [(name, given, self.networks["denoiser"](given)["output"]) for name, given in self._moments(rows)]

    @abc.abstractmethod
    def _inputs(self, samples: Any) -> dict[str, dict[str, np.ndarray]]:
        """Arrays for every network, ``max(BATCHES)`` rows or as many as there are samples."""

    @abc.abstractmethod
    def _moments(self, rows: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Names and inputs of the denoiser, in which ``rows`` are made alike in how much noise there is."""

    @property
    @abc.abstractmethod
    def words(self) -> str:
        """What finished samples are compared on."""

    @abc.abstractmethod
    def trajectory(self, networks: Mapping[str, Network]) -> dict[str, Any]:
        """How far finished samples are from PyTorch's: ``max_abs``, ``mean_abs``, ``finite`` and what else there is to say."""

    def measure(self, networks: Mapping[str, Network]) -> dict[str, Any]:
        """The distance of an engine's networks from PyTorch.

        Returns:
            ``networks``: per network and batch size what :func:`apart` says of each output; ``timesteps``: the same of the denoiser at
            single timesteps, or sizes of noise; and :meth:`trajectory`.
        """
        report: dict[str, Any] = {"networks": {}, "timesteps": {}}
        for name, network in networks.items():
            rows = {}
            for batch in BATCHES:
                found = network({key: np.ascontiguousarray(value[:batch]) for key, value in self.inputs[name].items()})
                rows[str(batch)] = {key: apart(value, self.outputs[name][key][:batch]) for key, value in found.items()}
            report["networks"][name] = rows
        for name, given, wanted in self.steps:
            report["timesteps"][name] = apart(networks["denoiser"](given)["output"], wanted)
        report["trajectory"] = self.trajectory(networks)
        return report


class Yardstick(Comparison):
    """Of what is sampled by a noise schedule.

    Args:
        parts, samples: as for :class:`Comparison`.
        conditioning: of the run.
        plan, guidance: how trajectories are sampled.
        sample_shape: of the network's samples.
        alphas_cumprod: (timesteps,) of the training schedule.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        conditioning: tasks.Conditioning,
        samples: tasks.Data,
        plan: Plan,
        guidance: Guidance,
        sample_shape: tuple[int, ...],
        alphas_cumprod: np.ndarray,
    ) -> None:
        self.conditioning, self.plan, self.guidance, self.shape = conditioning, plan, guidance, sample_shape
        self.alphas_cumprod = alphas_cumprod
        super().__init__(parts, samples)

    @abc.abstractmethod
    def arrays(self, samples: Any) -> dict[str, np.ndarray]:
        """What the networks see of samples beside themselves and the time."""

    @abc.abstractmethod
    def clean(self, samples: Any) -> np.ndarray:
        """Samples (N, *shape) float32 as the denoiser makes them."""

    def others(self, samples: Any) -> dict[str, dict[str, np.ndarray]]:
        """Inputs of networks beside encoder and denoiser, by name."""
        return {}

    def _moments(self, rows: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for timestep in np.linspace(0, len(self.alphas_cumprod) - 1, TIMESTEPS).round().astype(np.int64):
            yield str(timestep), {**rows, "timestep": np.full_like(rows["timestep"], timestep)}

    def _inputs(self, samples: Any) -> dict[str, dict[str, np.ndarray]]:
        """Timesteps are spread over the schedule."""
        rows = np.arange(max(max(BATCHES), len(samples))) % len(samples)
        samples = samples.take(rows)
        rng = np.random.Generator(np.random.Philox(key=[0, 0]))
        timestep = np.linspace(0, len(self.alphas_cumprod) - 1, len(rows)).round().astype(np.int64)[rng.permutation(len(rows))]
        arrays = self.arrays(samples)
        if "encoder" in self.networks:
            known = {"encoder": arrays, "denoiser": self.networks["encoder"](arrays)}
        else:
            known = {"denoiser": arrays}
        noise = rng.standard_normal((len(rows), *self.shape), dtype=np.float32)
        known["denoiser"] = {"sample": self._noised(self.clean(samples), noise, timestep), "timestep": timestep, **known["denoiser"]}
        known |= self.others(samples)
        return {name: known[name] for name in self.networks}

    def _noised(self, clean: np.ndarray, noise: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        """Forward diffusion (DDPM, arXiv 2006.11239, eq. 4)."""
        a = self.alphas_cumprod[timestep].reshape(-1, 1, 1, 1)
        return (np.sqrt(a) * clean + np.sqrt(1 - a) * noise).astype(np.float32)

    def run(
        self,
        networks: Mapping[str, Network],
        arrays: Mapping[str, np.ndarray],
        seed: int,
        plan: Plan,
        guidance: Guidance,
        count: int,
    ) -> np.ndarray:
        """Final samples (count, *shape) for one condition, by the loop that the runtime uses."""
        free = self.conditioning.unconditional(arrays) if guidance.scale != 1 else None
        if "encoder" in networks:
            arrays, free = networks["encoder"](arrays), None if free is None else networks["encoder"](free)
        return denoise(networks["denoiser"], plan, self.shape, arrays, free, guidance, seed, range(count), lambda k, estimate: None)


def apart(found: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """Largest and mean difference of an output from PyTorch's, None where not all of it is finite, and the largest number of PyTorch's."""
    difference = np.abs(found - wanted)
    finite = bool(np.isfinite(found).all())
    return {
        "max_abs": float(difference.max()) if finite else None,
        "mean_abs": float(difference.mean()) if finite else None,
        "largest": float(np.abs(wanted).max()),
        "finite": finite,
    }


def every_engine(graphs: Graphs, yardstick: Comparison, say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, str]]:
    """:meth:`Comparison.measure` for every precision in every engine that answers here.

    Args:
        graphs: ONNX files by precision and network.

    Returns:
        {precision: {"backend device": report}}, with bf16 where an engine rounds fp32 to it; and why the other engines were not measured.
        An engine that fails with numbers that are not finite has the report None.
    """
    found: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for backend in ENGINES:
        for device in BACKENDS[backend].devices:
            for precision in (*graphs, "bf16"):
                choices, reasons = candidates(backend, device, precision, list(graphs))
                where = f"{backend} {device}"
                if not choices:
                    absent[where] = reasons[0].removeprefix(f"{backend} on {device}: ")
                    continue
                report = _measured(choices[0], graphs, yardstick)
                found.setdefault(precision, {})[where] = report
                say(f"  {row(precision, where, report)}")
    answering = {where for reports in found.values() for where in reports}
    return found, {where: reason for where, reason in absent.items() if where not in answering}


def opened(choice: Choice, files: Mapping[str, bytes]) -> dict[str, Network]:
    """ONNX files of one precision in one engine."""
    models = {name: Model(f"{name}.onnx", (choice.precision, "fp32"), partial(_content, content)) for name, content in files.items()}
    return open_networks(models, *choice).networks


def _content(content: bytes, precision: str) -> bytes:
    return content


def _measured(choice: Choice, graphs: Graphs, yardstick: Comparison) -> dict[str, Any] | None:
    networks = opened(choice, graphs["fp32" if choice.precision == "bf16" else choice.precision])
    try:
        return yardstick.measure(networks)
    except NotFinite:
        return None
    finally:
        for network in networks.values():
            network.close()


def row(precision: str, where: str, report: Mapping[str, Any] | None) -> str:
    """One engine's line of the table."""
    if report is None:
        return f"{precision:5} {where:18} numbers that are not finite"
    path = report["trajectory"]
    ranked = (
        f", {100 * path['flipped']:.2f} % of pixels flip, ranked {path['ranked_median']:.4f} ({path['ranked_change']:+.4f})"
        if "ranked_median" in path
        else ""
    )
    what = "trajectory"
    if "psnr" in path:
        what, ranked = "images", f", PSNR {path['psnr']:.2f} dB ({path['psnr_change']:+.3f})"
    return f"{precision:5} {where:18} network {worst(report):.1e}, {what} {path['mean_abs']:.1e} on average{ranked}"


def worst(report: Mapping[str, Any] | None, relative: bool = False, passes: int = 1) -> float:
    """The largest difference of any network output in a report; infinite where anything, samples included, was not finite.

    Args:
        relative: to the larger of 1 and the output's largest number: float32 has seven digits, whatever stands before the point.
        passes: that the denoiser makes in a call. Of several its mean difference counts: where a pass is undecided between two patterns
            rounding decides, the passes after it follow, and a single pixel is off by a thousand times the rounding.
    """
    if report is None:
        return float("inf")
    named = [(name, outputs) for name, batches in report["networks"].items() for outputs in batches.values()]
    measured = [
        (output, "mean_abs" if name == "denoiser" and passes > 1 else "max_abs")
        for name, outputs in [*named, ("denoiser", report["timesteps"])]
        for output in outputs.values()
    ]
    if not all(output["finite"] for output, _ in measured) or not report["trajectory"]["finite"]:
        return float("inf")
    return max(output[key] / (max(1.0, output["largest"]) if relative else 1.0) for output, key in measured)


def refusal(precision: str, where: str, report: Mapping[str, Any] | None, passes: int = 1) -> tuple[str | None, bool]:
    """Why an exported precision may not be shipped, if so, and whether --force may overrule it.

    Args:
        passes: as for :func:`worst`.
    """
    apart = worst(report, relative=True, passes=passes)
    if report is None or apart == float("inf"):
        return f"{precision} on {where} gives numbers that are not finite", False
    if precision == "fp32" and not apart <= BOUND:
        return f"fp32 on {where} differs from PyTorch by {apart:.1e}, more than {BOUND:.0e}", False
    path = report["trajectory"]
    if "psnr_change" in path:
        if path["psnr_change"] < -LOST[precision]:
            return f"{precision} on {where} loses {-path['psnr_change']:.2f} dB of PSNR, more than {LOST[precision]:g}", True
        return None, False
    if "ranked_change" not in path:
        moved, bound = path["mean_abs"], MOVED[precision]
        if moved > bound:
            return f"{precision} on {where} moves samples by {moved:.3f} on average, more than {bound:g}", True
        return None, False
    change, bound = path["ranked_change"], WORSE[precision]
    if change > bound:
        return f"{precision} on {where} makes the median misrouted power worse by {change:.4f}, more than {bound:g}", True
    return None, False
