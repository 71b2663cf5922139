"""evaluate as a person runs it: with a baseline and a picture, and what is wrong is said before the work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.fixture
def common(small_bundle: Path, small_data: Path) -> list[object]:
    return ["evaluate", "--data", small_data, "--bundle", small_bundle, "--limit", 3, "-n", 8, "--steps", 3, "--device", "cpu"]


def test_a_baseline_and_a_picture(
    common: list[object], small_bundle: Path, run: Run, ok: Callable[[Result], Result], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "e.png"
    chosen = ["--baseline", small_bundle, "--baseline-steps", 2, "--baseline-scheduler", "euler", "--baseline-limit", 2]
    done = ok(run(*common, "--oracle-limit", 2, "--noise-limit", 1, "--picture", path, "--json", *chosen))
    document = json.loads(done.stdout)
    bundle = document["baselines"]["bundle"]
    assert (bundle["name"], bundle["targets"], bundle["ranked_by"]) == ("small", 2, "nothing: all were solved")
    assert (bundle["sampler"]["steps"], bundle["sampler"]["scheduler"]) == (2, "euler")
    assert (document["oracle"]["targets"], document["sampler"]["steps"]) == (2, 3)
    assert [row["targets"] for row in document["noise_robustness"]] == [1] * 4
    assert [row["level"] for row in document["seed_protocol"]["levels"]] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_failed_picture_costs_no_result(common: list[object], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")

    def full(result: Any, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("runtime.evaluate.picture", full)
    done = run(*common, "--limit", 1, "--noise-limit", 0, "--picture", tmp_path / "e.png")
    assert done.exit_code == 1
    assert "Misrouted power on 1 targets" in done.stdout
    assert "No space left on device" in done.stderr


def test_mistakes_are_told_before_the_work(
    common: list[object], run: Run, sentence: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.data.load", lambda *arguments: pytest.fail("read the data first"))
    assert "expected one of .png, .svg, .pdf" in sentence(run(*common, "--picture", tmp_path / "e.txt"), 2)
    (tmp_path / "file").write_text("")
    assert "cannot write" in sentence(run(*common, "--picture", tmp_path / "file" / "e.png"), 2)
    for flag, value in (("--baseline-steps", 3), ("--baseline-scheduler", "ddim"), ("--baseline-limit", 1)):
        done = run(*common, flag, value)
        assert done.exit_code == 2
        assert f"{flag} says how a baseline is sampled; name its bundle with --baseline" in done.stderr


def test_a_baseline_that_is_none(common: list[object], run: Run, sentence: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no bundle at" in sentence(run(*common, "--baseline", tmp_path / "x"), 2)
