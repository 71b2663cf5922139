"""What the tests of the command line share: ways to run it, what must hold of its answers, and a target to ask for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cli import group
from runtime.data import load as load_data

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASCATTER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at the picture: drawing it takes a second."""
    monkeypatch.setattr("runtime.pictures.design_picture", lambda designs, target, path: path.write_bytes(b"picture"))
    monkeypatch.setattr("runtime.figure.draw", lambda design, target: None)
    monkeypatch.setattr("runtime.figure.write", lambda figure, path: path.write_bytes(b"figure"))


@pytest.fixture(scope="session")
def quick() -> list[str]:
    """Options for an infer of a moment."""
    return ["-n", "6", "--steps", "3", "--device", "cpu"]


@pytest.fixture(scope="session")
def run() -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(group, [str(argument) for argument in arguments], prog_name="cli.py")

    return run


@pytest.fixture(scope="session")
def spawn() -> Callable[..., subprocess.CompletedProcess[str]]:
    """cli.py in a process of its own, as a person starts it; ``before`` runs first."""

    def spawn(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
        code = f"import runpy, sys; sys.argv = ['cli.py', *sys.argv[1:]]; {before}\nrunpy.run_path('cli.py', run_name='__main__')"
        command = [sys.executable, "-c", code, *map(str, arguments)] if before else [sys.executable, "cli.py", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    return spawn


@pytest.fixture(scope="session")
def ok() -> Callable[[Result], Result]:
    def ok(result: Result) -> Result:
        assert result.exit_code == 0, result.stderr
        return result

    return ok


@pytest.fixture(scope="session")
def names() -> Callable[[Path], list[str]]:
    def names(folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    return names


@pytest.fixture(scope="session")
def sentence() -> Callable[..., str]:
    """The one line of a refusal, once stdout is empty and the exit status as it must be."""

    def sentence(result: Result | subprocess.CompletedProcess[str], status: int) -> str:
        found = result.exit_code if isinstance(result, Result) else result.returncode
        if isinstance(result, Result):
            assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        assert found == status, f"exit status {found}: {result.stderr}"
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("Error: ")
        return lines[0]

    return sentence


@pytest.fixture(scope="module")
def sample(small_data: Path) -> dict[str, np.ndarray]:
    """A sample that the small bundle can be asked for."""
    data = load_data(small_data)
    k = int(np.flatnonzero((data.h > 150) & (data.h < 350))[0])
    return {"Rm": data.Rm[k], "Tm": data.Tm[k], "h": np.float64(data.h[k]), "geometry": np.array(data.geometry.to_json())}


@pytest.fixture
def target(tmp_path: Path, sample: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "wish.npz"
    np.savez(path, **sample)  # type: ignore[arg-type]
    return path
