"""Many clients at once, and the end of the server: nothing accepted is lost, and nobody gets another's answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from runtime.serve.api import DESIGNS
from runtime.target import Target

ROOT = Path(__file__).parents[3]
CLIENTS = 64


def wanted(k: int) -> dict[str, Any]:
    """What client k asks for: targets, numbers of candidates, settings and seeds of which no two are alike."""
    orders = {f"T({k % 2},0)": 0.05 + 0.003 * k, "R(0,0)": {"max": 0.3}}
    fields: dict[str, Any] = {
        "target": {"height_nm": 150 + 3 * k, "orders": orders},
        "n": 1 + k % 5,
        "top": 2,
        "seed": 1000 + k,
        "steps": 3 + k % 2,
    }
    return {**fields, "name": f"client {k}", "verify": k % 4 == 0, "refine": k % 8 == 0, "budget": 6}


def test_sixty_four_clients_lose_nothing_and_get_their_own(start: Callable[..., Any], held: threading.Event) -> None:
    """Every answer is that of its own request computed alone, and the network was called for many at a time.

    The first batch goes on when everybody has come, so that the others are sure to wait together.
    """
    running = start()
    with ThreadPoolExecutor(CLIENTS) as pool:
        waiting = [pool.submit(running.ask, "POST", DESIGNS, wanted(k)) for k in range(CLIENTS)]
        while len(running.jobs.sampler._parts) + running.jobs.sampler.rows < CLIENTS:
            assert not any(future.done() for future in waiting)
            time.sleep(0.01)
        held.set()
        replies = [future.result() for future in waiting]
    assert [reply.status for reply in replies] == [200] * CLIENTS
    assert len({reply.json["job"] for reply in replies}) == CLIENTS
    sampler = running.jobs.sampler
    assert sampler.rows == sum(wanted(k)["n"] for k in range(CLIENTS))
    assert sampler.calls <= CLIENTS // 4, "many requests share a batch"
    for k, reply in enumerate(replies):
        fields = wanted(k)
        target = sampler.check(Target.from_dict(fields["target"], fields["name"]))
        alone = sampler.design(target, **{name: fields[name] for name in ("n", "top", "seed", "steps", "verify", "refine", "budget")})
        answer = reply.json
        assert answer["target"] == f"client {k}"
        assert [(d["seed"], d["candidate"]) for d in answer["designs"]] == [(d.seed, d.candidate) for d in alone]
        assert [d["pattern"] for d in answer["designs"]] == [["".join(map(str, row)) for row in d.pattern] for d in alone]
        assert [d["score"] for d in answer["designs"]] == pytest.approx([d.score for d in alone])
        assert all(d["height_nm"] == 150 + 3 * k for d in answer["designs"])


def test_stopping_finishes_what_was_accepted_and_refuses_the_rest(start: Callable[..., Any], held: threading.Event) -> None:
    running = start()
    with ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(running.design, seed=seed, verify=False) for seed in range(3)]
        while running.jobs.load["jobs"] < 3:
            assert not any(future.done() for future in accepted)
        running.stop()
        while running.ask("GET", "/api/v1/health").json["status"] != "stopping":
            pass
        reply = running.design()
        assert reply.status == 503
        assert reply.json["error"] == "the server is stopping; ask again when it is back"
        held.set()
        assert [len(future.result().json["designs"]) for future in accepted] == [2, 2, 2]
    running.end()
    with pytest.raises(ConnectionRefusedError):
        running.ask("GET", "/api/v1/health")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signal")
def test_the_command_answers_and_ends_well(number: int, small_bundle: Path, tmp_path: Path) -> None:
    """As a user starts it: the address is printed, the page and the API answer, and a signal in the middle of a request loses nothing."""
    pytest.importorskip("nicegui")
    command = [sys.executable, "cli.py", "serve", "--port", "0", "--bundle", str(small_bundle), "--backend", "onnxruntime"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        address = child.stdout.readline().strip().rstrip("/")
        try:
            assert address.startswith("http://127.0.0.1:"), child.communicate(timeout=60)
            with urlopen(address, timeout=60) as page:
                assert b"metascatter" in page.read()
            body = json.dumps(
                {"target": {"height_nm": 250, "orders": {"T(0,0)": 0.3}}, "n": 64, "steps": 500, "scheduler": "ddim"}
            ).encode()
            request = Request(address + DESIGNS, body, {"Content-Type": "application/json"})
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(lambda: json.load(urlopen(request, timeout=120)))
                while json.load(urlopen(address + "/api/v1/health", timeout=60))["batches"] == 0:
                    assert not answer.done()
                child.send_signal(number)
                assert len(answer.result()["designs"]) == 4
            out, err = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 0, err
    assert out == ""
    assert "Stopping when 1 accepted request" in err
    assert "Traceback" not in err
