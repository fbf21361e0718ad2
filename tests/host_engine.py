"""An engine for tests of the loop: multiplies rows in host memory, late, and fails where it is told to.

It is an Engine like any other, with slots of its own, and stricter than the real ones: whatever would be a race on a
GPU is an AssertionError here, and memory that must not be read any more is overwritten at once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pinstream.dlpack import DeviceArray
from pinstream.engines.base import Engine, Slot
from pinstream.errors import EngineError
from pinstream.tensors import Array, BatchSizes, ModelSpec, TensorSpec

# By output.
FACTORS = {"doubled": 2, "tripled": 3}
POISON = -1.0
NOT_THERE = np.float32(np.nan)


class HostSlot:
    """One batch's buffers, with a note of what is going on in them."""

    def __init__(self, fails: Callable[[], bool] = lambda: False) -> None:
        self._fails = fails
        self.rows: Array = np.empty(0, np.float32)
        self.outputs: dict[str, Array] = {}
        self.flight: Future[None] | None = None
        # As copies to a GPU read what was put, until the batch is done or abandoned.
        self.reading = False

    def begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        assert self.flight is None, "begun while in flight"
        assert not self.reading, "begun while the sources of its last batch were read"
        # What was handed out of this slot as a view shows that it is stale.
        for output in self.outputs.values():
            output[...] = NOT_THERE
        self.rows = np.full(shapes["row"], NOT_THERE, np.float32)

    def put(self, name: str, source: Array | DeviceArray, offset: int | None) -> None:
        assert self.flight is None, "filled while in flight"
        assert isinstance(source, np.ndarray)
        if self._fails():
            raise EngineError("could not be copied")
        self.reading = True
        part = self.rows if offset is None else self.rows[offset : offset + len(source)]
        assert np.isnan(part).all(), "two parts in one place"
        part[...] = source

    def cut(self, size: int) -> None:
        self.rows = self.rows[:size]


class HostEngine(Engine):
    """FP32 `row` [batch, width] -> FP32 `doubled`, `tripled` [batch, width], of which there are those wanted.

    Args:
        sizes: The batch sizes; None for a model without a batch dimension, whose rows are [width].
        slots: How many.
        seed: Of the delays and failures.
        delay_s: Longest time a batch takes.
        failures: Share of the calls that fail, of put, enqueue and wait each.
        crash: The call of this number, of put, enqueue and wait together, raises a RuntimeError; 0 for none.
    """

    def __init__(
        self,
        sizes: BatchSizes | None,
        slots: int = 2,
        *,
        seed: int = 0,
        delay_s: float = 0.0,
        failures: float = 0.0,
        crash: int = 0,
    ) -> None:
        width = (-1,)
        outputs = tuple(TensorSpec(name, "FP32", width) for name in FACTORS)
        self.spec = ModelSpec((TensorSpec("row", "FP32", width),), outputs, sizes)
        self._hosts = [HostSlot(lambda: self._fails()) for _ in range(slots)]
        self.slots = self._hosts
        self._random = random.Random(seed)
        self._delay_s = delay_s
        self._failures = failures
        self.crash = crash
        self._calls = 0
        self._pool = ThreadPoolExecutor(slots)
        self._lock = threading.Lock()
        self.batches = 0

    @property
    def in_flight(self) -> int:
        """Slots whose batch nobody has waited for."""
        return sum(slot.flight is not None for slot in self._hosts)

    def enqueue(self, slot: Slot, wanted: frozenset[str]) -> None:
        assert isinstance(slot, HostSlot)
        assert slot.flight is None, "enqueued twice"
        if self._fails():
            raise EngineError("could not be started")
        with self._lock:
            delay = self._random.random() * self._delay_s
        slot.flight = self._pool.submit(self._multiply, slot, wanted, delay)

    def abandon(self, slot: Slot) -> None:
        assert isinstance(slot, HostSlot)
        assert slot.flight is None, "abandoned while in flight"
        slot.reading = False

    def _multiply(self, slot: HostSlot, wanted: frozenset[str], delay: float) -> None:
        if delay:
            time.sleep(delay)
        slot.outputs = {name: slot.rows * np.float32(FACTORS[name]) for name in wanted}

    def finished(self, slot: Slot) -> bool:
        assert isinstance(slot, HostSlot)
        assert slot.flight is not None, "asked about without a batch"
        return slot.flight.done()

    def wait(self, slot: Slot) -> Mapping[str, Array | DeviceArray]:
        assert isinstance(slot, HostSlot)
        assert slot.flight is not None, "waited for without a batch"
        slot.flight.result()
        slot.flight = None
        slot.reading = False
        self.batches += 1
        if self._fails():
            raise EngineError("failed at random")
        if (slot.rows == POISON).any():
            raise EngineError("poisoned")
        return slot.outputs

    def _fails(self) -> bool:
        """Whether this call fails at random."""
        with self._lock:
            self._calls += 1
            if self._calls == self.crash:
                raise RuntimeError("a fault that nobody thought of")
            return self._random.random() < self._failures

    def close(self) -> None:
        assert not self.in_flight, "closed with batches in flight"
        assert not any(slot.reading for slot in self._hosts), "closed while sources were read"
        self._pool.shutdown()
