"""Outputs appear whole or not at all: an exception, a refusal or a kill leaves what stood there, and nothing that looks finished."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from runtime import files
from runtime.errors import DataError
from runtime.files import atomic_directory, atomic_file, write_json, write_npz

ROOT = Path(__file__).parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions and signals")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_json_and_npz_round_trip_and_make_their_folders(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "x.json", {"µm": [1, 2.5]})
    assert json.loads((tmp_path / "a" / "b" / "x.json").read_text(encoding="utf-8")) == {"µm": [1, 2.5]}
    write_npz(tmp_path / "a" / "x.npz", xx=np.arange(3), geometry=np.array("text"))
    with np.load(tmp_path / "a" / "x.npz", allow_pickle=False) as file:
        assert file["xx"].tolist() == [0, 1, 2]
        assert str(file["geometry"]) == "text"
    assert names(tmp_path / "a") == ["b", "x.npz"]


def test_npz_under_a_name_of_another_ending(tmp_path: Path) -> None:
    write_npz(tmp_path / "data.part", xx=np.arange(3))
    assert names(tmp_path) == ["data.part"]
    with np.load(tmp_path / "data.part") as file:
        assert file["xx"].tolist() == [0, 1, 2]


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    name = "x" * 250 + ".json"
    write_json(tmp_path / name, 1)
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(error), atomic_file(tmp_path / "x.txt") as work:  # noqa: PT012
        work.write_text("half of the n")
        raise error
    assert (tmp_path / "x.txt").read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_a_value_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"set": {1}})
    assert (tmp_path / "x.json").read_text() == "1\n"
    assert names(tmp_path) == ["x.json"]


def test_readers_see_the_old_file_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("old")
    with atomic_file(tmp_path / "x.txt") as work:
        work.write_text("new")
        assert (tmp_path / "x.txt").read_text() == "old"
        # The temporary is hidden and keeps the ending, which some writers choose their format by.
        assert work.name.startswith(".")
        assert work.suffix == ".txt"
    assert (tmp_path / "x.txt").read_text() == "new"


def test_directory_replaces_the_whole_old_one(tmp_path: Path) -> None:
    for generation in ("a", "b"):
        with atomic_directory(tmp_path / "out") as work:
            (work / generation).write_text(generation)
            assert names(tmp_path / "out") == ["a"] if generation == "b" else not (tmp_path / "out").exists()
    assert names(tmp_path / "out") == ["b"]
    assert names(tmp_path) == ["out"]


def test_an_exception_leaves_the_old_directory_and_no_other(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "out") as work:
        (work / "a").write_text("old")
    with pytest.raises(ValueError, match="no"), atomic_directory(tmp_path / "out") as work:  # noqa: PT012
        (work / "b").write_text("new")
        raise ValueError("no")
    assert names(tmp_path / "out") == ["a"]
    assert names(tmp_path) == ["out"]


def test_a_swap_that_fails_half_way_brings_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_directory(tmp_path / "out") as work:
        (work / "a").write_text("old")
    replace, calls = os.replace, []

    def second_fails(source: Path, to: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise PermissionError(13, "Permission denied")
        replace(source, to)

    monkeypatch.setattr(files.os, "replace", second_fails)
    with pytest.raises(DataError, match=r"cannot write .*out: Permission denied"), atomic_directory(tmp_path / "out") as work:
        (work / "b").write_text("new")
    assert len(calls) == 3
    assert names(tmp_path / "out") == ["a"]
    assert names(tmp_path) == ["out"]


def test_a_file_where_the_directory_should_stand_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DataError, match=r"cannot write .*out: a file stands there"), atomic_directory(tmp_path / "out"):
        pytest.fail("the block must not run")
    with pytest.raises(DataError, match=r"cannot write .*x\.json"):
        write_json(tmp_path / "out" / "x.json", 1)
    assert (tmp_path / "out").read_text() == "mine"
    assert names(tmp_path) == ["out"]


def test_a_directory_where_the_file_should_stand_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x.json" / "inside").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cannot write .*x\.json"):
        write_json(tmp_path / "x.json", 1)
    assert names(tmp_path) == ["x.json"]
    assert names(tmp_path / "x.json") == ["inside"]


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_one_may_not_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="Permission denied; choose a place you may write to"):
        write_json(tmp_path / "x.json", 1)


@posix
def test_permissions_are_those_of_an_ordinary_file_and_the_umask_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:
        # The umask belongs to the whole process: a thread that sets it, even for a moment, changes it for the others.
        monkeypatch.setattr(files.os, "umask", lambda mask: pytest.fail("the umask was set"))
        write_json(tmp_path / "x.json", 1)
        with atomic_directory(tmp_path / "out"):
            pass
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def test_many_threads_writing_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    value = list(range(2000))
    errors: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for _ in range(5):
                write_json(tmp_path / "x.json", [start, *value])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert names(tmp_path) == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text())[1:] == value


@posix
def test_kill_9_leaves_the_old_file_and_a_rerun_is_not_tripped(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("old")
    code = (
        "import sys, time; from pathlib import Path; from runtime.files import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as work:\n"
        "    work.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "x.npz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert (tmp_path / "x.npz").read_text() == "old"
    leftovers = [name for name in names(tmp_path) if name != "x.npz"]
    assert len(leftovers) == 1
    assert leftovers[0].startswith(".")
    write_npz(tmp_path / "x.npz", xx=np.arange(3))
    with np.load(tmp_path / "x.npz") as file:
        assert file["xx"].tolist() == [0, 1, 2]
