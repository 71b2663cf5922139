"""A bundle in an engine: seeds -> noise -> steps -> binary patterns, and from there to ranked, verified designs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from . import pairs, search, selftest
from .bundle import Bundle
from .design import Design
from .engine import Engine
from .errors import BundleError, Cancelled, TargetError
from .fabrication import Limits
from .freedom import Freedom
from .inpaint import RESAMPLE, Known
from .loop import Guidance, denoise
from .manifest import STRONGEST
from .schedulers import Plan, plan
from .target import Target, check_geometry, check_height, check_orders

Stop = Callable[[], bool]
OnStep = Callable[[int, int, np.ndarray], None]


def load(
    bundle: str | os.PathLike[str] | None = None,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    concurrency: int = 1,
    self_test: bool = False,
) -> Sampler:
    """Open a bundle, check every file it uses against its hash, and load its networks into an engine.

    Args:
        bundle: a directory that ``cli.py export`` wrote; None is the bundle that ships with metascatter.
        backend: a word of ``backends.BACKENDS``, or ``auto`` for the fastest that is installed and works.
        device: ``cpu``, ``cuda``, ``gpu`` or ``npu`` (Intel's), or ``auto``; a device asked for by name is never replaced.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8``, or ``auto`` for what the device does best among what the bundle has.
        threads: CPU threads of the engine; None leaves it to the engine.
        concurrency: how many of the program's own threads will sample at a time; engines share out the cores by it.
        self_test: compare every network with the bundle's golden outputs before anything is sampled.

    Raises:
        BundleError: missing, altered or unknown bundle, one without that precision, or one that fails its self-test.
        BackendError: the engine or device is not there.
    """
    sampler = Sampler(Bundle.open(bundle), backend, device, precision, threads, concurrency)
    if self_test:
        try:
            selftest.require(sampler.bundle, sampler.every_network())
        except BaseException:
            sampler.close()
            raise
    return sampler


def check_target(bundle: Bundle, target: Target) -> Target:
    """:meth:`Sampler.check` of a bundle that is in no engine."""
    check_geometry(target, bundle.geometry, "bundle's", "use a bundle trained for it")
    check_height(target, bundle.condition.height_range_nm)
    check_orders(target, bundle.geometry)
    pairs.check(target, bundle.channels, bundle.geometries)
    return target.resized(bundle.condition.orders)


class Sampler(Engine):
    """A bundle that samples, in an engine: a context manager which any number of threads may use at once. Made as an :class:`Engine` is."""

    def __init__(self, bundle: Bundle, *engine: Any, **settings: Any) -> None:
        if bundle.restores:
            raise BundleError(
                f"{bundle.path} denoises images in one step and samples nothing, so it takes no target, label or schedule; give it images "
                "with 'infer --input', or metascatter.Denoiser"
            )
        self.scheduler_config = bundle.json("scheduler_config.json")
        super().__init__(bundle, *engine, **settings)

    def shortlist(self, patterns: np.ndarray, target: Target) -> np.ndarray:
        """Indices of the candidates (n, N, N) worth solving for a target; see :func:`search.shortlist`."""
        return search.shortlist(patterns, target.resized(self.bundle.condition.orders), self.surrogate)

    def warmup(self, n: int | None = None) -> None:
        """Run every network once at the batch that ``n`` candidates take, so that the first design does not pay for preparations."""
        arrays = self.encode(self.bundle.conditioning.nothing())
        batch = min(n or self.batch_size(), self.batch_size())
        sample = np.zeros((batch, *self.bundle.manifest["sample_shape"]), np.float32)
        with self.networks["denoiser"].bind(arrays, batch) as call:
            call({"sample": sample, "timestep": np.zeros(batch, np.int64)})

    def plan(self, steps: int | None = None, scheduler: str | None = None, eta: float | None = None) -> Plan:
        """The sampling table for these settings; what is None comes from the bundle.

        Raises:
            BundleError: unknown scheduler, or a step count it cannot take.
        """
        default = self.bundle.manifest["sampling"]
        if eta is None:
            eta = float(default.get("eta", 0.0)) if scheduler in (None, default["scheduler"]) else 0.0
        return plan(self.scheduler_config, default["steps"] if steps is None else steps, scheduler or default["scheduler"], eta)

    def guidance(self, scale: float | None = None, interval: tuple[float, float] | None = None) -> Guidance:
        """Classifier-free guidance with these settings; what is None comes from the bundle.

        Raises:
            TargetError: a scale that is not within ``manifest.STRONGEST``, or an interval of noise levels that is empty.
        """
        default = self.bundle.manifest["sampling"]
        scale = float(default["guidance_scale"] if scale is None else scale)
        low, high = (float(value) for value in (interval or default.get("guidance_interval") or (0.0, math.inf)))
        if not -STRONGEST <= scale <= STRONGEST:
            raise TargetError(f"guidance_scale is {scale:g}; it must be between -{STRONGEST:g} and {STRONGEST:g}, 1 is no guidance")
        if not 0 <= low <= high:
            raise TargetError(f"the guidance interval is {low:g} to {high:g}; expected two noise levels, 0 <= lowest <= highest")
        return Guidance(scale, (low, high))

    def check(self, target: Target) -> Target:
        """The target in the bundle's number of orders, once it is sure that this bundle can be asked for it.

        Raises:
            TargetError: another geometry, a height outside the training range, orders that carry no light, a channel it does not know.
        """
        return check_target(self.bundle, target)

    def condition(self, target: Target) -> dict[str, np.ndarray]:
        """Network inputs (batch of 1) for a target; see :meth:`check` for what it raises."""
        return self.bundle.condition.for_target(self.check(target))

    def labelled(self, label: str | int | None = None) -> dict[str, np.ndarray]:
        """Network inputs (batch of 1) for a class by name or number, or for none; of bundles of images and points.

        Raises:
            TargetError: there is no such class.
            BundleError: a bundle of metasurfaces.
        """
        labels = self.bundle.labels
        return labels.arrays(np.array([labels.number(label)]))

    def encode(self, condition: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the denoiser sees of a condition: the encoder runs once per target."""
        encoder = self.networks.get("encoder")
        return dict(condition) if encoder is None else encoder(condition)

    def told(self, condition: Mapping[str, np.ndarray], guidance: Guidance) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
        """What the denoiser sees of a condition and, where guidance needs it, of one that asks for nothing."""
        free = self.encode(self.bundle.conditioning.unconditional(condition)) if guidance.scale != 1 else None
        return self.encode(condition), free

    def sample(self, condition: Mapping[str, np.ndarray], n: int, **settings: Any) -> np.ndarray:
        """n samples for one condition, (n, *sample_shape) float32: all of :meth:`stream`, with its settings and errors."""
        return np.concatenate(list(self.stream(condition, n, **settings)))

    def stream(
        self,
        condition: Mapping[str, np.ndarray],
        n: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        scheduler: str | None = None,
        eta: float | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        batch_size: int | None = None,
        stop: Stop | None = None,
        on_step: OnStep | None = None,
        start: tuple[np.ndarray, float] | None = None,
        known: Known | None = None,
    ) -> Iterator[np.ndarray]:
        """n samples for one condition, batch by batch: any n in the memory of one batch.

        Args:
            condition: arrays of a batch of 1, from :meth:`condition`.
            n: how many.
            seed: candidate i's noise depends on (seed, i) alone.
            steps, scheduler, eta, guidance_scale, guidance_interval: None takes the bundle's; see :meth:`plan` and
                :class:`loop.Guidance`. The guidance scale is in diffusers' convention, 1 + w of the papers.
            batch_size: candidates of one network call; None is :meth:`batch_size`. Results do not depend on it, to the engine's rounding.
            stop: asked before every step; True ends the work.
            on_step: called with (step, total, estimate) after every step: ``estimate`` (batch, *sample_shape) is the network's view of
                the finished samples of the batch at work, a pillar where it is above 0. What it raises reaches the caller.
            start: (sample, level) to begin from a finished sample, (*sample_shape), under noise, at the first step whose timestep is at
                most ``level`` of the training timesteps, 0 to 1. None begins with noise alone.
            known: values that every sample is held to while the rest is sampled (:class:`.inpaint.Known`); they come out exactly.

        Yields:
            (up to the batch size, *sample_shape) float32.

        Raises:
            TargetError: n, seed, batch size or guidance out of range, known values of another shape.
            BundleError: unknown scheduler, steps it cannot take, or none at or below the level to start at.
            Cancelled: ``stop`` said so.
        """
        if n < 1:
            raise TargetError(f"n is {n}; ask for at least one candidate")
        if not 0 <= seed < 1 << 63:
            raise TargetError(f"the seed is {seed}; it must be a whole number from 0 to 2^63 - 1")
        table, guidance, size = (
            self.plan(steps, scheduler, eta),
            self.guidance(guidance_scale, guidance_interval),
            self.batch_size(batch_size),
        )
        clean, level = start or (None, 1.0)
        if clean is not None:
            table = table.since(level * self.scheduler_config.get("num_train_timesteps", 1000))
        if known is not None and known.mask.shape != tuple(self.bundle.manifest["sample_shape"]):
            raise TargetError(f"the known values have shape {known.mask.shape} and samples {tuple(self.bundle.manifest['sample_shape'])}")
        arrays, free = self.told(condition, guidance)
        each = table.num_steps if known is None else len(known.steps(table))
        total = each * -(-n // size)
        for batch, first in enumerate(range(0, n, size)):
            candidates = range(first, min(first + size, n))

            def step_done(k: int, estimate: np.ndarray, done: int = batch * each) -> None:
                if stop is not None and stop():
                    raise Cancelled("sampling was cancelled")
                if on_step is not None and k >= 0:
                    on_step(done + k + 1, total, estimate)

            yield self.denoise(table, arrays, free, guidance, seed, candidates, step_done, clean, known)

    def denoise(
        self,
        table: Plan,
        arrays: Mapping[str, np.ndarray],
        free: Mapping[str, np.ndarray] | None,
        guidance: Guidance,
        seed: int,
        candidates: range,
        step_done: Callable[[int, np.ndarray], None],
        clean: np.ndarray | None = None,
        known: Known | None = None,
    ) -> np.ndarray:
        """One batch of a stream, by :func:`loop.denoise`; a :class:`.batching.BatchingSampler` shares its calls among callers."""
        shape = tuple(self.bundle.manifest["sample_shape"])
        return denoise(self.networks["denoiser"], table, shape, arrays, free, guidance, seed, candidates, step_done, clean, known=known)

    def patterns(self, samples: np.ndarray) -> np.ndarray:
        """Binary patterns (n, N, N) uint8 of samples (n, *sample_shape): a pillar where the sample is above 0."""
        return (self.window(samples) > 0).astype(np.uint8)

    def window(self, samples: np.ndarray) -> np.ndarray:
        """The part (n, N, N) of samples (n, *sample_shape) that is the pattern: a view."""
        size = self.bundle.manifest["pattern_size"]
        row, column = self.bundle.manifest["window"]
        return samples[:, 0, row : row + size, column : column + size]

    def held(self, fixed: np.ndarray, resample: int = RESAMPLE) -> Known:
        """Pixels (N, N) of -1 (free), 0 (gap) and 1 (pillar) as what is known of a sample, for :meth:`stream`."""
        shape = (1, *self.bundle.manifest["sample_shape"])
        values, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        self.window(values)[0] = 2.0 * fixed - 1.0
        self.window(mask)[0] = fixed >= 0
        return Known.of(values[0], mask[0], resample)

    def propose(self, target: Target, n: int = 64, **settings: Any) -> np.ndarray:
        """n candidate patterns (n, N, N) uint8 for a target, in candidate order; settings as for :meth:`stream`."""
        return np.concatenate([self.patterns(part) for part in self.stream(self.condition(target), n, **settings)])

    def reconstruct(self, target: Target, pattern: np.ndarray, level: float, n: int = 1, **settings: Any) -> np.ndarray:
        """n patterns (n, N, N) uint8 that come out where sampling begins from ``pattern`` (N, N) of 0 and 1 under noise.

        This tests the network, not its designs: the answer is in the start. ``level`` and the settings are those of :meth:`stream`.
        """
        sample = np.zeros(tuple(self.bundle.manifest["sample_shape"]), np.float32)
        self.window(sample[None])[0] = 2.0 * pattern - 1.0
        return self.patterns(self.sample(self.condition(target), n, start=(sample, level), **settings))

    def design(
        self,
        target: Target,
        n: int = 64,
        top: int = 4,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        deadline_s: float | None = None,
        cancel: Any = None,
        on_step: OnStep | None = None,
        *,
        scheduler: str | None = None,
        eta: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        batch_size: int | None = None,
        verify: bool = True,
        workers: int | None = None,
        on_solve: Callable[[int, int], None] | None = None,
        refine: bool = False,
        budget: int = 32,
        fixed: Any = None,
        height: Any = None,
        limits: Limits | None = None,
        resample: int = RESAMPLE,
        on_best: Callable[[Design], None] | None = None,
    ) -> list[Design]:
        """Sample n candidates, drop those equal up to a cyclic shift, solve those that the surrogate ranks best, and return the best.

        ``max(search.SOLVED, top)`` are solved; all are where the bundle has no surrogate. With ``refine`` a discrete search changes the
        best of them further (see :mod:`.refine`), and those returned are solved at a higher truncation too, for their ``uncertainty``.

        Args:
            target: what the light should do.
            n, top: candidates sampled and designs returned, best first.
            steps, scheduler, eta, guidance_scale, guidance_interval, batch_size: as for :meth:`stream`.
            seed: same seed, same designs.
            deadline_s: return the best found after this many seconds. Candidates are then sampled and solved in small batches, so that
                there soon is one; at least one is solved, so the call may last one network call and one solve longer.
            cancel: a ``threading.Event`` or anything with ``is_set``.
            on_step: (step, total, estimate) while sampling; on_solve: (solved, total) while solving.
            verify: False skips the solver: designs come in candidate order without scattering or score.
            workers: threads of the solver.
            refine: search on from the best candidates.
            budget: RCWA solves in all where ``refine`` is set, ranking included, the check at a higher truncation not.
            fixed: (N, N) of -1 (free), 0 (gap) and 1 (pillar): pixels that every design holds, already while it is sampled.
            height: ``"free"``, or (lowest, highest) in nm: the target's own height is not looked at, candidates are sampled at
                ``freedom.HEIGHTS`` heights from lowest to highest, and ``refine`` searches between. None keeps the target's.
            resample: with ``fixed``, how often each step of sampling is taken (:mod:`.inpaint`).
            limits: of what can be made (:class:`.fabrication.Limits`): ranking and refining fine what breaks them.
            on_best: called with every solved design that is better than all before.

        Raises:
            TargetError: the bundle cannot be asked for this target, or for such heights.
            DataError: a mask of another size or with other values, a budget or ``resample`` below 1.
            Cancelled: ``cancel`` was set.
        """
        end = None if deadline_s is None else time.monotonic() + deadline_s
        freedom = Freedom.of(self.bundle, refine, budget, fixed, height, limits, resample)
        settings = {
            "steps": steps,
            "scheduler": scheduler,
            "eta": eta,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "batch_size": batch_size,
        }
        stop = cancel.is_set if cancel is not None else None
        target = freedom.targets(target)[0]
        known = self.check(target)
        return search.best_designs(self, known, n, top, seed, settings, end, stop, verify, workers, on_step, on_solve, freedom, on_best)
