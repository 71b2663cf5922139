"""What the tests of exporting share: a run to spoil, graphs made in advance, and what a bundle holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import export.bundle as room


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.fixture
def quick(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at the graphs: those of the small bundle, which take seconds to make."""
    graphs = {"output": "denoiser.onnx", "context": "encoder.onnx"}
    monkeypatch.setattr(room, "to_onnx", lambda part: (small_bundle / graphs[part.outputs[0]]).read_bytes())


@pytest.fixture(scope="session")
def manifest() -> Callable[[Path], dict[str, Any]]:
    def manifest(bundle: Path) -> dict[str, Any]:
        return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))

    return manifest


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    return contents
