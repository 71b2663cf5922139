"""How far engines and precisions are from PyTorch in fp32: the networks alone, along a trajectory, and in the designs that come out.

Everything is measured on the run's own calibration samples: the networks on training samples noised to every part of the schedule, the
designs on its test samples, ``CANDIDATES`` each, ranked as a laboratory's are (the surrogate picks, the solver decides).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from runtime.backends import BACKENDS, Choice, Model, Network, Signature, candidates, open_networks
from runtime.condition import Condition
from runtime.data import DataSet
from runtime.loop import Guidance, NotFinite, denoise
from runtime.physics.verify import solve_many
from runtime.schedulers import Plan
from runtime.score import misrouted_power
from runtime.search import shortlist
from runtime.target import Target

from .fused import drawn
from .onnx import Part

BATCHES = (1, 7, 64)
BOUND = 1e-4  # largest difference of an fp32 network's output from PyTorch's
BOUND_FUSED, EQUAL = 1e-4, 0.9  # difference of a fused sampler's samples, and the share that has to keep to it
# How much worse the median misrouted power of ranked designs may become; files beyond it are not shipped unless forced.
WORSE = {"fp32": 0.002, "fp16": 0.002, "int8": 0.01}
TIMESTEPS = 8  # at which the denoiser is compared
CANDIDATES = 16
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


class Yardstick:
    """PyTorch's answers, and the distance of an engine's from them.

    Args:
        parts: the fp32 parts by name, an encoder before the denoiser.
        condition: of the run.
        samples: the run's calibration samples, training ones; ``tests`` its test samples.
        plan, guidance: how trajectories are sampled.
        sample_shape, window: of the network's samples, and the first row and column of the pattern in them.
        alphas_cumprod: (timesteps,) of the training schedule.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        condition: Condition,
        samples: DataSet,
        tests: DataSet,
        plan: Plan,
        guidance: Guidance,
        sample_shape: tuple[int, ...],
        window: int,
        alphas_cumprod: np.ndarray,
    ) -> None:
        self.condition, self.tests, self.plan, self.guidance, self.shape = condition, tests, plan, guidance, sample_shape
        self.cut = slice(window, window + tests.xx.shape[-1])
        self.alphas_cumprod = alphas_cumprod
        self.networks = {name: TorchNetwork(name, part) for name, part in parts.items()}
        self.inputs = self._inputs(samples)
        self.outputs = {name: network(self.inputs[name]) for name, network in self.networks.items()}
        rows = {key: value[: max(BATCHES)].copy() for key, value in self.inputs["denoiser"].items()}
        # (inputs, PyTorch's output) of the denoiser at single timesteps
        self.steps: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
        for timestep in np.linspace(0, len(alphas_cumprod) - 1, TIMESTEPS).round().astype(np.int64):
            given = {**rows, "timestep": np.full_like(rows["timestep"], timestep)}
            self.steps.append((given, self.networks["denoiser"](given)["output"]))
        self.targets = [
            Target.from_arrays(R, T, float(h), name=f"test {i}", extra=tests.wanted(i))
            for i, (R, T, h) in enumerate(zip(tests.Rm, tests.Tm, tests.h, strict=True))
        ]
        self._solved: dict[tuple[int, bytes], float] = {}
        self.samples, self.scores = self._designs(self.networks)

    def _inputs(self, samples: DataSet) -> dict[str, dict[str, np.ndarray]]:
        """Arrays for every network, ``max(BATCHES)`` rows or as many as there are samples, timesteps spread over the schedule."""
        rows = np.arange(max(max(BATCHES), len(samples))) % len(samples)
        samples = samples.take(rows)
        rng = np.random.Generator(np.random.Philox(key=[0, 0]))
        timestep = np.linspace(0, len(self.alphas_cumprod) - 1, len(rows)).round().astype(np.int64)[rng.permutation(len(rows))]
        arrays = self.condition.arrays(samples.Rm, samples.Tm, samples.h, extra=samples.extra)
        if "encoder" in self.networks:
            known = {"encoder": arrays, "denoiser": self.networks["encoder"](arrays)}
        else:
            known = {"denoiser": arrays}
        noise = rng.standard_normal((len(rows), *self.shape), dtype=np.float32)
        known["denoiser"] = {"sample": self._noised(samples.xx, noise, timestep), "timestep": timestep, **known["denoiser"]}
        known["surrogate"] = {"pattern": samples.xx[:, None].astype(np.float32), "height_nm": samples.h[:, None].astype(np.float32)}
        return {name: known[name] for name in self.networks}

    def _noised(self, patterns: np.ndarray, noise: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        """Forward diffusion of patterns (DDPM, arXiv 2006.11239, eq. 4)."""
        clean = np.zeros_like(noise)
        clean[:, 0, self.cut, self.cut] = 2.0 * patterns - 1.0
        a = self.alphas_cumprod[timestep].reshape(-1, 1, 1, 1)
        return (np.sqrt(a) * clean + np.sqrt(1 - a) * noise).astype(np.float32)

    def sample(self, networks: Mapping[str, Network], target: Target, seed: int, plan: Plan, guidance: Guidance, count: int) -> np.ndarray:
        """Final samples (count, *shape) for a target, by the loop that the runtime uses."""
        arrays = self.condition.for_target(target)
        free = self.condition.unconditional(arrays) if guidance.scale != 1 else None
        if "encoder" in networks:
            arrays, free = networks["encoder"](arrays), None if free is None else networks["encoder"](free)
        return denoise(networks["denoiser"], plan, self.shape, arrays, free, guidance, seed, range(count), lambda k, estimate: None)

    def _designs(self, networks: Mapping[str, Network]) -> tuple[np.ndarray, np.ndarray]:
        """Final samples (targets, CANDIDATES, *shape), and the misrouted power (targets,) of each target's best ranked candidate."""
        samples, scores = [], []
        for i, target in enumerate(self.targets):
            samples.append(self.sample(networks, target, i, self.plan, self.guidance, CANDIDATES))
            patterns = (samples[-1][:, 0, self.cut, self.cut] > 0).astype(np.uint8)
            scores.append(self._best(i, target, patterns[shortlist(patterns, target, networks.get("surrogate"))]))
        return np.stack(samples), np.array(scores)

    def _best(self, i: int, target: Target, patterns: np.ndarray) -> float:
        """The least misrouted power among patterns, each solved once for all engines."""
        unknown = [k for k, pattern in enumerate(patterns) if (i, pattern.tobytes()) not in self._solved]
        if unknown:
            R, T = solve_many(patterns[unknown], target.height_nm, self.tests.geometry, target.orders)
            for k, score in zip(unknown, np.atleast_1d(misrouted_power(R, T, target)), strict=True):
                self._solved[i, patterns[k].tobytes()] = float(score)
        return min(self._solved[i, pattern.tobytes()] for pattern in patterns)

    def measure(self, networks: Mapping[str, Network]) -> dict[str, Any]:
        """The distance of an engine's networks from PyTorch.

        Returns:
            ``networks``: per network and batch size, ``max_abs``, ``mean_abs`` and ``finite`` of each output; ``timesteps``: the same of
            the denoiser at single timesteps; ``trajectory``: ``max_abs``, ``mean_abs`` of final samples, ``flipped`` share of pixels,
            ``ranked_median`` misrouted power and its ``ranked_change`` against PyTorch's.
        """
        report: dict[str, Any] = {"networks": {}, "timesteps": {}}
        for name, network in networks.items():
            rows = {}
            for batch in BATCHES:
                found = network({key: np.ascontiguousarray(value[:batch]) for key, value in self.inputs[name].items()})
                rows[str(batch)] = {key: _apart(value, self.outputs[name][key][:batch]) for key, value in found.items()}
            report["networks"][name] = rows
        for given, wanted in self.steps:
            report["timesteps"][str(given["timestep"][0])] = _apart(networks["denoiser"](given)["output"], wanted)
        samples, scores = self._designs(networks)
        cut = (slice(None), slice(None), 0, self.cut, self.cut)
        report["trajectory"] = {
            **_apart(samples, self.samples),
            "flipped": float(((samples[cut] > 0) != (self.samples[cut] > 0)).mean()),
            "ranked_median": float(np.median(scores)),
            "ranked_change": float(np.median(scores) - np.median(self.scores)),
        }
        return report


def _apart(found: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    difference = np.abs(found - wanted)
    finite = bool(np.isfinite(found).all())
    return {
        "max_abs": float(difference.max()) if finite else None,
        "mean_abs": float(difference.mean()) if finite else None,
        "finite": finite,
    }


def every_engine(graphs: Graphs, yardstick: Yardstick, say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, str]]:
    """:meth:`Yardstick.measure` for every precision in every engine that answers here.

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


def _opened(choice: Choice, files: Mapping[str, bytes]) -> dict[str, Network]:
    """ONNX files of one precision in one engine."""
    models = {name: Model(f"{name}.onnx", (choice.precision, "fp32"), partial(_content, content)) for name, content in files.items()}
    return open_networks(models, *choice).networks


def _content(content: bytes, precision: str) -> bytes:
    return content


def _measured(choice: Choice, graphs: Graphs, yardstick: Yardstick) -> dict[str, Any] | None:
    networks = _opened(choice, graphs["fp32" if choice.precision == "bf16" else choice.precision])
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
    return (
        f"{precision:5} {where:18} network {worst(report):.1e}, trajectory {path['mean_abs']:.1e} on average, "
        f"{100 * path['flipped']:.2f} % of pixels flip, ranked {path['ranked_median']:.4f} ({path['ranked_change']:+.4f})"
    )


def worst(report: Mapping[str, Any] | None) -> float:
    """The largest difference of any network output in a report; infinite where anything, samples included, was not finite."""
    if report is None:
        return float("inf")
    rows = [output for batches in report["networks"].values() for outputs in batches.values() for output in outputs.values()]
    rows += report["timesteps"].values()
    if not all(o["finite"] for o in [*rows, report["trajectory"]]):
        return float("inf")
    return max(o["max_abs"] for o in rows)


def refusal(precision: str, where: str, report: Mapping[str, Any] | None) -> tuple[str | None, bool]:
    """Why an exported precision may not be shipped, if so, and whether --force may overrule it."""
    apart = worst(report)
    if report is None or apart == float("inf"):
        return f"{precision} on {where} gives numbers that are not finite", False
    if precision == "fp32" and not apart <= BOUND:
        return f"fp32 on {where} differs from PyTorch by {apart:.1e}, more than {BOUND:.0e}", False
    change, bound = report["trajectory"]["ranked_change"], WORSE[precision]
    if change > bound:
        return f"{precision} on {where} makes the median misrouted power worse by {change:.4f}, more than {bound:g}", True
    return None, False


def fused(model: bytes, plan: Plan, yardstick: Yardstick, graphs: Mapping[str, bytes], batch: int = 3) -> dict[str, float]:
    """How far the samples of a fused sampler are from those of the loop in Python on the same networks, both in ONNX Runtime.

    One call for each of the first eight test targets; without guidance, and with a guidance scale of 2 where there is guidance.

    Returns:
        ``max_abs`` and the share of samples ``equal`` to ``BOUND_FUSED``. Both compute the same in another order, and a trajectory that
        comes near a fork makes much of a rounding: so a few samples may differ by more.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    networks = _opened(Choice("onnxruntime", "cpu", "fp32"), graphs)
    differences = []
    for i, target in enumerate(yardstick.targets[:8]):
        given = {
            "noise": drawn(plan, yardstick.shape, i, batch),
            "Rm": target.R[None].astype(np.float32),
            "Tm": target.T[None].astype(np.float32),
            "mask": np.stack([target.mask_R, target.mask_T, *(target.extra[name].mask for name in yardstick.condition.channels)])[None],
            **{name: target.extra[name].wanted[None].astype(np.float32) for name in yardstick.condition.channels},
            "height_nm": np.array([target.height_nm], np.float32),
        }
        for scale in (1.0, 2.0) if "guidance_scale" in taken else (1.0,):
            given["guidance_scale"] = np.array([scale], np.float32)
            found = session.run(["sample"], {key: value for key, value in given.items() if key in taken})[0]
            wanted = yardstick.sample(networks, target, i, plan, Guidance(scale), batch)
            differences.append(np.abs(found - wanted).reshape(batch, -1).max(axis=1))
    for network in networks.values():
        network.close()
    return {"max_abs": float(np.max(differences)), "equal": float((np.array(differences) <= BOUND_FUSED).mean())}
