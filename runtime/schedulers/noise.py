"""Noise schedules: how much signal is left at each training timestep, and at which timesteps the network is asked.

The forward process is x_t = sqrt(alphas_cumprod[t]) x_0 + sqrt(1 - alphas_cumprod[t]) z, z ~ N(0, 1) (DDPM, arXiv
2006.11239, eq. 4). Its noise level is sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod): noise over signal, unitless.
All arrays are float64; timesteps are int64, in the order in which they are visited, from noise to data.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import BundleError
from .config import DPMSolverOptions, Options

# float16's smallest subnormal: what DPM-Solver takes for "no signal left", so that its first noise level is finite.
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


def alphas_cumprod(options: Options) -> np.ndarray:
    """Share of the signal's variance left at each training timestep, (num_train_timesteps,), falling.

    With ``rescale_betas_zero_snr`` sqrt(alphas_cumprod) is shifted and stretched so that its first value stays and its
    last one is exactly 0 (arXiv 2305.08891, algorithm 1).

    Raises ``BundleError`` when the betas drown the signal beyond what a float32 sample can hold.
    """
    signal = np.cumprod(1.0 - betas(options))
    if signal[-1] < DROWNED:
        raise BundleError(
            f"scheduler config: the betas (beta_schedule, beta_start, beta_end, trained_betas) leave {signal[-1]:.0e} of the signal "
            f"at the last of {len(signal)} timesteps; expected at least {DROWNED:.0e}"
        )
    if not options.rescale_betas_zero_snr:
        return signal
    root = np.sqrt(signal)
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def noise_levels(signal: np.ndarray) -> np.ndarray:
    """sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod), infinite where no signal is left; same shape."""
    with np.errstate(divide="ignore"):
        return np.sqrt((1.0 - signal) / signal)


def timesteps(options: Options, num_steps: int) -> np.ndarray:
    """The timesteps of DDPM and DDIM, (num_steps,) int64, falling (arXiv 2305.08891, table 2)."""
    n = options.num_train_timesteps
    if options.timestep_spacing == "linspace":
        chosen = np.linspace(0, n - 1, num_steps).round()[::-1]
    elif options.timestep_spacing == "leading":
        chosen = np.arange(num_steps, dtype=np.float64)[::-1] * (n // num_steps) + options.steps_offset
    else:
        chosen = _trailing(n, n, num_steps)
    return _checked(chosen, options, num_steps)


def multistep_timesteps(options: DPMSolverOptions, signal: np.ndarray, num_steps: int) -> np.ndarray:
    """The timesteps of DPM-Solver, (num_steps,) int64, falling.

    They differ from DDPM's: num_steps + 1 points are laid out and the one nearest to the data, where the last step
    lands, is not visited. Timesteps whose half log signal-to-noise ratio lambda = -log(sigma) lies under
    ``lambda_min_clipped`` are cut off first, which can leave fewer than ``num_steps`` with trailing spacing.
    """
    n = options.num_train_timesteps
    last = n - int(np.count_nonzero(-np.log(noise_levels(signal)) < options.lambda_min_clipped))
    if last < 1:
        raise BundleError(f"scheduler config: lambda_min_clipped is {options.lambda_min_clipped}, which leaves no timestep to sample at")
    if options.timestep_spacing == "linspace":
        chosen = np.linspace(0, last - 1, num_steps + 1).round()[:0:-1]
    elif options.timestep_spacing == "leading":
        chosen = np.arange(num_steps + 1, dtype=np.float64)[:0:-1] * (last // (num_steps + 1)) + options.steps_offset
    else:
        chosen = _trailing(last, n, num_steps)
    return _checked(chosen, options, num_steps)


def karras_levels(options: Options, signal: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise levels spread as EDM spreads them, and the timesteps nearest to them: (num_steps,) int64 and float64.

    Timesteps may repeat where the noise levels lie closer together than the training schedule's. As in diffusers they
    are rounded, and only truncated for ``squaredcos_cap_v2``.
    """
    sigmas = noise_levels(signal)
    ends = sigmas[[-1, 0]] ** (1.0 / KARRAS_RHO)
    ramp = np.linspace(0.0, 1.0, num_steps)
    levels = (ends[0] + ramp * (ends[1] - ends[0])) ** KARRAS_RHO
    # Not numpy.interp: the level set by hand where rescale_betas_zero_snr left no signal may lie under its neighbours',
    # and diffusers takes the last timestep whose level is not above the one sought.
    known, sought = np.log(sigmas), np.log(levels)
    not_above = known[:, None] <= sought
    low = np.where(not_above.any(axis=0), len(known) - 1 - not_above[::-1].argmax(axis=0), 0)
    low = np.minimum(low, len(known) - 2)
    weight = np.clip((known[low] - sought) / (known[low] - known[low + 1]), 0.0, 1.0)
    nearest = (1.0 - weight) * low + weight * (low + 1)
    whole = np.trunc(nearest) if options.beta_schedule == "squaredcos_cap_v2" else nearest.round()
    return whole.astype(np.int64), levels


def _trailing(last: int, n: int, num_steps: int) -> np.ndarray:
    """Every (n / num_steps)-th timestep counted down from ``last``.

    The count may end one value too far, at a timestep of -1 (61 steps of 1000 do, in diffusers too): it is dropped.
    """
    chosen = np.arange(last, 0, -n / num_steps).round() - 1
    return chosen[chosen >= 0]


def _checked(chosen: np.ndarray, options: Options, num_steps: int) -> np.ndarray:
    """As int64, once it is sure that the network was trained at each timestep and that no step has zero length."""
    whole = chosen.astype(np.int64)
    n = options.num_train_timesteps
    if whole[0] >= n:
        raise BundleError(
            f"scheduler config: steps_offset {options.steps_offset} with {num_steps} steps asks for timestep {whole[0]}, "
            f"past the last trained one, {n - 1}; take fewer steps"
        )
    if np.any(whole[1:] >= whole[:-1]):
        raise BundleError(
            f"num_steps {num_steps} visits a timestep twice with timestep_spacing {options.timestep_spacing!r} "
            f"over num_train_timesteps = {n}; take fewer steps"
        )
    return whole
