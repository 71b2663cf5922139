"""Methods that step from timestep to timestep: DDPM, DDIM, LCM, each a pure function from options to the table of a run.

See ``steps.py`` for its columns. Notation: a and a_prev are alphas_cumprod at the timestep a step leaves and at the one it
arrives at, x the sample, m the network's output, x0 the estimate of the clean sample, z fresh noise. Everything is float64
and computed once.
"""

from __future__ import annotations

import numpy as np

from ..errors import BundleError
from . import noise, prediction
from .config import DDIMOptions, DDPMOptions, LCMOptions
from .steps import Plan

_SIGMA_DATA = 0.5  # of LCM's boundary condition, from consistency models (arXiv 2303.01469, appendix C)


def ddpm(options: DDPMOptions, num_steps: int, eta: float = 0.0) -> Plan:
    """Ancestral sampling (DDPM, arXiv 2006.11239, eq. 7; with beta = 1 - a / a_prev so that timesteps may be skipped).

    x <- sqrt(a_prev) beta / (1 - a) x0 + sqrt(a / a_prev) (1 - a_prev) / (1 - a) x + sqrt(variance) z

    The variance is the posterior's, (1 - a_prev) / (1 - a) beta, for ``fixed_small`` and beta itself for ``fixed_large``.
    The ``_log`` forms name the same numbers by their logarithm (diffusers takes a square root of that logarithm for
    ``fixed_large_log`` and returns NaN; here it means what it says). Noise is added unless the step leaves t = 0, so with
    ``steps_offset`` and ``fixed_large`` even the last step adds some, as in diffusers. ``eta`` has no meaning here.
    """
    everything = noise.alphas_cumprod(options, options.rescale_betas_zero_snr)
    n = options.num_train_timesteps
    # All timesteps are all timesteps, whatever the spacing; an offset would only push the first past the end.
    timesteps = np.arange(n)[::-1].copy() if num_steps == n else noise.timesteps(options, num_steps)
    a = everything[timesteps]
    a_prev = np.append(a[1:], 1.0)
    sigmas = noise.sigma(a)
    table = prediction.estimates(options, timesteps, sigmas)

    beta = 1.0 - a / a_prev
    table["estimate"] = np.sqrt(a_prev) * beta / (1.0 - a)
    table["sample"] = np.sqrt(a / a_prev) * (1.0 - a_prev) / (1.0 - a)
    large = options.variance_type in ("fixed_large", "fixed_large_log")
    variance = beta if large else (1.0 - a_prev) / (1.0 - a) * beta
    table["noise"] = np.where(timesteps > 0, np.sqrt(variance), 0.0)
    return Plan(timesteps, sigmas, table, clip=prediction.clip(options), threshold=prediction.threshold(options))


def ddim(options: DDIMOptions, num_steps: int, eta: float = 0.0) -> Plan:
    """Non-Markovian sampling (DDIM, arXiv 2010.02502, eq. 12, its sigma from eq. 16 times ``eta``).

    x <- sqrt(a_prev) x0 + sqrt(1 - a_prev - s^2) epsilon + s z,   s^2 = eta^2 (1 - a_prev) / (1 - a) (1 - a / a_prev)

    epsilon = (x - sqrt(a) x0) / sqrt(1 - a) is what the sample holds beside the estimate, so that a clipped estimate and the noise
    still add up to the sample: diffusers' ``use_clipped_model_output``. Its default keeps the network's own epsilon beside the
    clipped x0, and then guidance, whose estimates lie far outside the data, drives the sample off the path.

    As in diffusers, a step arrives num_train_timesteps // num_steps timesteps earlier even where the next evaluation lies
    elsewhere (linspace, and trailing when num_steps does not divide), and past t = 0 at 1, or at alphas_cumprod[0] without
    ``set_alpha_to_one``.
    """
    everything = noise.alphas_cumprod(options, options.rescale_betas_zero_snr)
    timesteps = noise.timesteps(options, num_steps)
    a = everything[timesteps]
    arrival = timesteps - options.num_train_timesteps // num_steps
    a_prev = np.where(arrival >= 0, everything[arrival], 1.0 if options.set_alpha_to_one else everything[0])
    sigmas = noise.sigma(a)
    table = prediction.estimates(options, timesteps, sigmas)

    variance = eta**2 * (1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev)
    direction = np.sqrt(np.maximum(1.0 - a_prev - variance, 0.0))
    table["sample"] = direction / np.sqrt(1.0 - a)
    table["estimate"] = np.sqrt(a_prev) - direction * np.sqrt(a / (1.0 - a))
    table["noise"] = np.sqrt(variance)
    return Plan(timesteps, sigmas, table, clip=prediction.clip(options), threshold=prediction.threshold(options))


def lcm(options: LCMOptions, num_steps: int, eta: float = 0.0) -> Plan:
    """Multistep consistency sampling (latent consistency models, arXiv 2310.04378, algorithm 3).

    x <- sqrt(a_prev) f + sqrt(1 - a_prev) z,   f = c_out x0 + c_skip x,   a_prev = 1 and no noise in the last step

    c_skip = s^2 / (s^2 + u^2) and c_out = u / sqrt(s^2 + u^2), with s = 0.5 the data's standard deviation and u the timestep times
    ``timestep_scaling``, make f the identity at timestep 0. A step's estimate is x0, clipped or thresholded, before this
    scaling. At most ``original_inference_steps`` steps. ``eta`` has no meaning here.

    Raises ``BundleError`` when ``original_inference_steps`` is more than ``num_train_timesteps``.
    """
    if options.original_inference_steps > options.num_train_timesteps:
        raise BundleError(
            f"scheduler config: original_inference_steps is {options.original_inference_steps}; "
            f"expected at most num_train_timesteps = {options.num_train_timesteps}"
        )
    timesteps = noise.consistency_timesteps(options, num_steps)
    a = noise.alphas_cumprod(options, options.rescale_betas_zero_snr)[timesteps]
    a_prev = np.append(a[1:], 1.0)
    sigmas = noise.sigma(a)
    table = prediction.estimates(options, timesteps, sigmas)

    scaled = timesteps * options.timestep_scaling
    table["estimate"] = np.sqrt(a_prev) * scaled / np.hypot(scaled, _SIGMA_DATA)
    table["sample"] = np.sqrt(a_prev) * _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
    table["noise"] = np.sqrt(1.0 - a_prev)
    return Plan(timesteps, sigmas, table, clip=prediction.clip(options), threshold=prediction.threshold(options))
