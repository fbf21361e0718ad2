"""An engine served from a thread of this process, as the engine's process serves it."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pinstream.engines.base import Engine
from pinstream.shared import wire
from pinstream.shared.client import SharedEngine
from pinstream.shared.files import ModelFiles
from pinstream.shared.server import EngineServer

_NUMBERS = itertools.count()


@contextmanager
def served(engine: Engine) -> Iterator[str]:
    """The address that instances find it at; it is closed afterwards."""
    address = f"\0pinstream-test-{os.getpid()}-{next(_NUMBERS)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        server = threading.Thread(target=EngineServer(engine, listener).serve, args=(10.0,))
        server.start()
        # Whoever leaves last waits for the end of the server's process, which is this one.
        stays, _ = connected(address)
        try:
            yield address
        finally:
            stays.close()
            server.join(10)
            engine.close()


def connected(address: str) -> tuple[socket.socket, wire.Message]:
    """A channel to the server, and its greeting."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.connect(address)
    hello, _ = wire.receive(channel)
    assert hello is not None
    return channel, hello


def instance(address: str) -> SharedEngine:
    """The engine as an instance sees it."""
    return SharedEngine(lambda: connected(address), files=ModelFiles(Path(__file__)))


@contextmanager
def served_instance(engine: Engine) -> Iterator[SharedEngine]:
    """`engine` as its one instance sees it."""
    with served(engine) as address:
        seen = instance(address)
        try:
            yield seen
        finally:
            seen.close()
