"""Memory shared with the engine's process is unpinned while nothing runs: CUDA waits for all that does."""

from __future__ import annotations

import threading

import numpy as np

from pinstream.batching import Request
from pinstream.loop import Loop
from pinstream.regions import address_of
from pinstream.tensors import Array, BatchSizes
from tests.host_engine import HostEngine
from tests.served_engine import instance, served


class PinningEngine(HostEngine):
    """Notes what is pinned, and what was unpinned while a batch ran."""

    def __init__(self) -> None:
        super().__init__(BatchSizes((1, 2, 4, 8)), slots=3, delay_s=0.01)
        self.pinned: dict[int, int] = {}
        self.pins: list[int] = []
        self.unpinned_early = 0

    def pin(self, memory: Array) -> None:
        self.pinned[address_of(memory)] = memory.nbytes
        self.pins.append(memory.nbytes)

    def unpin(self, memory: Array) -> None:
        self.unpinned_early += bool(self.in_flight)
        assert self.pinned.pop(address_of(memory)) == memory.nbytes


def ask(address: str, sizes: list[int], width: int = 3) -> None:
    shared = instance(address)
    for items in sizes:
        row = np.full((items, width), items, np.float32)
        (answer,) = Loop(shared).run([Request({"row": row}, items, frozenset({"doubled"}))])
        assert answer.error is None
        np.testing.assert_array_equal(np.asarray(answer.outputs["doubled"]), row * 2)
    shared.close()


def test_what_a_slot_has_outgrown_is_unpinned_when_nothing_runs() -> None:
    engine = PinningEngine()
    with served(engine) as address:
        busy = threading.Thread(target=ask, args=(address, [1] * 60))
        busy.start()
        ask(address, [1, 2, 3, 4, 5, 6, 7, 8], width=200)
        busy.join()
    assert engine.unpinned_early == 0
    assert engine.pins
    assert engine.pinned == {}, "the last instance has gone"


def test_memory_grows_by_doubling() -> None:
    engine = PinningEngine()
    with served(engine) as address:
        ask(address, [1, 1, 2, 3, 4, 5, 6, 7, 8], width=1000)
    # Once empty, and for each number of items once for the inputs, and once as outputs show how large they are.
    assert len(engine.pins) <= 1 + 2 * len({1, 2, 4, 8}), engine.pins
