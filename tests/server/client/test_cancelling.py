"""Cancelled calls end at once, and the server hears of them.

What is cancelled here waits at the server, or has only just begun. Of a call that is cancelled at the moment its answer
is there Triton 2.51 crashes (docs/errors.md).
"""

from __future__ import annotations

import asyncio
import os
import time
import urllib.request
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from pinstream_client import AsyncDetector, Cancelled, Detector, ImageLike
from tests.server.client.conftest import LOOSE, TIMEOUT_S, Shown, same, url_of
from tests.server.running import Running

# Fewer than may wait, whatever the machine.
MANY = 30
# As many instances of the preprocess step as `pinstream serve` gives it, each with one such picture and one behind it.
HEAVY = 2 * len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def heavy() -> bytes:
    """A picture of a hundred kilobytes that takes half a second to be decoded."""
    cv2 = pytest.importorskip("cv2")
    pixels: NDArray[np.uint8] = np.full((6000, 6000, 3), 99, np.uint8)
    return bytes(cv2.imencode(".png", pixels)[1])


def metric(server: Running, name: str, label: str) -> float:
    """The sum of a metric over the lines that have that label."""
    text = urllib.request.urlopen(server.metrics_url).read().decode()
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{") and label in line]
    return sum(float(line.split()[-1]) for line in lines)


def cancelled_at(server: Running) -> float:
    """How many requests the server counts as cancelled."""
    return metric(server, "nv_inference_request_failure", 'reason="CANCELED"')


def wait_for_waiting(server: Running, count: int) -> None:
    """Until so many requests wait at the server for an instance."""
    assert soon(lambda: metric(server, "nv_inference_pending_request_count", 'model="yolox_preprocess"') >= count)


def soon(what: Callable[[], bool], patience_s: float = 10.0) -> bool:
    """Whether it becomes true."""
    deadline = time.monotonic() + patience_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_cancelled_futures_end_at_once_and_others_are_answered(
    tiny: Running, protocol: str, noises: list[Shown], heavy: bytes
) -> None:
    before = cancelled_at(tiny)
    with Detector(url_of(tiny, protocol), timeout=TIMEOUT_S) as detector:
        busy = [detector.submit(heavy) for _ in range(HEAVY)]
        wait_for_waiting(tiny, HEAVY // 2)
        others = [detector.submit(noise.pixels, **LOOSE) for noise in noises]
        calls = [detector.submit(noises[0].pixels) for _ in range(MANY)]
        wait_for_waiting(tiny, len(others) + MANY)
        started = time.monotonic()
        assert all(call.cancel() for call in calls)
        assert all(isinstance(call.exception(5), Cancelled) for call in calls)
        took = time.monotonic() - started
        assert not all(call.done() for call in busy), f"the picture is too small for this test, or it took long: {took}"
        for call, noise in zip(others, noises, strict=True):
            assert same(call.result(), noise.found)
        assert not others[0].cancel()
    if protocol == "grpc":
        assert soon(lambda: cancelled_at(tiny) >= before + MANY)


def test_cancelled_task_reaches_the_server(tiny: Running, noises: list[Shown], heavy: bytes) -> None:
    async def run() -> None:
        async with AsyncDetector(url_of(tiny, "grpc"), timeout=TIMEOUT_S) as detector:
            busy = [asyncio.create_task(detector.detect(heavy)) for _ in range(HEAVY)]
            await asyncio.to_thread(wait_for_waiting, tiny, HEAVY // 2)
            tasks = [asyncio.create_task(detector.detect(noises[0].pixels)) for _ in range(MANY)]
            await asyncio.to_thread(wait_for_waiting, tiny, MANY)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
            await asyncio.gather(*busy)

    before = cancelled_at(tiny)
    asyncio.run(run())
    assert soon(lambda: cancelled_at(tiny) >= before + MANY)


def test_stream_that_is_left_cancels_what_is_on_its_way(tiny: Running, noises: list[Shown], heavy: bytes) -> None:
    async def run() -> None:
        async with AsyncDetector(url_of(tiny, "grpc"), timeout=TIMEOUT_S) as detector:
            pictures: list[ImageLike] = [noises[0].pixels, *[heavy] * HEAVY, *[noises[0].pixels] * 500]
            stream = detector.stream(pictures, in_flight=HEAVY + MANY)
            await anext(stream)
            await asyncio.to_thread(wait_for_waiting, tiny, MANY)
            started = time.monotonic()
            await stream.aclose()  # type: ignore[attr-defined]
            assert time.monotonic() - started < 2
            assert same(await detector.detect(noises[1].pixels, **LOOSE), noises[1].found)

    before = cancelled_at(tiny)
    asyncio.run(run())
    assert soon(lambda: cancelled_at(tiny) >= before + MANY)
