"""The web server around page and API: its socket, its signals, and an end that loses no answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import BackendError, DataError
from .jobs import Jobs

_GRACE_S = 5  # for answers on their way when all jobs are done


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any that is free.

    Raises:
        DataError: the address is not this machine's, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        # socket.create_server appends the address to the system's words; names that are not found have no number of the system's.
        words = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise DataError(f"cannot listen on {host} port {port}: {words}; choose another --host or --port (0: any)") from None


def address(host: str, sock: socket.socket) -> str:
    """The address to open."""
    return f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"


async def run(app: Any, jobs: Jobs, sock: socket.socket, stop: asyncio.Event, hurry: asyncio.Event, on_ready: Callable[[], None]) -> None:
    """Serve until ``stop``; then refuse what is new, finish what was accepted, and end. ``hurry`` gives that up as well.

    Raises:
        BackendError: the server did not start.
    """
    import uvicorn

    class Server(uvicorn.Server):
        def capture_signals(self) -> Any:
            return contextlib.nullcontext()  # signals are ours: uvicorn would close the door before the work is done

    config = uvicorn.Config(
        app,
        log_config=None,  # to logging, like all the rest
        access_log=False,  # metrics.Watched tells of requests, without their queries
        proxy_headers=False,
        server_header=False,
        ws_max_size=2**20,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started:
        if serving.done():
            serving.result()
            raise BackendError("the web server did not start; the log above says why")
        await asyncio.sleep(0.01)
    on_ready()
    await asyncio.wait({serving, asyncio.create_task(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
    jobs.stop()
    while not serving.done() and not hurry.is_set() and not await asyncio.to_thread(jobs.drain, 0.1):
        pass
    server.should_exit = True
    await serving


def serve(app: Any, jobs: Jobs, sock: socket.socket, on_ready: Callable[[], None], on_stop: Callable[[int], None]) -> None:
    """:func:`run` until SIGINT or SIGTERM; a second one gives up what is at work.

    Args:
        on_ready: called when the first request would be answered.
        on_stop: called at the first signal with the number of jobs that are finished before the end.
    """

    async def main() -> None:
        stop, hurry = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def heard() -> None:
            if stop.is_set():
                hurry.set()
            else:
                on_stop(jobs.load["jobs"])
                stop.set()

        with _signals(lambda: loop.call_soon_threadsafe(heard)):
            await run(app, jobs, sock, stop, hurry, on_ready)

    asyncio.run(main())


@contextlib.contextmanager
def _signals(heard: Callable[[], object]) -> Iterator[None]:
    """``heard`` called at SIGINT and SIGTERM, in the main thread; elsewhere nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: heard()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
