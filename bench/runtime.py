"""What a lab gets without PyTorch: the runtime beside diffusers with the same network, weights, scheduler and steps, in one run.

    python bench/runtime.py [--bundle B] [--repeats 5] [--only import design memory sampling] [--json]

Run it from a checkout where everything is installed (make install-dev) on Linux, and on an otherwise idle machine: it needs some ten
minutes. Everything is measured in processes of its own, with all cores; what is compared takes turns (A B C A B C ...), and the line
says whether the fastest or the median counts. Python's bytecode and the engines' caches go to a temporary folder, which a first turn
that is not counted fills; nothing is left behind. PyTorch gets its weights from the bundle's ONNX files and has to agree with the
runtime on one call of the network before anything is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this file's own folder would make it the module 'runtime'

from bench._children import SEED_STEPS, N  # noqa: E402
from bench._processes import Child, Failed, role, role_with_peak, run  # noqa: E402

SECTIONS = ("import", "design", "memory", "sampling")
SPLITTER = "examples/targets/splitter.json"
TARGETS = (SPLITTER, *(f"examples/targets/{name}" for name in ("deflector.json", "heldout_94nm.npz", "heldout_259nm.npz")))
REFERENCE = "onnxruntime cpu fp32"
EAGER = "diffusers eager on cpu"
SEED_SCALE = 1000 / SEED_STEPS
FEATURES = {"avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_tile": "AMX"}
# Engines do not all heed the limits on threads, so nobody is given one.
UNSET = ("PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PACKAGES = ("onnxruntime", "openvino", "tensorrt", "torch", "diffusers", "numpy")


def goal(what: str, value: float, limit: float, unit: str, at_least: bool = False) -> dict[str, Any]:
    """A measurement and what it should be."""
    met = value >= limit if at_least else value <= limit
    return {"what": what, "value": value, "unit": unit, "goal": limit, "at_least": at_least, "met": met}


def measure_import(env: dict[str, str], repeats: int) -> dict[str, Any]:
    """Seconds and resident MB that an import adds to bare Python; medians over processes."""
    code = "import time; s = time.perf_counter(); {}; s = time.perf_counter() - s\n" + (
        "print(s, next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS')) / 1000)"
    )
    statements = {
        "bare Python": "pass",
        "numpy": "import numpy",
        "runtime": "import runtime",
        "torch": "import torch",
        "diffusers": "from diffusers import DiffusionPipeline",
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in statements}
    for turn in range(repeats + 1):
        for name, statement in statements.items():
            seconds, memory = map(float, run(["-c", code.format(statement)], env)[2].split())
            if turn:
                found[name].append((seconds, memory))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    bare = medians.pop("bare Python")
    rows = {name: {"seconds": seconds - bare[0], "memory_mb": memory - bare[1]} for name, (seconds, memory) in medians.items()}
    goals = [
        goal("importing the runtime", rows["runtime"]["seconds"], 0.15, "s"),
        goal("importing the runtime, resident memory over bare Python", rows["runtime"]["memory_mb"], 40, "MB"),
    ]
    return {"imports": rows, "goals": goals}


def infer_arguments(bundle: str | None, out: str, *more: str) -> list[str]:
    return ["infer", SPLITTER, "--out", out, *(["--bundle", bundle] if bundle else []), *more]


def measure_design(env: dict[str, str], repeats: int, bundle: str | None, folder: str) -> dict[str, Any]:
    """The command ``infer`` for 8 candidates from process start to process end; medians."""
    arguments = infer_arguments(bundle, f"{folder}/designs", "-n", "8", "--no-verify")
    whole, parts = [], []
    for turn in range(repeats + 1):
        seconds = run(["cli.py", *arguments], env)[0]
        spent = role("infer", {"arguments": arguments}, env)
        if turn:
            whole.append(seconds)
            parts.append(spent)
    writing = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    first = statistics.median(whole)
    return {"first_design_s": first, "of_it_writing_s": writing, "goals": [goal("first design from process start, -n 8", first, 2, "s")]}


def measure_memory(
    env: dict[str, str], repeats: int, bundle: str | None, folder: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> dict[str, Any]:
    """Peak memory of 64 candidates: with reading the target, the solver and the files, and the sampling alone; medians of 3 at most."""
    backend, device, precision = REFERENCE.split()
    engine = ["--backend", backend, "--device", device, "--precision", precision]
    arguments = ["cli.py", *infer_arguments(bundle, f"{folder}/designs", "-n", str(N), *engine)]
    kinds = {
        "infer, ONNX Runtime": lambda: run(arguments, env)[1],
        "infer --no-verify, ONNX Runtime": lambda: run([*arguments, "--no-verify"], env)[1],
        "the work of infer, diffusers": lambda: role_with_peak("design", {**theirs, "out": f"{folder}/designs"}, env)[1],
        "sampling alone, ONNX Runtime": lambda: Child(ours, env).close(),
        "sampling alone, diffusers": lambda: Child(theirs, env).close(),
    }
    peaks: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(min(repeats, 3)):
        for name, call in kinds.items():
            peaks[name].append(call())
    medians = {name: statistics.median(values) for name, values in peaks.items()}
    pairs = (
        ("infer, ONNX Runtime", "sampling alone, diffusers"),
        ("infer, ONNX Runtime", "the work of infer, diffusers"),
        ("sampling alone, ONNX Runtime", "sampling alone, diffusers"),
    )
    goals = [goal(f"peak memory, {a}, over {b}", medians[a] / medians[b], 0.5, "x") for a, b in pairs]
    return {"peak_memory_mb": medians, "goals": goals}


def measure_sampling(env: dict[str, str], repeats: int, specs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """64 candidates of one target by every contender in turn, the fastest of the repeats; then their patterns and the loop's share.

    ``specs``: what :func:`bench._children.contender` takes, by name.
    """
    children: dict[str, Child] = {}
    rows: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    try:
        for name, spec in specs.items():
            try:
                children[name] = Child(spec, env)
            except Failed as error:
                refused[name] = str(error)
        for name in (REFERENCE, EAGER):
            if name not in children:
                raise Failed(f"{name} cannot be measured, and everything is compared with it: {refused.get(name, 'it does not open')}")
        times: dict[str, list[float]] = {name: [] for name in children}
        for _ in range(repeats):
            for name, child in children.items():
                time.sleep(0.3)  # threads of the one before may still spin
                times[name].append(child.ask("time")["seconds"])
        for name, child in children.items():
            named: dict[str, Any] = {
                key: specs[name][key] for key in ("kind", "backend", "device", "precision", "mode") if key in specs[name]
            }
            rows[name] = {**named, **child.ready, "seconds": min(times[name]), "all_seconds": times[name]}
        patterns = {}
        for name, child in children.items():
            if specs[name]["kind"] != "seed":
                patterns[name] = np.frombuffer(bytes.fromhex(child.ask("patterns")["patterns"]), np.uint8)
                rows[name]["changed_pixels"] = float(np.unpackbits(patterns[name] ^ patterns[REFERENCE]).mean())
        fastest = min((name for name in rows if rows[name]["kind"] == "ours"), key=lambda name: rows[name]["seconds"])
        loops = {name: children[name].ask("loop")["loop"]["loop_share"] for name in dict.fromkeys((REFERENCE, fastest))}
    finally:
        for child in children.values():
            child.close()
    return {"contenders": rows, "not_measured": refused, "loop_share": loops, "goals": sampling_goals(rows, loops)}


def sampling_goals(rows: dict[str, dict[str, Any]], loops: dict[str, float]) -> list[dict[str, Any]]:
    """The ratios of the times in ``rows``; a GPU of NVIDIA's is compared with PyTorch on it, everything else with PyTorch on the CPU."""
    goals = []
    for device in dict.fromkeys(row["device"] for row in rows.values() if row["kind"] == "diffusers"):
        theirs = {row["mode"]: row["seconds"] for row in rows.values() if row["kind"] == "diffusers" and row["device"] == device}
        ours = {
            name: row["seconds"] for name, row in rows.items() if row["kind"] == "ours" and (row["device"] == "cuda") == (device == "cuda")
        }
        if not ours:
            continue
        fastest = min(ours, key=lambda name: ours[name])
        if REFERENCE in ours:
            goals.append(goal(f"{REFERENCE} over diffusers eager on {device}, time", ours[REFERENCE] / theirs["eager"], 1, "x"))
        for mode in ("eager", "compiled"):
            if mode in theirs:
                what = f"{fastest}, the fastest, speed over diffusers {mode} on {device}"
                goals.append(goal(what, theirs[mode] / ours[fastest], 2, "x", at_least=True))
    if "seed" in rows:
        seed = rows["seed"]["seconds"] * SEED_SCALE
        for name in loops:
            goals.append(goal(f"{name}, speed over the seed's 1000 steps", seed / rows[name]["seconds"], 200, "x", at_least=True))
    return goals + [goal(f"everything but the network over the network, {name}", 100 * share, 5, "%") for name, share in loops.items()]


def machine() -> dict[str, Any]:
    """The computer and the versions that were measured."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    flags = fields.get("flags", "").split()
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "cpu": fields.get("model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        **{feature: feature in flags for feature in FEATURES},
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        **versions,
    }


def text(result: dict[str, Any]) -> str:
    """The measurements for people."""
    m = result["machine"]
    features = ", ".join(f"{'' if m[key] else 'no '}{name}" for key, name in FEATURES.items())
    lines = [
        f"{m['cpu']}, {m['cores']} cores, {features}; load {m['load_before']:.1f} before; {result['repeats']} repeats",
        ", ".join(f"{package} {m[package]}" for package in ("python", *PACKAGES) if package in m),
    ]
    if "import" in result:
        lines += ["", f"{'import, over bare Python (medians)':64s} {'s':>8s} {'MB':>8s}"]
        lines += [f"  {name:62s} {row['seconds']:8.3f} {row['memory_mb']:8.1f}" for name, row in result["import"]["imports"].items()]
    if "design" in result:
        design = result["design"]
        files, png, gds = (design["of_it_writing_s"].get(name, 0.0) for name in ("files", "png", "gds"))
        lines += ["", f"first design: {design['first_design_s']:.2f} s from process start (median)"]
        lines += [f"  of it writing files {files:.2f} s (picture {png:.2f} s, GDSII {gds:.2f} s)"]
    if "agreement" in result:
        worst = max(result["agreement"].values())
        lines += ["", f"one call of the network, PyTorch with the weights of the ONNX files and ONNX Runtime: they differ by {worst:.0e}"]
    if "memory" in result:
        lines += ["", f"{f'peak memory, {N} candidates (medians)':73s} {'MB':>8s}"]
        lines += [f"  {name:71s} {peak:8.0f}" for name, peak in result["memory"]["peak_memory_mb"].items()]
    if "sampling" in result:
        sampling = result["sampling"]
        head = f"{N} candidates, {sampling['scheduler']} {sampling['steps']} steps (fastest)"
        lines += ["", f"{head:50s} {'s':>8s} {'over eager':>10s} {'open s':>7s} {'first s':>7s} {'pixels changed':>14s}"]
        eager = sampling["contenders"][EAGER]["seconds"]
        for name, row in sampling["contenders"].items():
            seconds = row["seconds"] * (SEED_SCALE if name == "seed" else 1)
            changed = f"{row['changed_pixels']:14.3%}" if "changed_pixels" in row else ""
            label = f"the seed, DDPM 1000 steps ({SEED_STEPS} timed, times {SEED_SCALE:g})" if name == "seed" else name
            lines.append(f"  {label:48s} {seconds:8.2f} {seconds / eager:10.2f} {row['open_s']:7.2f} {row['first_s']:7.2f} {changed}")
        lines += [f"  not measured: {name}: {reason}" for name, reason in sampling["not_measured"].items()]
    lines += ["", f"{'':80s} {'result':>9s} {'goal':>10s}"]
    for row in (row for section in SECTIONS if section in result for row in result[section]["goals"]):
        sign = ">=" if row["at_least"] else "<="
        wanted = f"{sign} {row['goal']:g} {row['unit']}"
        lines.append(f"{row['what']:80s} {row['value']:7.2f} {row['unit']:2s} {wanted:>10s}  {'met' if row['met'] else 'MISSED'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="default: the one that ships with metascatter")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="measure these alone")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    if options.bundle is not None:
        options.bundle = str(Path(options.bundle).resolve())
    result: dict[str, Any] = {"machine": machine(), "repeats": options.repeats}
    with tempfile.TemporaryDirectory() as folder:
        # Bytecode as an installed package has it, and every cache, in a place of its own that goes with this process.
        env = {key: value for key, value in os.environ.items() if key not in UNSET}
        for name in ("PYTHONPYCACHEPREFIX", "METASCATTER_CACHE", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HF_HOME"):
            env[name] = str(Path(folder, name.lower()))
        try:
            measure(result, options, env, folder)
        except Failed as error:
            sys.exit(f"Error: {error}")
    print(json.dumps(result, indent=1) if options.json else text(result))


def measure(result: dict[str, Any], options: argparse.Namespace, env: dict[str, str], folder: str) -> None:
    """Fill in the sections that were asked for."""
    common = {"bundle": options.bundle, "targets": TARGETS, "weights": f"{folder}/weights.safetensors", "repeats": options.repeats}
    ours = {**common, "kind": "ours", **dict(zip(("backend", "device", "precision"), REFERENCE.split(), strict=True))}
    theirs = {**common, "kind": "diffusers", "mode": "eager", "device": "cpu"}
    if "import" in options.only:
        result["import"] = measure_import(env, options.repeats)
    if "design" in options.only:
        result["design"] = measure_design(env, options.repeats, options.bundle, folder)
    if {"memory", "sampling"} & set(options.only):
        prepared = role("prepare", common, env)
        result["agreement"] = prepared["differences"]
    if "memory" in options.only:
        result["memory"] = measure_memory(env, options.repeats, options.bundle, folder, theirs, ours)
    if "sampling" in options.only:
        probed = role("probe", common, env)
        specs: dict[str, dict[str, Any]] = {}
        for engine in probed["opened"]:
            specs[" ".join(engine)] = {**ours, **dict(zip(("backend", "device", "precision"), engine, strict=True))}
        for device in prepared["devices"]:
            specs |= {f"diffusers {mode} on {device}": {**theirs, "mode": mode, "device": device} for mode in prepared["modes"]}
        specs["seed"] = {"kind": "seed"}
        sampling = measure_sampling(env, options.repeats, specs)
        sampling["not_measured"] = {**probed["refused"], **sampling["not_measured"]}
        result["sampling"] = {**prepared["settings"], **sampling}


if __name__ == "__main__":
    main()
