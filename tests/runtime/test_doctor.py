"""The doctor: never raises for what is missing, and says what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import backends, doctor
from runtime.bundle import Bundle


def strict_json(report: dict[str, Any]) -> Any:
    """The report as it arrives at a program; NaN is no JSON."""
    return json.loads(json.dumps(report, allow_nan=False))


def spoil(small_bundle: Path, tmp_path: Path, name: str) -> Path:
    folder = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    return folder


def test_a_good_bundle_passes(small_bundle: Path) -> None:
    report = doctor.examine(small_bundle)
    assert strict_json(report) == report
    assert report["ok"] is True
    assert report["bundle"]["path"] == str(small_bundle)
    assert report["bundle"]["recipe"] == "default"
    assert set(report["bundle"]["networks"]) == {"encoder", "denoiser"}
    for name, entry in report["bundle"]["networks"].items():
        assert 0 <= entry["largest_difference"] <= doctor.TOLERANCE, name
    assert report["packages"]["numpy"]["version"] == np.__version__
    assert report["cpus"] >= 1


def test_the_text_has_every_package_device_and_reason(small_bundle: Path) -> None:
    report = doctor.examine(small_bundle)
    text = doctor.text(report)
    assert {(d["backend"], d["device"]) for d in report["devices"]} == {(b, d) for b in backends.BACKENDS for d in ("cpu", "cuda")}
    for device in report["devices"]:
        line = next(line for line in text.splitlines() if line.split()[:2] == [device["backend"], device["device"]])
        assert device["ok"] == (device["reason"] is None)
        assert ("ready" in line) if device["ok"] else (device["reason"] in line)
    assert next(d for d in report["devices"] if d["device"] == "cpu")["ok"]
    for name in doctor.PACKAGES:
        assert any(line.split()[:1] == [name] for line in text.splitlines()), f"{name} is not listed"
    assert text.endswith("self-test passed")
    assert str(small_bundle) in text


@pytest.mark.parametrize("name", ["denoiser.onnx", "golden.npz", "README.md", "manifest.json"])
def test_an_altered_file_is_reported_by_name(name: str, small_bundle: Path, tmp_path: Path) -> None:
    report = doctor.examine(spoil(small_bundle, tmp_path, name))
    assert strict_json(report)["ok"] is False
    assert name in report["bundle"]["problem"]
    assert f"self-test failed: {report['bundle']['problem']}" in doctor.text(report)


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path / "nowhere")
    assert strict_json(report)["ok"] is False
    assert report["bundle"]["path"] == str(tmp_path / "nowhere")
    assert "nowhere" in doctor.text(report)


def test_no_engine_at_all(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = doctor.examine(small_bundle)
    assert strict_json(report)["ok"] is False
    assert "metascatter[cpu]" in report["bundle"]["problem"]
    for device in report["devices"]:
        assert "metascatter[cpu]" in device["reason"]
    assert "metascatter[cpu]" in doctor.text(report)


def test_packages_that_are_missing_are_named_with_their_extra(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    report = doctor.examine(small_bundle)
    assert report["packages"]["gdstk"] == {"version": None, "extra": "lab"}
    assert "not installed (extra 'lab')" in doctor.text(report)


class Wrong:
    """A network whose named output is off by ``shift``."""

    def __init__(self, network: Any, output: str, shift: float) -> None:
        self.network, self.output, self.shift, self.device = network, output, shift, network.device

    def __call__(self, inputs: Any) -> Any:
        found = dict(self.network(inputs))
        if self.output in found:
            found[self.output] = found[self.output] + np.float32(self.shift)
        return found

    def close(self) -> None:
        self.network.close()


@pytest.mark.parametrize("output", ["context", "embedding", "output"])
@pytest.mark.parametrize(("shift", "words"), [(0.01, "more than 1e-03"), (np.nan, "not finite"), (np.inf, "not finite")])
def test_wrong_numbers_fail_the_self_test(
    output: str, shift: float, words: str, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever output they are in, NaN included."""
    real = backends.open_network
    monkeypatch.setattr(backends, "open_network", lambda *args, **more: Wrong(real(*args, **more), output, shift))
    report = doctor.examine(small_bundle)
    assert strict_json(report)["ok"] is False, f"{output} is wrong by {shift} and passes"
    assert words in report["bundle"]["problem"]
    assert ("denoiser.onnx" if output == "output" else "encoder.onnx") in report["bundle"]["problem"]
    assert "do not trust designs" in doctor.text(report)


def test_golden_outputs_that_do_not_fit(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Bundle.arrays

    def without(self: Bundle, name: str) -> dict[str, np.ndarray]:
        return {key: value for key, value in real(self, name).items() if key != "denoiser.out.output"}

    def shorter(self: Bundle, name: str) -> dict[str, np.ndarray]:
        return {key: value[:3] if ".out." in key else value for key, value in real(self, name).items()}

    monkeypatch.setattr(Bundle, "arrays", without)
    assert "denoiser.out.output" in doctor.examine(small_bundle)["bundle"]["problem"]
    monkeypatch.setattr(Bundle, "arrays", shorter)
    assert "does not fit the networks" in doctor.examine(small_bundle)["bundle"]["problem"]
