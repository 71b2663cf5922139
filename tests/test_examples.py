"""The programs in examples/ run as a laboratory would run them: with the installed package and the shipped bundle."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("arguments", "expected", "count"),
    [
        (["embed.py"], r"misrouted power 0\.\d{3}\n([.#]{10}\n){10}", 3),
        (["live_loop.py", "--rounds", "2", "--seconds", "0.3"], r"round \d: T\(1,0\) wanted 0\.\d\d, achieved 0\.\d{3}, misrouted", 2),
    ],
)
def test_example(arguments: list[str], expected: str, count: int, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / arguments[0], *arguments[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(expected, done.stdout)) == count
    assert list(tmp_path.iterdir()) == []
