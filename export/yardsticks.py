"""What an export is measured on: the designs of a metasurface's bundle, the samples of one of images or points, or denoised images.

Designs are those of the run's test samples, ``CANDIDATES`` each, ranked as a laboratory's are (the surrogate picks, the solver decides).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from runtime.backends import Choice, Network
from runtime.condition import Condition
from runtime.data import DataSet
from runtime.denoise import noisy
from runtime.denoise_scores import SIGMAS
from runtime.labels import Labels
from runtime.loop import Guidance
from runtime.physics.verify import solve_many
from runtime.samples import SampleSet
from runtime.schedulers import Plan
from runtime.score import misrouted_power
from runtime.search import shortlist
from runtime.target import Target

from .fused import drawn
from .onnx import Part
from .parity import BATCHES, Comparison, Yardstick, apart, opened

BOUND_FUSED, EQUAL = 1e-4, 0.9  # difference of a fused sampler's samples, and the share that has to keep to it
CANDIDATES = 16
CLASSES, EACH = 8, 8  # classes that images are sampled of, and images of each


class Designs(Yardstick):
    """Of metasurfaces. ``tests`` are the run's test samples, ``window`` is the first row and column of the pattern in a sample."""

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
        self.condition, self.tests, self.cut = condition, tests, slice(window, window + tests.xx.shape[-1])
        super().__init__(parts, condition, samples, plan, guidance, sample_shape, alphas_cumprod)
        self.targets = [
            Target.from_arrays(R, T, float(h), name=f"test {i}", extra=tests.wanted(i))
            for i, (R, T, h) in enumerate(zip(tests.Rm, tests.Tm, tests.h, strict=True))
        ]
        self._solved: dict[tuple[int, bytes], float] = {}
        self.samples, self.scores = self._designs(self.networks)

    def arrays(self, samples: DataSet) -> dict[str, np.ndarray]:
        return self.condition.arrays(samples.Rm, samples.Tm, samples.h, extra=samples.extra)

    def clean(self, samples: DataSet) -> np.ndarray:
        made = np.zeros((len(samples), *self.shape), np.float32)
        made[:, 0, self.cut, self.cut] = 2.0 * samples.xx - 1.0
        return made

    def others(self, samples: DataSet) -> dict[str, dict[str, np.ndarray]]:
        return {"surrogate": {"pattern": samples.xx[:, None].astype(np.float32), "height_nm": samples.h[:, None].astype(np.float32)}}

    @property
    def words(self) -> str:
        return f"{len(self.targets)} test targets, {CANDIDATES} candidates each"

    def sample(self, networks: Mapping[str, Network], target: Target, seed: int, plan: Plan, guidance: Guidance, count: int) -> np.ndarray:
        """Final samples (count, *shape) for a target."""
        return self.run(networks, self.condition.for_target(target), seed, plan, guidance, count)

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

    def trajectory(self, networks: Mapping[str, Network]) -> dict[str, Any]:
        """Also the ``flipped`` share of pixels, the ``ranked_median`` misrouted power and its ``ranked_change`` against PyTorch's."""
        samples, scores = self._designs(networks)
        cut = (slice(None), slice(None), 0, self.cut, self.cut)
        return {
            **apart(samples, self.samples),
            "flipped": float(((samples[cut] > 0) != (self.samples[cut] > 0)).mean()),
            "ranked_median": float(np.median(scores)),
            "ranked_change": float(np.median(scores) - np.median(self.scores)),
        }


class Samples(Yardstick):
    """Of images and points: ``EACH`` samples of each of the first ``CLASSES`` classes, or of none."""

    def __init__(
        self,
        parts: Mapping[str, Part],
        labels: Labels,
        samples: SampleSet,
        plan: Plan,
        guidance: Guidance,
        sample_shape: tuple[int, ...],
        alphas_cumprod: np.ndarray,
    ) -> None:
        self.labels = labels
        super().__init__(parts, labels, samples, plan, guidance, sample_shape, alphas_cumprod)
        self.samples = self._sampled(self.networks)

    def arrays(self, samples: SampleSet) -> dict[str, np.ndarray]:
        return self.labels.arrays(samples.label)

    def clean(self, samples: SampleSet) -> np.ndarray:
        return self.labels.to_network(samples.x)

    @property
    def words(self) -> str:
        return f"{EACH} samples of each of {len(self._asked)} classes" if self.labels.classes else f"{EACH} samples"

    @property
    def _asked(self) -> list[int]:
        return list(range(min(CLASSES, len(self.labels.classes)))) or [-1]

    def _sampled(self, networks: Mapping[str, Network]) -> np.ndarray:
        """Final samples (classes, EACH, *shape)."""
        told = [self.labels.arrays(np.array([label])) for label in self._asked]
        return np.stack([self.run(networks, arrays, i, self.plan, self.guidance, EACH) for i, arrays in enumerate(told)])

    def trajectory(self, networks: Mapping[str, Network]) -> dict[str, Any]:
        return apart(self._sampled(networks), self.samples)


class Restored(Comparison):
    """Of images denoised in one step: the run's test images under noise of the size that the network was trained on.

    Args:
        parts, samples: as for :class:`Comparison`.
        labels: the units of the network.
        tests: the run's test images.
        noise_sigma: of that noise, white being 1.
    """

    def __init__(self, parts: Mapping[str, Part], labels: Labels, samples: SampleSet, tests: SampleSet, noise_sigma: float) -> None:
        self.labels, self.noise_sigma = labels, noise_sigma
        self._clean = labels.to_network(samples.x)
        self._wanted = labels.to_network(tests.x)
        super().__init__(parts, samples)
        self._given = noisy(self._wanted, noise_sigma, 1)
        self.samples = self._restored(self.networks)

    def _inputs(self, samples: SampleSet) -> dict[str, dict[str, np.ndarray]]:
        """Sizes of noise are spread from none to twice that of training."""
        clean = self._clean[np.arange(max(max(BATCHES), len(samples))) % len(samples)]
        sizes = self.noise_sigma * np.linspace(0, 2, len(clean), dtype=np.float32)
        return {"denoiser": {"sample": clean + sizes[:, None, None, None] * noisy(np.zeros_like(clean), 1.0, 0)}}

    def _moments(self, rows: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        clean = self._clean[np.arange(len(rows["sample"])) % len(self._clean)]
        for sigma in SIGMAS:
            yield f"{sigma:g}", {"sample": noisy(clean, sigma, 2)}

    @property
    def words(self) -> str:
        return f"{len(self._wanted)} test images"

    def _restored(self, networks: Mapping[str, Network]) -> np.ndarray:
        return networks["denoiser"]({"sample": self._given})["output"]

    def trajectory(self, networks: Mapping[str, Network]) -> dict[str, Any]:
        """Also the ``psnr`` of the images in dB, and its ``psnr_change`` against PyTorch's."""
        found = self._restored(networks)
        values = [-10 * float(np.log10(max(np.mean((np.clip(x, 0, 1) - self._wanted) ** 2), 1e-12))) for x in (found, self.samples)]
        return {**apart(found, self.samples), "psnr": values[0], "psnr_change": values[0] - values[1]}


def fused(model: bytes, plan: Plan, yardstick: Designs, graphs: Mapping[str, bytes], batch: int = 3) -> dict[str, float]:
    """How far the samples of a fused sampler are from those of the loop in Python on the same networks, both in ONNX Runtime.

    One call for each of the first eight test targets; without guidance, and with a guidance scale of 2 where there is guidance.

    Returns:
        ``max_abs`` and the share of samples ``equal`` to ``BOUND_FUSED``. Both compute the same in another order, and a trajectory that
        comes near a fork makes much of a rounding: so a few samples may differ by more.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    networks = opened(Choice("onnxruntime", "cpu", "fp32"), graphs)
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
