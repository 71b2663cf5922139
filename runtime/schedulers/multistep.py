"""Methods that step in lambda = -log(sigma) and look back at earlier estimates: DPM-Solver++, its SDE form, UniPC.

Notation: sigma and sigma_next are the noise levels a step leaves and arrives at, h = log(sigma / sigma_next) its length in
lambda, s = sigma / sqrt(1 + sigma^2) and alpha = 1 / sqrt(1 + sigma^2) the scales of noise and signal, x0 the estimate of the
clean sample, D = h / h_before (x0 - x0_before) its slope times h, z fresh noise.
"""

from __future__ import annotations

import numpy as np

from ..errors import BundleError
from . import noise, prediction
from .config import DPMSolverOptions, MultistepOptions, UniPCOptions
from .steps import Plan


def dpmsolver_pp(options: DPMSolverOptions, num_steps: int, eta: float = 0.0) -> Plan:
    """Deterministic multistep DPM-Solver++ of order 1 or 2 (arXiv 2211.01095, algorithm 2 and appendix B).

    x <- s_next / s x + alpha_next (1 - e^-h) x0 + g D

    g is alpha_next (1 - e^-h) / 2 for the midpoint rule, alpha_next (1 - (1 - e^-h) / h) for heun, and 0 for a first-order
    step, which is DDIM's: the first one, the last one into sigma = 0, the last one of fewer than 15 with
    ``lower_order_final``, and the last one with ``euler_at_final``. ``eta`` has no meaning here.
    """
    return _dpmsolver(options, num_steps, 1.0)


def sde_dpmsolver_pp(options: DPMSolverOptions, num_steps: int, eta: float = 0.0) -> Plan:
    """Multistep DPM-Solver++ of order 1 or 2 for the diffusion's SDE (arXiv 2211.01095, section 6 and appendix C).

    x <- s_next / s e^-h x + alpha_next (1 - e^-2h) x0 + g D + s_next sqrt(1 - e^-2h) z

    g is alpha_next (1 - e^-2h) / 2 for the midpoint rule, alpha_next (1 - (1 - e^-2h) / (2 h)) for heun, and 0 for a
    first-order step, which is DDIM's with eta 1; those are the same as in the deterministic form. ``eta`` has no meaning here.
    """
    return _dpmsolver(options, num_steps, 2.0)


def _dpmsolver(options: DPMSolverOptions, num_steps: int, rate: float) -> Plan:
    """Both forms: what is left of the sample's own noise decays as e^(-rate h), rate 1 for the ODE and 2 for the SDE."""
    known = noise.noise_levels(options, options.rescale_betas_zero_snr)
    last = len(known) - int(np.count_nonzero(-np.log(known) < options.lambda_min_clipped))
    if last < 1:
        raise BundleError(f"scheduler config: lambda_min_clipped is {options.lambda_min_clipped}, which leaves no timestep to sample at")
    timesteps, sigmas = _levels(options, known, num_steps, last)
    if options.use_karras_sigmas:
        whole = np.trunc if options.beta_schedule == "squaredcos_cap_v2" else np.round
        timesteps = whole(timesteps).astype(np.int64)
    to_zero = options.final_sigmas_type == "zero"
    arrival = np.append(sigmas[1:], 0.0 if to_zero else known[0])
    table = prediction.estimates(options, timesteps, sigmas)

    alpha = 1.0 / np.hypot(1.0, arrival)
    shrink = arrival / sigmas  # e^-h
    table["sample"] = shrink**rate * np.hypot(1.0, sigmas) * alpha
    table["estimate"] = alpha * (1.0 - shrink**rate)
    if rate == 2.0:
        table["noise"] = alpha * arrival * noise.fresh(sigmas, arrival)

    count = len(timesteps)
    second = np.arange(count) >= 1 if options.solver_order == 2 else np.zeros(count, bool)
    if to_zero or options.euler_at_final or (options.lower_order_final and count < 15):
        second[-1] = False
    # A step of no length (the schedule's end reached twice, with sigma_min) has no slope to follow either.
    second &= shrink != 1.0
    (at,) = np.nonzero(second)
    h, h_before = -np.log(shrink[at]), -np.log(shrink[at - 1])
    if options.solver_type == "heun":
        slope = alpha[at] * (1.0 + np.expm1(-rate * h) / (rate * h))
    else:
        slope = alpha[at] * -np.expm1(-rate * h) / 2.0
    table["estimate"][at] += slope * h / h_before
    table["previous"][at] -= slope * h / h_before
    return Plan(timesteps, sigmas, table, memory=options.solver_order, threshold=prediction.threshold(options))


def unipc(options: UniPCOptions, num_steps: int, eta: float = 0.0) -> Plan:
    """UniPC of order 1 or 2 in data prediction: predictor UniP and corrector UniC (arXiv 2302.04867, algorithms 5 to 8).

    Predict:  x <- s_next / s x + alpha_next (1 - e^-h) x0 + b D / 2,     b = -alpha_next B(h)
    Correct:  x <- x - b D / 2 + b (r_1 D + r_2 (x0_next - x0))           once the network has given x0_next at the arrival

    B(h) is -h for ``bh1`` and e^-h - 1 for ``bh2``; D is left out of a first-order step, and there r_2 = 1/2. In a
    second-order one r_1 and r_2 match the expansion's first two terms (eq. 9). The correction is taken together with the
    prediction that follows it, so it costs no evaluation; the last step's is never taken. ``disable_corrector`` lists the
    steps whose arrival is not corrected. First order are the first step, the last one with ``lower_order_final``, and,
    unlike in diffusers, which divides by zero there, the last one into sigma = 0. ``eta`` has no meaning here.
    """
    known = noise.noise_levels(options, options.rescale_betas_zero_snr)
    timesteps, sigmas = _levels(options, known, num_steps, len(known))
    timesteps = timesteps.round().astype(np.int64)
    # As in diffusers the end of a Karras ladder is its own last level: a last step of no length.
    end = sigmas[-1] if options.use_karras_sigmas else known[0]
    arrival = np.append(sigmas[1:], 0.0 if options.final_sigmas_type == "zero" else end)
    table = prediction.estimates(options, timesteps, sigmas)

    alpha = 1.0 / np.hypot(1.0, arrival)
    shrink = arrival / sigmas  # e^-h
    carried = shrink * np.hypot(1.0, sigmas) * alpha
    table["sample"] = carried
    table["estimate"] = alpha * (1.0 - shrink)

    h = -np.log(shrink)
    second = np.arange(len(h)) >= 1 if options.solver_order == 2 else np.zeros(len(h), bool)
    if options.lower_order_final or arrival[-1] == 0.0:
        second[-1] = False
    ratio = np.zeros(len(h))  # h / h_before, where the step follows a slope
    ratio[1:] = np.where(second[1:], h[1:] / h[:-1], 0.0)
    b = alpha * (h if options.solver_type == "bh1" else 1.0 - shrink)
    slope = np.where(second, b * ratio / 2.0, 0.0)
    table["estimate"] += slope
    table["previous"] -= slope

    # What the estimate of step k tells of the step before it, j, carried along by step k.
    after = np.array([k for k in range(1, len(h)) if k - 1 not in options.disable_corrector], np.int64)
    j = after - 1
    first, last = _corrector(h[j], ratio[j], -b[j] / alpha[j])
    to_slope = carried[after] * b[j] * ratio[j] * (first - 0.5) * second[j]
    to_new = carried[after] * b[j] * last
    table["estimate"][after] += to_new
    table["previous"][after] += to_slope - to_new
    table["earlier"][after] -= to_slope
    return Plan(timesteps, sigmas, table, memory=options.solver_order + 1, threshold=prediction.threshold(options))


def _corrector(h: np.ndarray, ratio: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r_1 and r_2 of UniC for steps of length h in lambda, ``ratio`` times the one before (0: first order); all (K,).

    They solve r_1 + r_2 = c_1 and -r_1 / ratio + r_2 = c_2, with c_1 = (phi_1 - 1) / B, c_2 = 2 (phi_2 - 1/2) / B,
    phi_1 = (e^-h - 1) / -h and phi_2 = (phi_1 - 1) / -h.
    """
    phi_1 = np.expm1(-h) / -h
    phi_2 = (phi_1 - 1.0) / -h
    c_1, c_2 = (phi_1 - 1.0) / B, 2.0 * (phi_2 - 0.5) / B
    second = ratio != 0.0
    r_1 = np.where(second, (c_1 - c_2) * ratio / (ratio + 1.0), 0.0)
    return r_1, np.where(second, c_1 - r_1, 0.5)


def _levels(options: MultistepOptions, known: np.ndarray, num_steps: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps, still fractional with Karras levels, and their noise levels among training's, ``known``: both (K,)."""
    if options.use_karras_sigmas:
        sigmas = noise.karras_levels(options, float(known[-1]), float(known[0]), num_steps)
        return noise.nearest_timesteps(sigmas, known), sigmas
    timesteps = noise.multistep_timesteps(options, num_steps, last)
    return timesteps, known[timesteps]
