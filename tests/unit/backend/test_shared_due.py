"""The engine's process queues the next batch behind the running one shortly before that ends, and not after it has."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pinstream.batching import Request
from pinstream.engines.base import Slot
from pinstream.loop import Loop
from pinstream.shared import wire
from pinstream.shared.client import SharedEngine
from pinstream.shared.files import ModelFiles
from pinstream.shared.server import EngineServer
from pinstream.tensors import BatchSizes
from tests.host_engine import HostEngine

BATCH_S = 0.03
ROUNDS = 20


class SteadyEngine(HostEngine):
    """One batch after the other, each of which takes as long; notes which were queued behind one that was running."""

    def __init__(self) -> None:
        super().__init__(BatchSizes((1, 2, 4)), slots=3, delay_s=BATCH_S)
        self._random.random = lambda: 1.0  # type: ignore[method-assign]  # of the longest delay
        self._fails = lambda: False  # type: ignore[method-assign]
        self._pool = ThreadPoolExecutor(1)
        self.behind: list[bool] = []

    def enqueue(self, slot: Slot, wanted: frozenset[str]) -> None:
        self.behind.append(any(s.flight is not None and not s.flight.done() for s in self._hosts))
        super().enqueue(slot, wanted)


@pytest.fixture
def served() -> Iterator[tuple[SteadyEngine, str]]:
    """An engine served from a thread, and the address that instances find it at."""
    engine, address = SteadyEngine(), f"\0pinstream-test-due-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        server = threading.Thread(target=EngineServer(engine, listener).serve, args=(10.0,))
        server.start()
        # Whoever leaves last waits for the end of the server's process, which is this one.
        stays, _ = connected(address)
        yield engine, address
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


def test_the_next_batch_is_queued_before_the_running_one_has_ended(served: tuple[SteadyEngine, str]) -> None:
    engine, address = served

    def instance(number: int) -> None:
        shared = SharedEngine(lambda: connected(address), files=ModelFiles(Path(__file__)))
        for turn in range(ROUNDS):
            row = np.full((1, 3), 100 * number + turn, np.float32)
            (answer,) = Loop(shared).run([Request({"row": row}, 1, frozenset({"doubled"}))])
            assert answer.error is None
            np.testing.assert_array_equal(np.asarray(answer.outputs["doubled"]), row * 2)
        shared.close()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(instance, range(2)))
    # None would be if it were started once the end of the one before was seen.
    assert sum(engine.behind) >= len(engine.behind) // 4, engine.behind
