"""A mistake is one sentence on stderr and an exit status; nothing stands on stdout and nothing is half-written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from scipy.io import savemat


def mistakes(sample: dict[str, np.ndarray]) -> dict[str, tuple[str, dict[str, Any], str]]:
    """File name, content and what the sentence must say, per mistake of a target."""

    def maps(**more: Any) -> dict[str, Any]:
        return {**sample, **more}

    nan, low, high = sample["Rm"].copy(), sample["Tm"].copy(), sample["Tm"].copy()
    nan[1, 2], low[0, 0] = np.nan, -0.02
    high[3, 3] += 1.06 - sample["Rm"].sum() - high.sum()
    return {
        "missing key": ("wish.npz", {k: v for k, v in sample.items() if k != "Tm"}, "lacks the key 'Tm'"),
        "wrong shape": ("wish.npz", maps(Rm=sample["Rm"][:, :6]), r"'Rm' has shape \(7, 6\)"),
        "even side": ("wish.npz", maps(Rm=sample["Rm"][:6, :6]), r"'Rm' has shape \(6, 6\)"),
        "two sizes": ("wish.npz", maps(Rm=sample["Rm"][1:6, 1:6]), r"'Rm' has shape \(5, 5\) and 'Tm' \(7, 7\)"),
        "NaN": ("wish.npz", maps(Rm=nan), r"'Rm' holds nan at \[1, 2\]"),
        "infinity": ("wish.npz", maps(h=np.inf), "'h'"),
        "negative": ("wish.npz", maps(Tm=low), r"'Tm'.*-0\.02"),
        "too much": ("wish.npz", maps(Tm=high), "'Rm' and 'Tm' add up to 1.*scale them down"),
        "pickled": ("wish.npz", maps(Rm=np.array([{"a": 1}], object)), "pickled Python objects"),
        "too tall": ("wish.npz", maps(h=np.float64(500)), "the height is 500 nm, outside the 1.* to 3.* nm"),
        "too flat": ("wish.npz", maps(h=np.float64(20)), "the height is 20 nm"),
        "other geometry": ("wish.npz", maps(geometry=np.array("{}")), "geometry lacks the field 'wavelength_nm'"),
        "missing in mat": ("wish.mat", {"Rm": sample["Rm"], "Tm": sample["Tm"]}, "lacks the key 'h'"),
        "another ending": ("wish.txt", {}, r"a target is a \.json, \.toml, \.mat, \.npz or \.csv file"),
        "no json": ("wish.json", {}, "is not JSON"),
    }


@pytest.mark.parametrize(
    "mistake",
    [
        *("missing key", "wrong shape", "even side", "two sizes", "NaN", "infinity", "negative", "too much", "pickled", "too tall"),
        *("too flat", "other geometry", "missing in mat", "another ending", "no json"),
    ],
)
def test_a_wrong_target_is_one_sentence_and_status_2(
    mistake: str,
    small_bundle: Path,
    sample: dict[str, np.ndarray],
    tmp_path: Path,
    run: Callable[..., Result],
    sentence: Callable[..., str],
    quick: list[str],
) -> None:
    name, content, words = mistakes(sample)[mistake]
    path = tmp_path / name
    if path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".mat":
        savemat(path, content)
    else:
        path.write_text("{not json")
    said = sentence(run("infer", path, "--out", tmp_path / "out", "--bundle", small_bundle, *quick), 2)
    assert re.search(words, said), said
    assert "wish" in said, "the sentence names the file"
    assert not (tmp_path / "out").exists()


def test_one_wrong_target_among_several_stops_before_any_work(
    small_bundle: Path, target: Path, tmp_path: Path, run: Callable[..., Result], sentence: Callable[..., str], quick: list[str]
) -> None:
    said = sentence(run("infer", target, tmp_path / "nowhere.npz", "--out", tmp_path / "out", "--bundle", small_bundle, *quick), 2)
    assert re.search(r"nowhere\.npz does not exist", said)
    assert not (tmp_path / "out").exists()


def test_two_targets_of_one_name(
    small_bundle: Path, target: Path, tmp_path: Path, run: Callable[..., Result], sentence: Callable[..., str], quick: list[str]
) -> None:
    (tmp_path / "b").mkdir()
    other = shutil.copy(target, tmp_path / "b" / "wish.npz")
    said = sentence(run("infer", target, other, "--out", tmp_path / "out", "--bundle", small_bundle, *quick), 2)
    assert "two targets are called 'wish'" in said


@pytest.mark.parametrize("name", ["nowhere.npz", "nowhere.mat", "nowhere.json", "n" * 300 + ".json", "n" * 300 + ".npz"])
def test_a_target_that_is_not_there(
    name: str, small_bundle: Path, tmp_path: Path, run: Callable[..., Result], sentence: Callable[..., str], quick: list[str]
) -> None:
    result = run("infer", tmp_path / name, "--out", tmp_path / "out", "--bundle", small_bundle, *quick)
    assert result.exit_code in (1, 2)
    sentence(result, result.exit_code)
    if len(name) < 255:
        assert result.exit_code == 2
        assert re.search(rf"{name} does not exist", result.stderr)
    assert not (tmp_path / "out").exists()


def test_unknown_and_corrupted_bundles(
    small_bundle: Path, target: Path, tmp_path: Path, run: Callable[..., Result], sentence: Callable[..., str], quick: list[str]
) -> None:
    said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", tmp_path / "no-bundle", *quick), 2)
    assert re.search(r"there is no bundle at .*no-bundle", said)
    for name in ("denoiser.onnx", "scheduler_config.json", "manifest.json"):
        folder = Path(shutil.copytree(small_bundle, tmp_path / name / "bundle"))
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", folder, *quick), 2)
        assert str(folder / name) in said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix", reason="/proc")
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/metascatter", "/proc/a/b", "/dev/null/x"])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    place: str,
    small_bundle: Path,
    target: Path,
    tmp_path: Path,
    run: Callable[..., Result],
    names: Callable[[Path], list[str]],
    sentence: Callable[..., str],
) -> None:
    (tmp_path / "file").write_text("mine")
    result = run("infer", target, "--out", tmp_path / place, "--bundle", small_bundle, "-n", "100000")  # hours, if it began
    said = sentence(result, 2)
    assert f"cannot write {tmp_path / place}" in said
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == ["file", "wish.npz"]


@pytest.mark.usefixtures("no_picture")
def test_a_result_file_that_cannot_be_replaced(
    small_bundle: Path,
    target: Path,
    tmp_path: Path,
    run: Callable[..., Result],
    names: Callable[[Path], list[str]],
    sentence: Callable[..., str],
    quick: list[str],
) -> None:
    (tmp_path / "out" / "designs.npz").mkdir(parents=True)
    said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *quick), 2)
    assert "designs.npz" in said
    assert not [name for name in names(tmp_path / "out") if name.startswith(".")], "no temporary is left"


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--seed", 2**63], 2, "--seed"),
        (["--seed", -1], 2, "--seed"),
        (["-n", 0], 2, "-n"),
        (["--steps", 5000], 2, "num_steps is 5000"),
        (["--guidance-scale", "nan"], 2, "guidance_scale is nan"),
        (["--device", "tpu"], 2, "--device"),
        (["--backend", "tensorflow"], 2, "--backend"),
        (["--precision", "fp8"], 2, "--precision"),
        (["--scheduler", "plms"], 2, "--scheduler"),
        (["--frobnicate"], 2, "--frobnicate"),
    ],
)
def test_wrong_options(
    options: list[object], status: int, words: str, small_bundle: Path, target: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    result = run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, "--device", "cpu", *options)
    assert result.exit_code == status
    assert words in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_gpu_asked_for_by_name_is_not_replaced(
    small_bundle: Path,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Result],
    sentence: Callable[..., str],
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, "--device", "cuda"), 1)
    assert "metascatter[gpu]" in said
    assert not (tmp_path / "out").exists()


def test_mistakes_in_a_process_of_its_own(
    small_bundle: Path, tmp_path: Path, spawn: Callable[..., subprocess.CompletedProcess[str]], sentence: Callable[..., str]
) -> None:
    """The real thing once: the exit status of the process and both of its streams."""
    done = spawn("infer", tmp_path / "nowhere.mat", "--out", tmp_path / "out", "--bundle", small_bundle)
    assert "nowhere.mat does not exist" in sentence(done, 2)


def test_without_an_engine_infer_says_what_to_install(
    small_bundle: Path,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Result],
    sentence: Callable[..., str],
) -> None:
    for engine in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, engine, None)
    said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle), 1)
    assert "metascatter[cpu]" in said


@pytest.mark.parametrize(
    ("command", "blocked", "extra"),
    [("train", "torch", "train"), ("train", "diffusers", "train"), ("export", "torch", "export")],
)
def test_training_and_exporting_without_their_extra(
    command: str,
    blocked: str,
    extra: str,
    small_data: Path,
    tmp_path: Path,
    spawn: Callable[..., subprocess.CompletedProcess[str]],
    sentence: Callable[..., str],
) -> None:
    arguments: dict[str, list[object]] = {"train": ["train", "--data", small_data], "export": ["export", tmp_path]}
    done = spawn(*arguments[command], "--out", tmp_path / "out", before=f"sys.modules[{blocked!r}] = None")
    said = sentence(done, 1)
    assert blocked in said
    assert f".[{extra}]" in said
    assert not (tmp_path / "out").exists()


def test_a_package_that_turns_out_to_be_missing_during_the_work(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Result]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = run("export", small_run, "--out", tmp_path / "bundle")
    assert result.exit_code == 1, result.exception
    assert re.fullmatch(r"Error: onnx is not installed; .*\.\[export\].*", result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "bundle").exists()


def test_mistakes_in_train_and_export(
    small_data: Path,
    small_run: Path,
    tmp_path: Path,
    run: Callable[..., Result],
    names: Callable[[Path], list[str]],
    sentence: Callable[..., str],
) -> None:
    cases: list[tuple[Callable[[], Result], str]] = [
        (lambda: run("train", "--data", tmp_path / "x.npz", "--out", tmp_path / "run"), r"x\.npz does not exist"),
        (lambda: run("train", "--data", small_data, "--recipe", "magic", "--out", tmp_path / "run"), "there is no recipe 'magic'"),
        (lambda: run("train", "--data", small_data, "--out", small_run), "already holds a run; add --resume"),
        (lambda: run("export", tmp_path / "nowhere", "--out", tmp_path / "bundle"), "nowhere.*does not exist"),
        (lambda: run("export", small_run, "--out", tmp_path / "bundle", "--steps", 5000), "num_steps is 5000"),
        (lambda: run("export", small_run, "--out", tmp_path / "bundle", "--scheduler", "plms"), "unknown scheduler 'plms'"),
        (lambda: run("export", small_run, "--out", tmp_path / "bundle", "--evaluation", tmp_path / "e.json"), r"e\.json cannot be read"),
    ]
    for act, words in cases:
        said = sentence(act(), 2)
        assert re.search(words, said), said
    assert names(tmp_path) == []


def test_a_full_disk_is_one_sentence(
    small_bundle: Path,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Result],
    names: Callable[[Path], list[str]],
    sentence: Callable[..., str],
    quick: list[str],
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out" / "designs.npz"))

    monkeypatch.setattr(np, "savez_compressed", full)
    said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *quick), 1)
    assert "No space left on device" in said
    assert names(tmp_path / "out") == []
