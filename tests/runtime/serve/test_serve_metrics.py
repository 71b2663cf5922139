"""What the server counts, read as Prometheus reads it, and what it tells of each request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.errors import BackendError
from runtime.serve.api import DESIGNS
from runtime.serve.metrics import METRICS, Metrics, route
from runtime.version import __version__

TOKEN = "a long enough secret"


def read(running: Any, **headers: str) -> Callable[..., float | None]:
    """A value by its name and labels; None where there is no such series."""
    reply = running.ask("GET", METRICS, **headers)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain")
    found = {
        (sample.name.removeprefix("metascatter_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }
    return lambda name, **labels: found.get((name, frozenset(labels.items())))


def test_everything_is_counted(start: Callable[..., Any], held: Any) -> None:
    running = start()
    before = read(running)
    assert before("queue_jobs") == 0
    assert before("jobs_total", outcome="done") == 0
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(running.design, n=3, refine=True, budget=7)
        while running.jobs.sampler.calls == 0:
            assert not asked.done()
        assert read(running)("queue_jobs") == 1
        held.set()
        answer = asked.result().json
    assert running.design(n=0).status == 422
    assert running.ask("GET", answer["files"]["designs.json"]).status == 200
    assert running.ask("GET", "/no/such/place").status == 404
    asked_for = [
        ("POST", DESIGNS, "200"),
        ("POST", DESIGNS, "422"),
        ("GET", f"{DESIGNS}/{{job}}/designs.json", "200"),
        ("GET", "other", "404"),
    ]
    now, until = read(running), time.monotonic() + 30
    # A request is counted when its answer has gone, which whoever has the answer may see a moment later.
    while not all(now("requests_total", method=m, route=r, status=s) for m, r, s in asked_for) and time.monotonic() < until:
        now = read(running)
    assert [now("requests_total", method=m, route=r, status=s) for m, r, s in asked_for] == [1, 1, 1, 1]
    assert now("request_seconds_count", route=DESIGNS) == 2
    assert (now("jobs_total", outcome="done"), now("jobs_total", outcome="failed")) == (1, 0)
    assert now("design_seconds_count") == 1
    assert now("solves_total") == running.jobs.find(answer["job"]).solved[0] == 7
    assert (now("batch_candidates_count"), now("batch_candidates_sum")) == (1, 3)
    assert (now("batch_candidates_bucket", le="2.0"), now("batch_candidates_bucket", le="4.0")) == (0, 1)
    assert now("queue_jobs") == 0
    assert now("queue_limit") == running.jobs.max_queue


def test_engine_and_versions_are_named(running: Any) -> None:
    families = {family.name: family for family in text_string_to_metric_families(running.ask("GET", METRICS).body.decode())}
    engine = families["metascatter_engine_info"].samples[0].labels
    assert {name: engine[name] for name in ("backend", "device", "precision", "bundle")} == {
        "backend": "onnxruntime",
        "device": "cpu",
        "precision": "fp32",
        "bundle": "small",
    }
    assert engine["digest"] == running.jobs.sampler.bundle.manifest["digest"]
    build = families["metascatter_build_info"].samples[0].labels
    assert (build["version"], build["numpy"]) == (__version__, np.__version__)


def test_who_fails_and_who_hangs_up_is_counted(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, held: Any) -> None:
    running = start()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(running.design)
        while running.jobs.sampler.calls == 0:
            assert not asked.done()
        [job] = running.jobs._open.values()
        job.cancel()
        held.set()
        assert asked.result().status == 503

    def broken(*args: Any, **more: Any) -> Any:
        raise BackendError("the engine broke")

    monkeypatch.setattr("runtime.batching.denoise", broken)
    reply = running.design()
    assert (reply.status, reply.json["error"]) == (500, "the engine broke")
    now = read(running)
    assert [now("jobs_total", outcome=word) for word in ("done", "cancelled", "failed")] == [0, 1, 1]


def test_counters_want_the_token_like_all_the_rest(start: Callable[..., Any]) -> None:
    running = start(token=TOKEN)
    reply = running.ask("GET", METRICS)
    assert reply.status == 401
    now = read(running, Authorization=f"Bearer {TOKEN}")
    assert now("requests_total", method="GET", route=METRICS, status="401") == 1
    assert running.ask("GET", "/openapi.json", Host="evil.example", Authorization=f"Bearer {TOKEN}").status == 200


def test_servers_count_apart(running: Any, start: Callable[..., Any]) -> None:
    other = start()
    assert other.ask("GET", "/api/v1/health").status == 200
    assert read(other)("requests_total", method="GET", route="/api/v1/health", status="200") == 1
    assert Metrics(other.jobs).registry is not other.metrics.registry


def test_what_clients_make_up_makes_no_series() -> None:
    made_up = ["/x", "/api/v1/designs/a/b/c", "/API/V1/designs", "/metrics/", "/api/v1/designs/", "\n"]
    assert {route(path) for path in made_up} == {"other"}
    assert route("/_nicegui/3.1/static/x.js") == "page"
    assert {route(f"{DESIGNS}/{k}") for k in range(9)} == {f"{DESIGNS}/{{job}}"}
    assert {route(f"{DESIGNS}/k/{k}") for k in range(9)} == {f"{DESIGNS}/{{job}}/{{name}}"}


def test_requests_are_told_without_their_secrets(start: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    running = start(token=TOKEN)
    with caplog.at_level(logging.INFO, "runtime.serve.metrics"):
        running.ask("GET", f"/?token={TOKEN.replace(' ', '%20')}")
        running.ask("TRACE", "/coffee", Authorization=f"Bearer {TOKEN}")
        running.ask("GET", "/api/v1/health")  # a request is told of behind its answer, and before the next one
    told = [record for record in caplog.records if record.name == "runtime.serve.metrics"]
    assert [(r.method, r.path, r.status, r.client) for r in told[:2]] == [  # type: ignore[attr-defined]
        ("GET", "/", 303, "127.0.0.1"),
        ("TRACE", "/coffee", 404, "127.0.0.1"),
    ]
    assert "secret" not in caplog.text
    assert read(running, Authorization=f"Bearer {TOKEN}")("requests_total", method="other", route="other", status="404") == 1
