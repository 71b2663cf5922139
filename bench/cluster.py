"""``infer`` of many targets on Ray: what a second worker brings, what Ray costs, and whether the driver's memory stays flat.

    python bench/cluster.py [--bundle B --data D] [--targets 64] [--repeats 3] [--memory 1000 10000] [--only throughput memory] [--json]

Run it from a checkout where everything is installed (make install-dev) on Linux, and on an otherwise idle machine with two cores or more.
Without ``--bundle`` and ``--data`` it trains a tiny bundle first (5 x 5 pixels, half a minute), for which a target takes milliseconds: the
less a target takes, the more what is measured here weighs.

Throughput: targets a second, each worker with one thread, in turns in one run; a first turn is not counted, nor is the time until every
worker has its first shard behind it, for a run of thousands of targets pays it once. The median of the repeats counts. Memory: the peak
of a driver's resident memory in a process of its own, from start to end, one candidate a target and nothing solved.
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
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this file's own folder would make it the module 'runtime'

from bench import _processes, _tiny  # noqa: E402
from runtime.bundle import Bundle  # noqa: E402
from runtime.cluster import Wish, connect  # noqa: E402
from runtime.cluster_design import on_cluster  # noqa: E402
from runtime.data import load as load_data  # noqa: E402
from runtime.design_job import Job, Shard, Solved, solve  # noqa: E402
from runtime.design_shards import run  # noqa: E402
from runtime.making import Making  # noqa: E402
from runtime.sampler import load  # noqa: E402
from runtime.target_stream import Source  # noqa: E402

SECTIONS = ("throughput", "memory")
ENGINE: dict[str, Any] = {"backend": "onnxruntime", "device": "cpu", "precision": "fp32"}
SEARCH = {"refine": True, "budget": 32, "fixed": None, "height": None, "limits": None}
ALONE = "one process, no Ray"
SHARD = 4

Work = Callable[[Iterator[Shard], Callable[[int], object]], Iterator[Solved]]


def measure_throughput(bundle: Bundle, targets: Path, repeats: int, folder: Path) -> dict[str, Any]:
    """Targets a second, by who works."""
    job = Job(16, 4, 0, {}, SEARCH, None, True, Making(), ENGINE)

    def alone(shards: Iterator[Shard], on_target: Callable[[int], object]) -> Iterator[Solved]:
        with load(bundle.path, **ENGINE, threads=1) as sampler:
            for shard in shards:
                yield solve(sampler, job, shard, 1, on_target)

    rates: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(connect(Wish()))  # the others below work in the same cluster
        workers: dict[str, tuple[int, Work]] = {ALONE: (1, alone)}
        for count in (1, 2):
            cluster = stack.enter_context(connect(Wish(workers=count)))
            workers[f"Ray, {count} worker{'s' * (count > 1)}"] = count, on_cluster(cluster, job, bundle)
        for turn in range(repeats + 1):
            for name, (count, work) in workers.items():
                rate = one_rate(Source([targets]), job, bundle, folder / f"{turn}-{name}", work, count)
                if turn:
                    rates.setdefault(name, []).append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"targets_per_s": rates, "median": medians, "over_one_process": {name: rate / medians[ALONE] for name, rate in medians.items()}}


def one_rate(source: Source, job: Job, bundle: Bundle, folder: Path, work: Work, workers: int) -> float:
    """Targets a second once every worker has begun."""
    times: list[tuple[float, int]] = []

    def timed(shards: Iterator[Shard], on_target: Callable[[int], object]) -> Iterator[Solved]:
        for solved in work(shards, on_target):
            times.append((time.perf_counter(), solved.targets))
            yield solved

    run(source, job, bundle, folder, timed, SHARD, progress=False)
    later = times[workers:]
    return sum(count for _, count in later) / (later[-1][0] - times[workers - 1][0])


def measure_memory(bundle: Bundle, make: Callable[[int, Path], Path], counts: list[int], folder: Path) -> list[dict[str, Any]]:
    """Peak memory in MB of the process that ``infer`` is, by the number of targets."""
    rows = []
    settings = ["-n", "1", "--top", "1", "--steps", "1", "--scheduler", "ddim", "--no-verify", "--guidance-scale", "1", *words(ENGINE)]
    for count in counts:
        path = make(count, folder / f"{count}.npz")
        row: dict[str, Any] = {"targets": count}
        for name, where in (("alone", []), ("cluster", ["--cluster", "auto"])):
            out = folder / f"{count}-{name}"
            arguments = ["cli.py", "infer", str(path), "--bundle", str(bundle.path), "--out", str(out), *settings, *where]
            seconds, peak, _ = _processes.run(arguments, {**os.environ, "OMP_NUM_THREADS": "1"})
            row |= {f"{name}_mb": peak, f"{name}_s": seconds}
        rows.append(row)
    return rows


def words(engine: dict[str, Any]) -> list[str]:
    """An engine as options."""
    return [word for name, value in engine.items() for word in (f"--{name}", value)]


def text(result: dict[str, Any]) -> str:
    lines = [result["machine"]]
    if "throughput" in result:
        lines.append(f"\n{'':24s} {'targets/s':>9s} {'over one process':>17s} {'repeats':>s}")
        for name, rate in result["throughput"]["median"].items():
            every = ", ".join(f"{value:.2f}" for value in result["throughput"]["targets_per_s"][name])
            lines.append(f"{name:24s} {rate:9.2f} {result['throughput']['over_one_process'][name]:17.2f} {every}")
    if "memory" in result:
        lines.append(f"\n{'targets':>8s} {'peak here, MB':>14s} {'driver of a cluster, MB':>24s} {'seconds':>16s}")
        for row in result["memory"]:
            seconds = f"{row['alone_s']:.0f} and {row['cluster_s']:.0f}"
            lines.append(f"{row['targets']:8d} {row['alone_mb']:14.0f} {row['cluster_mb']:24.0f} {seconds:>16s}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="with --data: another than the tiny one")
    parser.add_argument("--data", type=Path, help="a data set whose scattering are the targets")
    parser.add_argument("--targets", type=int, default=64, help="for the throughput")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", default=[1000, 10000], metavar="N", help="numbers of targets")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    if (options.bundle is None) != (options.data is None):
        parser.error("--bundle and --data go together")
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("ray", "onnxruntime", "numpy"))
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {packages}; load {os.getloadavg()[0]:.1f} at the start"
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.bundle is None:
            # In a process of its own: a child's peak of memory begins with its parent's, and PyTorch's is large.
            _processes.run(["-m", "bench._tiny", name], {**os.environ, "OMP_NUM_THREADS": "1"})
        data = load_data(options.data or folder / "cells.npz")
        bundle = Bundle.open(options.bundle or folder / "bundle")
        if "memory" in options.only:  # first, as long as this process is small
            result["memory"] = measure_memory(bundle, lambda count, path: _tiny.targets(data, count, path), options.memory, folder)
        if "throughput" in options.only:
            path = _tiny.targets(data, options.targets, folder / "targets.npz")
            result["throughput"] = measure_throughput(bundle, path, options.repeats, folder)
    print(json.dumps(result, indent=1) if options.json else text(result))


if __name__ == "__main__":
    main()
