"""The options of diffusers' ``scheduler_config.json``: what is read, what it may be, and what is refused.

The dataclasses' fields are the keys on disk, with diffusers' own defaults (which differ between its classes). A key that
a class reads and that holds something not supported is refused by name. A key that only *another* supported class reads
is ignored, as diffusers ignores it: its configs keep such keys when one scheduler is made from another.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ..errors import BundleError


def load_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``scheduler_config.json`` unchanged.

    Raises ``BundleError`` when the file is missing, unreadable, not JSON, or not a JSON object. Its options are only
    judged when a plan is built from them, because a named scheduler reads other options than the config's own class.
    """
    path = Path(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; expected the scheduler_config.json that diffusers wrote") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise BundleError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise BundleError(f"{path}: holds a JSON {type(config).__name__}; expected an object of scheduler options")
    return config


# --- One helper per kind of option: its default, what it accepts, and how to say so ---------------------------------


def _option(default: Any, expected: str, accepts: Callable[[Any], bool]) -> Any:
    return dataclasses.field(default=default, metadata={"expected": expected, "accepts": accepts})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(default: float, low: float, high: float) -> Any:
    return _option(default, f"a number from {low:g} to {high:g}", lambda v: _is_number(v) and low <= v <= high)


def _whole(default: int, low: int, high: int) -> Any:
    return _option(
        default, f"a whole number from {low} to {high}", lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high
    )


def _flag(default: bool) -> Any:
    return _option(default, "true or false", lambda v: v is None or isinstance(v, bool))


def _one_of(default: str | None, *choices: str | None) -> Any:
    names = ", ".join("null" if choice is None else repr(choice) for choice in choices)
    return _option(default, f"one of {names}" if len(choices) > 1 else names, lambda v: (v is None or isinstance(v, str)) and v in choices)


def _off(default: bool | None = False) -> Any:
    """A feature of diffusers that is not supported here; only its being off is accepted."""
    return _option(default, "false or null, because it is not supported", lambda v: v is None or v is False)


def _on() -> Any:
    return _option(True, "true, because its opposite is not supported", lambda v: v is None or v is True)


def _is_betas(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and len(value) > 0 and all(_is_number(b) and 0 < b < 1 for b in value))


def _is_steps(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(k, int) and not isinstance(k, bool) and 0 <= k <= 10_000 for k in value)


# The smallest and largest numbers a config may hold where any magnitude makes sense; they keep float32 from overflowing.
_TINY, _HUGE = 1e-6, 1e6


def _level() -> Any:
    return _option(None, f"null or a number from {_TINY:g} to {_HUGE:g}", lambda v: v is None or (_is_number(v) and _TINY <= v <= _HUGE))


# Neither compared nor printed: the code that dataclasses would write for it takes half of the time of importing this file.

# --- What groups of classes read ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Options:
    """What every scheduler reads: the noise schedule, the meaning of the network's output, the spacing of the steps."""

    most_steps: ClassVar[str] = "num_train_timesteps"  # the option that num_steps may not exceed

    num_train_timesteps: int = _whole(1000, 2, 10_000)
    beta_start: float = _number(0.0001, 1e-12, 0.9999)
    beta_end: float = _number(0.02, 1e-12, 0.9999)
    beta_schedule: str = _one_of("linear", "linear", "scaled_linear", "squaredcos_cap_v2")
    trained_betas: tuple[float, ...] | None = _option(None, "null or a list of numbers between 0 and 1", _is_betas)
    prediction_type: str = _one_of("epsilon", "epsilon", "v_prediction", "sample")
    # Learned variances need a network with a second output; every class refuses them, whichever reads the rest.
    variance_type: str | None = _one_of("fixed_small", None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
    timestep_spacing: str = _one_of("leading", "leading", "trailing", "linspace")
    steps_offset: int = _whole(0, 0, 10_000)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RescaleOptions(Options):
    """Classes whose noise schedule can be made to end without any signal."""

    rescale_betas_zero_snr: bool = _flag(False)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ThresholdOptions(RescaleOptions):
    """Classes that can threshold the estimate (all of them can rescale the betas too)."""

    thresholding: bool = _flag(False)
    dynamic_thresholding_ratio: float = _number(0.995, 0, 1)
    sample_max_value: float = _number(1.0, _TINY, _HUGE)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ClipOptions(Options):
    """Classes that can clip the estimate."""

    clip_sample: bool = _flag(False)
    clip_sample_range: float = _number(1.0, _TINY, _HUGE)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class KarrasOptions(Options):
    """Classes that can spread their noise levels as EDM does, between sigma_min and sigma_max where these are given.

    diffusers names the two for its Euler and UniPC classes only, but reads them in every class whose config holds them.
    """

    use_karras_sigmas: bool = _flag(False)
    sigma_min: float | None = _level()
    sigma_max: float | None = _level()
    use_exponential_sigmas: bool = _off()
    use_beta_sigmas: bool = _off()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MultistepOptions(ThresholdOptions, KarrasOptions):
    """What DPM-Solver and UniPC share; neither ever clips the estimate."""

    solver_order: int = _whole(2, 1, 2)
    lower_order_final: bool = _flag(True)
    final_sigmas_type: str = _one_of("zero", "zero", "sigma_min")
    use_flow_sigmas: bool = _off()
    use_dynamic_shifting: bool = _off()


# --- diffusers' classes ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DDPMOptions(ThresholdOptions, ClipOptions):
    """Options of diffusers' ``DDPMScheduler``."""

    clip_sample: bool = _flag(True)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DDIMOptions(DDPMOptions):
    """Options of diffusers' ``DDIMScheduler``."""

    set_alpha_to_one: bool = _flag(True)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DPMSolverOptions(MultistepOptions):
    """Options of diffusers' ``DPMSolverMultistepScheduler``.

    ``deis`` and ``logrho``, ``bh1``, ``bh2`` come from the configs of diffusers' DEIS and UniPC schedulers; its DPM-Solver
    takes them for ``dpmsolver++`` and ``midpoint``, and so does this one. ``algorithm_type`` decides between the
    deterministic and the SDE form only where no scheduler is named.
    """

    timestep_spacing: str = _one_of("linspace", "leading", "trailing", "linspace")
    algorithm_type: str = _one_of("dpmsolver++", "dpmsolver++", "sde-dpmsolver++", "deis")
    solver_type: str = _one_of("midpoint", "midpoint", "heun", "logrho", "bh1", "bh2")
    euler_at_final: bool = _flag(False)
    lambda_min_clipped: float = _number(-math.inf, -math.inf, _HUGE)
    use_lu_lambdas: bool = _off()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class UniPCOptions(MultistepOptions):
    """Options of diffusers' ``UniPCMultistepScheduler``, which takes the solver types of the others for ``bh2``."""

    timestep_spacing: str = _one_of("linspace", "leading", "trailing", "linspace")
    solver_type: str = _one_of("bh2", "bh1", "bh2", "midpoint", "heun", "logrho")
    predict_x0: bool = _on()
    disable_corrector: tuple[int, ...] = _option((), "a list of whole numbers, the steps after which nothing is corrected", _is_steps)
    solver_p: None = _off(None)
    shift_terminal: None = _off(None)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EulerOptions(RescaleOptions, KarrasOptions):
    """Options of diffusers' ``EulerDiscreteScheduler``.

    Timesteps of type ``continuous`` are 0.25 log(sigma), no timesteps of training, which the network here takes.
    """

    timestep_spacing: str = _one_of("linspace", "leading", "trailing", "linspace")
    final_sigmas_type: str = _one_of("zero", "zero", "sigma_min")
    interpolation_type: str = _one_of("linear", "linear", "log_linear")
    timestep_type: str = _one_of("discrete", "discrete")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EulerAncestralOptions(RescaleOptions):
    """Options of diffusers' ``EulerAncestralDiscreteScheduler``."""

    timestep_spacing: str = _one_of("linspace", "leading", "trailing", "linspace")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class HeunOptions(KarrasOptions, ClipOptions):
    """Options of diffusers' ``HeunDiscreteScheduler``."""

    beta_start: float = _number(0.00085, 1e-12, 0.9999)
    beta_end: float = _number(0.012, 1e-12, 0.9999)
    timestep_spacing: str = _one_of("linspace", "leading", "trailing", "linspace")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LCMOptions(ThresholdOptions, ClipOptions):
    """Options of diffusers' ``LCMScheduler``, which spaces its timesteps by ``original_inference_steps`` alone."""

    most_steps: ClassVar[str] = "original_inference_steps"

    beta_start: float = _number(0.00085, 1e-12, 0.9999)
    beta_end: float = _number(0.012, 1e-12, 0.9999)
    beta_schedule: str = _one_of("scaled_linear", "linear", "scaled_linear", "squaredcos_cap_v2")
    original_inference_steps: int = _whole(50, 1, 10_000)
    timestep_scaling: float = _number(10.0, _TINY, _HUGE)


_CLASSES = (DDIMOptions, DPMSolverOptions, UniPCOptions, EulerOptions, HeunOptions, LCMOptions)
_KNOWN = {field.name for cls in _CLASSES for field in dataclasses.fields(cls)}
# Two options only matter once use_flow_sigmas or use_dynamic_shifting is on, which is refused.
_KNOWN |= {"flow_shift", "time_shift_type"}

AnyOptions = TypeVar("AnyOptions", bound=Options)


def read_options(kind: type[AnyOptions], config: Mapping[str, Any], foreign: bool = False) -> AnyOptions:
    """Check ``config`` against the options of ``kind`` and fill in diffusers' defaults.

    ``foreign`` says that the config was written for another class than the one being built. Then unknown keys are
    that class's own business, and the noise schedule has to be spelled out: without ``beta_schedule`` or
    ``trained_betas`` the config belongs to another kind of diffusion (flow matching, EDM) and defaults would be a guess.

    Raises ``BundleError`` naming the first option that is not supported, what it holds and what was expected.
    """
    # An in-memory diffusers config lists the keys it was never given; those follow the class being built.
    unset = config.get("_use_default_values")
    unset = unset if isinstance(unset, list) else []
    given = {key: value for key, value in config.items() if not key.startswith("_") and key not in unset}
    if foreign and not {"beta_schedule", "trained_betas"} & set(config):
        raise BundleError(
            f"scheduler config: neither beta_schedule nor trained_betas is given, so the noise schedule of "
            f"_class_name {config.get('_class_name')!r} cannot be carried over to another scheduler"
        )
    if not foreign:
        for key in sorted(given.keys() - _KNOWN, key=str):
            if given[key] is not None and given[key] is not False:
                raise BundleError(f"scheduler config: option {key} = {_brief(given[key])} is not known, so it cannot be honoured")

    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name not in given:
            continue
        value = given[field.name]
        if not field.metadata["accepts"](value):
            raise BundleError(f"scheduler config: {field.name} is {_brief(value)}; expected {field.metadata['expected']}")
        values[field.name] = tuple(value) if isinstance(value, list) else value
    options = kind(**values)
    if options.trained_betas is not None and len(options.trained_betas) != options.num_train_timesteps:
        raise BundleError(
            f"scheduler config: trained_betas holds {len(options.trained_betas)} numbers; "
            f"expected num_train_timesteps = {options.num_train_timesteps} of them"
        )
    return options


def _brief(value: Any) -> str:
    try:
        text = json.dumps(value, default=repr)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
