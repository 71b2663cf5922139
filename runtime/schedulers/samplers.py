"""The sampling methods: each a pure function from options to the table of a run (see ``steps.py`` for its columns).

Notation: a and a_prev are alphas_cumprod at the timestep a step leaves and at the one it arrives at, x the sample, m the
network's output, x0 the estimate of the clean sample, z fresh noise. Everything is float64 and computed once.
"""

from __future__ import annotations

import numpy as np

from ..errors import BundleError
from . import noise
from .config import DDIMOptions, DDPMOptions, DPMSolverOptions, Options
from .steps import ROW, Plan


def ddpm(options: DDPMOptions, num_steps: int, eta: float = 0.0) -> Plan:
    """Ancestral sampling (DDPM, arXiv 2006.11239, eq. 7; with beta = 1 - a / a_prev so that timesteps may be skipped).

    x <- sqrt(a_prev) beta / (1 - a) x0 + sqrt(a / a_prev) (1 - a_prev) / (1 - a) x + sqrt(variance) z

    The variance is the posterior's, (1 - a_prev) / (1 - a) beta, for ``fixed_small`` and beta itself for ``fixed_large``.
    The ``_log`` forms name the same numbers by their logarithm (diffusers takes a square root of that logarithm for
    ``fixed_large_log`` and returns NaN; here it means what it says). Noise is added unless the step leaves t = 0, so with
    ``steps_offset`` and ``fixed_large`` even the last step adds some, as in diffusers. ``eta`` has no meaning here.
    """
    everything = noise.alphas_cumprod(options)
    n = options.num_train_timesteps
    # All timesteps are all timesteps, whatever the spacing; an offset would only push the first past the end.
    timesteps = np.arange(n)[::-1].copy() if num_steps == n else noise.timesteps(options, num_steps)
    a = everything[timesteps]
    a_prev = np.append(a[1:], 1.0)
    table = _estimates(options, timesteps, a)

    beta = 1.0 - a / a_prev
    table["estimate"] = np.sqrt(a_prev) * beta / (1.0 - a)
    table["sample"] = np.sqrt(a / a_prev) * (1.0 - a_prev) / (1.0 - a)
    large = options.variance_type in ("fixed_large", "fixed_large_log")
    variance = beta if large else (1.0 - a_prev) / (1.0 - a) * beta
    table["noise"] = np.where(timesteps > 0, np.sqrt(variance), 0.0)
    return Plan(timesteps, noise.noise_levels(a), table, clip=_clip(options), threshold=_threshold(options))


def ddim(options: DDIMOptions, num_steps: int, eta: float = 0.0) -> Plan:
    """Non-Markovian sampling (DDIM, arXiv 2010.02502, eq. 12, its sigma from eq. 16 times ``eta``).

    x <- sqrt(a_prev) x0 + sqrt(1 - a_prev - s^2) epsilon + s z,   s^2 = eta^2 (1 - a_prev) / (1 - a) (1 - a / a_prev)

    epsilon is the noise as the network sees it, not re-derived from the clipped x0. As in diffusers, a step arrives
    num_train_timesteps // num_steps timesteps earlier even where the next evaluation lies elsewhere (linspace, and
    trailing when num_steps does not divide), and past t = 0 at 1, or at alphas_cumprod[0] without ``set_alpha_to_one``.
    """
    everything = noise.alphas_cumprod(options)
    timesteps = noise.timesteps(options, num_steps)
    a = everything[timesteps]
    arrival = timesteps - options.num_train_timesteps // num_steps
    a_prev = np.where(arrival >= 0, everything[arrival], 1.0 if options.set_alpha_to_one else everything[0])
    table = _estimates(options, timesteps, a)

    variance = eta**2 * (1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev)
    direction = np.sqrt(np.maximum(1.0 - a_prev - variance, 0.0))
    if options.prediction_type == "epsilon":
        table["output"] = direction
    elif options.prediction_type == "v_prediction":
        table["sample"], table["output"] = direction * np.sqrt(1.0 - a), direction * np.sqrt(a)
    else:
        table["sample"], table["output"] = direction / np.sqrt(1.0 - a), -direction * np.sqrt(a / (1.0 - a))
    table["estimate"] = np.sqrt(a_prev)
    table["noise"] = np.sqrt(variance)
    return Plan(timesteps, noise.noise_levels(a), table, clip=_clip(options), threshold=_threshold(options))


def dpmsolver_pp(options: DPMSolverOptions, num_steps: int, eta: float = 0.0) -> Plan:
    """Deterministic multistep DPM-Solver++ of order 1 or 2 (arXiv 2211.01095, algorithm 2 and appendix B).

    From noise level sigma to sigma_next, with h = log(sigma / sigma_next) the step in lambda, alpha the signal's scale on
    arrival and D = h / h_before (x0 - x0_before) the estimate's slope times h:

    x <- s_next / s x + alpha (1 - e^-h) x0 + g D,   s = sigma / sqrt(1 + sigma^2),   alpha = 1 / sqrt(1 + sigma_next^2)

    g is alpha (1 - e^-h) / 2 for the midpoint rule, alpha (1 - (1 - e^-h) / h) for heun, and 0 for a first-order step,
    which is DDIM's: the first one, the last one into sigma = 0, the last one of fewer than 15 with
    ``lower_order_final``, and the last one with ``euler_at_final``. ``eta`` has no meaning here.
    """
    signal = noise.alphas_cumprod(options)
    if options.rescale_betas_zero_snr:
        signal[-1] = noise.SMALLEST_ALPHA_CUMPROD
    if options.use_karras_sigmas:
        timesteps, sigmas = noise.karras_levels(options, signal, num_steps)
    else:
        timesteps = noise.multistep_timesteps(options, signal, num_steps)
        sigmas = noise.noise_levels(signal[timesteps])
    to_zero = options.final_sigmas_type == "zero"
    arrival = np.append(sigmas[1:], 0.0 if to_zero else noise.noise_levels(signal[:1]))
    table = _estimates(options, timesteps, 1.0 / (1.0 + sigmas**2))

    alpha = 1.0 / np.sqrt(1.0 + arrival**2)
    shrink = arrival / sigmas  # e^-h
    table["sample"] = shrink * np.sqrt((1.0 + sigmas**2) / (1.0 + arrival**2))
    table["estimate"] = alpha * (1.0 - shrink)

    count = len(timesteps)
    second = np.arange(count) >= 1 if options.solver_order == 2 else np.zeros(count, bool)
    if to_zero or options.euler_at_final or (options.lower_order_final and count < 15):
        second[-1] = False
    # A step of no length (the schedule's end reached twice, with sigma_min) has no slope to follow either.
    second &= shrink != 1.0
    (at,) = np.nonzero(second)
    h, h_before = -np.log(shrink[at]), -np.log(shrink[at - 1])
    if options.solver_type == "heun":
        slope = alpha[at] * (1.0 + np.expm1(-h) / h)
    else:
        slope = alpha[at] * -np.expm1(-h) / 2.0
    table["estimate"][at] += slope * h / h_before
    table["previous"][at] -= slope * h / h_before
    return Plan(timesteps, sigmas, table, memory=options.solver_order, threshold=_threshold(options))


def _estimates(options: Options, timesteps: np.ndarray, a: np.ndarray) -> np.ndarray:
    """A table (K,) of ``ROW`` whose first three columns turn sample and output into x0, the rest zero.

    epsilon: x0 = (x - sqrt(1 - a) m) / sqrt(a) (DDPM, eq. 15). v_prediction: x0 = sqrt(a) x - sqrt(1 - a) m (progressive
    distillation, arXiv 2202.00512, appendix D). sample: x0 = m.
    """
    table = np.zeros(len(a), ROW)
    table["gain"] = 1.0
    if options.prediction_type == "sample":
        table["from_output"] = 1.0
        return table
    table["from_output"] = -np.sqrt(1.0 - a)
    if options.prediction_type == "v_prediction":
        table["from_sample"] = np.sqrt(a)
        return table
    if np.any(a == 0.0):
        raise BundleError(
            f"scheduler config: prediction_type 'epsilon' says nothing of the sample at timestep {timesteps[a == 0.0][0]}, where "
            f"the noise schedule leaves no signal; with rescale_betas_zero_snr a network has to predict v_prediction or sample"
        )
    table["from_sample"] = 1.0
    table["gain"] = 1.0 / np.sqrt(a)
    return table


def _clip(options: DDPMOptions) -> float | None:
    return float(options.clip_sample_range) if options.clip_sample else None


def _threshold(options: Options) -> tuple[float, float] | None:
    return (float(options.dynamic_thresholding_ratio), float(options.sample_max_value)) if options.thresholding else None
