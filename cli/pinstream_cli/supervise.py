"""Serves until the user ends it, and with --restart through whatever else ends the server or one of its models."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import partial
from typing import NoReturn

from rich.text import Text

from pinstream_cli.console import Console
from pinstream_cli.errors import CommandError
from pinstream_cli.triton import TritonServer
from pinstream_cli.triton.fallback import Fallback
from pinstream_cli.triton.stops import uninterrupted
from pinstream_cli.triton.watchdog import Backoff, Watchdog

# Seconds that the other models get to answer what they have begun where one has died. Where Triton loads a model it may
# call that one ready for as long, and 5 are promised, of which noticing takes up to 1.7.
LAST_ANSWERS_S = 2.5


def serve_until_stopped(
    start: Callable[[], AbstractContextManager[TritonServer]],
    announce: Callable[[Collection[str]], None],
    fallback: Fallback,
    console: Console,
    *,
    restart: bool,
) -> NoReturn:
    """Serve until the user ends it; with `restart` again and again.

    Args:
        start: Starts a server as `fallback` has it.
        announce: Told the models that are ready.
        fallback: Learns from every start and every life.
        console: Where restarts are shown.
        restart: Whether to start again.

    Raises:
        CommandError: It could not start, or without `restart` it has ended.
    """
    backoff, was_ready = Backoff(), False
    while True:
        began = time.monotonic()
        try:
            with start() as server:
                announce(server.loads.models)
                was_ready, began = True, time.monotonic()
                why = Watchdog(server, partial(_show, console, "WARNING")).wait()
                fallback.remember(server.loads)
                # Triton would wait its whole exit timeout for a model that cannot end any more. Who asks to stop
                # meanwhile does not want fewer answers.
                with uninterrupted():
                    server.stop(LAST_ANSWERS_S)
        except CommandError as error:
            # What never started is for the user to put right, not for patience.
            if not (restart and (fallback.learn(error, was_ready=was_ready) or was_ready)):
                raise
            why = str(error)
        if not restart:
            raise CommandError(f"{why}; --restart starts it again, --verbose shows Triton's log")
        _show(console, "RESTART", why)
        backoff.sleep(time.monotonic() - began)


def _show(console: Console, what: str, text: str) -> None:
    console.print(Text(what, "red bold"), text, soft_wrap=True)
