"""What stands before the page and the API: who may come in, how large a request may be, and how often one client may ask.

An ASGI application around another. On a loopback address nobody has to say who they are, but a web site in the user's browser is not the
user: requests have to name a loopback host (against DNS rebinding) and to come from this server's own pages, if from a page at all. Bound
elsewhere, everything but the health of the server takes a token, as ``Authorization: Bearer ...`` or in the cookie that the page's login
leaves; tokens are compared in constant time.
"""

from __future__ import annotations

import hmac
import html
import ipaddress
import json
import math
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..errors import MetascatterError

HEALTH = "/api/v1/health"
LOGIN = "/login"
LEAST_TOKEN = 16  # characters of a token that somebody chose
_COOKIE = "metascatter"
_LOGIN_BYTES = 4096
# What a page may do that this server did not send: nothing, and be shown in nobody's frame.
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"DENY"), (b"referrer-policy", b"same-origin")]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class TooMany(MetascatterError):
    """One client asks too often; ``seconds`` until it may ask again."""

    def __init__(self, seconds: int, rate: str) -> None:
        super().__init__(f"more than {rate} requests came from this address; ask again in {seconds} s")
        self.seconds = seconds


class Rate:
    """How often each client may ask: a moving window of the library ``limits``.

    Args:
        rate: such as ``60/minute``.

    Raises:
        ValueError: not a rate.
    """

    def __init__(self, rate: str) -> None:
        from limits import parse
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter

        self._storage = MemoryStorage()
        self._item, self._window = parse(rate), MovingWindowRateLimiter(self._storage)
        self._drift = time.time() - time.monotonic()
        self.rate = f"{self._item.amount} in {self._item.get_expiry()} s"

    def hit(self, client: str, what: str = "design") -> None:
        """Count a request. Raises TooMany."""
        # The library counts by the clock on the wall. Where that was set back, what was counted lies in the future and would be held
        # against everyone for as long: counting begins anew.
        drift = time.time() - time.monotonic()
        if drift < self._drift - 1:
            self._storage.reset()
        self._drift = drift
        if not self._window.hit(self._item, what, client):
            left = self._window.get_window_stats(self._item, what, client).reset_time - time.time()
            raise TooMany(max(1, math.ceil(left)), self.rate)


def loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guard:
    """``app`` behind the checks above.

    Args:
        app: an ASGI application.
        token: what a client has to know; None on a loopback address.
        max_body: bytes of a request.
        rate: counts wrong tokens.
    """

    def __init__(self, app: Any, token: str | None, max_body: int, rate: Rate) -> None:
        self.app, self.max_body, self.rate = app, max_body, rate
        self._token = None if token is None else token.encode()
        # A cookie of its own: who reads it off a disk has not the token, and it dies with the server.
        self._session = secrets.token_urlsafe(24)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._stranger(headers)
        if refusal is not None:
            await _refuse(scope, send, 403, refusal)
        elif headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > self.max_body:
            await _refuse(scope, send, 413, self._too_large)
        elif self._token is None or scope["path"] == HEALTH or self._known(headers):
            await self.app(scope, self._counted(receive), _marked(send))
        elif scope["type"] == "http" and await self._login(scope, receive, send):
            pass
        elif scope["path"].startswith("/api/") or scope["path"] == "/openapi.json" or scope["type"] == "websocket":
            words = "this server wants a token; send it as 'Authorization: Bearer TOKEN'"
            await _refuse(scope, send, 401, words, [(b"www-authenticate", b"Bearer")])
        else:
            await _form(send, 401, "")

    def _stranger(self, headers: dict[str, str]) -> str | None:
        """Why a request does not come from this machine's user or this server's page; None where it may."""
        host = headers.get("host", "")
        if self._token is None and not loopback(urlsplit(f"//{host}").hostname or ""):
            return f"this server answers on this machine alone, not as '{html.escape(host[:80])}'; open it as http://localhost"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "this request comes from another web site's page; open this server's own"
        return None

    def _known(self, headers: dict[str, str]) -> bool:
        scheme, _, word = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._right(word.strip()):
            return True
        cookies = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        return any(name == _COOKIE and hmac.compare_digest(value.encode(), self._session.encode()) for name, _, value in cookies)

    def _right(self, word: str) -> bool:
        return hmac.compare_digest(word.encode(), self._token or b"")

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer a token in the link that was printed or in the login form; False where there is none."""
        if scope["path"] == LOGIN and scope["method"] == "POST":
            body = b""
            while len(body) <= _LOGIN_BYTES:
                message = await receive()
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            query = body[:_LOGIN_BYTES]
        elif scope["path"] == "/" and b"token=" in scope["query_string"]:
            query = scope["query_string"]
        else:
            return False
        word = parse_qs(query.decode("latin-1")).get("token", [""])[0]
        try:
            if not self._right(word):
                self.rate.hit(_client(scope), "token")
                await _form(send, 401, "That is not the token.")
                return True
        except TooMany as error:
            await _form(send, 429, str(error))
            return True
        cookie = f"{_COOKIE}={self._session}; HttpOnly; SameSite=Strict; Path=/".encode()
        await _answer(send, 303, b"", b"text/plain", [(b"location", b"/"), (b"set-cookie", cookie)])
        return True

    @property
    def _too_large(self) -> str:
        return f"the request is larger than {self.max_body / 2**20:g} MB; send less, or start the server with a larger --max-body-mb"

    def _counted(self, receive: Receive) -> Receive:
        """``receive`` that refuses a body which turns out too large."""
        seen = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_body:
                from starlette.exceptions import HTTPException

                raise HTTPException(413, self._too_large)
            return message

        return counted


def _client(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else ""


def _marked(send: Send) -> Send:
    async def marked(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        await send(message)

    return marked


async def _answer(send: Send, status: int, body: bytes, kind: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    fields = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers, *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def _refuse(scope: Scope, send: Send, status: int, words: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": words[:120]})
        return
    await _answer(send, status, json.dumps({"error": words}).encode(), b"application/json", headers or [])


async def _form(send: Send, status: int, words: str) -> None:
    """A page that asks for the token, without any script."""
    page = f"""<!doctype html><html lang="en"><meta name="viewport" content="width=device-width, initial-scale=1"><title>metascatter</title>
<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 22rem; margin: 20vh auto; padding: 0 1rem; color: #222">
<h1 style="font-size: 1.4rem">metascatter</h1><p>This server wants the token that was printed where it was started.</p>
<form method="post" action="{LOGIN}"><input type="password" name="token" aria-label="token" autofocus autocomplete="current-password"
 style="font: inherit; width: 100%; box-sizing: border-box; padding: .5rem"><p style="color: #b00020" role="alert">{html.escape(words)}</p>
<button style="font: inherit; padding: .5rem 1.2rem">Open</button></form></body></html>"""
    await _answer(send, status, page.encode(), b"text/html; charset=utf-8", [])
