"""Methods that follow dx/dsigma: Euler, Euler ancestral and Heun, with Karras noise levels where asked for.

diffusers lets these classes work on x sqrt(1 + sigma^2), whose noise has standard deviation sigma, and scales what the network
sees. Here the sample is what the network sees; the factor sqrt(1 + sigma^2) / sqrt(1 + sigma_next^2) stands in the table.

The noise levels are diffusers' own, but the network is told the nearest timestep of training (diffusers tells it fractional
ones where these levels lie between two of them, with linspace spacing and Karras levels).

Notation: sigma and sigma_next are the noise levels a step leaves and arrives at, r = sigma_next / sigma, c = sqrt(1 + sigma^2),
x the sample, x0 the estimate of the clean one, z fresh noise.
"""

from __future__ import annotations

import numpy as np

from ..errors import BundleError
from . import noise, prediction
from .config import EulerAncestralOptions, EulerOptions, HeunOptions, KarrasOptions, Options
from .steps import Plan


def euler(options: EulerOptions, num_steps: int, eta: float = 0.0) -> Plan:
    """Euler's method in sigma (EDM, arXiv 2206.00364, algorithm 1 without its second half), which is DDIM's step.

    x <- r c / c_next x + (1 - r) / c_next x0

    ``interpolation_type`` log_linear lets Karras levels span the whole schedule instead of the chosen timesteps. Without
    them it is refused: diffusers then tells the network timesteps that are not those of its noise levels. Its churn is an
    argument of its step, not an option, and is always off. ``eta`` has no meaning here.
    """
    known = noise.noise_levels(options, options.rescale_betas_zero_snr)
    ends = None
    if options.interpolation_type == "log_linear":
        if not options.use_karras_sigmas:
            raise BundleError(
                "scheduler config: interpolation_type is 'log_linear', which is supported only with use_karras_sigmas; expected 'linear'"
            )
        ends = (known[-1], known[0])
    timesteps, sigmas = _levels(options, known, num_steps, ends)
    arrival = np.append(sigmas[1:], 0.0 if options.final_sigmas_type == "zero" else known[0])
    table = prediction.estimates(options, timesteps, sigmas)
    table["sample"], table["estimate"] = _move(sigmas, arrival, arrival)
    return Plan(timesteps, sigmas, table, init_noise_sigma=_start(options, sigmas))


def euler_ancestral(options: EulerAncestralOptions, num_steps: int, eta: float = 0.0) -> Plan:
    """Euler's method to sigma_down, then fresh noise up to sigma_next: DDIM's step with eta 1 (arXiv 2010.02502).

    x <- r^2 c / c_next x + (1 - r^2) / c_next x0 + sigma_up / c_next z,   sigma_up^2 = sigma_next^2 (1 - r^2)

    sigma_down = sqrt(sigma_next^2 - sigma_up^2) = sigma_next^2 / sigma. ``prediction_type`` may be sample, which diffusers has
    not implemented in this class. ``eta`` has no meaning here.
    """
    known = noise.noise_levels(options, options.rescale_betas_zero_snr)
    timesteps, sigmas = _levels(options, known, num_steps)
    arrival = np.append(sigmas[1:], 0.0)
    table = prediction.estimates(options, timesteps, sigmas)
    table["sample"], table["estimate"] = _move(sigmas, arrival**2 / sigmas, arrival)
    table["noise"] = arrival * noise.fresh(sigmas, arrival) / np.hypot(1.0, arrival)
    return Plan(timesteps, sigmas, table, init_noise_sigma=_start(options, sigmas))


def heun(options: HeunOptions, num_steps: int, eta: float = 0.0) -> Plan:
    """Heun's method in sigma (EDM, arXiv 2206.00364, algorithm 1 without churn), num_steps steps, 2 num_steps - 1 evaluations.

    Every step but the last, which arrives at sigma = 0, evaluates the network twice:

    1. Euler's step, x <- r c / c_next x + (1 - r) / c_next x0
    2. at its arrival, giving x0_next, the slope's mean: x <- x + (1 - r) / (2 r c_next) (x0_next - x0)

    The second is EDM's x + (sigma_next - sigma) (d + d_next) / 2 with d = (x - x0) / sigma, written from where the first
    arrived: nothing but the estimate before has to be kept. ``eta`` has no meaning here.
    """
    known = noise.noise_levels(options)
    levels_at, levels = _levels(options, known, num_steps)
    # Evaluation 2 i begins step i, 2 i + 1 is its second, at the noise level where step i + 1 begins.
    evaluation = np.arange(2 * len(levels) - 1)
    begins = evaluation % 2 == 0
    timesteps, sigmas = levels_at[(evaluation + 1) // 2], levels[(evaluation + 1) // 2]
    table = prediction.estimates(options, timesteps, sigmas)

    arrival = np.append(levels[1:], 0.0)
    table["sample"][begins], table["estimate"][begins] = _move(levels, arrival, arrival)
    gap = (levels[:-1] - levels[1:]) / (2.0 * levels[1:] * np.hypot(1.0, levels[1:]))
    table["sample"][~begins] = 1.0
    table["estimate"][~begins], table["previous"][~begins] = gap, -gap
    return Plan(timesteps, sigmas, table, memory=2, clip=prediction.clip(options), init_noise_sigma=_start(options, sigmas))


def _move(sigmas: np.ndarray, to: np.ndarray, arrival: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of x and x0 for Euler's step from ``sigmas`` to the noise level ``to``, scaled for the level ``arrival``."""
    scale = np.hypot(1.0, arrival)
    return to / sigmas * np.hypot(1.0, sigmas) / scale, (1.0 - to / sigmas) / scale


def _levels(options: Options, known: np.ndarray, num_steps: int, ends: tuple[float, float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps int64 and noise levels float64, both (num_steps,), among those of training, ``known``.

    Karras levels span those of the chosen timesteps, or ``ends`` where given.
    """
    timesteps = noise.fractional_timesteps(options, num_steps)
    sigmas = np.interp(timesteps, np.arange(len(known)), known)
    if isinstance(options, KarrasOptions) and options.use_karras_sigmas:
        first, last = ends or (sigmas[0], sigmas[-1])
        sigmas = noise.karras_levels(options, float(first), float(last), num_steps)
        timesteps = noise.nearest_timesteps(sigmas, known)
    return timesteps.round().astype(np.int64), sigmas


def _start(options: Options, sigmas: np.ndarray) -> float:
    """Standard deviation of the first sample: as in diffusers that of the noise alone, or with leading spacing of noise and data."""
    if options.timestep_spacing == "leading":
        return 1.0
    return float(sigmas.max() / np.hypot(1.0, sigmas[0]))
