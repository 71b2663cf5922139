"""The launch files in examples/cluster: their own validators pass them, and their commands are ones the programs they call take."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

import cli

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "cluster"
BATCHES, MANIFESTS = sorted(FOLDER.glob("*.sbatch")), sorted(FOLDER.glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def checked(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def ours(words: list[str]) -> click.Context:
    """The command that follows cli.py, parsed by the program itself, nothing of it run."""
    rest = words[next(k for k, word in enumerate(words) if word.endswith("cli.py")) + 1 :]
    command = cli.group.commands[rest[0]]
    return command.make_context(rest[0], rest[1:])


def launched(words: list[str]) -> Any:
    """The arguments of `accelerate launch`, as its own parser reads them."""
    return launch_command_parser().parse_args(words[words.index("launch") + 1 :])


@pytest.mark.parametrize("path", BATCHES, ids=lambda path: path.name)
def test_batch_files_pass_shellcheck_and_state_their_nodes(path: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or "shellcheck"
    result = subprocess.run([shellcheck, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    stated = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert {"--nodes=2", "--ntasks-per-node=1"} <= set(stated)


@pytest.mark.parametrize("path", BATCHES, ids=lambda path: path.name)
def test_what_a_batch_file_starts_is_taken_by_our_commands(path: Path, tmp_path: Path) -> None:
    """srun and scontrol are ours here, and what srun is given is read as the nodes would run it."""
    tools, told = tmp_path / "bin", tmp_path / "told"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/sh\necho node1; echo node2\n")
    (tools / "srun").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    for name in ("ray", "accelerate"):
        (tools / name).write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" > {told}\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "64", "SLURM_NODEID": "1"}
    simulate = ["simulate", "--count", "1000", "--seed", "1", "--out", str(tmp_path / "many.npz")]
    given = {"ray.sbatch": simulate, "train.sbatch": ["many.npz", str(tmp_path / "run")]}[path.name]
    subprocess.run(["bash", path, *given], env={"PATH": f"{tools}:/usr/bin:/bin", **slurm}, check=True)
    words = told.read_text().splitlines()
    asked = ours(words)
    if path.name == "ray.sbatch":
        assert words[1:4] == ["symmetric-run", "--address", "node1:6379"]
        assert (asked.params["count"], asked.params["cluster"]) == (1000, "auto")
    else:
        found = launched(words)
        assert (found.num_machines, found.num_processes, found.machine_rank, found.main_process_ip) == (2, 16, 1, "node1")
        assert asked.params["resume"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_pass_the_schema_of_kubernetes(path: Path) -> None:
    """KubeRay's own kind is none of Kubernetes', but the pods in it are."""
    for document in documents(path):
        if document["apiVersion"] != "ray.io/v1":
            checked(document)
            continue
        cluster = document["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            checked({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": group["template"]["spec"]})


def test_commands_of_the_manifests_are_taken_by_our_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate = documents(FOLDER / "simulate.yaml")[0]["spec"]
    asked = ours(shlex.split(simulate["entrypoint"].replace("/data", str(tmp_path))))
    assert (asked.params["count"], asked.params["cluster"]) == (1_000_000, "auto")
    service, job = documents(FOLDER / "train.yaml")
    command = [word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in job["spec"]["template"]["spec"]["containers"][0]["command"]]
    found = launched(command)
    gpus = int(job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert (found.num_machines, found.num_processes) == (job["spec"]["completions"], job["spec"]["completions"] * gpus)
    assert found.main_process_ip == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert service["spec"]["ports"][0]["port"] == found.main_process_port
    assert ours(command).params["resume"]
