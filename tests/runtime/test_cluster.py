"""Ray on a cluster of two computers that are processes of this one: the same designs as without, whoever is killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import cluster as rays
from runtime import cluster_design
from runtime.bundle import Bundle
from runtime.cluster import Wish, connect
from runtime.cluster_design import on_cluster
from runtime.data import DataSet
from runtime.design_job import Job, Shard, Solved, in_process
from runtime.design_shards import run
from runtime.errors import BackendError, MetascatterError
from runtime.evaluate import evaluate
from runtime.files import write_npz
from runtime.geometry import Geometry
from runtime.making import Making
from runtime.physics.simulate import simulate
from runtime.sampler import load
from runtime.target_stream import Source

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX's kill -9"),
    pytest.mark.skipif(sys.platform == "darwin", reason="Ray has no clusters of several nodes on one Mac"),
]

ROOT = Path(__file__).parents[2]
COUNT = 12
ENGINE = {"backend": "onnxruntime", "device": "auto", "precision": "fp32"}
SEARCH = {"refine": True, "budget": 3, "fixed": None, "height": None, "limits": None}
JOB = Job(2, 2, 7, {"steps": 2}, SEARCH, None, True, Making(), ENGINE)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes with a CPU each, and this process connected to it."""
    from ray.cluster_utils import Cluster

    # Ray's sockets lie in there, and the path of a socket has 107 characters at most: pytest's folders are too long.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        (Path(folder) / "ray").mkdir()
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False})
        try:
            made.add_node(num_cpus=1, object_store_memory=80 << 20)
            ray.init(address=made.address, log_to_driver=False, logging_level=logging.CRITICAL)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture(scope="module")
def many(data: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve targets that the small bundle can be asked for, as rows of one file."""
    path = tmp_path_factory.mktemp("targets") / "many.npz"
    write_npz(path, **data.take(np.flatnonzero((data.h > 150) & (data.h < 350))[:COUNT]).arrays())
    return path


@pytest.fixture(scope="module")
def opened(small_bundle: Path) -> Bundle:
    return Bundle.open(small_bundle)


@pytest.fixture(scope="module")
def here(many: Path, opened: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without a cluster."""
    folder = tmp_path_factory.mktemp("here") / "out"
    run(Source([many]), JOB, opened, folder, in_process(JOB, opened, 1), progress=False)
    return folder


def assert_same(folder: Path, here: Path) -> None:
    """Every design once, the same patterns from the same candidates, and the same numbers to the backend's rounding."""
    names = [path.name for path in sorted((here / "shards").iterdir())]
    assert [path.name for path in sorted((folder / "shards").iterdir())] == names
    assert len(names) == COUNT
    for name in names:
        with np.load(folder / "shards" / name) as found, np.load(here / "shards" / name) as wanted:
            assert sorted(found) == sorted(wanted)
            for key in wanted:
                if wanted[key].dtype.kind == "f":
                    np.testing.assert_allclose(found[key], wanted[key], rtol=0, atol=1e-9, err_msg=key)
                else:
                    np.testing.assert_array_equal(found[key], wanted[key], err_msg=key)
    assert (folder / "index.csv").read_text() == (here / "index.csv").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_designs_are_those_of_one_machine(workers: int, nodes: Any, many: Path, opened: Bundle, here: Path, tmp_path: Path) -> None:
    with connect(Wish(workers=workers)) as cluster:
        result = run(Source([many]), JOB, opened, tmp_path, on_cluster(cluster, JOB, opened), progress=False)
    assert (result["targets"], result["shards"], result["shards_made"]) == (COUNT, COUNT, COUNT)
    assert result["engine"] == "onnxruntime on cpu in fp32"
    assert_same(tmp_path, here)


def watched(log: Path) -> Callable[..., Any]:
    """The workers' function, which also says in ``log`` who begins what, and takes its time; a function in a function travels by value."""
    real = cluster_design._designer

    def designer(*arguments: Any) -> Callable[[Shard], Solved]:
        solve = real(*arguments)

        def slowly(shard: Shard) -> Solved:
            with log.open("a") as stream:
                stream.write(f"{shard.number} {os.getpid()}\n")
            time.sleep(0.3)
            return solve(shard)

        return slowly

    return designer


def test_a_worker_killed_at_work_loses_and_doubles_nothing(
    nodes: Any, many: Path, opened: Bundle, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(cluster_design, "_designer", watched(log))
    written: list[int] = []
    with connect(Wish()) as cluster:
        work = on_cluster(cluster, JOB, opened)

        def killing(shards: Iterator[Shard], on_target: Callable[[int], object]) -> Iterator[Solved]:
            for solved in work(shards, on_target):
                written.append(solved.number)
                if len(written) == 3:
                    os.kill(int(log.read_text().split()[-1]), signal.SIGKILL)
                yield solved

        run(Source([many]), JOB, opened, tmp_path / "out", killing, progress=False)
    assert sorted(written) == list(range(COUNT))
    begun = [line.split() for line in log.read_text().splitlines()]
    assert len(begun) == COUNT + 1, "exactly the shard that the dead worker was at was begun twice"
    assert len({pid for _, pid in begun}) == 3
    assert_same(tmp_path / "out", here)


def test_a_driver_killed_goes_on_from_its_shards(nodes: Any, many: Path, opened: Bundle, here: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import sys, time\nfrom runtime import files\nfrom runtime.commands import group\n"
        "import runtime.design_shards as shards\nwrite = shards.write_npz\n"
        "def slowly(*args, **arrays):\n    write(*args, **arrays)\n    time.sleep(0.5)\n"
        "shards.write_npz = slowly\ngroup(sys.argv[1:])\n"
    )
    options = ["-n", 2, "--top", 2, "--seed", 7, "--steps", 2, "--budget", 3, "--backend", "onnxruntime", "--precision", "fp32"]
    arguments = ["infer", many, "--out", out, "--bundle", opened.path, *options, "--cluster", nodes.address]
    driver = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while len(list(out.glob("shards/0*.npz"))) < 3 and time.monotonic() < end and driver.poll() is None:
        time.sleep(0.01)
    driver.kill()
    assert driver.communicate()[1].decode() == ""
    there = {path: path.stat().st_mtime_ns for path in out.glob("shards/0*.npz")}
    assert 3 <= len(there) < COUNT
    again = subprocess.run(
        [sys.executable, "cli.py", *map(str, arguments), "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["shards_made"] == COUNT - len(there)
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert_same(out, here)


@pytest.mark.slow
def test_a_computer_that_is_gone_loses_nothing(
    nodes: Any, many: Path, opened: Bundle, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker waits for a CPU that others hold until these have no more to do, and then starts there with the shard that it was at."""
    log = tmp_path / "log"
    monkeypatch.setattr(cluster_design, "_designer", watched(log))
    third = nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    with connect(Wish()) as cluster:
        assert cluster.slots() == 3
        work = on_cluster(cluster, JOB, opened)

        def leaving(shards: Iterator[Shard], on_target: Callable[[int], object]) -> Iterator[Solved]:
            for k, solved in enumerate(work(shards, on_target)):
                if k == 4:
                    nodes.remove_node(third)
                yield solved

        run(Source([many]), JOB, opened, tmp_path / "out", leaving, progress=False)
    assert_same(tmp_path / "out", here)


def test_a_simulation_has_the_same_bytes(nodes: Any, tmp_path: Path) -> None:
    alone, shared = (
        simulate(tmp_path / f"{name}.npz", 70, 3, Geometry(harmonics=3), size=6, orders=4, progress=False, **where)
        for name, where in (("alone", {"workers": 1}), ("shared", {"cluster": Wish(cpus=0.5)}))
    )
    assert alone.read_bytes() == shared.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.npz", "shared.npz"]


def test_an_evaluation_has_the_same_scores(nodes: Any, data: DataSet, opened: Bundle, tmp_path: Path) -> None:
    from runtime.cluster_evaluate import elsewhere

    chosen = data.take(np.flatnonzero((data.h > 150) & (data.h < 350))[:4])
    settings: dict[str, Any] = {
        "oracle_limit": 1,
        "n": 3,
        "noise_limit": 1,
        "refine_limit": 1,
        "steps": 2,
        "progress": False,
        "cache_dir": tmp_path,
    }
    with load(opened.path, "onnxruntime", "cpu", threads=1) as sampler, connect(Wish()) as cluster:
        alone = evaluate(chosen, sampler, baseline=sampler, workers=1, **settings)
        for file in tmp_path.rglob("*.json"):  # the random baseline is to be solved there too
            file.unlink()
        shared = evaluate(
            chosen, sampler, baseline=sampler, elsewhere=elsewhere(cluster, {"bundle": sampler, "baseline": sampler}), **settings
        )
    spent = [result.pop("seconds") for result in (alone, shared)]
    assert set(spent[0]) == set(spent[1])
    assert all(seconds > 0 for seconds in spent[1].values())
    assert shared == alone


def test_errors_of_workers_are_those_of_one_machine(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Callable[[int], int]:
        raise BackendError("there is no engine; install one")

    def dividing() -> Callable[[int], float]:
        return lambda item: 1 / item

    with connect(Wish(workers=1)) as cluster:
        with pytest.raises(BackendError, match=r"^there is no engine; install one$"):
            list(cluster.actors(failing, (), [1]))
        with pytest.raises(MetascatterError, match=r"^a worker of the cluster failed: ZeroDivisionError: division by zero$"):
            list(cluster.actors(dividing, (), [1, 0]))
        monkeypatch.setattr(rays, "__version__", "0.0.1")
        with pytest.raises(BackendError, match=r"metascatter .* and this one 0\.0\.1; install the same on all$"):
            list(cluster.tasks(abs, [(-1,)]))


@pytest.mark.slow
def test_work_that_kills_every_worker_ends_with_a_sentence(nodes: Any) -> None:
    def deadly() -> Callable[[int], None]:
        return lambda item: os.kill(os.getpid(), signal.SIGKILL)

    with connect(Wish(workers=1)) as cluster, pytest.raises(MetascatterError, match="died 4 times at the same piece of work"):
        list(cluster.actors(deadly, (), [1]))


def test_shares_are_honoured(nodes: Any) -> None:
    def share() -> Callable[[int], tuple[str | None, dict[str, float]]]:
        import ray

        return lambda item: (os.environ.get("OMP_NUM_THREADS"), ray.get_runtime_context().get_assigned_resources())

    with connect(Wish(cpus=0.5)) as cluster:
        assert cluster.slots() == 4
        threads, resources = next(cluster.actors(share, (), [1]))
        assert (threads, resources) == ("1", {"CPU": 0.5})
    with (
        connect(Wish(cpus=2)) as cluster,
        pytest.raises(BackendError, match="no computer of the cluster has 2 CPUs and 0 GPUs for a worker"),
    ):
        cluster.slots()
    with connect(Wish(gpus=1)) as cluster, pytest.raises(BackendError, match=r"has 1 CPUs and 1 GPUs for a worker .*--gpus-per-worker"):
        cluster.slots(cluster.gpus("auto"))
