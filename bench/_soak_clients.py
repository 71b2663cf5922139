"""The clients of ``bench/soak.py``: what they ask for, how well they behave, and what they hold against an answer."""

from __future__ import annotations

import http.client
import io
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from runtime.serve.api import DESIGNS

from ._soak_server import FAULT

_TIMEOUT_S = 600
_BODY_MB = 0.1  # of the server's --max-body-mb
Fields = dict[str, Any]


class Reply(NamedTuple):
    """What the server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Book:
    """What happened, from all threads."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def add(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def against(self, words: str) -> None:
        """Something that must not be."""
        with self._lock:
            self.wrong.append(words)

    @property
    def requests(self) -> int:
        return sum(self.counts.values())


def catalogue(low_nm: float, high_nm: float, count: int = 32) -> list[Fields]:
    """Requests of which no two are alike: targets, candidates, settings and seeds."""
    return [
        {
            "target": {
                "height_nm": round(low_nm + (high_nm - low_nm) * (k + 1) / (count + 1)),
                "orders": {"T(0,0)": 0.05 + 0.005 * k, "R(0,0)": {"max": 0.3}},
            },
            "name": f"wish {k}",
            "n": 1 + k % 5,
            "top": 2,
            "seed": 1000 + k,
            "steps": 3 + k % 2,
            "verify": k % 4 == 0,
            "refine": k % 16 == 0,
            "budget": 6,
        }
        for k in range(count)
    ]


def essence(answer: Fields) -> Any:
    """What of an answer depends on the request alone; scores to six digits, for the solver shares its cores with others."""
    return answer["target"], [
        (d["seed"], d["candidate"], d["pattern"], d["height_nm"], d["verified"], None if d["score"] is None else round(d["score"], 6))
        for d in answer["designs"]
    ]


class Client:
    """One of many: it does one thing after another, at random, until told to stop."""

    def __init__(self, number: int, port: int, wishes: list[Fields], book: Book) -> None:
        self.port, self.wishes, self.book = port, wishes, book
        self.alone: list[Any] = []  # what each wish gets with nobody else there
        self.random = random.Random(number)
        self.deeds: list[tuple[int, Callable[[], object]]] = [
            (12, self.wish),
            (2, self.wish_and_fetch),
            (2, self.wish_and_read_slowly),
            (2, self.wish_and_write_slowly),
            (4, self.ask_nonsense),
            (2, self.send_too_much),
            (2, self.leave_half_said),
            (3, self.hang_up),
            (2, self.break_the_engine),
            (3, self.look_around),
        ]

    def work(self, stop: threading.Event) -> None:
        weights, deeds = zip(*self.deeds, strict=True)
        while not stop.is_set():
            deed = self.random.choices(deeds, weights)[0]
            try:
                deed()
                self.book.add(deed.__name__)
            except Exception as error:
                self.book.against(f"{deed.__name__}: {error!r}")

    # --- Requests that are answered with designs ---------------------------------------------------------------------

    def wish(self, answer: Callable[[bytes], Reply] | None = None) -> Fields:
        """Ask for one of the catalogue until the queue has room, and hold the answer against that which was given alone."""
        k = self.random.randrange(len(self.wishes))
        body = json.dumps(self.wishes[k]).encode()
        while True:
            reply = (answer or self.post)(body)
            if reply.status != 503:
                break
            self.expect(reply, 503)
            assert reply.headers["Retry-After"] == "1"
            self.book.add("told to come again")
            time.sleep(self.random.uniform(0.05, 0.5))
        self.check(k, reply)
        return dict(json.loads(reply.body))

    def check(self, k: int, reply: Reply) -> None:
        """Raises AssertionError where wish ``k`` was not answered as it is alone."""
        assert reply.status == 200, f"wish {k} was answered with {reply.status}: {reply.body[:200]!r}"
        found = essence(json.loads(reply.body))
        if found != self.alone[k]:
            theirs = [other for other, known in enumerate(self.alone) if known == found]
            raise AssertionError(
                f"wish {k} got the answer of wish {theirs[0]}" if theirs else f"wish {k} got {found}, alone {self.alone[k]}"
            )

    def wish_and_fetch(self) -> None:
        """The files of an answer hold what it says."""
        answer = self.wish()
        name = self.random.choice(("designs.npz", "designs.json"))
        reply = self.get(answer["files"][name])
        if reply.status == 404:  # so many came since that it has been forgotten
            self.expect(reply, 404)
            return
        assert reply.status == 200, f"{name}: {reply.status}"
        if name.endswith(".npz"):
            with np.load(io.BytesIO(reply.body)) as file:
                patterns = [["".join(map(str, row)) for row in pattern] for pattern in file["xx"]]
        else:
            patterns = [design["pattern"] for design in json.loads(reply.body)["designs"]]
        assert patterns == [design["pattern"] for design in answer["designs"]], f"{name} holds other patterns than the answer"

    def wish_and_read_slowly(self) -> None:
        def slowly(body: bytes) -> Reply:
            with self.connect() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                sock.sendall(self.head(len(body)) + body)
                response = http.client.HTTPResponse(sock)
                response.begin()
                parts = []
                while part := response.read(700):
                    parts.append(part)
                    time.sleep(0.005)
                return Reply(response.status, response.headers, b"".join(parts))

        self.wish(slowly)

    def wish_and_write_slowly(self) -> None:
        def slowly(body: bytes) -> Reply:
            with self.connect() as sock:
                whole = self.head(len(body)) + body
                for first in range(0, len(whole), 100):
                    sock.sendall(whole[first : first + 100])
                    time.sleep(0.02)
                return received(sock)

        self.wish(slowly)

    # --- Requests that are refused -----------------------------------------------------------------------------------

    def ask_nonsense(self) -> None:
        good = self.wishes[0]
        body, status = self.random.choice(
            [
                (b"{", 422),
                (b"\x80\x81abc", 422),
                (b"[]", 422),
                (b"{}", 422),
                (json.dumps({**good, "n": 0}).encode(), 422),
                (json.dumps({**good, "n": "many"}).encode(), 422),
                (json.dumps({**good, "color": "red"}).encode(), 422),
                (json.dumps({**good, "target": {"preset": "lens"}}).encode(), 422),
                (json.dumps({**good, "target": {"height_nm": -1, "orders": {}}}).encode(), 422),
                (b"[" * 20_000, 422),
            ]
        )
        self.expect(self.post(body), status)

    def send_too_much(self) -> None:
        """Said beforehand, or found out on the way."""
        size = int(_BODY_MB * 2**20) + 1000
        with self.connect() as sock:
            if self.random.random() < 0.5:
                sock.sendall(self.head(size))
                self.expect(received(sock), 413)
                return
            sock.sendall(self.head(None))
            try:
                for _ in range(size // 1000 + 1):
                    sock.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
            except (BrokenPipeError, ConnectionResetError):
                return  # it was refused before all was sent, and the connection is gone
            self.expect(received(sock), 413)

    def break_the_engine(self) -> None:
        wish = {**self.random.choice(self.wishes), "seed": FAULT}
        reply = self.post(json.dumps(wish).encode())
        if reply.status == 503:
            self.expect(reply, 503)
            return
        assert "as the soak wants it to" in self.expect(reply, 500)

    # --- Clients that do not wait ------------------------------------------------------------------------------------

    def leave_half_said(self) -> None:
        body = json.dumps(self.random.choice(self.wishes)).encode()
        with self.connect() as sock:
            whole = self.head(len(body)) + body
            sock.sendall(whole[: self.random.randrange(1, len(whole))])
            time.sleep(self.random.uniform(0, 0.05))

    def hang_up(self) -> None:
        """A long request that is given up while it waits or is at work, politely or not."""
        wish = {**self.random.choice(self.wishes), "n": 64, "steps": 100, "verify": True}
        body = json.dumps(wish).encode()
        with self.connect() as sock:
            sock.sendall(self.head(len(body)) + body)
            time.sleep(self.random.uniform(0, 1))
            if self.random.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset in place of a good-bye

    def look_around(self) -> None:
        path, status = self.random.choice(
            [("/api/v1/health", 200), ("/metrics", 200), ("/openapi.json", 200), ("/api/v1/nothing", 404), (DESIGNS + "/none", 404)]
        )
        reply = self.get(path)
        assert reply.status == status, f"{path}: {reply.status}"

    # --- HTTP --------------------------------------------------------------------------------------------------------

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=_TIMEOUT_S)

    def head(self, length: int | None) -> bytes:
        how = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        return (
            f"POST {DESIGNS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n{how}\r\n\r\n".encode()
        )

    def post(self, body: bytes) -> Reply:
        with self.connect() as sock:
            sock.sendall(self.head(len(body)) + body)
            return received(sock)

    def get(self, path: str) -> Reply:
        with self.connect() as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return received(sock)

    def expect(self, reply: Reply, status: int) -> str:
        """The one sentence of a refusal. Raises AssertionError where it is none."""
        assert reply.status == status, f"{reply.status} and not {status}: {reply.body[:200]!r}"
        answer = json.loads(reply.body)
        assert set(answer) == {"error"}, answer
        assert answer["error"], "there is no sentence"
        assert "\n" not in answer["error"], answer["error"]
        return str(answer["error"])


def received(sock: socket.socket) -> Reply:
    """The answer on a socket."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    return Reply(response.status, response.headers, response.read())
