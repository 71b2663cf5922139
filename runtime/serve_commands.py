"""``serve``: the page and the JSON API on a local port."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import click

from . import options
from .console import status
from .errors import BackendError


@click.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one of this computer, and needs a token."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any that is free.")
@click.option(
    "--token",
    envvar="METASCATTER_TOKEN",
    show_envvar=True,
    help="Secret that clients send; made and printed where --host needs one and none is given. Other users of this computer see arguments: "
    "better in the variable.",
)
@options.bundle
@options.engine
@options.workers
@click.option("--max-queue", type=click.IntRange(1), default=128, show_default=True, help="Requests waiting and at work; more get 503.")
@click.option("--max-body-mb", type=click.FloatRange(0.01, 1024), default=8.0, show_default=True, help="Larger requests get 413.")
@click.option(
    "--rate", default="60/minute", show_default=True, help="Designs one address may ask for, as N/second, minute or hour; more get 429."
)
def serve(
    host: str,
    port: int,
    token: str | None,
    bundle: Path | None,
    engine: dict[str, Any],
    workers: int | None,
    max_queue: int,
    max_body_mb: float,
    rate: str,
) -> None:
    """A web page to design with, for desk and phone, and a JSON API on the same port.

    It listens to this computer alone, and nobody logs in, unless --host opens it to the network: then everybody needs the token. There is
    no encryption: outside a network you trust, put it behind a proxy with TLS or an SSH tunnel. Ctrl-C or SIGTERM finishes the requests
    that were accepted, then ends; a second one gives them up.

    \b
    metascatter serve
    metascatter serve --port 0 --backend onnxruntime
    METASCATTER_TOKEN=... metascatter serve --host 0.0.0.0 --rate 20/minute
    curl -s localhost:8765/api/v1/designs -H 'Content-Type: application/json' \\
         -d '{"target": {"preset": "deflector"}, "n": 16}'
    """
    try:
        import fastapi  # noqa: F401
        import limits  # noqa: F401
        import matplotlib  # noqa: F401  # of the extra 'lab', which 'ui' contains
        import nicegui  # noqa: F401
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"serve needs NiceGUI, limits, matplotlib and prometheus-client ({error}); pip install 'metascatter[ui]'"
        ) from None
    from .serve import api, page, server
    from .serve.guard import LEAST_TOKEN, Guard, Rate, loopback
    from .serve.jobs import Jobs
    from .serve.metrics import Metrics, Watched

    if token is not None and len(token) < LEAST_TOKEN:
        raise click.UsageError(f"the token has {len(token)} characters; give at least {LEAST_TOKEN}, or none and one is made")
    try:
        limit = Rate(rate)
    except ValueError:
        raise click.UsageError(f"--rate is '{rate}'; write it as 60/minute") from None
    made = token is None and not loopback(host)
    token = secrets.token_urlsafe(24) if made else token
    sock = server.bind(host, port)
    with sock, Jobs(bundle, engine, max_queue, workers) as jobs:
        metrics = Metrics(jobs)
        app = api.create(jobs, limit, token is not None, metrics.text)
        page.add(app, jobs, limit, int(max_body_mb * 2**20))
        guarded = Watched(Guard(app, token, int(max_body_mb * 2**20), limit), metrics)
        where = server.address(host, sock)

        def ready() -> None:
            click.echo(f"{where}/{f'?token={token}' if made else ''}")
            status(f"{jobs.sampler.bundle.path.name} by {jobs.sampler.choice}; API at {where}{api.DESIGNS}, schema at {where}/openapi.json")

        def stopping(left: int) -> None:
            many = "1 accepted request is" if left == 1 else f"{left} accepted requests are"
            status(f"Stopping when {many} done; Ctrl-C again gives up." if left else "Stopping.")

        server.serve(guarded, jobs, sock, ready, stopping)
