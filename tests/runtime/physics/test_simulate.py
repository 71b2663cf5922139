"""simulate: a sample depends on its seed and number alone, and a run that was killed goes on to the very same file."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from runtime.data import load
from runtime.errors import DataError
from runtime.geometry import Geometry
from runtime.physics.rcwa import Solver
from runtime.physics.shards import Parts
from runtime.physics.simulate import _orders, draw, simulate
from runtime.physics.workers import _single_threaded_children
from runtime.version import __version__

# Tiny: what is tested is the bookkeeping. SLOW makes a solve long enough to be killed in.
GEOMETRY = Geometry(harmonics=3)
SLOW = Geometry(harmonics=7)
ROOT = Path(__file__).parents[3]

SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts its children deaf to it
import sys
from runtime.geometry import Geometry
from runtime.physics.simulate import simulate
if __name__ == "__main__":
    simulate(sys.argv[1], int(sys.argv[2]), 5, Geometry(harmonics=7), workers=2, progress=False)
"""


def run(out, count: int | None = 10, seed: int = 5, geometry: Geometry = GEOMETRY, **settings):
    return simulate(out, count, seed, geometry, **{"workers": 1, "progress": False, "size": 6, "orders": 4, **settings})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("unbroken") / "data.npz")


def test_a_sample_depends_on_seed_and_number_alone():
    xx, h = draw(7, 0, 500, 10, (50, 600))
    parts = [draw(7, first, count, 10, (50, 600)) for first, count in ((0, 3), (3, 200), (203, 297))]
    assert np.array_equal(xx, np.concatenate([p[0] for p in parts]))
    assert np.array_equal(h, np.concatenate([p[1] for p in parts]))
    assert not np.array_equal(xx, draw(8, 0, 500, 10, (50, 600))[0])
    assert np.array_equal(draw(7, 0, 500, 10, (300, 310))[0], xx), "the heights asked for do not change the patterns"
    assert len(np.unique(xx.reshape(500, -1), axis=0)) == 500


def test_pixels_are_fair_and_heights_uniform_with_both_ends():
    xx, h = draw(0, 0, 4000, 10, (50, 59))
    assert (xx.dtype, h.dtype) == (np.uint8, np.float32)
    assert abs(xx.mean() - 0.5) < 4 * 0.5 / np.sqrt(xx.size)
    assert np.abs(xx.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(xx))
    counts = np.unique(h, return_counts=True)
    assert counts[0].tolist() == list(range(50, 60))
    assert np.abs(counts[1] - 400).max() < 100


def test_the_draw_never_changes():
    """Philox 4x64 is published; data sets named by their seed must not change with NumPy's version."""
    xx, h = draw(1, 0, 2, 3, (50, 600))
    assert h.tolist() == [360.0, 311.0]
    assert xx.reshape(2, 9).tolist() == [[1, 1, 0, 1, 0, 1, 0, 1, 1], [1, 1, 0, 1, 1, 1, 1, 0, 1]]


def test_the_file_is_a_data_set(unbroken):
    data = load(unbroken)
    assert len(data) == 10
    assert data.geometry == GEOMETRY
    with np.load(unbroken) as file:
        assert {key: (file[key].shape, file[key].dtype.name) for key in file.files if key != "geometry"} == {
            "xx": ((10, 6, 6), "uint8"),
            "h": ((10,), "float32"),
            "Rm": ((10, 9, 9), "float32"),
            "Tm": ((10, 9, 9), "float32"),
        }
    assert not unbroken.with_name("data.npz.parts").exists()
    R, T = Solver(GEOMETRY, 4).solve(data.xx[3], float(data.h[3]))
    assert np.allclose(data.Rm[3], R, atol=1e-6)
    assert np.allclose(data.Tm[3], T, atol=1e-6)


def test_two_workers_make_the_same_bytes(unbroken, tmp_path):
    assert run(tmp_path / "data.npz", workers=2).read_bytes() == unbroken.read_bytes()


def test_environment_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    run(tmp_path / "data.npz", count=1)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in os.environ


def started(folder: Path, out: Path, count: int) -> subprocess.Popen:
    """A run in another process, when it has some shards."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(out), str(count)], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    parts = out.with_name(out.name + ".parts")
    end = time.monotonic() + 60
    while len(list(parts.glob("shard-*.npz"))) < 3 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be stopped"
    return process


def test_children_solve_with_one_blas_thread(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    code = "from runtime.physics.verify import _blas_threads; print({get() for _, get in _blas_threads()} - {1})"
    with _single_threaded_children():
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "set()"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_ctrl_c_stops_at_once_and_keeps_the_shards(tmp_path):
    out = tmp_path / "data.npz"
    process = started(tmp_path, out, 150)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    assert process.returncode != 0
    assert not out.exists()
    assert len(list(out.with_name("data.npz.parts").glob("shard-*.npz"))) >= 3


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX's kill -9")
def test_a_killed_run_goes_on_to_the_same_file(tmp_path):
    count = 150  # shards of 3
    out, parts = tmp_path / "data.npz", tmp_path / "data.npz.parts"
    process = started(tmp_path, out, count)
    process.kill()
    process.wait()
    assert not out.exists()
    time.sleep(1)  # its children follow it
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("shard-*.npz")}
    time.sleep(1)
    assert {path: path.stat().st_mtime_ns for path in parts.glob("shard-*.npz")} == finished, "children work on after their parent's death"
    assert 3 <= len(finished) < 50
    torn = max(finished)
    torn.write_bytes(torn.read_bytes()[:100])  # as after a loss of power
    simulate(out, count, 5, SLOW, workers=1, progress=False)
    assert not parts.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "script.py"]
    whole = simulate(tmp_path / "whole.npz", count, 5, SLOW, workers=2, progress=False)
    assert out.read_bytes() == whole.read_bytes()


@pytest.fixture
def half_done(tmp_path, monkeypatch) -> Path:
    """``data.npz`` with all its parts still beside it, as a kill just before they are cleared leaves them."""
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "clear", lambda self: None)
        return run(tmp_path / "data.npz")


def test_shards_that_are_there_are_not_solved_again(half_done, unbroken):
    half_done.unlink()
    shard = half_done.with_name("data.npz.parts") / "shard-000000000004.npz"
    with np.load(shard) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez_compressed(shard, **{**arrays, "Rm": arrays["Rm"] + 1})  # a mark, to know it again
    data = load(run(half_done))
    assert np.array_equal(data.Rm[4], arrays["Rm"][0] + 1)
    assert np.array_equal(np.delete(data.Rm, 4, 0), np.delete(load(unbroken).Rm, 4, 0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 6}, "seed 5, not 6"),
        ({"count": 11}, "count 10, not 11"),
        ({"height_nm": (50, 599)}, r"height_nm \[50, 600\], not \[50, 599\]"),
        ({"geometry": dataclasses.replace(GEOMETRY, polarisation="y")}, "polarisation x, not y"),
    ],
)
def test_parts_of_another_run_are_refused(tmp_path, change, says):
    parts = tmp_path / "data.npz.parts"
    parts.mkdir()
    settings = {
        "format": 1,
        "metascatter": __version__,
        "count": 10,
        "shard": 1,
        "size": 6,
        "orders": 4,
        "seed": 5,
        "height_nm": [50, 600],
        "patterns": None,
        "geometry": GEOMETRY.to_dict(),
    }
    (parts / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=f"unfinished run with {says}"):
        run(tmp_path / "data.npz", **change)
    assert (parts / "settings.json").exists()
    run(tmp_path / "data.npz")
    assert not parts.exists()


def test_a_folder_of_somebody_else_is_not_touched(tmp_path):
    parts = tmp_path / "data.npz.parts"
    parts.mkdir()
    (parts / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="in the way"):
        run(tmp_path / "data.npz")
    assert (parts / "thesis.txt").read_text() == "mine"


def test_a_finished_file_is_left_alone(unbroken, capsys, caplog):
    before = unbroken.stat().st_mtime_ns
    with caplog.at_level("INFO", "runtime.physics.simulate"):
        assert run(unbroken, progress=True) == unbroken
    assert unbroken.stat().st_mtime_ns == before
    assert "already holds these 10 samples" in caplog.text
    assert capsys.readouterr().out == ""
    for change in ({"seed": 6}, {"count": 9}, {"geometry": Geometry(harmonics=4)}, {"orders": 3}, {"height_nm": (50, 599)}):
        with pytest.raises(DataError, match="other data than asked for"):
            run(unbroken, **change)


def test_a_kill_between_the_last_two_steps_leaves_no_trap(half_done):
    run(half_done)
    assert [path.name for path in half_done.parent.iterdir()] == ["data.npz"]


def test_given_patterns_are_solved(tmp_path):
    xx, h = draw(9, 0, 5, 7, (100, 200))
    np.savez(tmp_path / "in.npz", xx=xx, h=h + 0.5)
    data = load(run(tmp_path / "out.npz", count=None, patterns=tmp_path / "in.npz"))
    assert np.array_equal(data.xx, xx)
    assert np.array_equal(data.h, h + 0.5)
    assert np.allclose(data.Rm[2], Solver(GEOMETRY, 4).solve(xx[2], float(h[2] + 0.5))[0], atol=1e-6)
    assert run(tmp_path / "out.npz", count=5, patterns=tmp_path / "in.npz")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"xx": np.zeros((2, 3, 3))}, "lacks the key 'h'"),
        ({"h": np.ones(2)}, "lacks the key 'xx'"),
        ({"xx": np.zeros((2, 3, 3)), "h": np.ones(3)}, r"'h' has shape \(3,\); expected \(2,\)"),
        ({"xx": np.zeros((2, 3, 4)), "h": np.ones(2)}, r"'xx' has shape \(2, 3, 4\)"),
        ({"xx": np.full((2, 3, 3), 2), "h": np.ones(2)}, "0 and 1"),
        ({"xx": np.zeros((2, 3, 3)), "h": np.array([1, np.nan])}, "above 0"),
        ({"xx": np.zeros((2, 3, 3)), "h": np.ones(2), "count": 3}, "holds 2 patterns, not the 3"),
    ],
)
def test_wrong_pattern_files_are_refused(tmp_path, arrays, says):
    count = arrays.pop("count", None) if "count" in arrays else None
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(DataError, match=says):
        run(tmp_path / "out.npz", count=count, patterns=tmp_path / "in.npz")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 0}, "count is 0"),
        ({"count": None}, "count is None"),
        ({"seed": -1}, "seed is -1"),
        ({"height_nm": (600, 50)}, r"height range is \[600, 50\]"),
        ({"height_nm": (0, 50)}, "from 1 up"),
        ({"height_nm": (50.5, 60)}, "whole numbers"),
        ({"height_nm": (float("nan"), 60)}, "whole numbers"),
        ({"patterns": "nowhere.npz"}, "nowhere.npz does not exist"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, change, says):
    with pytest.raises(DataError, match=says):
        run(tmp_path / "out.npz", **change)
    assert not list(tmp_path.iterdir())


def test_wrong_places_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"ends in \.npz"):
        run(tmp_path / "out")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(DataError, match=r"ends in \.npz"):
        run(tmp_path / "folder.npz")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        run(tmp_path / "file" / "out.npz")


def test_maps_hold_every_order_that_carries_power():
    large = Geometry(harmonics=14, period_nm=(6000.0, 6000.0))
    assert _orders(Geometry()) == 11
    assert _orders(large) == 13
    assert _orders(dataclasses.replace(large, harmonics=12)) == 12
