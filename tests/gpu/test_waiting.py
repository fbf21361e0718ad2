"""What waits for the GPU keeps its core busy where that was asked for, and sleeps otherwise."""

from __future__ import annotations

import time
from typing import Any

import pytest

NBYTES = 1 << 30
FILLS = 200


@pytest.mark.parametrize(("spin", "least", "most"), [(True, 0.6, 1.5), (False, 0.0, 0.4)], ids=["polling", "asleep"])
def test_an_event_is_waited_for_as_it_was_made(flavour: Any, spin: bool, least: float, most: float) -> None:
    from pinstream import cuda

    cuda.set_device(0)
    stream, event, memory = cuda.Stream(), cuda.Event(spin), cuda.DeviceAllocation(NBYTES)
    shares = []
    for _ in range(5):
        for _ in range(FILLS):
            cuda.fill_async(memory.pointer, 0, NBYTES, stream)
        event.record(stream)
        began, busy = time.perf_counter(), time.thread_time()
        event.synchronize("waiting in a test")
        shares.append((time.thread_time() - busy) / (time.perf_counter() - began))
    memory.free()
    event.destroy()
    stream.destroy()
    # The share of the time that this thread has had a core for itself.
    assert least <= sorted(shares)[2] <= most, shares
