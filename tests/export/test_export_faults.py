"""A bundle is written whole or not at all: killed exports, graphs that differ, wrong settings, and runs that are damaged or none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import export.bundle as room
from export import parity
from export.bundle import export
from runtime.data import load as load_data
from runtime.errors import BundleError, DataError
from runtime.files import write_npz
from train import checkpoint


class Killed(BaseException):
    """As unstoppable as Ctrl-C."""


def fail_at(count: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Writing files fails at the ``count``-th; returns how often it was tried."""
    calls = [0]
    real = Path.write_bytes

    def write_bytes(self: Path, data: Any) -> int:
        calls[0] += 1
        if calls[0] == count:
            real(self, bytes(data)[: len(data) // 2])
            raise Killed
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    return lambda: calls[0]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("count", [1, 4, 7])
def test_a_killed_export_leaves_what_stood_there(
    count: int,
    small_run: Path,
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    manifest: Callable[[Path], dict[str, Any]],
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    old = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    before = contents(old)
    with monkeypatch.context() as patch:
        tried = fail_at(count, patch)
        with pytest.raises(Killed):
            export(small_run, old, sampling={"steps": 5})
        assert tried() == count
    assert contents(old) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"], "nothing half-written stays beside it"
    export(small_run, old, sampling={"steps": 5})
    assert manifest(old)["sampling"]["steps"] == 5


@pytest.mark.usefixtures("quick")
def test_a_killed_first_export_leaves_nothing(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(3, monkeypatch)
    with pytest.raises(Killed):
        export(small_run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_graphs_that_differ_from_pytorch_are_not_shipped(run: Path, small_bundle: Path, tmp_path: Path) -> None:
    """The old graphs with other weights: what an exporter's mistake would look like."""
    from safetensors.torch import load_file, save_file

    path = checkpoint.latest(run) / "ema.safetensors"
    save_file({key: value + 0.01 for key, value in load_file(path).items()}, path)
    with pytest.raises(BundleError, match=r"fp32 on onnxruntime cpu differs from PyTorch by .*more than 1e-04; no bundle was written"):
        export(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def told(max_abs: float = 1e-6, finite: bool = True, change: float = 0.0, largest: float = 1.0) -> dict[str, Any]:
    """A parity report of one network with one output."""
    row = {"max_abs": max_abs if finite else None, "mean_abs": 0.0, "largest": largest, "finite": finite}
    good = {"max_abs": 1e-6, "mean_abs": 1e-7, "largest": 1.0, "finite": True}
    trajectory = {**good, "flipped": 0.0, "ranked_median": 0.2, "ranked_change": change}
    return {"networks": {"denoiser": {"1": {"output": good}, "7": {"output": row}}}, "timesteps": {"0": good}, "trajectory": trajectory}


def test_parity_counts_nonsense_as_infinitely_wrong() -> None:
    assert parity.worst(told(2e-6)) == 2e-6
    for nonsense in (told(finite=False), None, {**told(), "timesteps": {"0": {"max_abs": None, "mean_abs": None, "finite": False}}}):
        assert parity.worst(nonsense) == float("inf")
        for precision in ("fp32", "fp16", "int8"):
            reason, forgivable = parity.refusal(precision, "here", nonsense)
            assert reason == f"{precision} on here gives numbers that are not finite"
            assert not forgivable


def test_fp32_has_four_digits_of_large_outputs_too() -> None:
    assert parity.refusal("fp32", "here", told(9e-5)) == (None, False)
    assert parity.refusal("fp32", "here", told(9e-4, largest=10.0)) == (None, False)
    for report in (told(2e-4), told(2e-3, largest=10.0), told(2e-4, largest=0.1)):
        reason, forgivable = parity.refusal("fp32", "here", report)
        assert reason == "fp32 on here differs from PyTorch by 2.0e-04, more than 1e-04"
        assert not forgivable


def test_of_several_passes_the_mean_counts() -> None:
    outlier, shifted, surrogate = told(2e-3), told(2e-3), told()
    for row in (shifted["networks"]["denoiser"]["7"]["output"], shifted["timesteps"]["0"]):
        row |= {"mean_abs": 2e-4}
    surrogate["networks"]["surrogate"] = {"1": {"R": {"max_abs": 2e-3, "mean_abs": 0.0, "largest": 1.0, "finite": True}}}
    assert parity.refusal("fp32", "here", outlier, passes=3) == (None, False)
    for report, apart in ((shifted, "2.0e-04"), (surrogate, "2.0e-03")):
        reason, forgivable = parity.refusal("fp32", "here", report, passes=3)
        assert reason == f"fp32 on here differs from PyTorch by {apart}, more than 1e-04"
        assert not forgivable
    assert parity.worst(told(finite=False), passes=3) == float("inf")


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0.002), ("int8", 0.01)])
def test_a_precision_that_makes_designs_worse_is_refused_unless_forced(precision: str, bound: float) -> None:
    assert parity.refusal(precision, "here", told(0.5, change=bound)) == (None, False)
    reason, forgivable = parity.refusal(precision, "here", told(0.5, change=bound + 0.001))
    assert reason is not None
    assert reason.startswith(f"{precision} on here makes the median misrouted power worse by {bound + 0.001:.4f}")
    assert forgivable
    said: list[str] = []
    reports = {"fp32": {"here": told()}, precision: {"here": told(change=0.05)}}
    with pytest.raises(BundleError, match=rf"worse by 0\.0500.*leave --{precision} out, or write it all the same with --force"):
        room._judge(reports, reports, 1, False, said.append)
    room._judge(reports, reports, 1, True, said.append)
    assert "written because of --force" in said[-1]
    with pytest.raises(BundleError, match="not finite; no bundle was written"):
        room._judge({precision: {"here": None}}, {precision: {}}, 1, True, said.append)


@pytest.mark.usefixtures("quick")
def test_a_folder_that_is_no_bundle_is_not_replaced(small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(DataError, match="thesis holds something else than a bundle"):
        export(small_run, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    export(small_run, tmp_path / "empty")
    assert (tmp_path / "empty" / "manifest.json").is_file()
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot write .*file"):
        export(small_run, tmp_path / "file")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"scheduler": "plms"}, "unknown scheduler 'plms'"),
        ({"steps": 1001}, "num_steps is 1001"),
        ({"eta": 0.5, "scheduler": "ddpm"}, "only the scheduler ddim has an eta"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ],
)
def test_settings_that_cannot_be_sampled_with_are_refused(sampling: dict[str, Any], words: str, small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=words):
        export(small_run, tmp_path / "bundle", sampling=sampling)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.usefixtures("quick")
def test_runs_that_a_kill_left_export_too(run: Path, tmp_path: Path, manifest: Callable[[Path], dict[str, Any]]) -> None:
    """Metrics cut in the middle of a line, of steps after the checkpoint, or none yet."""
    rows = (run / "metrics.jsonl").read_text().splitlines()
    later = {**json.loads(rows[-1]), "step": 10**6, "validation_loss": 99.0}
    (run / "metrics.jsonl").write_text("\n".join([*rows, json.dumps(later), '{"step": 10']))
    assert manifest(export(run, tmp_path / "a"))["training"]["validation_loss"] == json.loads(rows[-1])["validation_loss"]
    (run / "metrics.jsonl").unlink()
    bundle = export(run, tmp_path / "b")
    assert manifest(bundle)["training"]["epochs"] is None
    assert "ended within its first epoch" in (bundle / "README.md").read_text()


@pytest.mark.usefixtures("quick")
def test_a_run_on_fewer_samples_than_a_parity_batch(run: Path, tmp_path: Path) -> None:
    held = run / "calibration.npz"
    data = load_data(held)
    write_npz(held, **data.take(np.array([0, -1])).arrays(), test=np.array([False, True]))
    rows = json.loads((export(run, tmp_path / "bundle") / "parity.json").read_text())
    assert set(rows["precisions"]["fp32"]["onnxruntime cpu"]["networks"]["denoiser"]) == {"1", "7", "64"}
    write_npz(held, **data.take(np.array([0, -1])).arrays())
    with pytest.raises(DataError, match=r"calibration\.npz does not say which of its samples are for testing"):
        export(run, tmp_path / "other")


def test_what_is_no_run_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*does not exist; name the folder that 'cli\.py train --out' wrote"):
        export(tmp_path / "nowhere", tmp_path / "bundle")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(DataError, match="holds no checkpoint"):
        export(run, tmp_path / "bundle")
    (run / "recipe.json").write_text("{")
    with pytest.raises(DataError, match=r"recipe\.json cannot be read"):
        export(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
