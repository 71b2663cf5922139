"""Disks that are full, folders that are read-only or somebody else's: one sentence, and nothing half-written or lost."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

if sys.platform != "linux":
    pytest.skip("small disks are made by mounting one in memory", allow_module_level=True)

Run = Callable[..., Result]
FULL = "No space left on device"
TINY = {"size": 5, "orders": 3, "channels": 16, "components": 4, "hidden": 8, "blocks": 1, "tokens": 4, "embedding": 8}


class Disk:
    """A disk of a given size at ``path``, which can be filled, emptied and made read-only."""

    def __init__(self, path: Path) -> None:
        self.path, self.ballast = path, path / ".ballast"

    def fill(self, free_kb: int) -> None:
        """Leave so much free."""
        self.empty()
        room = os.statvfs(self.path)
        with self.ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_bsize - free_kb * 1024))

    def empty(self) -> None:
        self.ballast.unlink(missing_ok=True)

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", self.path], check=True)

    def files(self) -> dict[str, bytes]:
        """What is there but for the ballast, hidden files too."""
        return {str(p.relative_to(self.path)): p.read_bytes() for p in self.path.rglob("*") if p.is_file() and p != self.ballast}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "-l", path], check=True)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """The block without root's rights. What is imported in it must have been imported before: the interpreter may be root's own."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.fixture
def design(small_bundle: Path, target: Path, quick: list[str]) -> Callable[..., list[object]]:
    """Arguments of a short ``infer``."""

    def design(out: Path, *more: object) -> list[object]:
        command: list[object] = ["infer", target, "--out", out, "--bundle", small_bundle, *quick]
        return [*command, "--backend", "onnxruntime", "--no-refine", "--no-verify", *more]

    return design


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("free_kb", [0, 4, 12])
def test_designs_on_a_full_disk(free_kb: int, disk: Disk, design: Any, run: Run, sentence: Any, ok: Any) -> None:
    """The designs that stood there before stay, all of them."""
    out = disk.path / "designs"
    ok(run(*design(out)))
    before = disk.files()
    assert len(before) == 7
    disk.fill(free_kb)
    words = sentence(run(*design(out, "--seed", 1)), 1)
    assert str(out) in words
    assert FULL in words
    assert disk.files() == before
    disk.empty()
    ok(run(*design(out, "--seed", 1)))
    assert disk.files() != before


def test_every_file_of_designs_is_whole_or_not_there(disk: Disk, design: Any, run: Run, ok: Any) -> None:
    """Disks that become full at one file after another, gdstk's too, which says nothing of it."""
    whole = len(disk.files())
    said = set()
    for free_kb in (4, 12, 40, 250):
        disk.fill(free_kb)
        done = run(*design(disk.path / "designs"))
        assert (done.exit_code, len(disk.files())) == (1, whole), done.stderr
        said.add(done.stderr.split(": ")[1])
    assert len(said) >= 3, "more than one file met the end of the disk"


@pytest.mark.parametrize("name", ["a.gds", "a.oas"])
def test_layouts_that_are_cut_off_are_seen(name: str, disk: Disk) -> None:
    pytest.importorskip("gdstk")
    from runtime.geometry import Geometry
    from runtime.physics.gds import write_gds

    disk.fill(4)
    with pytest.raises(OSError, match="not all of it could be written; make room") as raised:
        write_gds(np.random.default_rng(0).integers(0, 2, (200, 10, 10)), Geometry(), disk.path / name)
    assert raised.value.filename == str(disk.path / name)
    assert disk.files() == {}


def test_a_data_set_goes_on_when_there_is_room_again(disk: Disk, tmp_path: Path, run: Run, sentence: Any, ok: Any) -> None:
    made = ["simulate", "--count", 6, "--harmonics", 2, "--period-nm", 2000, "--workers", 1, "--out"]
    disk.fill(12)
    words = sentence(run(*made, disk.path / "data.npz"), 1)
    assert FULL in words
    assert "give the same command again once that is mended" in words
    kept = [name for name in disk.files() if "shard" in name]
    assert kept
    assert all(np.load(disk.path / name)["xx"].size for name in kept)
    disk.empty()
    ok(run(*made, disk.path / "data.npz"))
    ok(run(*made, tmp_path / "elsewhere.npz"))
    assert list(disk.files()) == ["data.npz"]
    with np.load(disk.path / "data.npz") as one, np.load(tmp_path / "elsewhere.npz") as other:
        assert all(np.array_equal(one[key], other[key]) for key in other.files)


def test_training_goes_on_when_there_is_room_again(disk: Disk, small_data: Path, tmp_path: Path, run: Run, ok: Any) -> None:
    """Full at a checkpoint: the one before is whole, and the run ends as an unbroken one does."""
    recipe = {"base": "default", "epochs": 3, "batch_size": 64, "warmup_steps": 1, "precision": "fp32", "network_arguments": TINY}
    (tmp_path / "tiny.json").write_text(json.dumps({**recipe, "sampling_steps": 2}))

    def train(out: Path, *more: object) -> Result:
        return run(
            *("train", "--data", small_data, "--recipe", tmp_path / "tiny.json", "--out", out),
            *("--pictures-every", 0, "--checkpoint-every", 3, "--keep", 9, *more),
        )

    ok(train(tmp_path / "unbroken"))
    size = sum(path.stat().st_size for path in (tmp_path / "unbroken/checkpoints/step-00000003").iterdir())
    rest = sum(path.stat().st_size for path in (tmp_path / "unbroken").iterdir() if path.is_file())
    disk.fill((rest + 3 * size // 2) // 1024 + 24)
    done = train(disk.path / "run")
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"Error: {disk.path / 'run'}")
    assert FULL in last
    assert [path.name for path in (disk.path / "run/checkpoints").iterdir()] == ["step-00000003"]
    disk.empty()
    ok(train(disk.path / "run", "--resume"))
    for name in ("model", "ema", "optimizer"):
        path = f"checkpoints/step-00000009/{name}.safetensors"
        assert (disk.path / "run" / path).read_bytes() == (tmp_path / "unbroken" / path).read_bytes()


def test_an_export_leaves_the_old_bundle(
    disk: Disk, small_run: Path, small_bundle: Path, run: Run, sentence: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import export.bundle as room
    from export import parity, yardsticks

    monkeypatch.setattr(parity, "ENGINES", ("onnxruntime",))
    monkeypatch.setattr(yardsticks, "CANDIDATES", 2)
    graphs = {"output": "denoiser.onnx", "context": "encoder.onnx"}
    monkeypatch.setattr(room, "to_onnx", lambda part: (small_bundle / graphs[part.outputs[0]]).read_bytes())
    shutil.copytree(small_bundle, disk.path / "bundle")
    before = disk.files()
    disk.fill(60)
    done = run("export", small_run, "--out", disk.path / "bundle", "--steps", 5)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == f"Error: {disk.path / 'bundle'}: {FULL}; make room there, or choose another place"
    assert disk.files() == before


def test_a_read_only_disk(disk: Disk, design: Any, small_data: Path, small_run: Path, run: Run, sentence: Any) -> None:
    disk.remount("ro")
    for command in (
        design(disk.path / "designs"),
        ["simulate", "--count", 2, "--out", disk.path / "data.npz"],
        ["train", "--data", small_data, "--out", disk.path / "run"],
        ["export", small_run, "--out", disk.path / "bundle"],
    ):
        words = sentence(run(*command), 2)
        assert "Read-only file system" in words
        assert str(disk.path) in words
    disk.remount("rw")
    assert disk.files() == {}


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A folder that everybody may read and nobody but its owner may write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        if os.geteuid() != 0:
            folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def test_no_permission_to_write(theirs: Path, design: Any, small_bundle: Path, target: Path, run: Run, sentence: Any) -> None:
    readable = [shutil.copytree(small_bundle, theirs / "bundle"), shutil.copy(target, theirs / "wish.npz")]
    made = ["simulate", "--count", 2, "--harmonics", 2, "--period-nm", 2000, "--workers", 1, "--out"]
    infer = [readable[1] if part == target else readable[0] if part == small_bundle else part for part in design(theirs / "designs")]
    before = sorted(theirs.rglob("*"))
    with nobody():
        found = [sentence(run(*infer), 2), sentence(run(*made, theirs / "data.npz"), 2)]
    assert all("Permission denied" in words and str(theirs) in words for words in found)
    assert sorted(theirs.rglob("*")) == before


@pytest.mark.parametrize("what", ["wish.npz", "bundle/manifest.json", "bundle/denoiser.onnx"])
def test_no_permission_to_read(
    what: str, theirs: Path, design: Any, small_bundle: Path, target: Path, tmp_path: Path, run: Run, sentence: Any
) -> None:
    shutil.copytree(small_bundle, theirs / "bundle")
    shutil.copy(target, theirs / "wish.npz")
    (theirs / what).chmod(0)
    out = Path(tempfile.mkdtemp(dir=theirs))
    out.chmod(0o777)
    places = {target: theirs / "wish.npz", small_bundle: theirs / "bundle"}
    infer = [places.get(part, part) if isinstance(part, Path) else part for part in design(out)]
    with nobody():
        words = sentence(run(*infer), 2)
    assert str(theirs / what) in words
    assert "Permission denied" in words
    assert list(out.iterdir()) == []


def test_files_that_may_not_grow(design: Any, tmp_path: Path, sentence: Any) -> None:
    """A quota in place of a full disk, in a process of its own, as everywhere on POSIX."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    command = [sys.executable, "cli.py", *map(str, design(tmp_path / "designs"))]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, preexec_fn=limit)
    words = sentence(done, 1)
    assert "File too large; make room there, or choose another place" in words
    assert [path for path in (tmp_path / "designs").rglob("*") if path.is_file()] == []
