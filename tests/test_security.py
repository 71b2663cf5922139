"""Nothing in the sources unpickles: what SECURITY.md promises, read from the syntax trees of all that is shipped or run from a checkout."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("runtime", "train", "export", "bench", "examples")
SOURCES = [ROOT / "cli.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal", "yaml"}
CALLS = {"eval", "exec", "torch.load", "pd.read_pickle", "pandas.read_pickle"}


def faults(text: str) -> Iterator[str]:
    """What must not be, with its line."""
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        yield from (f"{node.lineno}: imports {name}" for name in names if name.partition(".")[0] in MODULES)  # type: ignore[attr-defined]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in CALLS or (called.rpartition(".")[2] == "import_module" and _of_pickle(node)):
            yield f"{node.lineno}: calls {called}"
        for keyword in node.keywords:
            said = ast.unparse(keyword.value)
            pickles = keyword.arg == "allow_pickle" and said != "False"
            if pickles or (keyword.arg, said) in (("weights_only", "False"), ("trust_remote_code", "True")):
                yield f"{node.lineno}: {keyword.arg}={said}"


def _of_pickle(call: ast.Call) -> bool:
    return any(isinstance(part, ast.Constant) and str(part.value).partition(".")[0] in MODULES for part in call.args)


def test_nothing_unpickles() -> None:
    assert len(SOURCES) > 100
    found = [f"{path.relative_to(ROOT)}:{fault}" for path in SOURCES for fault in faults(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import os, joblib.memory",
        "from dill import loads",
        "import torch\ntorch.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=wanted)",
        "load(path, weights_only=False)",
        "importlib.import_module('pickle')",
        "eval(text)",
    ],
)
def test_it_would_be_seen(text: str) -> None:
    assert list(faults(text))


@pytest.mark.parametrize(
    "text", ["np.load(path, allow_pickle=False)", "np.load(path)", "network.eval()", "from .pickle import x", "'pickle'"]
)
def test_what_is_no_fault(text: str) -> None:
    assert not list(faults(text))
