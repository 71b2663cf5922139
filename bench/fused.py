"""The whole sampler as one ONNX file beside the loop in Python: the same networks, target, noise and steps in ONNX Runtime on the CPU.

    python bench/fused.py [--bundle B] [--scheduler dpmsolver++] [--steps 20] [--batch 1 8 64] [--guidance-scale 1] [--threads K]
                          [--repeats 60] [--json]

Run it from a checkout on an otherwise idle machine. The two take turns in one process, with as many threads each and the same
settings of the session; the fastest of the repeats counts, and the median stands beside it. The loop's time is that of
``Sampler.sample``, which draws the noise and encodes the target; the fused file takes arrays of the noise and of the target, so drawing
them is timed with it. Nothing is timed unless nine candidates in ten agree to 1e-4: now and then a trajectory magnifies the last bit of
its noise a thousandfold, in either of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this file's own folder would make it the module 'runtime'

AGREE, SHARE = 1e-4, 0.9  # of samples between -1 and 1, and of the candidates


def opened(model: bytes, threads: int) -> Any:
    """A session with the settings that the runtime's own sessions on the CPU have."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def in_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of every call, one after the other and over again; a first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, function in calls.items():
            began = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: {"fastest_s": min(values), "median_s": statistics.median(values)} for name, values in seconds.items()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from export.fused import drawn, fuse
    from runtime.sampler import load
    from runtime.target import Target

    target = Target.load(ROOT / "examples/targets/splitter.json")
    with load(options.bundle, "onnxruntime", "cpu", "fp32", threads=options.threads) as sampler:
        bundle, table = sampler.bundle, sampler.plan(options.steps, options.scheduler)
        graphs = {name: bundle.network(name, "fp32") for name in sampler.networks}
        layout = {key: bundle.manifest[key] for key in ("sample_shape", "window", "pattern_size")}
        model = fuse(table, bundle.condition, graphs, **layout)
        session = opened(model, options.threads)
        target, shape = sampler.check(target), tuple(bundle.manifest["sample_shape"])
        given = {
            "Rm": target.R[None].astype(np.float32),
            "Tm": target.T[None].astype(np.float32),
            "mask": np.stack([target.mask_R, target.mask_T])[None],
            "height_nm": np.array([target.height_nm], np.float32),
            "guidance_scale": np.array([options.guidance_scale], np.float32),
        }
        given = {entry.name: given[entry.name] for entry in session.get_inputs() if entry.name != "noise"}
        settings = {"steps": options.steps, "scheduler": options.scheduler, "guidance_scale": options.guidance_scale}
        rows = []
        for batch in options.batch:

            def python(batch: int = batch) -> np.ndarray:
                return sampler.sample(sampler.condition(target), batch, batch_size=batch, **settings)

            def fused(batch: int = batch) -> np.ndarray:
                sample: np.ndarray = session.run(["sample"], {**given, "noise": drawn(table, shape, 0, batch)})[0]
                return sample

            ours, theirs = python(), fused()
            differences = np.abs(ours - theirs).reshape(batch, -1).max(axis=1)
            typical = float(np.quantile(differences, SHARE))
            if not typical <= AGREE:
                sys.exit(f"Error: at batch {batch} the samples differ by {typical:.1e}, more than {AGREE:.0e}; there is nothing to time")
            changed = int((sampler.patterns(ours) != sampler.patterns(theirs)).sum())
            agreement = {"median_difference": float(np.median(differences)), "largest_difference": float(differences.max())}
            times = in_turns({"python": python, "fused": fused}, options.repeats)
            ratio = times["fused"]["fastest_s"] / times["python"]["fastest_s"]
            rows.append({"batch": batch, **agreement, "changed_pixels": changed, **times, "fused_over_python": ratio})
    whole = sum(map(len, graphs.values()))
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, onnxruntime {metadata.version('onnxruntime')}",
        **settings,
        "threads": options.threads,
        "repeats": options.repeats,
        "bytes": {"fused": len(model), "networks": whole, "fused_over_networks": len(model) / whole},
        "batches": rows,
    }


def text(result: dict[str, Any]) -> str:
    size = result["bytes"]
    lines = [
        f"{result['machine']}; {result['scheduler']} in {result['steps']} steps, guidance scale {result['guidance_scale']:g}, "
        f"{result['threads']} threads, fastest (median) of {result['repeats']}",
        f"one file {size['fused'] / 1e6:.2f} MB, its networks {size['networks'] / 1e6:.2f} MB ({size['fused_over_networks'] - 1:+.2%})",
        f"{'batch':>5s} {'Python loop, ms':>20s} {'one file, ms':>20s} {'ratio':>6s} {'differ by, median (most)':>24s} {'pixels off':>10s}",
    ]
    for row in result["batches"]:
        cells = [f"{row[name]['fastest_s'] * 1e3:9.1f} ({row[name]['median_s'] * 1e3:7.1f})" for name in ("python", "fused")]
        apart = f"{row['median_difference']:.1e} ({row['largest_difference']:.1e})"
        lines.append(
            f"{row['batch']:5d} {cells[0]:>20s} {cells[1]:>20s} {row['fused_over_python']:6.2f} {apart:>24s} {row['changed_pixels']:10d}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="default: the one that ships with metascatter")
    parser.add_argument("--scheduler", default="dpmsolver++")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    result = measure(options)
    print(json.dumps(result, indent=1) if options.json else text(result))


if __name__ == "__main__":
    main()
