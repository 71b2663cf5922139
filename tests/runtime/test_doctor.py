"""The doctor: never raises for what is missing, and says what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import backends, doctor, selftest
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
        assert 0 <= entry["relative_difference"] <= selftest.TOLERANCE[report["auto"]["precision"]], name
    assert report["packages"]["numpy"]["version"] == np.__version__
    assert report["cpus"] >= 1


def test_the_text_has_every_package_engine_and_reason(small_bundle: Path) -> None:
    report = doctor.examine(small_bundle)
    text = doctor.text(report)
    assert {(e["backend"], e["device"]) for e in report["engines"]} == {
        (name, device) for name, engine in backends.BACKENDS.items() for device in engine.devices
    }
    lines = text.splitlines()
    for row in report["engines"]:
        assert row["ok"] == (row["reason"] is None)
        where = " ".join(filter(None, (row["device"], row["precision"])))
        fitting = [line for line in lines if line.split()[:1] == [row["backend"]] and where in line]
        assert any("ready" in line if row["ok"] else row["reason"] in line for line in fitting), row
    assert ("onnxruntime", "cpu", "fp32") in {(e["backend"], e["device"], e["precision"]) for e in report["engines"] if e["ok"]}
    (missing,) = [e for e in report["engines"] if (e["backend"], e["device"], e["precision"]) == ("onnxruntime", "cpu", "int8")]
    assert missing["reason"] == "the bundle has no int8 files; export it with --int8"
    auto = report["auto"]
    assert (auto["backend"], auto["device"], auto["precision"]) in {
        (e["backend"], e["device"], e["precision"]) for e in report["engines"] if e["ok"]
    }
    assert f"auto takes {auto['backend']} on {auto['device']} in {auto['precision']}" in text
    for name in doctor.PACKAGES:
        assert any(line.split()[:1] == [name] for line in lines), f"{name} is not listed"
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
    for module in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    report = doctor.examine(small_bundle)
    assert strict_json(report)["ok"] is False
    for extra in ("cpu", "openvino"):
        assert f"metascatter[{extra}]" in report["bundle"]["problem"]
    for row in report["engines"]:
        assert "metascatter[" in row["reason"] or "driver" in row["reason"]
    assert "metascatter[cpu]" in doctor.text(report)


def test_no_bundle_still_says_what_answers(tmp_path: Path) -> None:
    rows = [row for row in doctor.examine(tmp_path)["engines"] if row["backend"] == "onnxruntime" and row["device"] == "cpu"]
    assert {row["reason"] for row in rows} == {"not tried, for want of a bundle"}


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
        self.network, self.output, self.shift = network, output, shift

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, inputs: Any) -> Any:
        found = dict(self.network(inputs))
        if self.output in found:
            found[self.output] = found[self.output] + np.float32(self.shift)
        return found


@pytest.mark.parametrize("output", ["context", "embedding", "output"])
@pytest.mark.parametrize(("shift", "words"), [(0.5, "more than"), (np.nan, "not finite"), (np.inf, "not finite")])
def test_wrong_numbers_fail_the_self_test(
    output: str, shift: float, words: str, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever output they are in, NaN included."""
    real = backends.open_networks

    def open_networks(*args: Any, **more: Any) -> backends.Opened:
        opened = real(*args, **more)
        wrong: Any = {name: Wrong(network, output, shift) for name, network in opened.networks.items()}
        return opened._replace(networks=wrong)

    monkeypatch.setattr(backends, "open_networks", open_networks)
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
