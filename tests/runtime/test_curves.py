"""Curves of losses and scores: what is drawn against what, and what is no run and no evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from runtime import curves
from runtime.commands import group


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(group, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [{"epoch": float(k), "loss": 1 / k, "validation_loss": 1.1 / k} for k in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"epoch": 9')
    return folder


def evaluation(path: Path, name: str, epoch: float | None, scales: dict[float, float], **more: Any) -> Path:
    rows = [{"guidance_scale": scale, "frechet": value, "class_accuracy": None} for scale, value in scales.items()]
    real = {"real": {"frechet": 0.05, "class_accuracy": None}}
    path.write_text(json.dumps({"recipe": name, "epoch": epoch, "by_guidance_scale": rows, "baselines": real, **more}))
    return path


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines if not line.get_label().startswith("_")
    }


def test_losses_of_all_epochs_and_of_the_later_ones(trained: Path, tmp_path: Path) -> None:
    rows = curves.read_losses(trained)
    assert len(rows) == 8, "half a line is left out"
    both = curves._losses({"a": rows}, 5)
    first, second = (lines(axes) for axes in both.axes)
    assert first["validation (EMA weights)"] == (list(range(1, 9)), [1.1 / k for k in range(1, 9)])
    assert second["training (mean of the epoch)"] == ([5, 6, 7, 8], [1 / k for k in range(5, 9)])
    assert len(curves._losses({"a": rows}, 8).axes) == 1
    two = curves._losses({"a": rows, "b": rows}, 0)
    assert list(lines(two.axes[0])) == [f"{name}, {what}" for name in "ab" for what in first]
    status, out, _ = run("plot", "loss", trained, trained / "metrics.jsonl", "--out", tmp_path / "loss.svg")
    assert (status, out) == (0, f"{tmp_path / 'loss.svg'}\n")
    assert "Loss from epoch 5 on" in (tmp_path / "loss.svg").read_text()


def test_scores_against_epochs_and_against_guidance(tmp_path: Path) -> None:
    words = {"features": {"words": {"fid": "FID"}}}
    paths = [
        evaluation(tmp_path / "late.json", "guided", 8.0, {3.0: 0.2, 1.0: 0.1}, **words),
        evaluation(tmp_path / "early.json", "guided", 2.0, {1.0: 0.5, 3.0: 0.4}, **words),
        evaluation(tmp_path / "plain.json", "plain", 2.0, {1.0: 0.7}),
    ]
    figure = curves._scores([curves.read_evaluation(path) for path in paths])
    assert len(figure.axes) == 2, "neither class accuracies nor FID are there to be drawn"
    epochs, guidance = (lines(axes) for axes in figure.axes)
    assert epochs["guided, w = 2"] == ([2, 8], [0.4, 0.2])
    assert epochs["guided, w = 0"] == ([2, 8], [0.5, 0.1])
    assert guidance["guided, epoch 2"] == ([0, 2], [0.5, 0.4])
    assert guidance["plain, epoch 2"] == ([0], [0.7])
    assert set(epochs["other real images"][1]) == {0.05}
    assert run("plot", "scores", *paths, "--out", tmp_path / "scores.png")[0] == 0
    assert imread(tmp_path / "scores.png")[..., :3].std() > 0.05
    [one] = curves._scores([curves.read_evaluation(paths[0])]).axes
    assert lines(one)["epoch 8"] == ([0, 2], [0.1, 0.2])


def test_mistakes_are_one_sentence(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"recipe": "digits", "sliced_wasserstein": 1}')
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "metrics.jsonl").write_text("")
    for words, sentence in (
        (("scores", tmp_path / "other.json"), "name what 'evaluate --json' said of a bundle of images"),
        (("scores", tmp_path / "none.json"), "none.json cannot be read"),
        (("loss", tmp_path), "metrics.jsonl cannot be read"),
        (("loss", tmp_path / "fresh"), "holds no losses"),
    ):
        status, out, error = run("plot", *words, "--out", tmp_path / "a.png")
        assert (status, out, error.count("\n")) == (2, "", 1)
        assert sentence in error
    assert not (tmp_path / "a.png").exists()
