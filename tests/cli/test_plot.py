"""``plot``: what the figures are made of, and what is said where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from runtime import plots
from runtime.commands import group
from runtime.data import load as read_data
from runtime.plots import Field, Row
from runtime.sampler import load
from runtime.target import Target


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"height_nm": 250, "orders": {"T(0,0)": 0.2, "R(0,0)": 0.1}}))
    return path


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(group, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


def test_light_matrices_show_the_data_from_the_lowest_pillars_to_the_tallest(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[Row]] = []
    monkeypatch.setattr(plots, "sample_grid", lambda path, title, columns, rows: drawn.append(list(rows)))
    assert run("plot", "light", small_data, "--out", tmp_path / "light.png", "--count", 5)[0] == 0
    data = read_data(small_data)
    [rows] = drawn
    heights = [float(row.label.split()[0]) for row in rows]
    assert heights == sorted(heights)
    assert (len(rows), heights[0], heights[-1]) == (5, data.h.min(), data.h.max())
    for row in rows:
        k = int(np.flatnonzero((data.xx == row.cells[0]).all(axis=(1, 2)))[0])
        assert np.nansum(np.asarray(row.cells[1])) == pytest.approx(data.Rm[k].sum(), rel=1e-6)
        assert row.notes[2] == f"T {data.Tm[k].sum():.3f}"


@pytest.mark.parametrize("settings", [[], ["--scheduler", "euler", "--steps", "4", "--guidance-scale", "2"]])
def test_the_strip_begins_with_the_seeds_noise_and_ends_with_the_designs_patterns(
    small_bundle: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    drawn: list[list[Row]] = []
    monkeypatch.setattr(plots, "sample_grid", lambda path, title, columns, rows: drawn.append(list(rows)))
    status, out, _ = run(
        "plot", "reverse", target, "--out", tmp_path / "strip.png", "--bundle", small_bundle, "-n", 2, "--seed", 5, *settings
    )
    assert (status, out) == (0, f"{tmp_path / 'strip.png'}\n")
    given = {"scheduler": "euler", "steps": 4, "guidance_scale": 2.0} if settings else {}
    with load(small_bundle) as sampler:
        made = sampler.propose(Target.load(target), 2, seed=5, **given)
    [rows] = drawn
    assert len(rows) == 4
    for i, pattern in enumerate(made):
        sample, estimate = rows[2 * i], rows[2 * i + 1]
        noise = np.random.Generator(np.random.Philox(key=[5, i])).standard_normal((1, 5, 5), dtype=np.float32)[0]
        first, last = sample.cells[0], estimate.cells[-2]
        assert isinstance(first, Field)
        assert isinstance(last, Field)
        assert np.corrcoef(first.values.ravel(), noise.ravel())[0, 1] == pytest.approx(1, abs=1e-6)
        assert np.array_equal(last.values > 0, pattern)
        assert np.array_equal(np.asarray(sample.cells[-1]), pattern)
        assert len(sample.cells) == len(estimate.cells) == (5 if settings else plots.MOMENTS + 1)


def test_pictures_are_written_whole(small_bundle: Path, small_data: Path, target: Path, tmp_path: Path) -> None:
    assert run("plot", "light", small_data, "--out", tmp_path / "light.png", "--count", 2)[0] == 0
    assert imread(tmp_path / "light.png")[..., :3].std() > 0.05
    assert run("plot", "reverse", target, "--out", tmp_path / "strip.svg", "--bundle", small_bundle, "-n", 1)[0] == 0
    assert "<image" in (tmp_path / "strip.svg").read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["light.png", "one.json", "strip.svg"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["light", "{data}", "--out", "{folder}/a.gif"], "the picture {folder}/a.gif has the suffix '.gif'"),
        (["light", "{folder}/none.npz", "--out", "{folder}/a.png"], "{folder}/none.npz does not exist"),
        (["reverse", "{folder}/none.json", "--out", "{folder}/a.png", "--bundle", "{bundle}"], "{folder}/none.json does not exist"),
        (["reverse", "{folder}/one.json", "--out", "{folder}/a.png", "--bundle", "{folder}"], "{folder}"),
    ],
)
def test_mistakes_are_one_sentence(
    small_bundle: Path, small_data: Path, target: Path, tmp_path: Path, words: list[str], sentence: str
) -> None:
    places = {"data": small_data, "folder": tmp_path, "bundle": small_bundle}
    status, out, error = run("plot", *(word.format(**places) for word in words))
    assert (status, out) == (2, "")
    assert error.startswith("Error: ")
    assert sentence.format(**places) in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]
