"""``serve`` as a user calls it: what it refuses in a sentence, what it prints, and when it makes a token."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from runtime.commands import group
from runtime.serve import page, server
from runtime.serve.guard import Guard
from runtime.serve.metrics import Watched


@pytest.fixture
def call(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, list[Guard]]]:
    """Run the command until the first request would be answered; the applications that would answer."""
    pytest.importorskip("nicegui")
    monkeypatch.delenv("METASCATTER_TOKEN", raising=False)

    def call(*options: object) -> tuple[Result, list[Guard]]:
        served: list[Guard] = []

        def serve(app: Watched, jobs: Any, sock: socket.socket, on_ready: Callable[[], None], on_stop: Callable[[int], None]) -> None:
            served.append(app.app)
            on_ready()
            on_stop(0)

        monkeypatch.setattr(server, "serve", serve)
        monkeypatch.setattr(page, "add", lambda *_: None)  # NiceGUI has one application a process; test_serve_load asks for its page
        command = ["serve", "--port", "0", "--bundle", str(small_bundle), "--backend", "onnxruntime", *map(str, options)]
        return CliRunner().invoke(group, command), served

    return call


def test_on_this_machine_it_prints_where_and_wants_no_token(call: Callable[..., tuple[Result, list[Guard]]]) -> None:
    done, [app] = call()
    assert done.exit_code == 0, done.output
    where = done.stdout.strip()
    assert where.startswith("http://127.0.0.1:")
    assert where.endswith("/")
    assert "small by onnxruntime on cpu in fp32" in done.stderr
    assert f"{where}api/v1/designs" in done.stderr
    assert app._token is None


def test_beyond_it_a_token_is_made_and_printed_or_taken(
    call: Callable[..., tuple[Result, list[Guard]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, [app] = call("--host", "0.0.0.0")
    assert app._token is not None
    assert done.stdout.strip().endswith(f"/?token={app._token.decode()}")
    assert len(app._token) == 32
    _, [other] = call("--host", "0.0.0.0")
    assert other._token != app._token
    monkeypatch.setenv("METASCATTER_TOKEN", "sixteen letters.")
    done, [app] = call("--host", "0.0.0.0")
    assert app._token == b"sixteen letters."
    assert "sixteen" not in done.output, "who gave it knows it"
    assert call()[1][0]._token == b"sixteen letters.", "and on this machine, where it is given"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--token", "short"), "the token has 5 characters; give at least 16"),
        (("--rate", "often"), "--rate is 'often'; write it as 60/minute"),
        (("--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid port 0"),
        (("--max-queue", "0"), "0 is not in the range"),
        (("--bundle", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    options: tuple[str, ...], sentence: str, call: Callable[..., tuple[Result, list[Guard]]]
) -> None:
    done, served = call(*options)
    assert (done.exit_code, done.stdout, served) == (2, "", [])
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(call: Callable[..., tuple[Result, list[Guard]]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done, _ = call("--port", taken.getsockname()[1])
    assert done.exit_code == 2
    assert "Address already in use; choose another --host or --port (0: any)" in done.stderr


def test_without_the_extra_it_says_what_to_install(
    call: Callable[..., tuple[Result, list[Guard]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "limits", None)
    done, _ = call()
    assert done.exit_code == 1
    assert "pip install 'metascatter[ui]'" in done.stderr


def test_help_has_examples() -> None:
    text = CliRunner().invoke(group, ["serve", "--help"]).stdout
    assert "metascatter serve --port 0" in text
    for option in ("--host", "--port", "--token", "--bundle", "--backend", "--max-queue", "--max-body-mb", "--rate"):
        assert option in text
