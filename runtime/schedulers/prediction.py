"""What the network's output says of the clean sample: the columns of a table that every method begins with."""

from __future__ import annotations

import numpy as np

from ..errors import BundleError
from .config import ClipOptions, Options, ThresholdOptions
from .steps import ROW


def estimates(options: Options, timesteps: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """A table (K,) of ``ROW`` whose first three columns turn sample and output into x0, the rest zero.

    ``timesteps`` (K,) where the network is evaluated, ``sigmas`` (K,) the noise over signal there. With a = alphas_cumprod =
    1 / (1 + sigma^2): epsilon: x0 = (x - sqrt(1 - a) m) / sqrt(a) (DDPM, eq. 15). v_prediction: x0 = sqrt(a) x - sqrt(1 - a) m
    (progressive distillation, arXiv 2202.00512, appendix D). sample: x0 = m.

    Raises ``BundleError`` for epsilon where no signal is left.
    """
    table = np.zeros(len(sigmas), ROW)
    table["gain"] = 1.0
    if options.prediction_type == "sample":
        table["from_output"] = 1.0
        return table
    magnitude = np.hypot(1.0, sigmas)  # 1 / sqrt(a)
    table["from_output"] = -1.0 / np.hypot(1.0, 1.0 / sigmas)
    if options.prediction_type == "v_prediction":
        table["from_sample"] = 1.0 / magnitude
        return table
    if np.any(np.isinf(sigmas)):
        raise BundleError(
            f"scheduler config: prediction_type 'epsilon' says nothing of the sample at timestep {timesteps[np.isinf(sigmas)][0]}, where "
            f"the noise schedule leaves no signal; with rescale_betas_zero_snr a network has to predict v_prediction or sample"
        )
    table["from_sample"] = 1.0
    table["gain"] = magnitude
    return table


def clip(options: ClipOptions) -> float | None:
    """The largest magnitude an estimate may have, None where it is not clipped."""
    return float(options.clip_sample_range) if options.clip_sample else None


def threshold(options: ThresholdOptions) -> tuple[float, float] | None:
    """(ratio, largest) of dynamic thresholding, None where it is off."""
    return (float(options.dynamic_thresholding_ratio), float(options.sample_max_value)) if options.thresholding else None
