"""What a design costs on this machine: the network, the loop around it, and the solver, timed side by side."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .sampler import Sampler

BATCH = 64
BATCHES = (1, 8, BATCH)


def measure(sampler: Sampler, repeats: int = 5) -> dict[str, Any]:
    """Times as plain JSON values, each the fastest of ``repeats``.

    Returns:
        ``denoiser``: per batch size, milliseconds a call and a sample. ``loop_share``: everything of a sampling run that is
        not the network, over the network's time, at batch 64. ``solve_ms``: one RCWA solve on one thread.
    """
    from .physics.rcwa import Solver
    from .physics.verify import one_blas_thread

    manifest, condition = sampler.bundle.manifest, sampler.bundle.condition
    side = 2 * condition.orders + 1
    wanted = np.zeros((1, side, side))
    arrays = condition.arrays(wanted, wanted, np.array([np.mean(condition.height_range_nm)]))
    sampler.warmup()
    denoiser, spent = sampler.networks["denoiser"], [0.0]
    result: dict[str, Any] = {**sampler.choice._asdict(), "reason": sampler.reason, "denoiser": {}}
    encoded = sampler.encode(arrays)
    rng = np.random.default_rng(0)
    for batch in BATCHES:
        inputs = {
            "sample": rng.standard_normal((batch, *manifest["sample_shape"]), dtype=np.float32),
            "timestep": np.full(batch, 500),
            **{key: np.repeat(value, batch, axis=0) for key, value in encoded.items()},
        }
        seconds = _fastest(lambda inputs=inputs: denoiser(inputs), repeats)  # type: ignore[misc]
        result["denoiser"][str(batch)] = {"call_ms": 1e3 * seconds, "sample_ms": 1e3 * seconds / batch}

    def timed(fixed: Any, batch: int) -> Any:
        """The denoiser's own ``bind`` with a stopwatch around every call, binding included."""

        @contextlib.contextmanager
        def watched() -> Iterator[Callable[[Any], Any]]:
            start = time.perf_counter()
            with bind(fixed, batch) as call:
                spent[0] += time.perf_counter() - start

                def call_timed(varying: Any) -> Any:
                    start = time.perf_counter()
                    outputs = call(varying)
                    spent[0] += time.perf_counter() - start
                    return outputs

                yield call_timed

        return watched()

    bind = denoiser.bind
    shares = []
    denoiser.bind = timed  # type: ignore[method-assign]
    try:
        for _ in range(repeats):
            spent[0] = 0.0
            start = time.perf_counter()
            sampler.sample(arrays, BATCH, batch_size=BATCH)
            whole = time.perf_counter() - start
            shares.append((whole - spent[0]) / spent[0])
    finally:
        del denoiser.bind
    result["steps"], result["loop_share"] = sampler.plan().num_steps, min(shares)
    size = manifest["pattern_size"]
    pattern = rng.integers(0, 2, (size, size))
    solver = Solver(sampler.bundle.geometry, condition.orders)
    with one_blas_thread():
        result["solve_ms"] = 1e3 * _fastest(lambda: solver.solve(pattern, float(np.mean(condition.height_range_nm))), repeats)
    return result


def text(result: dict[str, Any]) -> str:
    """The measurements for people."""
    lines = [f"denoiser, {result['backend']} on {result['device']} in {result['precision']}"]
    for batch, row in result["denoiser"].items():
        lines.append(f"  batch {batch:>4}   {row['call_ms']:8.2f} ms a call   {row['sample_ms']:7.3f} ms a sample")
    lines.append(f"sampling, {result['steps']} steps at batch {BATCH}: the loop adds {result['loop_share']:.1%} to the network's time")
    lines.append(f"RCWA solve, one thread: {result['solve_ms']:.0f} ms")
    return "\n".join(lines)


def _fastest(call: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
