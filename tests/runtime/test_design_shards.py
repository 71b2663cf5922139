"""infer of many targets: shards cut by the input alone, that a killed run leaves whole and the next one goes on from."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from runtime import design_shards
from runtime.bundle import Bundle
from runtime.commands import group
from runtime.data import DataSet
from runtime.design import Design
from runtime.design import read as read_designs
from runtime.design_job import Job, Shard, Solved, in_process
from runtime.design_shards import run
from runtime.errors import BackendError, DataError, TargetError
from runtime.fabrication import Limits
from runtime.files import write_npz
from runtime.making import Making
from runtime.sampler import Sampler
from runtime.target import Target
from runtime.target_stream import Source

ROOT = Path(__file__).parents[2]
COUNT = 5
ENGINE = {"backend": "onnxruntime", "device": "cpu", "precision": "fp32"}
SEARCH = {"refine": False, "budget": 32, "fixed": None, "height": None, "limits": None}
JOB = Job(3, 2, 7, {"steps": 2}, SEARCH, None, True, Making(), ENGINE)
QUICK = ["-n", 3, "--top", 2, "--seed", 7, "--steps", 2, "--no-refine", *(f"--{key}={value}" for key, value in ENGINE.items())]


@pytest.fixture(scope="module")
def rows(data: DataSet) -> DataSet:
    return data.take(np.flatnonzero((data.h > 150) & (data.h < 350))[:COUNT])


@pytest.fixture(scope="module")
def many(rows: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("targets") / "many.npz"
    write_npz(path, **rows.arrays())
    return path


@pytest.fixture(scope="module")
def opened(small_bundle: Path) -> Bundle:
    return Bundle.open(small_bundle)


@pytest.fixture(scope="module")
def finished(many: Path, opened: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "out"
    designs(many, opened, folder)
    return folder


@pytest.fixture
def infer(small_bundle: Path) -> Callable[..., Result]:
    def infer(*arguments: object, **settings: Any) -> Result:
        command = ["infer", *arguments, "--bundle", small_bundle, *QUICK]
        return CliRunner().invoke(group, [str(argument) for argument in command], prog_name="metascatter", **settings)

    return infer


def designs(path: Path, bundle: Bundle, folder: Path, job: Job = JOB, **settings: Any) -> dict[str, Any]:
    return run(Source([path]), job, bundle, folder, in_process(job, bundle, 1), progress=False, **settings)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}


def test_every_target_has_the_designs_it_gets_alone(finished: Path, rows: DataSet, sampler: Sampler) -> None:
    shards = sorted((finished / "shards").iterdir())
    assert [path.name for path in shards] == [f"{k:05d}.npz" for k in range(COUNT)]
    for k, path in enumerate(shards):
        target = Target.from_arrays(rows.Rm[k], rows.Tm[k], float(rows.h[k]), geometry=rows.geometry)
        alone: list[Design] = sampler.design(target, n=3, top=2, seed=7, steps=2)
        found = read_designs(path)
        assert [one.digest for one in found] == [one.digest for one in alone]
        assert [one.score for one in found] == pytest.approx([one.score for one in alone], abs=1e-12)
        assert all(one.verified for one in found)
        with np.load(path) as arrays:
            assert arrays["target"].tolist() == [k] * len(found)
            assert arrays["source"].tolist() == ["many.npz"] * len(found)
            assert arrays["row"].tolist() == [k] * len(found)
            assert arrays["rank"].tolist() == list(range(1, len(found) + 1))


def test_the_index_has_a_line_for_every_target(finished: Path, rows: DataSet) -> None:
    with (finished / "index.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["target"], line["source"], line["row"], line["shard"]) for line in lines] == [
        (str(k), "many.npz", str(k), f"{k:05d}") for k in range(COUNT)
    ]
    for k, line in enumerate(lines):
        best = read_designs(finished / "shards" / f"{k:05d}.npz")
        assert best[0].score == pytest.approx(float(line["score"]), abs=1e-6)
        assert (float(line["height_nm"]), line["verified"], int(line["designs"])) == (rows.h[k], "1", len(best))


def test_a_shard_holds_as_many_as_asked_for_and_the_same_designs(many: Path, opened: Bundle, finished: Path, tmp_path: Path) -> None:
    result = designs(many, opened, tmp_path, size=2)
    assert (result["targets"], result["shards"], result["engine"]) == (COUNT, 3, "onnxruntime on cpu in fp32")
    arrays = [np.load(path) for path in sorted((tmp_path / "shards").iterdir())]
    singles = [np.load(path) for path in sorted((finished / "shards").iterdir())]
    for key in ("xx", "h", "score", "Rm", "target", "row", "rank"):
        np.testing.assert_array_equal(np.concatenate([a[key] for a in arrays]), np.concatenate([a[key] for a in singles]))
    scores = [float(a["score"][a["rank"] == 1][0]) for a in singles]
    assert result["score"]["median"] == pytest.approx(np.median(scores))


@pytest.mark.parametrize(("count", "size"), [(5, 1), (64, 1), (65, 2), (128, 2), (1025, 16)])
def test_few_targets_are_spread_and_many_are_gathered(count: int, size: int, opened: Bundle, tmp_path: Path) -> None:
    (tmp_path / "many.jsonl").write_text('{"height_nm": 250, "orders": {"T(1,0)": 0.1}}\n' * count)
    cut: list[int] = []

    def work(shards: Iterator[Shard], on_target: Callable[[int], object]) -> Iterator[Solved]:
        cut.extend(len(shard.targets) for shard in shards)
        raise TargetError("enough")

    with pytest.raises(TargetError, match="enough"):
        run(Source([tmp_path / "many.jsonl"]), JOB, opened, tmp_path / "out", work, progress=False)
    assert set(cut[:-1]) <= {size}
    assert sum(cut) == count


def test_what_is_missing_or_torn_is_made_again_and_nothing_else(many: Path, opened: Bundle, finished: Path, tmp_path: Path) -> None:
    designs(many, opened, tmp_path)
    whole = content(tmp_path)
    assert whole == content(finished), "the same bytes, whenever"
    shards = sorted((tmp_path / "shards").iterdir())
    before = {path: path.stat().st_mtime_ns for path in shards}
    shards[1].unlink()
    shards[3].write_bytes(whole["00003.npz"][:200])  # as after a loss of power
    (tmp_path / "shards" / ".00004.abc.npz").write_bytes(b"what a kill leaves")
    result = designs(many, opened, tmp_path)
    assert result["shards_made"] == 2
    (tmp_path / "shards" / ".00004.abc.npz").unlink()
    assert content(tmp_path) == whole
    assert [path for path in shards if path.stat().st_mtime_ns == before[path]] == [shards[0], shards[2], shards[4]]


def test_a_finished_run_needs_no_engine(many: Path, opened: Bundle, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.design_job.load", lambda *_, **__: pytest.fail("an engine was loaded"))
    assert designs(many, opened, finished)["shards_made"] == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n": 4}, "a run with n 3, not 4;"),
        ({"settings": {"steps": 3}}, "steps 2, not 3;"),
        ({"search": {**SEARCH, "refine": True}}, "refine false, not true;"),
        ({"making": Making(limits=Limits(min_width_nm=500))}, "limits null, not"),
        ({"engine": {**ENGINE, "precision": "fp16"}}, 'precision "fp32", not "fp16";'),
    ],
)
def test_a_run_of_other_settings_is_refused(change: dict[str, Any], says: str, many: Path, opened: Bundle, finished: Path) -> None:
    before = content(finished)
    with pytest.raises(DataError, match=re.escape(says)):
        designs(many, opened, finished, dataclasses.replace(JOB, **change))
    assert content(finished) == before


def test_a_run_of_other_targets_is_refused(rows: DataSet, many: Path, opened: Bundle, finished: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(rows, h=rows.h + np.float32(1))
    write_npz(tmp_path / "many.npz", **other.arrays())
    with pytest.raises(DataError, match="holds a run of other targets"):
        designs(tmp_path / "many.npz", opened, finished)
    with pytest.raises(DataError, match="shard_size 1, not 3"):
        designs(many, opened, finished, size=3)
    write_npz(tmp_path / "many.npz", **rows.take(slice(0, 4)).arrays())
    with pytest.raises(DataError, match="targets 5, not 4"):
        designs(tmp_path / "many.npz", opened, finished)


def test_folders_that_are_no_run_are_left_alone(many: Path, opened: Bundle, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "00000.npz").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"holds shards and no settings\.json; choose another folder"):
        designs(many, opened, tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        designs(many, opened, tmp_path)
    assert (tmp_path / "shards" / "00000.npz").read_bytes() == b"mine"


def test_another_engine_does_not_mix_in(many: Path, opened: Bundle, tmp_path: Path) -> None:
    def work(shards: Iterator[Shard], on_target: Callable[[int], object]) -> Iterator[Solved]:
        for solved, engine in zip(in_process(JOB, opened, 1)(shards, on_target), ("onnxruntime on cpu in fp32", "openvino"), strict=False):
            yield solved._replace(arrays={**solved.arrays, "engine": np.array(engine)})

    with pytest.raises(
        BackendError, match="holds designs by onnxruntime on cpu in fp32, and now openvino answers; name one with --backend"
    ):
        run(Source([many]), JOB, opened, tmp_path, work, progress=False)
    assert list(content(tmp_path)) == ["00000.npz"]


def test_a_wrong_target_is_named_before_any_work(rows: DataSet, opened: Bundle, tmp_path: Path) -> None:
    heights = rows.h.copy()
    heights[3] = 5000
    write_npz(tmp_path / "many.npz", **dataclasses.replace(rows, h=heights).arrays())
    with pytest.raises(TargetError, match="many row 3: the height is 5000 nm"):
        designs(tmp_path / "many.npz", opened, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_candidates_are_batched_alike_on_every_computer(
    many: Path, opened: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[int | None] = []
    real = Sampler.batch_size
    monkeypatch.setattr(Sampler, "batch_size", lambda self, size=None: asked.append(size) or real(self, size))  # type: ignore[func-returns-value]
    designs(many, opened, tmp_path / "a")
    designs(many, opened, tmp_path / "b", dataclasses.replace(JOB, settings={"steps": 2, "batch_size": 2}))
    assert asked == [64] * COUNT + [2] * COUNT


def test_tolerances_and_unsolved_designs_are_kept(many: Path, opened: Bundle, tmp_path: Path) -> None:
    designs(many, opened, tmp_path / "a", dataclasses.replace(JOB, n=1, top=1, making=Making(tolerance=True)), size=5)
    with np.load(tmp_path / "a" / "shards" / "00000.npz") as arrays:
        assert (arrays["worst"] >= arrays["score"]).all()
    result = designs(many, opened, tmp_path / "b", dataclasses.replace(JOB, verify=False), size=5)
    assert result["score"] is None
    assert not any(one.verified for one in read_designs(tmp_path / "b" / "shards" / "00000.npz"))
    assert ",,0,2,00000" in (tmp_path / "b" / "index.csv").read_text()


def test_the_command_says_what_there_is(infer: Callable[..., Result], many: Path, tmp_path: Path) -> None:
    result = infer(many, "deflector:height_nm=250", "--out", tmp_path / "out", "--shard-size", 4)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"6 targets in 2 shards, 2 of them made now in [0-9.]+ s by onnxruntime on cpu in fp32", lines[0])
    assert lines[1].startswith("misrouted power of the best designs: median 0.")
    assert [line.split()[-1] for line in lines[2:]] == [str(tmp_path / "out" / "shards"), str(tmp_path / "out" / "index.csv")]
    result = infer(many, "deflector:height_nm=250", "--out", tmp_path / "out", "--shard-size", 4, "--json")
    document = json.loads(result.stdout)
    assert (document["targets"], document["shards"], document["shards_made"]) == (6, 2, 0)
    refused = infer(many, "--out", tmp_path / "out", "--shard-size", 4)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "targets 6, not 5" in refused.stderr


def test_a_stream_is_designed_as_it_comes_and_goes_on(infer: Callable[..., Result], tmp_path: Path) -> None:
    lines = [f'{{"height_nm": {height}, "orders": {{"T(1,0)": 0.1}}}}\n' for height in (200, 210, 220, 230)]
    command = ("-", "--out", tmp_path, "--shard-size", 2, "--json")
    broken = infer(*command, input="".join([*lines[:3], "{\n"]))
    assert (broken.exit_code, broken.stdout) == (2, "")
    assert "stdin line 4 is not JSON" in broken.stderr
    assert list(content(tmp_path)) == ["00000.npz"]
    document = json.loads(infer(*command, input="".join(lines)).stdout)
    assert (document["targets"], document["shards_made"]) == (4, 1)
    other = infer(*command, input="".join(lines[::-1]))
    assert (other.exit_code, other.stdout) == (2, "")
    assert "00000.npz is of other targets than those read now" in other.stderr


def test_thousands_of_warnings_are_one(infer: Callable[..., Result], rows: DataSet, tmp_path: Path) -> None:
    Tm = rows.Tm.copy()
    Tm[1:4, 0, 0] = -0.005
    write_npz(tmp_path / "many.npz", **dataclasses.replace(rows, Tm=Tm).arrays())
    result = infer(tmp_path / "many.npz", "--out", tmp_path / "out", "--no-verify")
    assert result.exit_code == 0
    assert re.fullmatch(r"Warning: .*many\.npz row 1: .* \(3 targets were adjusted, this is the first\)\n", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--mat-convention", "metascatter"), "--mat-convention is of designs.mat, and shards have none"),
        (("--label", "3"), "--label is for bundles of images"),
    ],
)
def test_options_that_shards_do_not_know_are_refused(
    arguments: tuple[str, str], says: str, infer: Callable[..., Result], many: Path, tmp_path: Path
) -> None:
    result = infer(many, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX's kill -9")
def test_a_killed_run_goes_on_to_the_same_bytes(many: Path, opened: Bundle, finished: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time\nimport runtime.design_shards as shards\nfrom runtime.commands import group\nwrite = shards.write_npz\n"
        "def slowly(*args, **arrays):\n    write(*args, **arrays)\n    time.sleep(0.3)\nshards.write_npz = slowly\ngroup(sys.argv[1:])\n"
    )
    arguments = ["infer", many, "--out", tmp_path, "--bundle", opened.path, *QUICK, "--workers", 1]
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("shards/0*.npz"))) < 2 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    there = len(list(tmp_path.glob("shards/0*.npz")))
    assert 2 <= there < COUNT
    again = subprocess.run([sys.executable, "cli.py", *map(str, arguments), "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["shards_made"] == COUNT - there
    assert content(tmp_path) == content(finished)


def test_the_index_needs_every_shard(finished: Path, tmp_path: Path) -> None:
    shards = design_shards.Shards(tmp_path, {})
    with pytest.raises(DataError, match=r"00000\.npz does not exist"):
        shards.index(1)
    assert not (tmp_path / "index.csv").exists()
    assert io.StringIO((finished / "index.csv").read_text()).readline().startswith("target,source,row,height_nm")


def test_held_pixels_are_sampled_as_often_as_asked(
    infer: Callable[..., Result], many: Path, rows: DataSet, sampler: Sampler, tmp_path: Path
) -> None:
    """``--fixed`` and ``--resample`` mean in shards what they mean for one target."""
    fixed = np.full(rows.xx.shape[1:], -1, np.int8)
    fixed[0] = 1
    np.savez(tmp_path / "mask.npz", fixed=fixed)
    told = infer(many, "--out", tmp_path / "out", "--shard-size", 5, "--fixed", tmp_path / "mask.npz", "--resample", 3)
    assert told.exit_code == 0, told.output
    target = Target.from_arrays(rows.Rm[0], rows.Tm[0], float(rows.h[0]), geometry=rows.geometry)
    often, once = (sampler.design(target, n=3, top=2, seed=7, steps=2, fixed=fixed, resample=resample) for resample in (3, 1))
    found = [one.digest for one in read_designs(tmp_path / "out/shards/00000.npz")][: len(often)]
    assert found == [one.digest for one in often]
    assert found != [one.digest for one in once]
