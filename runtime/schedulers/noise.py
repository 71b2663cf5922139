"""Noise schedules: how much signal is left at each training timestep, and at which timesteps the network is asked.

The forward process is x_t = sqrt(alphas_cumprod[t]) x_0 + sqrt(1 - alphas_cumprod[t]) z, z ~ N(0, 1) (DDPM, arXiv
2006.11239, eq. 4). Its noise level is sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod): noise over signal, unitless.
All arrays are float64; timesteps are int64, in the order in which they are visited, from noise to data.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import BundleError
from .config import KarrasOptions, LCMOptions, Options

# float16's smallest subnormal: what diffusers' solvers take for "no signal left", so that their first noise level is finite.
SMALLEST_ALPHA_CUMPROD = 2.0**-24
# The steepest schedule in use, squaredcos_cap_v2, leaves 2e-9 after 1000 timesteps.
DROWNED = 1e-20
# Noise levels are spread evenly in sigma^(1/7) (EDM, arXiv 2206.00364, eq. 5).
KARRAS_RHO = 7.0


def betas(options: Options) -> np.ndarray:
    """The variance added at each training timestep, (num_train_timesteps,), every one in (0, 1).

    ``linear``: DDPM section 4. ``scaled_linear``: linear in sqrt(beta), as latent diffusion has it.
    ``squaredcos_cap_v2``: arXiv 2102.09672, eq. 17, with betas capped at 0.999.
    """
    n = options.num_train_timesteps
    if options.trained_betas is not None:
        return np.array(options.trained_betas, np.float64)
    if options.beta_schedule == "linear":
        return np.linspace(options.beta_start, options.beta_end, n)
    if options.beta_schedule == "scaled_linear":
        return np.linspace(math.sqrt(options.beta_start), math.sqrt(options.beta_end), n) ** 2
    signal = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1.0 - signal[1:] / signal[:-1], 0.999)


def alphas_cumprod(options: Options, rescale: bool | None = False) -> np.ndarray:
    """Share of the signal's variance left at each training timestep, (num_train_timesteps,), falling.

    ``rescale`` (``rescale_betas_zero_snr``) shifts and stretches sqrt(alphas_cumprod) so that its first value stays and its
    last one is exactly 0 (arXiv 2305.08891, algorithm 1).

    Raises ``BundleError`` when the betas drown the signal beyond what a float32 sample can hold.
    """
    signal = np.cumprod(1.0 - betas(options))
    if signal[-1] < DROWNED:
        raise BundleError(
            f"scheduler config: the betas (beta_schedule, beta_start, beta_end, trained_betas) leave {signal[-1]:.0e} of the signal "
            f"at the last of {len(signal)} timesteps; expected at least {DROWNED:.0e}"
        )
    if not rescale:
        return signal
    root = np.sqrt(signal)
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def noise_levels(options: Options, rescale: bool | None = False) -> np.ndarray:
    """sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod) at each training timestep, (num_train_timesteps,), finite.

    With ``rescale`` the last one is what a share of 2^-24 of the signal gives, as in diffusers' solvers.
    """
    signal = alphas_cumprod(options, rescale)
    if rescale:
        signal[-1] = SMALLEST_ALPHA_CUMPROD
    return sigma(signal)


def sigma(signal: np.ndarray) -> np.ndarray:
    """Noise over signal for a share ``signal`` of the signal's variance, infinite where it is 0; same shape."""
    with np.errstate(divide="ignore"):
        return np.sqrt((1.0 - signal) / signal)


def fresh(sigmas: np.ndarray, arrival: np.ndarray) -> np.ndarray:
    """Share of the noise at ``arrival`` that a step of the SDE from ``sigmas`` draws anew: sqrt(1 - (arrival / sigmas)^2), (K,).

    Raises ``BundleError`` where the noise rises, which such a step cannot do.
    """
    share = 1.0 - (arrival / sigmas) ** 2
    if np.any(share < -1e-9):
        k = int(np.argmin(share))
        raise BundleError(
            f"scheduler config: the noise level rises from {sigmas[k]:g} to {arrival[k]:g} in step {k} (final_sigmas_type, sigma_min, "
            f"rescale_betas_zero_snr), which a method that adds fresh noise cannot follow; expected it to fall"
        )
    return np.sqrt(np.maximum(share, 0.0))  # a Karras ladder ends within a rounding of the schedule's own end


# --- Timesteps ------------------------------------------------------------------------------------------------------


def timesteps(options: Options, num_steps: int) -> np.ndarray:
    """The timesteps of DDPM and DDIM, (num_steps,) int64, falling (arXiv 2305.08891, table 2)."""
    return _checked(_spaced(options, num_steps).round(), options, num_steps).astype(np.int64)


def fractional_timesteps(options: Options, num_steps: int) -> np.ndarray:
    """The timesteps of the Euler and Heun classes, (num_steps,) float64, falling: DDPM's, but not rounded for linspace."""
    return _checked(_spaced(options, num_steps), options, num_steps)


def multistep_timesteps(options: Options, num_steps: int, last: int) -> np.ndarray:
    """The timesteps of DPM-Solver and UniPC, (num_steps,) int64, falling, the first ``last`` of training being used.

    They differ from DDPM's: num_steps + 1 points are laid out and the one nearest to the data, where the last step
    lands, is not visited. Trailing spacing gives fewer where ``last`` is less than num_train_timesteps.
    """
    if options.timestep_spacing == "linspace":
        chosen = np.linspace(0, last - 1, num_steps + 1).round()[:0:-1]
    elif options.timestep_spacing == "leading":
        chosen = np.arange(num_steps + 1, dtype=np.float64)[:0:-1] * (last // (num_steps + 1)) + options.steps_offset
    else:
        chosen = _trailing(last, options.num_train_timesteps, num_steps)
    return _checked(chosen, options, num_steps).astype(np.int64)


def consistency_timesteps(options: LCMOptions, num_steps: int) -> np.ndarray:
    """The timesteps of LCM, (num_steps,) int64, falling: evenly chosen among those of its distillation.

    These are the last of each of ``original_inference_steps`` equal parts of training (arXiv 2310.04378, section 4.3).
    """
    k = options.num_train_timesteps // options.original_inference_steps
    distilled = np.arange(options.original_inference_steps, 0, -1) * k - 1
    return distilled[np.floor(np.linspace(0, len(distilled), num_steps, endpoint=False)).astype(np.int64)]


def karras_levels(options: KarrasOptions, first: float, last: float, num_steps: int) -> np.ndarray:
    """Noise levels spread as EDM spreads them, (num_steps,) float64, falling.

    From ``first`` to ``last``, or from ``sigma_max`` to ``sigma_min`` where the options name them. Raises ``BundleError`` when
    these would make the noise rise.
    """
    high = first if options.sigma_max is None else options.sigma_max
    low = last if options.sigma_min is None else options.sigma_min
    if low > high or (low == high and num_steps > 1):
        raise BundleError(
            f"scheduler config: with use_karras_sigmas the noise goes from sigma_max = {high:g} to sigma_min = {low:g}; expected it to fall"
        )
    ends = np.array([high, low]) ** (1.0 / KARRAS_RHO)
    return (ends[0] + np.linspace(0.0, 1.0, num_steps) * (ends[1] - ends[0])) ** KARRAS_RHO


def nearest_timesteps(levels: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Where training has these noise levels: float64 timesteps, interpolated in log(sigma) and kept within training's.

    ``levels`` (K,) are sought among ``sigmas`` (num_train_timesteps,). Timesteps may repeat once they are rounded.
    """
    # Not numpy.interp: the level set by hand where rescale_betas_zero_snr left no signal may lie under its neighbours',
    # and diffusers takes the last timestep whose level is not above the one sought.
    known, sought = np.log(sigmas), np.log(levels)
    not_above = known[:, None] <= sought
    low = np.where(not_above.any(axis=0), len(known) - 1 - not_above[::-1].argmax(axis=0), 0)
    low = np.minimum(low, len(known) - 2)
    weight = np.clip((known[low] - sought) / (known[low] - known[low + 1]), 0.0, 1.0)
    return (1.0 - weight) * low + weight * (low + 1)


def _spaced(options: Options, num_steps: int) -> np.ndarray:
    n = options.num_train_timesteps
    if options.timestep_spacing == "linspace":
        return np.linspace(0, n - 1, num_steps)[::-1]
    if options.timestep_spacing == "leading":
        return np.arange(num_steps, dtype=np.float64)[::-1] * (n // num_steps) + options.steps_offset
    return _trailing(n, n, num_steps)


def _trailing(last: int, n: int, num_steps: int) -> np.ndarray:
    """Every (n / num_steps)-th timestep counted down from ``last``.

    The count may end one value too far, at a timestep of -1 (61 steps of 1000 do, in diffusers too): it is dropped.
    """
    chosen = np.arange(last, 0, -n / num_steps).round() - 1
    return chosen[chosen >= 0]


def _checked(chosen: np.ndarray, options: Options, num_steps: int) -> np.ndarray:
    """The same, once it is sure that the network was trained at each timestep and that no step has zero length."""
    n = options.num_train_timesteps
    if chosen[0] > n - 1:
        raise BundleError(
            f"scheduler config: steps_offset {options.steps_offset} with {num_steps} steps asks for timestep {chosen[0]:g}, "
            f"past the last trained one, {n - 1}; take fewer steps"
        )
    if np.any(chosen[1:] >= chosen[:-1]):
        raise BundleError(
            f"num_steps {num_steps} visits a timestep twice with timestep_spacing {options.timestep_spacing!r} "
            f"over num_train_timesteps = {n}; take fewer steps"
        )
    return chosen
