"""What the tests of exporting share: a run to spoil, graphs made in advance, and what a bundle holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import export.bundle as room
from export import parity, yardsticks


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.fixture
def quick(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at the graphs: those of the small bundle, which take seconds to make, and one engine to compare."""
    monkeypatch.setattr(parity, "ENGINES", ("onnxruntime",))
    monkeypatch.setattr(yardsticks, "CANDIDATES", 2)
    graphs = {"output": "denoiser.onnx", "context": "encoder.onnx"}
    monkeypatch.setattr(room, "to_onnx", lambda part: (small_bundle / graphs[part.outputs[0]]).read_bytes())


@pytest.fixture(scope="session")
def fused_bundle(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run exported with its whole sampler as one file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "ENGINES", ("onnxruntime",))
        patch.setattr(yardsticks, "CANDIDATES", 2)
        sampling = {"scheduler": "dpmsolver++", "steps": 20}
        return room.export(small_run, tmp_path_factory.mktemp("bundle") / "fused", fused=6, sampling=sampling)


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
