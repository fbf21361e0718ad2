"""The command line of `pinstream view`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import webbrowser
from typing import Any

import click
from aiohttp import web
from aiohttp.log import server_logger

from pinstream_cli.detect.connection import connection, connection_options
from pinstream_cli.detect.options import server_options
from pinstream_cli.errors import CommandError
from pinstream_cli.view.app import WithoutClientsFaults, make_app
from pinstream_cli.view.service import Service
from pinstream_client import PinstreamError

# The page shows pictures, and asks for them: it is for this machine alone.
HOST = "127.0.0.1"


@click.command(epilog="Exit codes: 0 stopped with Ctrl-C, 2 a port that is taken or a wrong command line.")
@server_options()
@connection_options
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Of the page; 0: a free one."
)
@click.option("--metrics-url", help="Triton's metrics. [default: port 8002 of the server's host]")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
def view(
    url: str,
    protocol: Any,
    model: str,
    timeout: float,
    port: int,
    metrics_url: str | None,
    open_browser: bool,
    **how: Any,
) -> None:
    """Serve a page that shows what a running server finds.

    Drop a picture on it or use the camera; move the thresholds; watch the server's time and metrics. The page is for
    this machine alone: it listens on 127.0.0.1.

    \b
    Examples:
      pinstream view --open
      pinstream view -u http://gpu-host:8000
      pinstream view -u localhost:9001 --metrics-url http://localhost:9002/metrics --port 0
    """  # noqa: D301 - click's mark for a paragraph that is not to be wrapped
    try:
        client = {"model": model, "timeout": timeout, **connection(**how)}
        service = Service(url, protocol, client, metrics_url)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(service, port, open_browser))
    except (PinstreamError, CommandError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    click.echo("Stopped.", err=True)


async def _serve(service: Service, port: int, open_browser: bool) -> None:
    """Serves until Ctrl-C or SIGTERM."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server_logger.addFilter(WithoutClientsFaults())
    runner = web.AppRunner(make_app(service), access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port, shutdown_timeout=1).start()
        except OSError as error:
            raise CommandError(f"cannot listen on {HOST}:{port} ({error.strerror}): name another with --port") from None
        page = f"http://{HOST}:{runner.addresses[0][1]}/"
        click.echo(f"The page is at {page} and shows {service.address}. Stop with Ctrl-C.", err=True)
        if open_browser:
            webbrowser.open(page)
        await stopped.wait()
    finally:
        await runner.cleanup()
