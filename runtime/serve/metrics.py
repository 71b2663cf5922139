"""What the server counts, for Prometheus at ``/metrics``, and a record of each request in ``logging``.

Every server has a registry of its own, so that several in one process, or a program that counts things itself, do not meet.
"""

from __future__ import annotations

import logging
import platform
import re
import time
from typing import Any

import numpy as np

from ..errors import Cancelled
from ..sampler import Sampler
from ..version import __version__
from .api import DESIGNS
from .guard import HEALTH, LOGIN, Receive, Scope, Send
from .jobs import FILES, Job, Jobs

METRICS = "/metrics"
_log = logging.getLogger(__name__)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_METHODS = ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")
_GONE = 499  # nobody was left to hear the answer, as nginx writes it


class Metrics:
    """The counters of one server. Its jobs report to it from the time it is made."""

    def __init__(self, jobs: Jobs) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

        self.registry = registry = CollectorRegistry()
        name = "metascatter_"
        self._requests = Counter(name + "requests", "Requests answered.", ("method", "route", "status"), registry=registry)
        self._answered = Histogram(
            name + "request_seconds", "From a request to its answer.", ("route",), buckets=_SECONDS, registry=registry
        )
        self._designed = Histogram(
            name + "design_seconds", "Work on a finished job, waiting for a slot included.", buckets=_SECONDS, registry=registry
        )
        self._jobs = Counter(name + "jobs", "Jobs that have ended.", ("outcome",), registry=registry)
        self._solves = Counter(name + "solves", "RCWA solves of ended jobs.", registry=registry)
        self._batches = Histogram(
            name + "batch_candidates", "Candidates in a batch of the denoiser.", buckets=_CANDIDATES, registry=registry
        )
        for word in ("done", "failed", "cancelled"):
            self._jobs.labels(word)
        Gauge(name + "queue_jobs", "Jobs waiting and at work.", registry=registry).set_function(lambda: jobs.load["jobs"])
        Gauge(name + "queue_limit", "Jobs there may be; more are refused.", registry=registry).set(jobs.max_queue)
        Info(name + "build", "Versions.", registry=registry).info(
            {"version": __version__, "python": platform.python_version(), "numpy": np.__version__}
        )
        Info(name + "engine", "What evaluates the network, and the bundle.", registry=registry).info(_engine(jobs.sampler))
        ProcessCollector(registry=registry)
        jobs.sampler.on_batch = self._batches.observe
        jobs.on_end = self._ended

    def text(self) -> tuple[bytes, str]:
        """All of it in Prometheus's text format, and the content type of that."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _ended(self, job: Job) -> None:
        future = job.result
        error = None if future.cancelled() else future.exception()
        cancelled = future.cancelled() or isinstance(error, Cancelled)
        self._jobs.labels("cancelled" if cancelled else "failed" if error is not None else "done").inc()
        self._solves.inc(job.solved[0])
        if job.seconds is not None:
            self._designed.observe(job.seconds)

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request, and tell of it. Its query is told nobody: the token may stand there."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        where = route(scope["path"])
        self._requests.labels(method, where, str(status)).inc()
        self._answered.labels(where).observe(seconds)
        client = scope["client"][0] if scope.get("client") else ""
        fields = {"client": client, "method": scope["method"], "path": scope["path"], "status": status, "seconds": round(seconds, 4)}
        _log.info("%s %s %s %d %.3f s", client, scope["method"], scope["path"], status, seconds, extra=fields)


class Watched:
    """An ASGI application whose requests are counted."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # What the application below makes of its scope is not what was asked for.
        asked = {key: scope.get(key) for key in ("method", "path", "client")}
        start, status = time.monotonic(), _GONE

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            self.metrics.answered(asked, status, time.monotonic() - start)


def route(path: str) -> str:
    """The address that a path belongs to, one of a fixed few: what clients make up must not make new series."""
    if path in ("/", DESIGNS, HEALTH, LOGIN, METRICS, "/openapi.json"):
        return path
    job = re.fullmatch(rf"{DESIGNS}/[^/]+(?:/([^/]+))?", path)
    if job is not None:
        return f"{DESIGNS}/{{job}}" if job[1] is None else f"{DESIGNS}/{{job}}/{job[1] if job[1] in FILES else '{name}'}"
    return "page" if path.startswith("/_nicegui") else "other"


def _engine(sampler: Sampler) -> dict[str, str]:
    choice = sampler.choice
    return {
        "backend": choice.backend,
        "device": choice.device,
        "precision": choice.precision,
        "bundle": sampler.bundle.path.name,
        "digest": str(sampler.bundle.manifest["digest"]),
    }
