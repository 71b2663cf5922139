"""What several files of the runtime's tests share: a bundle to spoil, a sampler and its targets, maps of orders, a plan run through."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.data import DataSet
from runtime.data import load as load_data
from runtime.sampler import Sampler, load
from runtime.schedulers import SCHEDULERS, Plan
from runtime.target import Target

# --- Bundles --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the small bundle that a test may spoil."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


# --- The sampler ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def quick() -> dict[str, Any]:
    """Settings for sampling in a few steps."""
    return {"steps": 4}


@pytest.fixture(scope="module")
def sampler(small_bundle: Path) -> Iterator[Sampler]:
    with load(small_bundle, "onnxruntime", "cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def data(small_data: Path) -> DataSet:
    return load_data(small_data)


@pytest.fixture(scope="session")
def nth_target() -> Callable[..., Target]:
    """Target of the i-th sample whose height lies well within the training range."""

    def nth_target(data: DataSet, i: int, **more: Any) -> Target:
        k = int(np.flatnonzero((data.h > 150) & (data.h < 350))[i])
        return Target.from_arrays(data.Rm[k], data.Tm[k], float(data.h[k]), name=f"sample {k}", **more)

    return nth_target


@pytest.fixture(scope="module")
def target(data: DataSet, nth_target: Callable[..., Target]) -> Target:
    return nth_target(data, 0, geometry=data.geometry)


@pytest.fixture(scope="module")
def condition(sampler: Sampler, target: Target) -> dict[str, np.ndarray]:
    return sampler.condition(target)


# --- Targets --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def maps() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """R, T (23, 23) with T1_m2=0.3 meaning T(1,-2) = 0.3 (m for minus)."""

    def maps(**orders: float) -> tuple[np.ndarray, np.ndarray]:
        R, T = np.zeros((23, 23)), np.zeros((23, 23))
        for name, value in orders.items():
            m, n = (int(part.replace("m", "-")) for part in name[1:].split("_"))
            (R if name[0] == "R" else T)[m + 11, n + 11] = value
        return R, T

    return maps


@pytest.fixture(scope="session")
def plain() -> Callable[[str], bool]:
    """One line with something to do in it: the house's form of an error."""

    def plain(text: str) -> bool:
        return "\n" not in text and len(text) < 400 and any(mark in text for mark in (";", ","))

    return plain


# --- Schedulers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def scheduler_config() -> Callable[..., dict[str, Any]]:
    """The config that diffusers would write for a word of SCHEDULERS: DDPM's linear betas and what else is named."""

    def scheduler_config(word: str, **options: Any) -> dict[str, Any]:
        linear = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
        form = {"algorithm_type": word} if word == "sde-dpmsolver++" else {}
        return {"_class_name": SCHEDULERS[word].class_name, "_diffusers_version": "0.42.1", **linear, **form, **options}

    return scheduler_config


@pytest.fixture(scope="session")
def run_plan() -> Callable[..., list[np.ndarray]]:
    """The whole trajectory: the sample after each step. ``network(sample, t, sigma)``; ``noises[k]`` for step k."""

    def run_plan(steps: Plan, network: Any, sample: np.ndarray, noises: Any = None) -> list[np.ndarray]:
        sample = steps.start(sample.copy())
        history = steps.new_history(sample.shape, sample.dtype)
        history.fill(np.nan)  # nothing may be read before it is written
        trajectory = []
        for k, t in enumerate(steps.timesteps):
            output = network(sample, t, steps.sigmas[k]).astype(sample.dtype)
            steps.step(k, output, sample, noises[k] if steps.needs_noise[k] else None, history)
            trajectory.append(sample.copy())
        return trajectory

    return run_plan
