"""Sampling with a part of the sample held to known values: RePaint (Lugmayr et al., arXiv 2201.09865, algorithm 1), for every scheduler.

Before each step the known values, under as much noise as there is at that step, take the place of what was sampled there; the network
continues them into the rest. A step is then taken back and repeated: noise is added to the new sample, known part included, until it is
at the level it came from. Each time the rest is drawn to agree better with what is known.

A method that looks back at earlier estimates (DPM-Solver, UniPC) forgets them at a jump: what was estimated before belongs to another
path, so a repeated step is of first order. A method that comes twice to a noise level (Heun) repeats its first stage and corrects once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .errors import TargetError
from .schedulers import Plan

RESAMPLE = 5  # the paper takes 10; on metasurfaces 5 did as well as 20


class Known(NamedTuple):
    """What is known of a sample. Build one with :meth:`of`, which checks.

    ``values`` (*sample_shape) float32 in the network's units, ``mask`` (*sample_shape) bool, True where they are known; ``resample``: how
    often each step is taken, 1 repeats none.
    """

    values: np.ndarray
    mask: np.ndarray
    resample: int = RESAMPLE

    @classmethod
    def of(cls, values: np.ndarray, mask: np.ndarray, resample: int = RESAMPLE) -> Known:
        """Checked. Raises TargetError: shapes that differ, known values that are not finite, no step at all."""
        values, mask = np.asarray(values, np.float32), np.asarray(mask, bool)
        if values.shape != mask.shape or values.ndim != 3:
            raise TargetError(f"the known values have shape {values.shape} and their mask {mask.shape}; expected that of a sample for both")
        if not np.isfinite(values[mask]).all():
            raise TargetError("some known values are not finite; leave them out of the mask")
        if resample < 1:
            raise TargetError(f"resample is {resample}; each step is taken at least once")
        return cls(np.where(mask, values, np.float32(0)), mask, resample)

    def steps(self, plan: Plan) -> list[int]:
        """The steps of a run as they are taken: each whose noise falls, to a level above 0, ``resample`` times in a row."""
        falls = np.append(plan.sigmas[1:] < plan.sigmas[:-1], False)
        return np.repeat(np.arange(plan.num_steps), np.where(falls, self.resample, 1)).tolist()

    def hold(self, sample: np.ndarray, sigma: float, noise: np.ndarray) -> None:
        """Overwrite, in place, what is known of ``sample`` (B, *sample_shape) by the values under noise of level ``sigma``.

        x = (x_0 + sigma z) / sqrt(1 + sigma^2), which is sqrt(a) x_0 + sqrt(1 - a) z with a = alphas_cumprod (RePaint, eq. 8a).
        """
        np.copyto(sample, _mixed(self.values, 1 / np.hypot(1.0, sigma), noise, 1 / np.hypot(1.0, 1 / sigma)), where=self.mask)

    def settle(self, sample: np.ndarray) -> None:
        """Overwrite, in place, what is known of ``sample`` (B, *sample_shape), or of an estimate of it, by the values themselves."""
        np.copyto(sample, self.values, where=self.mask)


def jump_back(sample: np.ndarray, sigma: float, above: float, noise: np.ndarray) -> None:
    """Take ``sample`` (B, ...) from the noise level ``sigma`` up to ``above``, in place.

    x <- sqrt(b) x + sqrt(1 - b) z with b the ratio of the two alphas_cumprod (DDPM, eq. 2, over several timesteps at once).
    """
    kept = np.hypot(1.0, sigma) / np.hypot(1.0, above)
    sample[:] = _mixed(sample, kept, noise, np.sqrt(max(0.0, 1.0 - kept**2)))


def _mixed(a: np.ndarray, by: float, b: np.ndarray, with_: float) -> np.ndarray:
    return np.float32(by) * a + np.float32(with_) * b
