"""What is lost after a batch was computed, by the fault of a later one, is an error of its requests like any other."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from pinstream.batching import Request
from pinstream.dlpack import DeviceArray
from pinstream.engines.base import Slot
from pinstream.errors import EngineError
from pinstream.loop import Loop
from pinstream.shared.client import SharedEngine
from pinstream.shared.files import ModelFiles
from pinstream.shared.server import EngineServer
from pinstream.tensors import Array, BatchSizes
from tests.host_engine import HostEngine, HostSlot
from tests.served_engine import connected

WANTED = frozenset({"doubled"})
FAULT = "CUDA failed while copying an output from the GPU: cudaErrorIllegalAddress"


class OutputsThere(HostEngine):
    """Outputs have to be fetched, as from a GPU. All is lost once rows of width 13 are computed, or of 7 fetched."""

    lost = False

    def _check(self) -> None:
        if self.lost:
            raise EngineError(FAULT)

    def enqueue(self, slot: Slot, wanted: frozenset[str]) -> None:
        self._check()
        super().enqueue(slot, wanted)

    def wait(self, slot: Slot) -> Mapping[str, Array | DeviceArray]:
        doubled = super().wait(slot)["doubled"]
        assert isinstance(doubled, np.ndarray)
        self.lost = self.lost or doubled.shape[-1] == 13
        self._check()
        there = DeviceArray(doubled.ctypes.data, doubled.shape, doubled.dtype, 0, owner=doubled, to_host=self._fetch)
        return {"doubled": there}

    def _fetch(self, array: DeviceArray) -> Array:
        self.lost = self.lost or array.shape[-1] == 7
        self._check()
        assert isinstance(array.owner, np.ndarray)
        return array.owner.copy()


def rows(width: int, items: int = 2) -> Request:
    return Request({"row": np.ones((items, width), np.float32)}, items, WANTED)


def test_outputs_that_are_lost_with_the_next_batch_are_an_error_of_each_request() -> None:
    engine = OutputsThere(BatchSizes((2,)))
    for answer in Loop(engine).run([rows(3), rows(13)]):
        assert str(answer.error) == FAULT
    engine.close()


def test_outputs_that_have_to_be_fetched_at_once_are_an_error_too() -> None:
    engine = OutputsThere(BatchSizes((2,)))
    # More batches than slots: what the first ones gave is fetched when they land.
    answers = Loop(engine).run([rows(7), *(rows(3) for _ in range(5))])
    assert [str(answer.error) for answer in answers] == [FAULT] * 6
    engine.close()


class OutputsKept(OutputsThere):
    """As with a GPU that has room: what a slot is to overwrite is kept there, and nothing is fetched."""

    def wait(self, slot: Slot) -> Mapping[str, Array | DeviceArray]:
        there = super().wait(slot)["doubled"]
        assert isinstance(there, DeviceArray)
        return {"doubled": replace(there, keep=self._keep)}

    def _keep(self, array: DeviceArray) -> DeviceArray:
        assert isinstance(array.owner, np.ndarray)
        kept = array.owner.copy()
        return replace(array, pointer=kept.ctypes.data, owner=kept)


def test_outputs_of_more_batches_than_slots_stay_where_they_are() -> None:
    engine = OutputsKept(BatchSizes((2,)))
    answers = Loop(engine).run([rows(7) for _ in range(6)])
    engine.close()
    for answer in answers:
        found = answer.outputs["doubled"]
        assert isinstance(found, DeviceArray)
        np.testing.assert_array_equal(found.owner, np.full((2, 7), 2, np.float32))
    assert not engine.lost, "one was fetched"


class TimesLost(HostEngine):
    """The times of the batch of this number cannot be read any more."""

    number = 2

    def times(self, slot: Slot) -> Mapping[str, float]:
        assert isinstance(slot, HostSlot)
        if self.batches == self.number:
            raise EngineError(FAULT)
        return {}


def test_times_that_cannot_be_read_fail_their_batch_alone() -> None:
    engine = TimesLost(BatchSizes((2,)), slots=1)
    loop = Loop(engine)
    assert [loop.run([rows(3)])[0].error is None for _ in range(3)] == [True, False, True]
    # Of several, those of the batch are run again.
    engine.number = 5
    assert all(answer.error is None for answer in loop.run([rows(3) for _ in range(3)]))
    engine.close()


def test_times_that_cannot_be_read_do_not_end_a_shared_engine() -> None:
    engine, address = TimesLost(BatchSizes((2,))), f"\0pinstream-test-lost-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        server = threading.Thread(target=EngineServer(engine, listener).serve, args=(10.0,), daemon=True)
        engine.number = 3  # the first request runs twice, since nobody knows yet how wide its rows are
        server.start()
        stays, _ = connected(address)
        shared = SharedEngine(lambda: connected(address), files=ModelFiles(Path(__file__)))
        errors = [Loop(shared).run([rows(3)])[0].error for _ in range(3)]
        shared.close()
        stays.close()
        server.join(10)
    engine.close()
    assert [error and str(error) for error in errors] == [None, FAULT, None]
    assert not server.is_alive()
