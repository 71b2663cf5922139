"""What is asked of a cluster, and what is said where there is none; no Ray is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from runtime.cluster import Cluster, Wish, connect
from runtime.cluster_design import engine_of
from runtime.commands import group
from runtime.data import DataSet
from runtime.errors import BackendError
from runtime.files import write_npz

ROOT = Path(__file__).parents[2]
ENGINE = {"backend": "auto", "device": "auto", "precision": "auto"}

# Ends with what of Ray was imported, after the command line's own output.
WITHOUT = """
import sys
from runtime.commands import group

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ImportError("there is no ray")

sys.meta_path.insert(0, Absent())
group(sys.argv[1:])
"""


def said(*arguments: object) -> str:
    """The one sentence of a refusal, and its exit status in front."""
    result = CliRunner().invoke(group, [str(argument) for argument in arguments], prog_name="metascatter")
    assert result.stdout == ""
    return f"{result.exit_code} {result.stderr.strip().splitlines()[-1]}"


def without_ray(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def few(data: DataSet, tmp_path: Path) -> Path:
    write_npz(tmp_path / "few.npz", **data.take((data.h > 200) & (data.h < 230)).arrays())
    return tmp_path / "few.npz"


def test_nothing_of_ray_is_imported_without_the_flag(few: Path, small_bundle: Path, tmp_path: Path) -> None:
    options = ["--bundle", small_bundle, "-n", 2, "--steps", 2]
    for arguments in (
        ["infer", few, "--out", tmp_path / "out", *options, "--no-verify"],
        ["simulate", "--count", 2, "--harmonics", 2, "--out", tmp_path / "data.npz", "--workers", 1],
        ["evaluate", "--data", few, *options, "--limit", 1, "--noise-limit", 0, "--refine-limit", 0],
    ):
        done = without_ray(*arguments)
        assert done.returncode == 0, done.stderr
    done = without_ray("infer", few, "--out", tmp_path / "other", *options, "--cluster", "auto")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "Error: Ray is not installed; install metascatter[cluster]\n")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("command", ["infer", "simulate", "evaluate"])
def test_shares_without_a_cluster_are_refused(command: str, few: Path, tmp_path: Path) -> None:
    arguments = {
        "infer": [few, "--out", tmp_path / "o"],
        "simulate": ["--count", 1, "--out", tmp_path / "o.npz"],
        "evaluate": ["--data", few],
    }
    assert said(command, *arguments[command], "--cpus-per-worker", 2) == ("2 Error: --cpus-per-worker is for a cluster; add --cluster auto")


def test_an_address_where_nobody_listens_is_refused_at_once(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    answer = said("simulate", "--count", 1, "--out", tmp_path / "o.npz", "--cluster", "127.0.0.1:1")
    assert answer.startswith("1 Error: no Ray cluster answers at '127.0.0.1:1' (")
    assert said("simulate", "--count", 1, "--out", tmp_path / "o.npz", "--cluster", "here").endswith("as 'ray start --head' prints it")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(BackendError, match=r"answers at '127\.0\.0\.1:1'"), connect(Wish()):
        pass


def test_ray_is_told_not_to_report_to_its_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    seen: dict[str, Any] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **given: seen.update(given, usage=os.environ["RAY_USAGE_STATS_ENABLED"]))
    monkeypatch.setattr(ray, "shutdown", lambda: seen.update(ended=True))
    with connect(Wish()):
        assert (seen["usage"], seen["address"], seen["include_dashboard"]) == ("0", None, False)
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1", "the program's own environment is left alone"
        assert "ended" not in seen
    assert seen["ended"]


@pytest.mark.parametrize(
    ("wish", "device", "there", "expected"),
    [
        (Wish(), "auto", 0, ("cpu", 0)),
        (Wish(), "auto", 2, ("auto", 1)),
        (Wish(), "cpu", 2, ("cpu", 0)),
        (Wish(), "cuda", 2, ("cuda", 1)),
        (Wish(gpus=0), "auto", 2, ("cpu", 0)),
        (Wish(gpus=0.5), "auto", 2, ("auto", 0.5)),
    ],
)
def test_workers_get_a_gpu_where_there_are_any(
    wish: Wish, device: str, there: int, expected: tuple[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, **({"GPU": float(there)} if there else {})})
    engine, gpus = engine_of(Cluster(wish), {**ENGINE, "device": device})
    assert (engine, gpus) == ({**ENGINE, "device": expected[0]}, expected[1])


def test_a_gpu_by_name_without_a_share_of_one_is_refused() -> None:
    with pytest.raises(BackendError, match="the device is cuda and the workers get no GPU; ask for one with --gpus-per-worker 1"):
        engine_of(Cluster(Wish(gpus=0)), {**ENGINE, "device": "cuda"})


def test_threads_follow_the_share() -> None:
    assert [Wish(cpus=cpus).threads for cpus in (0.25, 1, 1.5, 4)] == [1, 1, 1, 4]


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "slots"), [([(8, 2), (4, 0)], 2, 0, 6), ([(8, 2), (4, 0)], 1, 1, 2), ([(8, 2)], 4, 0.5, 2)]
)
def test_as_many_workers_as_fit(
    nodes: list[tuple[int, int]], cpus: float, gpus: float, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    found: list[dict[str, Any]] = [{"Alive": True, "Resources": {"CPU": float(c), "GPU": float(g)}} for c, g in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: [*found, {"Alive": False, "Resources": {"CPU": 64.0}}])
    assert Cluster(Wish(cpus=cpus)).slots(gpus) == slots
    assert Cluster(Wish(cpus=cpus, workers=3)).slots(gpus) == 3
