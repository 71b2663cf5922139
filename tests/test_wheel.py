"""What a laboratory gets: the wheel with the ``cpu`` extra in an empty environment, run outside the checkout, without PyTorch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "si1550"


def run(*command: object, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == status, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources: leftovers of earlier builds do not get in, and none are left behind."""
    assert (BUNDLE / "manifest.json").is_file(), f"the default bundle is missing: {BUNDLE}/manifest.json"
    source = tmp_path_factory.mktemp("source")
    for name in ("runtime", "train", "export", "bundles", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "cli.py"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=source)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def lab(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an empty environment in which only the wheel and its ``cpu`` extra are installed."""
    place = tmp_path_factory.mktemp("lab") / "venv"
    venv.create(place, with_pip=True)
    programs = place / ("Scripts" if os.name == "nt" else "bin")
    install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]"]
    run(programs / "python", *install, cwd=place)
    return programs


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "wish.json"
    path.write_text('{"height_nm": 300, "orders": {"T(1,0)": 0.2}}')
    return path


def test_the_wheel_holds_the_runtime_under_one_name_and_the_default_bundle(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [info] = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(info).decode()
        [entry] = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
        assert "metascatter = metascatter.commands:main" in archive.read(entry).decode()
        for path in BUNDLE.iterdir():
            assert archive.read(f"metascatter/bundles/si1550/{path.name}") == path.read_bytes(), path.name
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"metascatter"}, tops
    assert len(tops) == 2
    modules = {name.removeprefix("metascatter/") for name in names if name.endswith(".py")}
    assert modules == {path.relative_to(ROOT / "runtime").as_posix() for path in (ROOT / "runtime").rglob("*.py")}
    assert "metascatter/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    base = [line.split(":", 1)[1].strip() for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert {line.split(">")[0] for line in base} == {"numpy", "scipy", "click", "tqdm", "python-json-logger"}


def test_the_environment_has_no_more_than_it_needs(lab: Path, tmp_path: Path) -> None:
    listed = json.loads(run(lab / "python", "-m", "pip", "list", "--format", "json", cwd=tmp_path).stdout)
    installed = {entry["name"].lower().replace("_", "-") for entry in listed}
    assert {"metascatter", "numpy", "scipy", "click", "tqdm", "onnxruntime"} <= installed
    assert not installed & {"torch", "diffusers", "accelerate", "onnx", "matplotlib", "gdstk", "h5py"}
    code = "import importlib.util as u; print([n for n in ('runtime', 'train', 'export', 'cli', 'tests', 'torch') if u.find_spec(n)])"
    assert run(lab / "python", "-c", code, cwd=tmp_path).stdout.strip() == "[]"


def test_import_outside_the_checkout(lab: Path, tmp_path: Path) -> None:
    code = """
import sys, metascatter
print([name for name in ("torch", "scipy", "onnxruntime", "click", "tqdm", "runtime") if name in sys.modules])
with metascatter.load() as sampler:
    target = metascatter.Target.load("wish.json")
    designs = sampler.design(target, n=4, top=2, steps=4)
print(len(designs), all(design.verified for design in designs), "torch" in sys.modules)
print(metascatter.__file__)
"""
    (tmp_path / "wish.json").write_text('{"height_nm": 300, "orders": {"T(1,0)": 0.2}}')
    first, second, where = run(lab / "python", "-c", code, cwd=tmp_path).stdout.splitlines()
    assert first == "[]"
    assert second.split()[1:] == ["True", "False"]
    assert int(second.split()[0]) >= 1
    assert Path(where).is_relative_to(lab.parent)


def test_doctor_outside_the_checkout(lab: Path, tmp_path: Path) -> None:
    text = run(lab / "metascatter", "doctor", cwd=tmp_path).stdout
    assert "self-test passed" in text
    assert "not installed (extra 'lab')" in text
    report = json.loads(run(lab / "metascatter", "doctor", "--json", cwd=tmp_path).stdout)
    assert report["ok"] is True
    assert Path(report["bundle"]["path"]).is_relative_to(lab.parent)
    assert report["packages"]["matplotlib"] == {"version": None, "extra": "lab"}


def test_infer_outside_the_checkout(lab: Path, target: Path, tmp_path: Path) -> None:
    done = run(lab / "metascatter", "infer", target, "--out", "designs", "-n", 4, cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / "designs").iterdir()) == ["designs.json", "designs.mat", "designs.npz"]
    said = done.stderr.strip().splitlines()
    assert len(said) == 4, done.stderr
    for name in ("designs.png", "design.png", "design.svg", "designs.gds"):
        assert any(name in line and "install metascatter[lab]" in line for line in said), f"{name} is not named on stderr"
    assert "verified" in done.stdout
    with np.load(tmp_path / "designs" / "designs.npz", allow_pickle=False) as file:
        assert set(file.files) >= {"xx", "h", "score", "Rm", "Tm", "verified", "seed", "geometry"}
        assert file["verified"].all()
    document = json.loads(run(lab / "metascatter", "infer", target, "--out", "d", "-n", 4, "--no-verify", "--json", cwd=tmp_path).stdout)
    assert set(document["missing"].values()) == {"lab"}
    assert "Error: " in run(lab / "metascatter", "infer", "nowhere.json", "--out", "x", cwd=tmp_path, status=2).stderr
    assert not (tmp_path / "x").exists()


def test_training_is_not_part_of_it(lab: Path, tmp_path: Path) -> None:
    text = run(lab / "metascatter", "--help", cwd=tmp_path).stdout
    commands = {line.split()[0] for line in text.split("Commands:")[1].splitlines() if line.strip()}
    assert {"infer", "verify", "simulate", "evaluate", "doctor"} <= commands
    assert not commands & {"train", "export"}
    assert "No such command 'train'" in run(lab / "metascatter", "train", cwd=tmp_path, status=2).stderr
