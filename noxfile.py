"""The oldest and newest versions that pyproject.toml admits of what the runtime computes with: the runtime's tests in an environment each.

    .venv/bin/nox                          # all six; pip has to reach a package index
    .venv/bin/nox -s "supported(numpy, lowest)"

There is no PyTorch in them. What needs a small bundle is tested with the one that the checkout's own environment exports first, where
``make test`` has made that; without it these tests are skipped.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PACKAGES = {"numpy": None, "onnxruntime": "cpu", "openvino": "openvino"}  # and the extra that names their versions
TOOLS = ("pytest>=9.0", "hypothesis>=6.100", "meent>=0.13", "onnx>=1.21", "pillow")
BUNDLE = ROOT / ".nox" / "small"
nox.options.reuse_existing_virtualenvs = True


def lowest(package: str) -> str:
    """The lowest version of a package that pyproject.toml admits, as a requirement. Raises KeyError where it states none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = PACKAGES[package]
    stated = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    bounds = dict(requirement.split(">=") for requirement in stated if ">=" in requirement)
    return f"{package}=={bounds[package]}"


@nox.session(name="supported")
@nox.parametrize("version", ["lowest", "newest"], ids=["lowest", "newest"])
@nox.parametrize("package", list(PACKAGES), ids=list(PACKAGES))
def supported(session: nox.Session, package: str, version: str) -> None:
    """The runtime with one package as old, or as new, as it may be, and the newest of all others that goes with it."""
    session.install(
        "--upgrade",
        "--upgrade-strategy",
        "eager",
        "--only-binary",
        ":all:",
        "-e",
        ".[cpu,openvino,lab]",
        *TOOLS,
        *([lowest(package)] if version == "lowest" else []),
    )
    if not BUNDLE.exists() and (ROOT / ".venv/bin/python").exists():
        command = [".venv/bin/python", "-m", "pytest", "tests/runtime/test_bundle.py"]
        session.run(*command, external=True, env={"METASCATTER_TEST_BUNDLE": str(BUNDLE)}, success_codes=[0, 1])
    session.run(
        "python", "-c", "import numpy, onnxruntime, openvino; print(numpy.__version__, onnxruntime.__version__, openvino.__version__)"
    )
    session.run("python", "cli.py", "doctor")
    tests = session.posargs or ["tests/runtime", "tests/fuzz"]
    session.run("python", "-m", "pytest", *tests, env={"METASCATTER_TEST_BUNDLE": str(BUNDLE), "OMP_NUM_THREADS": "1"})
