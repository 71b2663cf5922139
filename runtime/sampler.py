"""The loop: seeds -> noise -> steps -> binary patterns, and from there to ranked, verified designs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from . import backends
from .bundle import Bundle
from .design import Design
from .errors import BackendError, BundleError, Cancelled, TargetError
from .schedulers import Plan, plan
from .score import misrouted_power
from .search import unique
from .target import Target, check_height, check_orders

BATCH = 64  # candidates of one network call; cut by the candidate's index alone
PRECISIONS = ("auto", "fp32")

Stop = Callable[[], bool]
OnStep = Callable[[int, int, np.ndarray], None]


def load(
    bundle: str | os.PathLike[str] | None = None,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Sampler:
    """Open a bundle, check every file it uses against its hash, and load its networks into an engine.

    Args:
        bundle: a directory that ``cli.py export`` wrote; None is the bundle that ships with metascatter.
        backend: ``auto`` or a word of ``backends.BACKENDS``.
        device: ``auto``, ``cpu`` or ``cuda``; a GPU asked for by name is never replaced by the CPU.
        precision: ``auto`` or ``fp32``.
        threads: CPU threads of the engine; None leaves it to the engine.

    Raises:
        BundleError: missing, altered or unknown bundle, or one without that precision.
        BackendError: the engine or device is not there.
    """
    return Sampler(Bundle.open(bundle), backend, device, precision, threads)


class Sampler:
    """A bundle in an engine. A context manager; several threads may use it at once."""

    def __init__(
        self, bundle: Bundle, backend: str = "auto", device: str = "auto", precision: str = "auto", threads: int | None = None
    ) -> None:
        if precision not in PRECISIONS:
            raise BundleError(f"there is no precision '{precision}' in this version; choose {', '.join(PRECISIONS)}")
        self.bundle = bundle
        self.precision = "fp32" if precision == "auto" else precision
        self.scheduler_config = bundle.json("scheduler_config.json")
        self.networks: dict[str, backends.Network] = {}
        for name in bundle.manifest["networks"]:
            file = bundle.network_file(name, self.precision)
            self.networks[name] = backends.open_network(bundle.read(file), file, backend, device, threads)
        if "denoiser" not in self.networks:
            raise BundleError(f"the bundle {bundle.path} has no denoiser; export it again")
        self.device = self.networks["denoiser"].device

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the engine; the sampler cannot be used afterwards."""
        for network in self.networks.values():
            network.close()

    def warmup(self, batch: int = BATCH) -> None:
        """Run every network once, so that the first design does not pay for the engine's preparations."""
        count = 2 * self.bundle.condition.orders + 1
        nothing = np.zeros((1, count, count))
        arrays = self.encode(self.bundle.condition.arrays(nothing, nothing, np.array([self.bundle.condition.height_range_nm[0]])))
        self.networks["denoiser"](
            {
                "sample": np.zeros((batch, *self.bundle.manifest["sample_shape"]), np.float32),
                "timestep": np.zeros(batch, np.int64),
                **_repeat(arrays, batch),
            }
        )

    def plan(self, steps: int | None = None, scheduler: str | None = None, eta: float | None = None) -> Plan:
        """The sampling table for these settings; what is None comes from the bundle.

        Raises:
            BundleError: unknown scheduler, or a step count it cannot take.
        """
        default = self.bundle.manifest["sampling"]
        if eta is None:
            eta = float(default.get("eta", 0.0)) if scheduler in (None, default["scheduler"]) else 0.0
        return plan(self.scheduler_config, default["steps"] if steps is None else steps, scheduler or default["scheduler"], eta)

    def check(self, target: Target) -> Target:
        """The target in the bundle's number of orders, once it is sure that this bundle can be asked for it.

        Raises:
            TargetError: another geometry, a height outside the training range, orders that carry no light.
        """
        if target.geometry is not None:
            difference = target.geometry.difference(self.bundle.geometry)
            if difference:
                raise TargetError(f"{target.name}: the target's geometry is not the bundle's: {difference}; use a bundle trained for it")
        check_height(target, self.bundle.condition.height_range_nm)
        check_orders(target, self.bundle.geometry)
        return target.resized(self.bundle.condition.orders)

    def condition(self, target: Target) -> dict[str, np.ndarray]:
        """Network inputs (batch of 1) for a target; see :meth:`check` for what it raises."""
        target = self.check(target)
        return self.bundle.condition.arrays(
            target.R[None], target.T[None], np.array([target.height_nm]), target.mask_R[None], target.mask_T[None]
        )

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
        stop: Stop | None = None,
        on_step: OnStep | None = None,
    ) -> Iterator[np.ndarray]:
        """n samples for one condition, batch by batch: any n in the memory of one batch.

        Args:
            condition: arrays of a batch of 1, from :meth:`condition`.
            n: how many.
            seed: candidate i's noise depends on (seed, i) alone.
            steps, scheduler, eta, guidance_scale: None takes the bundle's. The guidance scale is in diffusers' convention,
                1 + w of the papers (arXiv 2207.12598).
            stop: asked before every step; True ends the work.
            on_step: called with (step, total, current estimate) after every step; what it raises reaches the caller.

        Yields:
            (up to ``BATCH``, *sample_shape) float32.

        Raises:
            TargetError: n, seed or guidance scale out of range.
            BundleError: unknown scheduler, or steps it cannot take.
            Cancelled: ``stop`` said so.
        """
        if n < 1:
            raise TargetError(f"n is {n}; ask for at least one candidate")
        if not 0 <= seed < 1 << 63:
            raise TargetError(f"the seed is {seed}; it must be a whole number from 0 to 2^63 - 1")
        table = self.plan(steps, scheduler, eta)
        scale = float(self.bundle.manifest["sampling"]["guidance_scale"] if guidance_scale is None else guidance_scale)
        if not np.isfinite(scale):
            raise TargetError(f"guidance_scale is {scale}; it must be a finite number, 1 is no guidance")
        arrays = self.encode(condition)
        free = self.encode(self.bundle.condition.unconditional(condition)) if scale != 1 else None
        total = table.num_steps * -(-n // BATCH)
        for batch, first in enumerate(range(0, n, BATCH)):
            candidates = range(first, min(first + BATCH, n))

            def step_done(k: int, estimate: np.ndarray, done: int = batch * table.num_steps) -> None:
                if stop is not None and stop():
                    raise Cancelled("sampling was cancelled")
                if on_step is not None and k >= 0:
                    on_step(done + k + 1, total, estimate)

            yield self._run(table, arrays, free, scale, seed, candidates, step_done)

    def patterns(self, samples: np.ndarray) -> np.ndarray:
        """Binary patterns (n, N, N) uint8 of samples (n, *sample_shape): a pillar where the sample is above 0."""
        size = self.bundle.manifest["pattern_size"]
        row, column = self.bundle.manifest["window"]
        return (samples[:, 0, row : row + size, column : column + size] > 0).astype(np.uint8)

    def propose(self, target: Target, n: int = 64, **settings: Any) -> np.ndarray:
        """n candidate patterns (n, N, N) uint8 for a target, in candidate order; settings as for :meth:`sample`."""
        return self.patterns(self.sample(self.condition(target), n, **settings))

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
        verify: bool = True,
        workers: int | None = None,
        on_solve: Callable[[int, int], None] | None = None,
    ) -> list[Design]:
        """Sample n candidates, drop those equal up to a cyclic shift, solve the rest, and return the best.

        Args:
            target: what the light should do.
            n, top: candidates sampled and designs returned, best first.
            steps, scheduler, guidance_scale: None takes the bundle's.
            seed: same seed, same designs.
            deadline_s: stop solving after this many seconds and rank what is solved by then; at least one candidate is solved.
            cancel: a ``threading.Event`` or anything with ``is_set``.
            on_step: (step, total, estimate) while sampling; on_solve: (solved, total) while solving.
            verify: False skips the solver: designs come in candidate order without scattering or score.
            workers: threads of the solver.

        Raises:
            TargetError: the bundle cannot be asked for this target.
            Cancelled: ``cancel`` was set.
        """
        from .physics.verify import solve_until

        start = time.monotonic()
        stop = cancel.is_set if cancel is not None else None
        target = self.check(target)
        patterns = self.propose(
            target, n, seed=seed, steps=steps, scheduler=scheduler, guidance_scale=guidance_scale, stop=stop, on_step=on_step
        )
        kept = unique(patterns)
        geometry = self.bundle.geometry
        if not verify:
            return [Design(patterns[i], target.height_nm, None, None, None, False, seed, int(i), geometry) for i in kept[:top]]
        end = None if deadline_s is None else start + deadline_s
        R, T = solve_until(end, patterns[kept], target.height_nm, geometry, target.orders, workers, stop, on_solve)
        kept = kept[: len(R)]
        scores = np.asarray(misrouted_power(R, T, target))
        best = np.argsort(scores, kind="stable")[:top]
        return [Design(patterns[kept[i]], target.height_nm, R[i], T[i], float(scores[i]), True, seed, int(kept[i]), geometry) for i in best]

    def encode(self, condition: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the denoiser sees of a condition: the encoder runs once per target."""
        encoder = self.networks.get("encoder")
        return dict(condition) if encoder is None else encoder(condition)

    def _run(
        self,
        table: Plan,
        arrays: Mapping[str, np.ndarray],
        free: Mapping[str, np.ndarray] | None,
        scale: float,
        seed: int,
        candidates: range,
        step_done: Callable[[int, np.ndarray], None],
    ) -> np.ndarray:
        """One batch through all steps."""
        count = len(candidates)
        shape = (count, *self.bundle.manifest["sample_shape"])
        # One counter-based generator per candidate: its noise does not depend on who shares the batch.
        generators = [np.random.Generator(np.random.Philox(key=[seed, candidate])) for candidate in candidates]
        noise = np.empty(shape, np.float32)

        def draw() -> np.ndarray:
            for row, generator in zip(noise, generators, strict=True):
                generator.standard_normal(out=row, dtype=np.float32)
            return noise

        sample = table.start(draw().copy())
        history = table.new_history(shape)
        inputs = _repeat(arrays, count)
        if free is not None:
            inputs = {key: np.concatenate([value, inputs[key]]) for key, value in _repeat(free, count).items()}
        step_done(-1, sample)
        for k, timestep in enumerate(table.timesteps):
            doubled = sample if free is None else np.concatenate([sample, sample])
            given = {"sample": doubled, "timestep": np.full(len(doubled), timestep, np.int64), **inputs}
            output = self.networks["denoiser"](given)["output"]
            if free is not None:
                # diffusers' convention: unconditional + scale * (conditional - unconditional).
                output = output[:count] + np.float32(scale) * (output[count:] - output[:count])
            estimate = table.step(k, output, sample, draw() if table.needs_noise[k] else None, history)
            step_done(k, estimate)
        if not np.isfinite(sample).all():
            raise BackendError(f"the network returned numbers that are not finite on {self.device}; run 'metascatter doctor'")
        return sample


def _repeat(arrays: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """A batch of 1 as a batch of ``count``."""
    return {key: np.ascontiguousarray(np.broadcast_to(value, (count, *value.shape[1:]))) for key, value in arrays.items()}
