"""The bare loops that serving is held against."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import pytest

from pinstream.dlpack import DeviceArray
from pinstream.engines.base import Slot
from pinstream.tensors import Array, BatchSizes
from pinstream_cli.benchmark.bare import EngineLoop, run_in_threads
from tests.host_engine import HostEngine, HostSlot


def test_a_thread_that_is_done_sooner_does_not_count_as_idle() -> None:
    # One run each, of 50 ms and of 300: 20 and 3.3 runs a second.
    durations = iter([0.05, 0.3])
    sample = run_in_threads(lambda: time.sleep(next(durations)), batch=1, threads=2, seconds=0.04)
    assert sample.images_per_s == pytest.approx(1 / 0.05 + 1 / 0.3, rel=0.2)


class NotingSlot(HostSlot):
    """Notes where what is put in lies."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[Array] = []

    def put(self, name: str, source: Array | DeviceArray, offset: int | None) -> None:
        assert isinstance(source, np.ndarray)
        self.sources.append(source)
        super().put(name, source, offset)


class NotingEngine(HostEngine):
    """Notes what is page-locked, and how many batches were under way at most."""

    def __init__(self) -> None:
        super().__init__(BatchSizes((1, 2)), slots=3, delay_s=0.002)
        self._hosts = self.slots = [NotingSlot() for _ in range(3)]  # type: ignore[assignment]
        self.pinned: list[Array] = []
        self.most = 0

    def pin(self, memory: Array) -> None:
        self.pinned.append(memory)

    def wait(self, slot: Slot) -> Mapping[str, Array | DeviceArray]:
        self.most = max(self.most, self.in_flight)
        return super().wait(slot)


def test_a_lone_loop_copies_its_input_for_each_run_and_has_one_under_way() -> None:
    engine = NotingEngine()
    row = np.arange(3, dtype=np.float32)[None]
    lone = EngineLoop(engine, {"row": row}, 1).one_at_a_time()
    sample = lone.measure(0.1)
    assert (engine.most, lone.concurrency, lone.batch) == (1, 1, 1)
    sources = [source for slot in engine._hosts for source in slot.sources]  # type: ignore[attr-defined]
    assert len(sources) == engine.batches > 10
    # As a request in shared memory, it lies where the GPU reads it by itself.
    assert all(np.shares_memory(source, engine.pinned[0]) for source in sources)
    np.testing.assert_array_equal(sources[0], row)
    assert sample.p50_ms == pytest.approx(1e3 / sample.images_per_s, rel=0.5)
