"""What the server refuses: requests too large, too many, from strangers, and more than its queue holds; and who hangs up."""

from __future__ import annotations

import gc
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime.design import Design
from runtime.errors import Cancelled
from runtime.serve.api import DESIGNS
from runtime.serve.guard import loopback
from runtime.serve.jobs import Job, Jobs, Order
from runtime.serve.slots import Slots
from runtime.target import Target

TOKEN = "a long enough secret"


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen within a minute"
        time.sleep(0.01)


def test_a_request_too_large(start: Callable[..., Any]) -> None:
    running = start(max_body=4000)
    assert running.design().status == 200
    reply = running.design(name="x" * 4000)
    assert reply.status == 413
    assert reply.json["error"] == "the request is larger than 0.0038147 MB; send less, or start the server with a larger --max-body-mb"


def test_a_request_too_large_that_did_not_say_so(start: Callable[..., Any]) -> None:
    """Sent in chunks, without a length."""
    running = start(max_body=4000)
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    body = json.dumps({"target": {"preset": "mirror"}, "name": "x" * 6000}).encode()
    chunks = iter([body[:1000], body[1000:]])
    connection.request("POST", DESIGNS, chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    reply = connection.getresponse()
    assert reply.status == 413
    assert "larger than" in json.loads(reply.read())["error"]
    connection.close()


def test_too_many_requests(start: Callable[..., Any]) -> None:
    running = start(rate="2/hour")
    assert [running.design(verify=False).status for _ in range(2)] == [200, 200]
    reply = running.design(verify=False)
    assert reply.status == 429
    assert 3000 < int(reply.headers["retry-after"]) <= 3600
    assert reply.json["error"].startswith("more than 2 in 3600 s requests came from this address; ask again in")
    assert running.ask("GET", "/api/v1/health").status == 200, "the health is not counted"


def test_the_queue_is_full(start: Callable[..., Any], held: threading.Event) -> None:
    """Three are accepted and answered; the fourth is told to come again."""
    running = start(max_queue=3)
    with ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(running.design, seed=seed, verify=False) for seed in range(3)]
        until(lambda: running.jobs.load["jobs"] == 3)
        reply = running.design()
        assert reply.status == 503
        assert reply.headers["retry-after"] == "1"
        assert reply.json["error"] == "3 requests are waiting or at work, as many as the queue holds; ask again later"
        held.set()
        assert [future.result().status for future in accepted] == [200] * 3
    assert running.design(verify=False).status == 200


def test_who_hangs_up_frees_the_place(start: Callable[..., Any], held: threading.Event) -> None:
    """While the first is at work the second waits, hangs up, and a third takes the only place left."""
    running = start(max_queue=2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(running.design, seed=1, verify=False)
        until(lambda: running.jobs.sampler.calls == 1)
        body = json.dumps({"target": {"height_nm": 250, "orders": {"T(0,0)": 0.3}}, "n": 2, "steps": 3}).encode()
        head = f"POST {DESIGNS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", running.port)) as caller:
            caller.sendall(head.encode() + body)
            until(lambda: running.jobs.load["jobs"] == 2)
        until(lambda: running.jobs.load["jobs"] == 1)
        third = pool.submit(running.design, seed=3, verify=False)
        until(lambda: running.jobs.load["jobs"] == 2)
        held.set()
        assert (first.result().status, third.result().status) == (200, 200)
    assert running.jobs.sampler.rows == 8, "the one who hung up was never sampled"


def test_who_hangs_up_while_refining_stops_it(
    start: Callable[..., Any], refining: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of its budget is spent beyond ranking, its slot is free, and the log has nothing to tell."""
    running = start()
    body = json.dumps({"target": {"height_nm": 250, "orders": {"T(0,0)": 0.3}}, "n": 2, "steps": 3, "budget": 1000}).encode()
    head = f"POST {DESIGNS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port)) as caller:
        caller.sendall(head.encode() + body)
        until(lambda: any(job.best for job in list(running.jobs._open.values())))
        [job] = running.jobs._open.values()
    until(job.is_set)
    refining.set()
    until(lambda: running.jobs.slots.free == running.jobs.slots.count)
    assert job.solved[0] == 2
    assert running.jobs.load["jobs"] == 0
    running.end()
    gc.collect()
    assert caplog.records == []


def test_who_comes_while_others_are_refined_is_sampled(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one slot, and the first keeps it until the second has been at its first step."""
    seen: list[tuple[int, int]] = []
    jobs = Jobs(small_bundle, {"backend": "onnxruntime", "device": "cpu", "precision": "fp32", "threads": 1}, workers=1)
    target = Target.from_dict({"height_nm": 250, "orders": {"T(0,0)": 0.3}})
    found, step, refining = Job.on_best, Job.on_step, threading.Event()

    def wait(self: Job, design: Design) -> None:
        found(self, design)
        refining.set()
        until(lambda: bool(seen))

    def watch(self: Job, *call: Any) -> None:
        step(self, *call)
        if self.order.n == 1:
            seen.append(first.solved)

    with jobs:
        monkeypatch.setattr(Job, "on_best", wait)
        monkeypatch.setattr(Job, "on_step", watch)
        first = jobs.submit(Order(target, 2, budget=40, settings={"steps": 2}))
        assert refining.wait(60)
        second = jobs.submit(Order(target, 1, verify=False, settings={"steps": 2}))
        second.result.result(60)
        assert len(first.result.result(60)) == 4
    assert seen[0][0] < first.solved[0] <= 40


@pytest.mark.parametrize("word", [TOKEN, "another long secret", None])
def test_a_token_guards_everything_but_the_health(word: str | None, start: Callable[..., Any]) -> None:
    running = start(token=TOKEN)
    headers = {} if word is None else {"Authorization": f"Bearer {word}"}
    for method, path, body in (
        ("POST", DESIGNS, {"target": {"height_nm": 250, "orders": {"T(0,0)": 0.3}}, "n": 1}),
        ("GET", "/openapi.json", None),
    ):
        reply = running.ask(method, path, body, **headers)
        if word == TOKEN:
            assert reply.status == 200
        else:
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert reply.json["error"] == "this server wants a token; send it as 'Authorization: Bearer TOKEN'"
    assert running.ask("GET", "/api/v1/health").status == 200
    if word == TOKEN:
        schema = running.ask("GET", "/openapi.json", None, **headers).json
        assert schema["components"]["securitySchemes"] == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}


def test_people_log_in_with_the_link_or_the_form(start: Callable[..., Any]) -> None:
    running = start(token=TOKEN, rate="3/hour")
    page = running.ask("GET", "/")
    assert page.status == 401
    assert b'<form method="post" action="/login">' in page.body
    for reply in (
        running.ask("GET", "/?token=a%20long%20enough%20secret"),
        running.ask("POST", "/login", b"token=a+long+enough+secret", Content_Type="application/x-www-form-urlencoded"),
    ):
        assert (reply.status, reply.headers["location"]) == (303, "/")
        cookie, *rules = reply.headers["set-cookie"].split("; ")
        assert {"HttpOnly", "SameSite=Strict"} <= set(rules)
        assert TOKEN not in cookie
        assert running.ask("GET", "/openapi.json", None, Cookie=f"other=1; {cookie}").status == 200
        assert running.ask("GET", "/openapi.json", None, Cookie=cookie[:-1]).status == 401
    wrong = [running.ask("GET", f"/?token=guess{k}") for k in range(4)]
    assert [reply.status for reply in wrong] == [401, 401, 401, 429]
    assert b"That is not the token." in wrong[0].body
    assert running.ask("GET", "/?token=a%20long%20enough%20secret").status == 303, "who knows it is not kept out by who guesses"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:99"}, 200),
        ({"Host": "metascatter.example:80"}, 403),
        ({"Host": "127.0.0.1.example.org"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
    ],
)
def test_pages_of_others_may_not_speak_to_a_local_server(headers: dict[str, str], status: int, running: Any) -> None:
    reply = running.ask("GET", "/openapi.json", None, **headers)
    assert reply.status == status
    if status == 403:
        assert reply.json["error"]


def test_which_addresses_are_this_machine() -> None:
    assert all(map(loopback, ("127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]", "LOCALHOST")))
    assert not any(map(loopback, ("0.0.0.0", "::", "192.168.1.2", "example.org", "")))


def test_slots_are_lent_and_counted() -> None:
    """Two may hold one of two slots; a third does while one of them waits for something else."""
    slots, third = Slots(2), threading.Event()
    inside: list[int] = []

    def work(k: int, lend: bool) -> None:
        with slots.hold():
            inside.append(k)
            if lend:
                with slots.lend():
                    assert third.wait(30)
            elif k == 2:
                third.set()
            else:
                assert third.wait(30)

    with ThreadPoolExecutor(3) as pool:
        one, two = pool.submit(work, 0, False), pool.submit(work, 1, True)
        until(lambda: len(inside) == 2)
        for future in (one, two, pool.submit(work, 2, False)):
            future.result(30)
    assert slots.free == 2


def test_a_slot_changes_hands_in_the_order_of_coming() -> None:
    slots, inside = Slots(1), []

    def work(k: int) -> None:
        with slots.hold():
            inside.append(k)
            slots.turn()
            inside.append(k)

    with ThreadPoolExecutor(2) as pool:
        with slots.hold():
            waiting = []
            for k in range(2):
                waiting.append(pool.submit(work, k))
                until(lambda: len(slots._waiting) == len(waiting))
        for future in waiting:
            future.result(30)
    assert inside == [0, 1, 0, 1]
    assert slots.free == 1


def test_who_waits_for_a_slot_may_be_cancelled_and_keeps_none() -> None:
    slots = Slots(1)

    def late() -> None:
        with pytest.raises(Cancelled), slots.hold(lambda: True):
            raise AssertionError("there was no slot")

    with slots.hold(), ThreadPoolExecutor(1) as pool:
        pool.submit(late).result(30)
    with pytest.raises(ValueError, match="mine"), slots.hold(), slots.lend():
        raise ValueError("mine")
    assert slots.free == 1
