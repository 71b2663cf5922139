"""Processes of their own for bench/runtime.py, with their time and their peak of memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Failed(Exception):
    """A child that could not do its work; the sentence says why."""


class Child:
    """A process of ``bench._children`` that is asked one word at a time."""

    def __init__(self, spec: dict[str, Any], env: dict[str, str]) -> None:
        command = [sys.executable, "-m", "bench._children", "serve", json.dumps(spec)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            self.ready = self._read()
        except Failed:
            self.close()
            raise

    def ask(self, word: str) -> dict[str, Any]:
        """The answer to a word of ``bench._children.serve``."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what is not there to be read says it better
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        return self._read()

    def close(self) -> float:
        """End it; its peak of resident memory in MB."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        return reap(self._process)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return parse(self._process.stdout.readline())


def parse(line: str) -> dict[str, Any]:
    """One answer of a child."""
    if not line.strip():
        raise Failed("the process ended without an answer")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise Failed(answer["error"])
    return answer


def reap(process: subprocess.Popen[str]) -> float:
    """Wait for a process; its peak of resident memory (ru_maxrss) in MB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / 1000


def run(arguments: list[str], env: dict[str, str]) -> tuple[float, float, str]:
    """Seconds from start to end, peak memory in MB and the last line of output of a Python process in the checkout."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, text=True, stdout=out, stderr=err)
        peak = reap(process)
        seconds = time.perf_counter() - start
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().strip().splitlines() or [""])
    if process.returncode:
        raise Failed(texts[1][-1] or f"{' '.join(arguments)} ended with status {process.returncode}")
    return seconds, peak, texts[0][-1]


def role(name: str, spec: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
    """What a process of ``bench._children`` with this role answers."""
    return role_with_peak(name, spec, env)[0]


def role_with_peak(name: str, spec: dict[str, Any], env: dict[str, str]) -> tuple[dict[str, Any], float]:
    """The answer of a role, and its process's peak memory in MB."""
    _, peak, line = run(["-m", "bench._children", name, json.dumps(spec)], env)
    return parse(line), peak
