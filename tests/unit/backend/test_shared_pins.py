"""Memory shared with the engine's process is unpinned while nothing runs: CUDA waits for all that does."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest

from pinstream.batching import Request
from pinstream.errors import EngineError
from pinstream.loop import Loop
from pinstream.regions import address_of
from pinstream.shared.retired import BYTES, PIECES, RetiredMemory
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


def test_memory_for_one_shape_stays_when_another_comes() -> None:
    engine = PinningEngine()
    with served(engine) as address:
        shared = instance(address)
        for items, width in [(8, 10), (1, 3000)] * 10:
            row = np.ones((items, width), np.float32)
            (answer,) = Loop(shared).run([Request({"row": row}, items, frozenset({"doubled"}))])
            assert answer.error is None
        shared.close()
    assert len(engine.pins) <= 6, engine.pins


def test_what_cannot_be_shared_leaves_the_memory_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PinningEngine()
    with served(engine) as address:
        shared = instance(address)

        def doubled(items: int) -> Array:
            row = np.full((items, 4), items, np.float32)
            (answer,) = Loop(shared).run([Request({"row": row}, items, frozenset({"doubled"}))])
            if answer.error:
                raise answer.error
            return np.array(answer.outputs["doubled"])

        assert (doubled(1) == 2).all()
        with monkeypatch.context() as patch:
            patch.setattr(os, "memfd_create", no_descriptors)
            with pytest.raises(EngineError):
                doubled(8)
        assert (doubled(1) == 2).all()
        assert (doubled(8) == 16).all()
        shared.close()


def no_descriptors(*_: object) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(("size", "pieces"), [(1, PIECES), (BYTES // 4, 4)])
def test_where_nothing_ever_idles_much_is_given_back(size: int, pieces: int) -> None:
    given_back: list[Array] = []
    retired = RetiredMemory(given_back.append)
    for i in range(pieces):
        assert not given_back, i
        retired.add(np.empty(size, np.uint8))
        retired.give_back(idle=False)
    assert len(given_back) == pieces
    retired.give_back(idle=True)
    assert len(given_back) == pieces, "once each"
