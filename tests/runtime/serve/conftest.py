"""A server over the small bundle in a thread of its own, and a client that speaks HTTP to it over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runtime.design import Design
from runtime.serve import api, server
from runtime.serve.guard import Guard, Rate
from runtime.serve.jobs import Job, Jobs
from runtime.serve.metrics import Metrics, Watched

for library in ("fastapi", "limits", "prometheus_client", "uvicorn"):
    pytest.importorskip(library, reason="the extra 'ui' is not installed")

ENGINE = {"backend": "onnxruntime", "device": "cpu", "precision": "fp32", "threads": 1}
# Heights of the small bundle are 100 to 400 nm; these orders carry light there.
TARGET = {"height_nm": 250, "orders": {"T(0,0)": 0.3, "R(0,0)": {"max": 0.2}}}


class Reply(NamedTuple):
    """What the server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A server at work; ``stop`` is what SIGTERM does."""

    def __init__(self, jobs: Jobs, token: str | None, max_body: int, rate: str) -> None:
        self.jobs = jobs
        limit = Rate(rate)
        self.metrics = Metrics(jobs)
        guarded = Guard(api.create(jobs, limit, token is not None, self.metrics.text), token, max_body, limit)
        self.app = Watched(guarded, self.metrics)
        self.socket = server.bind("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        assert self._ready.wait(60)

    async def _main(self) -> None:
        self._loop, self._stop, self._hurry = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        await server.run(self.app, self.jobs, self.socket, self._stop, self._hurry, self._ready.set)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def end(self) -> None:
        """Stop, and wait until the server is no more."""
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.socket.close()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request on a connection of its own; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body, fields = json.dumps(body).encode(), {"Content-Type": "application/json", **fields}
        try:
            connection.request(method, path, body, fields)
            reply = connection.getresponse()
            return Reply(reply.status, {key.lower(): value for key, value in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def design(self, target: dict[str, Any] | None = None, **fields: Any) -> Reply:
        quick = {"n": 4, "top": 2, "steps": 3, "refine": False}
        return self.ask("POST", api.DESIGNS, {"target": target or TARGET, **quick, **fields})


@pytest.fixture(scope="module")
def jobs(small_bundle: Path) -> Iterator[Jobs]:
    with Jobs(small_bundle, ENGINE, workers=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def running(jobs: Jobs) -> Iterator[Running]:
    """One server for a whole file: nothing is asked too often, and nothing is secret."""
    started = Running(jobs, None, 2**20, "100000/second")
    yield started
    started.end()


@pytest.fixture
def start(small_bundle: Path) -> Iterator[Callable[..., Running]]:
    """Start servers with settings of their own."""
    with contextlib.ExitStack() as stack:

        def begin(
            token: str | None = None,
            max_body: int = 2**20,
            rate: str = "100000/second",
            max_queue: int = 128,
            engine: Any = ENGINE,
            bundle: Path = small_bundle,
        ) -> Running:
            started = Running(stack.enter_context(Jobs(bundle, engine, max_queue, 2)), token, max_body, rate)
            stack.callback(started.end)
            return started

        yield begin


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Jobs stay in their first step until this event is set."""
    go = threading.Event()
    step = Job.on_step

    def wait(self: Job, *call: Any) -> None:
        step(self, *call)
        assert go.wait(60)

    monkeypatch.setattr(Job, "on_step", wait)
    yield go
    go.set()


@pytest.fixture
def refining(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Jobs stay where refining begins until this event is set."""
    go = threading.Event()
    found = Job.on_best

    def wait(self: Job, design: Design) -> None:
        found(self, design)
        assert go.wait(60)

    monkeypatch.setattr(Job, "on_best", wait)
    yield go
    go.set()
