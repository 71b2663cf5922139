"""cli.py export as a person runs it: everything at once, and the ways in which a disk or a checkpoint can fail it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

import export.bundle as room
from export import parity, yardsticks
from train import checkpoint


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine and few candidates: what is compared is tested elsewhere."""
    monkeypatch.setattr(parity, "ENGINES", ("onnxruntime",))
    monkeypatch.setattr(yardsticks, "CANDIDATES", 2)


@pytest.fixture
def known_graphs(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = {"output": "denoiser.onnx", "context": "encoder.onnx"}
    monkeypatch.setattr(room, "to_onnx", lambda part: (small_bundle / graphs[part.outputs[0]]).read_bytes())


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a small file system of its own, with these mount options."""
    places: list[Path] = []

    def mounted(options: str) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        places.append(place)
        return place

    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    yield mounted
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def test_everything_at_once_without_a_network(
    small_run: Path, tmp_path: Path, run: Callable[..., Result], ok: Callable[[Result], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection was asked for: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; install metascatter[rtx]")
    bundle, models, engines = tmp_path / "bundle", tmp_path / "models", tmp_path / "engines"
    options = [
        "--fp16",
        "--int8",
        "--fused",
        4,
        "--scheduler",
        "dpmsolver++",
        "--steps",
        8,
        "--max-batch",
        8,
        "--triton",
        models,
        "--force",
    ]
    capability = ["--tensorrt", "--engine-dir", engines, "--compute-capability", "8.9", "--workspace-mb", 256]
    said = ok(run("export", small_run, "--out", bundle, *options, *capability)).stderr
    for stage in (
        "exporting denoiser.onnx",
        "exporting encoder.fp16.onnx",
        "quantizing denoiser.int8.onnx",
        "fp16  onnxruntime cpu",
        "int8  onnxruntime cpu",
        "fusing dpmsolver++ in 4 steps",
        "engine of denoiser.fp16.onnx, batches 1, 8",
        "int8 files are for CPUs",
        f"tritonserver --model-repository={models}",
        f"wrote {bundle}",
    ):
        assert stage in said, said
    assert json.loads((bundle / "manifest.json").read_text())["max_batch"] == 8
    assert {path.name for path in models.iterdir()} == {"metascatter_denoiser", "metascatter_encoder", "metascatter_sampler"}
    assert len(list((engines / "tensorrt").glob("*.bin"))) == 4
    for path in [*bundle.iterdir(), *engines.rglob("*.json"), *models.rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            for place in (os.getcwd(), str(tmp_path), str(small_run)):
                assert place.encode() not in content, f"{path.name} names {place}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine-dir", "x"], "--engine-dir is for engines; add --tensorrt"),
        (["--compute-capability", "8.9"], "--compute-capability is for engines; add --tensorrt"),
        (["--workspace-mb", "512"], "--workspace-mb is for engines; add --tensorrt"),
        (["--version-compatible"], "--version-compatible is for engines; add --tensorrt"),
        (["--hardware-compatible"], "--hardware-compatible is for engines; add --tensorrt"),
        (["--tensorrt", "--compute-capability", "new"], "'new' is no compute capability; write it as 8.9"),
        (["--max-batch", "0"], "0 is not in the range"),
        (["--fused", "2000"], "num_steps is 2000"),
    ],
)
def test_flags_that_make_no_sense(options: list[str], words: str, small_run: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    result = run("export", small_run, "--out", tmp_path / "bundle", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_engines_that_cannot_be_built_are_said_before_the_work(small_run: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; install metascatter[rtx]")
    result = run("export", small_run, "--out", tmp_path / "bundle", "--tensorrt", "--compute-capability", "9.0")
    assert result.exit_code == 1
    (said,) = result.stderr.splitlines()
    assert "does not build for compute capability 9.0; it does for 7.5" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("known_graphs")
def test_a_full_disk(small_run: Path, mounted: Callable[[str], Path], run: Callable[..., Result]) -> None:
    disk = mounted("size=64k")
    result = run("export", small_run, "--out", disk / "bundle")
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: .*No space left on device.*", result.stderr.splitlines()[-1]), result.stderr
    assert "Traceback" not in result.stderr
    assert list(disk.iterdir()) == []


def test_a_disk_one_may_only_read(
    small_run: Path, mounted: Callable[[str], Path], run: Callable[..., Result], sentence: Callable[..., str]
) -> None:
    disk = mounted("size=64k,ro")
    assert "Read-only file system" in sentence(run("export", small_run, "--out", disk / "bundle"), 2)


def test_checkpoints_that_are_half_broken(
    small_run: Path, tmp_path: Path, run: Callable[..., Result], sentence: Callable[..., str]
) -> None:
    """Cut short, of another network, with weights that are not numbers: said before anything is exported."""
    for i, (spoil, words) in enumerate(
        (
            (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot be read"),
            (lambda path: path.write_bytes(b""), "cannot be read"),
            (lambda path: save_file({k: v for k, v in load_file(path).items() if "gates" not in k}, path), "does not fit its recipe"),
            (lambda path: save_file({k: torch.cat([v, v]) for k, v in load_file(path).items()}, path), "does not fit its recipe"),
            (lambda path: save_file({k: v * np.nan for k, v in load_file(path).items()}, path), "holds weights that are not finite"),
        )
    ):
        spoiled = Path(shutil.copytree(small_run, tmp_path / f"run{i}"))
        spoil(checkpoint.latest(spoiled) / "ema.safetensors")
        said = sentence(run("export", spoiled, "--out", tmp_path / "bundle"), 2)
        assert words in said
        assert "remove that checkpoint" in said
        assert not (tmp_path / "bundle").exists()
