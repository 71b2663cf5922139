"""A clock on the wall that is set back all the time changes nothing: what lasts is counted by the monotonic one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from runtime.serve import guard

Run = Callable[..., Result]


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """``time.time`` an hour earlier with every look; the times that were read."""
    start, seen = time.time(), list[float]()

    def earlier() -> float:
        seen.append(start - 3600 * len(seen))
        return seen[-1]

    monkeypatch.setattr(time, "time", earlier)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * earlier()))  # Ray, once imported, stamps every record by it
    yield seen
    monkeypatch.undo()


def contents(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def same(one: Path, other: Path) -> bool:
    a, b = contents(one), contents(other)
    return set(a) == set(b) and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.usefixtures("no_picture")
def test_designs_and_data_sets(
    small_bundle: Path, target: Path, quick: list[str], run: Run, ok: Callable[[Result], Result], tmp_path: Path, backwards: list[float]
) -> None:
    """Time limits hold, nobody waits for a time that does not come, and what is written is what it was."""
    design = ["infer", target, "--bundle", small_bundle, *quick, "--backend", "onnxruntime", "--budget", 6, "--time-limit", 60, "--json"]
    made = ["simulate", "--count", 4, "--harmonics", 2, "--period-nm", 2000, "--workers", 1]
    seconds = json.loads(ok(run(*design, "--out", tmp_path / "one")).stdout)["seconds"]
    assert seconds >= 0
    ok(run(*made, "--out", tmp_path / "one.npz"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: 1.0e9)
        ok(run(*design, "--out", tmp_path / "other"))
        ok(run(*made, "--out", tmp_path / "other.npz"))
    assert same(tmp_path / "one/designs.npz", tmp_path / "other/designs.npz")
    assert same(tmp_path / "one.npz", tmp_path / "other.npz")


def test_training_broken_off_and_resumed(small_data: Path, small_recipe, tmp_path: Path, backwards: list[float]) -> None:
    from train.loop import train

    train(small_data, tmp_path / "run", small_recipe, progress=False, pictures_every=0, stop_after=5)
    last = train(small_data, tmp_path / "run", small_recipe, progress=False, pictures_every=0, resume=True)
    assert last.name == "step-00000008"
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8]
    assert 0 <= rows[0]["seconds"] <= rows[1]["seconds"]
    assert backwards, "somebody looked at the clock"


def test_who_asked_too_often_is_not_kept_out_for_as_long_as_the_clock_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("limits")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    rate = guard.Rate("2/minute")
    for _ in range(2):
        rate.hit("somebody")
    with pytest.raises(guard.TooMany) as refused:
        rate.hit("somebody")
    assert 1 <= refused.value.seconds <= 60
    monkeypatch.setattr(time, "time", lambda: now - 86_400)
    for _ in range(2):
        rate.hit("somebody")
    with pytest.raises(guard.TooMany) as refused:
        rate.hit("somebody")
    assert 1 <= refused.value.seconds <= 60


def test_the_clock_of_records_may_go_back(backwards: list[float]) -> None:
    import click

    from runtime import console

    @click.group(cls=console.Group)
    @click.option("--log-format", default="json")
    def group(log_format: str) -> None:
        pass

    @group.command()
    def say() -> None:
        console.status("one")
        console.status("two")

    records = [json.loads(line) for line in CliRunner().invoke(group, ["say"]).stderr.splitlines()]
    assert [record["message"] for record in records] == ["one", "two"]
    assert records[0]["time"] > records[1]["time"]
