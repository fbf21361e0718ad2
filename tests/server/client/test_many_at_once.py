"""One client and many callers: threads, tasks, streams, children."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pinstream_client import AsyncDetector, Detections, Detector, InvalidImage, InvalidRequest
from pinstream_client.connecting import AHEAD
from tests.server.client.conftest import LOOSE, TIMEOUT_S, Shown, same

TRANSPORTS = ("encoded", "shm")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_32_threads_share_a_detector(tiny_url: str, transport: Any, noises: list[Shown]) -> None:
    with Detector(tiny_url, timeout=TIMEOUT_S, transport=transport) as detector, ThreadPoolExecutor(32) as threads:

        def work(number: int) -> bool:
            one = noises[number % len(noises)]
            return same(detector.detect(one.pixels, **LOOSE), one.found)

        assert all(threads.map(work, range(96)))


def test_1000_tasks_share_a_detector(tiny_url: str, noises: list[Shown]) -> None:
    async def run() -> None:
        async with AsyncDetector(tiny_url, timeout=TIMEOUT_S) as detector:
            tasks = [detector.detect(noises[number % len(noises)].pixels, **LOOSE) for number in range(1000)]
            found = await asyncio.gather(*tasks)
        assert all(same(one, noises[number % len(noises)].found) for number, one in enumerate(found))

    asyncio.run(run())


def test_stream_keeps_the_order_and_takes_no_more_than_it_sends(tiny_url: str, noises: list[Shown]) -> None:
    taken = itertools.count()
    last = [0]

    def endless() -> Iterator[NDArray[np.uint8]]:
        while True:
            last[0] = next(taken)
            yield noises[last[0] % len(noises)].pixels

    with Detector(tiny_url, timeout=TIMEOUT_S) as detector:
        stream = detector.stream(endless(), **LOOSE, in_flight=4)
        for number, found in enumerate(itertools.islice(stream, 20)):
            assert same(found, noises[number % len(noises)].found)
            assert last[0] <= number + 4 * AHEAD
        stream.close()  # type: ignore[attr-defined]
        assert same(detector.detect(noises[0].pixels, **LOOSE), noises[0].found)


def test_stream_has_errors_in_their_places(tiny_url: str, noises: list[Shown]) -> None:
    images: list[Any] = [noises[0].pixels, b"no image", "no-such.jpg", noises[1].pixels]
    with Detector(tiny_url, timeout=TIMEOUT_S) as detector:
        first, second, third, fourth = detector.stream(images, **LOOSE, on_error="return")
        assert isinstance(first, Detections)
        assert isinstance(fourth, Detections)
        assert same(fourth, noises[1].found)
        assert isinstance(second, InvalidRequest)
        assert isinstance(third, InvalidImage)
        stream = detector.stream(images, **LOOSE)
        assert same(next(stream), noises[0].found)
        with pytest.raises(InvalidRequest):
            next(stream)
        with pytest.raises(InvalidImage, match="stream takes many images"):
            detector.stream("dog.jpg")
        assert list(detector.stream([])) == []


def test_asyncio_streams_keep_the_order(tiny_url: str, noises: list[Shown]) -> None:
    async def frames() -> AsyncIterator[NDArray[np.uint8]]:
        for number in range(12):
            await asyncio.sleep(0)
            yield noises[number % len(noises)].pixels

    async def run() -> None:
        async with AsyncDetector(tiny_url, timeout=TIMEOUT_S) as detector:
            generator = (noises[number % len(noises)].pixels for number in range(12))
            for source in (frames(), generator):
                number = 0
                async for found in detector.stream(source, **LOOSE, in_flight=4):
                    assert same(found, noises[number % len(noises)].found)
                    number += 1
                assert number == 12

    asyncio.run(run())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_parent_and_child_both_go_on_after_a_fork(tiny_url: str, transport: Any, noises: list[Shown]) -> None:
    with Detector(tiny_url, timeout=TIMEOUT_S, transport=transport) as detector:
        assert same(detector.detect(noises[0].pixels, **LOOSE), noises[0].found)
        # Other threads are in the middle of calls, and hold whatever locks they hold.
        stop = threading.Event()
        wrong: list[int] = []

        def keep_calling() -> None:
            while not stop.is_set():
                if not same(detector.detect(noises[1].pixels, **LOOSE), noises[1].found):
                    wrong.append(1)

        callers = [threading.Thread(target=keep_calling) for _ in range(3)]
        for caller in callers:
            caller.start()
        time.sleep(0.2)
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    calls = [detector.detect(noises[2].pixels, **LOOSE) for _ in range(3)]
                    calls += detector.detect([noises[2].pixels] * 3, **LOOSE)
                    code = 0 if all(same(found, noises[2].found) for found in calls) else 2
                    detector.close()
                finally:
                    os._exit(code)
            children.append(child)
        codes = [_exit_code(child) for child in children]
        stop.set()
        for caller in callers:
            caller.join()
        assert codes == [0, 0, 0]
        assert wrong == []
        assert same(detector.detect(noises[0].pixels, **LOOSE), noises[0].found)


def _exit_code(child: int, patience_s: float = 60) -> int | str:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"
