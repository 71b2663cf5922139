"""What goes wrong around a server at work: its bundle is replaced, its disk is full, its engine raises what nobody expects."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import design as room
from runtime.errors import BundleError
from runtime.sampler import load
from runtime.serve import memory
from runtime.serve.jobs import Jobs

ENGINE: dict[str, Any] = {"backend": "onnxruntime", "device": "cpu", "precision": "fp32", "threads": 1}


@pytest.mark.parametrize("how", ["overwritten", "swapped", "removed"])
def test_a_bundle_replaced_while_serving(how: str, small_bundle: Path, start: Callable[..., Any], tmp_path: Path) -> None:
    """Who has opened it goes on with what was opened; who opens it next is told that it is damaged, or gets the new one whole."""
    folder = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    running = start(bundle=folder)
    before = running.design(seed=3, refine=True, budget=4).json
    if how == "overwritten":
        for path in folder.glob("*.onnx"):
            path.write_bytes(b"other bytes")
    else:
        folder.rename(tmp_path / "old")
        if how == "swapped":
            shutil.copytree(small_bundle, folder)
    after = running.design(seed=3, refine=True, budget=4).json
    assert after["designs"] == before["designs"]
    assert running.ask("GET", after["files"]["designs.gds"]).status == 200
    assert running.ask("GET", "/metrics").status == 200
    if how == "swapped":
        load(folder, **ENGINE).close()
        return
    with pytest.raises(BundleError, match=r"is damaged|there is no bundle"):
        load(folder, **ENGINE)


def test_a_full_disk_of_the_server(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is there all the same; a file is, once there is room again."""
    running = start()
    answer = running.design().json
    write = room.save

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/somewhere")

    monkeypatch.setattr(room, "save", full)
    reply = running.ask("GET", answer["files"]["designs.npz"])
    assert reply.status == 507
    assert reply.json["error"] == "designs.npz cannot be written on the server: No space left on device; its disk wants room"
    assert running.design().status == 200
    monkeypatch.setattr(room, "save", write)
    assert running.ask("GET", answer["files"]["designs.npz"]).status == 200


def test_an_engine_that_raises_what_nobody_expects(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One sentence for the client, the traceback for the log, and the next request is served."""
    running = start()
    with monkeypatch.context() as patch:
        patch.setattr("runtime.batching.denoise", lambda *call, **more: 1 / 0)
        reply = running.design()
    assert (reply.status, list(reply.json)) == (500, ["error"])
    assert "the server's log has it" in reply.json["error"]
    assert running.design().status == 200
    assert running.jobs.load["jobs"] == 0
    running.end()
    assert "ZeroDivisionError" in caplog.text


def test_no_thread_and_no_file_is_left_behind(small_bundle: Path) -> None:
    """A queue that is opened and closed again and again."""

    def use() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/fd").exists():
        pytest.skip("what a process uses is read from /proc")
    found = []
    for _ in range(4):
        with Jobs(small_bundle, ENGINE, workers=1):
            pass
        found.append(use())
    assert found[-1] == found[1]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what a process uses is read from /proc")
def test_memory_that_is_free_goes_back() -> None:
    """Blocks too small for the system to take back one by one, freed by a thread that stays."""

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    done, go = threading.Event(), threading.Event()

    def work() -> None:
        blocks = [os.urandom(60_000) for _ in range(2000)]
        keep = blocks[-1]  # what lies on top would hold all below it
        del blocks
        done.set()
        assert go.wait(60)
        assert keep

    thread = threading.Thread(target=work)
    thread.start()
    assert done.wait(60)
    before = resident_mb()
    memory.give_back()
    after = resident_mb()
    go.set()
    thread.join()
    assert after < before - 50
