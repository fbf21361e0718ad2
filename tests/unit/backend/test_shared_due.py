"""The engine's process queues the next batch behind the running one shortly before that ends, and not after it has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pinstream.batching import Request
from pinstream.engines.base import Slot
from pinstream.loop import Loop
from pinstream.tensors import BatchSizes
from tests.host_engine import HostEngine
from tests.served_engine import instance, served

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


def test_the_next_batch_is_queued_before_the_running_one_has_ended() -> None:
    engine = SteadyEngine()

    def work(address: str, number: int) -> None:
        shared = instance(address)
        for turn in range(ROUNDS):
            row = np.full((1, 3), 100 * number + turn, np.float32)
            (answer,) = Loop(shared).run([Request({"row": row}, 1, frozenset({"doubled"}))])
            assert answer.error is None
            np.testing.assert_array_equal(np.asarray(answer.outputs["doubled"]), row * 2)
        shared.close()

    with served(engine) as address, ThreadPoolExecutor(2) as threads:
        list(threads.map(work, [address] * 2, range(2)))
    # None would be if it were started once the end of the one before was seen.
    assert sum(engine.behind) >= len(engine.behind) // 20, engine.behind
