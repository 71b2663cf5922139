"""A soak of the server: half an hour of good and bad requests from 32 clients, and what became of memory, threads and files.

    python bench/soak.py                          # make soak: half an hour
    python bench/soak.py --seconds 60 --bundle bundles/mine

A real server in a process of its own; its engine raises where it is told to. Every good answer is held against that which the same request
got while nobody else was there. Ends with status 1 where an answer was lost, wrong or another's, where memory, threads or open files grow,
or where SIGTERM does not end it well. Linux only: what a process uses is read from ``/proc``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench._soak_clients import _BODY_MB, Book, Client, Fields, catalogue, essence
from runtime.bundle import Bundle

CLIENTS = 32
_QUEUE = 24  # fewer than clients, so that some are told to come again
_WARM = 0.3  # share of the time before memory is looked at
# What memory at rest may differ by behind it, in MB or as a share: what the allocator can give back of it depends on what lay where.
_GROWTH_MB, _GROWTH_SHARE = 48.0, 0.25
_SPARE = 8  # threads more than at the first rest: pools begin threads when all they have are busy


class Use(NamedTuple):
    """What a process uses."""

    requests: int
    memory_mb: float
    threads: int
    files: int


def soak(bundle: Path | None, seconds: float, say: Any = print) -> list[str]:
    """Run it and say what was found; what must not be, a line each."""
    opened = Bundle.open(bundle)
    wishes = catalogue(*_heights(opened))
    book = Book()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr"
        with _server(opened.path, log) as (child, port):
            clients = [Client(number, port, wishes, book) for number in range(CLIENTS)]
            alone = [essence(json.loads(clients[0].post(json.dumps(wish).encode()).body)) for wish in wishes]
            for client in clients:
                client.alone = alone
            _storm(clients, book, child.pid, seconds * _WARM)
            first = _rest(clients[0], book, child.pid)
            uses = _storm(clients, book, child.pid, seconds * (1 - _WARM))
            last = _rest(clients[0], book, child.pid)
            answered = _end(clients[0], wishes, child, book)
        told = _told(log, book)
    slope, growth = _slope(uses)
    many = book.counts
    say(f"{seconds:g} s, {CLIENTS} clients, {opened.path.name}: {book.requests} requests")
    for what in sorted(many):
        say(f"  {what.replace('_', ' '):24s}{many[what]:8d}")
    say(f"  lost, wrong or another's{len(book.wrong):8d}")
    say(f"memory {first.memory_mb:.1f} MB at rest after warm-up, {last.memory_mb:.1f} MB at the end; ", end="")
    say(f"under load {slope:+.3f} MB per 1000 requests over {uses[-1].requests - uses[0].requests} ({growth:+.1f} MB)")
    say(f"threads {first.threads} at rest after warm-up, {last.threads} at the end; open files {first.files} and {last.files}")
    say(f"SIGTERM: {answered} accepted requests answered, exit status {child.returncode}; records on stderr: {told}")
    wrong = list(book.wrong)
    if last.memory_mb - first.memory_mb > max(_GROWTH_MB, _GROWTH_SHARE * first.memory_mb):
        wrong.append(f"memory at rest grows by {last.memory_mb - first.memory_mb:.1f} MB")
    if last.threads > first.threads + _SPARE:
        wrong.append(f"there are {last.threads} threads at the end, and were {first.threads}")
    if last.files > first.files:
        wrong.append(f"there are {last.files} open files at the end, and were {first.files}")
    if child.returncode != 0:
        wrong.append(f"the server ended with status {child.returncode}")
    return wrong


@contextlib.contextmanager
def _server(bundle: Path, log: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server at work: its process and port."""
    command = [sys.executable, str(Path(__file__).with_name("_soak_server.py")), "--log-format", "json", "serve", "--port", "0"]
    command += ["--bundle", str(bundle), "--backend", "onnxruntime", "--device", "cpu", "--precision", "fp32"]
    command += ["--max-queue", str(_QUEUE), "--max-body-mb", str(_BODY_MB), "--rate", "1000000/second"]
    with log.open("w") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as child:
        try:
            assert child.stdout is not None
            address = child.stdout.readline()
            if not address:
                raise SystemExit(f"the server did not start: {log.read_text()}")
            yield child, int(address.strip().rstrip("/").rpartition(":")[2])
        finally:
            child.kill()


def _storm(clients: list[Client], book: Book, pid: int, seconds: float) -> list[Use]:
    """All clients at once for so long; what the server used meanwhile."""
    stop = threading.Event()
    threads = [threading.Thread(target=client.work, args=(stop,)) for client in clients]
    for thread in threads:
        thread.start()
    end, uses = time.monotonic() + seconds, [_use(pid, book)]
    while time.monotonic() < end:
        time.sleep(min(1.0, seconds / 20))
        uses.append(_use(pid, book))
    stop.set()
    for thread in threads:
        thread.join()
    return uses


def _rest(client: Client, book: Book, pid: int) -> Use:
    """What the server uses when nobody asks: the least of a few seconds, for connections close a moment later."""
    while json.loads(client.get("/api/v1/health").body)["jobs"]:
        time.sleep(0.05)
    found = []
    for _ in range(10):
        time.sleep(0.3)
        found.append(_use(pid, book))
    return Use(book.requests, min(u.memory_mb for u in found), min(u.threads for u in found), min(u.files for u in found))


def _use(pid: int, book: Book) -> Use:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Use(book.requests, int(lines["VmRSS"].split()[0]) / 1024, int(lines["Threads"]), len(os.listdir(f"/proc/{pid}/fd")))


def _slope(uses: list[Use]) -> tuple[float, float]:
    """MB per 1000 requests by a straight line through all that was seen, and how much it rises from its begin to its end."""
    requests = np.array([use.requests for use in uses], float)
    rise = float(np.polyfit(requests, [use.memory_mb for use in uses], 1)[0]) if np.ptp(requests) else 0.0
    return 1000 * rise, rise * float(np.ptp(requests))


def _end(client: Client, wishes: list[Fields], child: subprocess.Popen[str], book: Book) -> int:
    """SIGTERM with requests at work: all that were accepted are answered, and the process is gone with status 0. How many those were."""
    answered: list[int] = []

    def ask(k: int) -> None:
        try:
            reply = client.post(json.dumps({**wishes[k], "verify": True, "refine": True, "budget": 8}).encode())
        except Exception as error:
            book.against(f"wish {k} was accepted before SIGTERM and not answered: {error!r}")
            return
        if reply.status == 200 and json.loads(reply.body)["target"] == f"wish {k}":
            answered.append(k)
        else:
            book.against(f"wish {k} was accepted before SIGTERM and answered with {reply.status}: {reply.body[:200]!r}")

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    while json.loads(client.get("/api/v1/health").body)["jobs"] < len(threads) - len(answered):
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    try:
        child.wait(60)
    except subprocess.TimeoutExpired:
        book.against("the server is still there a minute after its last answer")
    return len(answered)


def _told(log: Path, book: Book) -> str:
    """How many records of each level stderr has; none may be an error, and all are JSON."""
    levels: dict[str, int] = {}
    for line in log.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            book.against(f"stderr holds what is no JSON: {line[:200]}")
            continue
        levels[record["level"]] = levels.get(record["level"], 0) + 1
        if record["level"] in ("ERROR", "CRITICAL"):
            book.against(f"the server logged: {record['message'][:200]} {record.get('exc_info', '')[-300:]}")
    return ", ".join(f"{many} {level}" for level, many in sorted(levels.items())) or "none"


def _heights(bundle: Bundle) -> tuple[float, float]:
    low, high = bundle.manifest["condition"]["height_range_nm"]
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    options = parser.parse_args()
    wrong = soak(options.bundle, options.seconds)
    for words in wrong[:20]:
        print(f"WRONG: {words}", file=sys.stderr)
    if len(wrong) > 20:
        print(f"and {len(wrong) - 20} more", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
