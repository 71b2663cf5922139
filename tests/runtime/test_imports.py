"""The house rule: what each room imports, read from the sources and tried in fresh processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("runtime", "train", "export")
# What the standard library has for networks and processes: slow to import, and of no use before a design is asked for.
SLOW = {"asyncio", "concurrent", "email", "http", "multiprocessing", "ssl", "subprocess", "unittest", "urllib", "xml"}
ALLOWED = {
    "runtime": {"runtime"},
    "train": {"train", "runtime"},
    "export": {"export", "train", "runtime"},
}
# The command line is the one part of the runtime that may need click to be imported.
COMMANDS = {
    f"runtime/{name}.py"
    for name in (
        "commands",
        "design_commands",
        "making_commands",
        "plot_commands",
        "serve_commands",
        "denoise_commands",
        "fill_commands",
        "console",
        "options",
    )
}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def sources(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found, f"{room}/ holds no Python file"
    return found


def imports(path: Path, top_level: bool = False) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import; relative ones resolved. ``top_level`` leaves out functions and TYPE_CHECKING."""
    package = path.relative_to(ROOT).parent.parts
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if top_level and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            assert not node.level or base, f"{path}:{node.lineno} climbs out of its room"
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))


def test_importing_the_runtime_needs_numpy_alone() -> None:
    code = "import sys; before = set(sys.modules); import runtime; print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    loaded = set(python(code).split())
    assert loaded >= {"numpy", "runtime"}
    assert loaded - sys.stdlib_module_names - {"numpy", "runtime"} == set()
    assert loaded & SLOW == set()


def test_importing_the_runtime_costs_about_what_numpy_costs() -> None:
    """Processor time of both in one process, the best of six; ``bench/runtime.py --only import`` measures the seconds."""
    code = "from time import process_time as t; a = t(); import numpy; b = t(); import runtime; c = t(); print((c - b) / (b - a))"
    best = min(float(python(code)) for _ in range(6))
    assert best < 1.5, f"import runtime takes {best:.2f} times as long as NumPy, which it needs"


def test_every_runtime_module_imports_without_torch_and_the_other_rooms() -> None:
    code = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "diffusers", "train", "export", "cli", "onnx"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import runtime
names = [module.name for module in pkgutil.walk_packages(runtime.__path__, "runtime.")]
for name in names:
    importlib.import_module(name)
assert len(names) > 20, names
print(*[name for name in ("torch", "diffusers", "train", "export", "cli", "onnx") if name in sys.modules])
"""
    assert python(code) == ""


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_a_higher_one(room: str) -> None:
    other = {"runtime", "train", "export", "cli", "tests", "bench"} - ALLOWED[room]
    if room == "runtime":
        other |= {"torch", "diffusers", "onnx", "accelerate", "safetensors"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(room)
        for line, name in imports(path)
        if name.split(".")[0] in other
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rule_would_be_seen_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of imports finds them in functions, behind ``from`` and through dots."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "runtime" / "physics" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text("import json\nif True:\n    def f():\n        from train.loop import train\n        from ..target import Target\n")
    assert {name for _, name in imports(file)} == {"json", "train.loop", "train.loop.train", "runtime.target", "runtime.target.Target"}
    assert {name for _, name in imports(file, top_level=True)} == {"json"}


def test_the_runtime_names_itself_by_relative_imports_only() -> None:
    """Installed it is called metascatter; an absolute 'runtime' would not exist there."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources("runtime")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in ("runtime", "metascatter"))
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] in ("runtime", "metascatter") for alias in node.names))
    ]
    assert not wrong, f"absolute imports of the runtime by itself: {wrong}"


def test_packages_beyond_numpy_are_imported_where_they_are_used() -> None:
    wrong = []
    for path in sources("runtime"):
        name = path.relative_to(ROOT).as_posix()
        allowed = {"runtime", "numpy"} | ({"click"} if name in COMMANDS else set())
        for line, module in imports(path, top_level=True):
            top = module.split(".")[0]
            if top not in allowed and top not in sys.stdlib_module_names:
                wrong.append(f"{name}:{line} imports {module} when it is loaded")
    assert not wrong, "\n".join(wrong)
