"""Cancelled calls end at once, and the server hears of them."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import CancelledError

from pinstream_client import AsyncDetector, Cancelled, Detector
from tests.server.client.conftest import LOOSE, TIMEOUT_S, Shown, same, url_of
from tests.server.running import Running


def cancelled_at(server: Running) -> float:
    """How many requests the server counts as cancelled."""
    text = urllib.request.urlopen(server.metrics_url).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("nv_inference_request_failure")]
    return sum(float(line.split()[-1]) for line in lines if 'reason="CANCELED"' in line)


def soon(what: Callable[[], bool], patience_s: float = 10.0) -> bool:
    """Whether it becomes true."""
    deadline = time.monotonic() + patience_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_cancelled_future_reaches_the_server(tiny: Running, noises: list[Shown]) -> None:
    before = cancelled_at(tiny)
    with Detector(url_of(tiny, "grpc"), timeout=TIMEOUT_S) as detector:
        detector.detect(noises[0].pixels)
        # How many wait at the server just then is up to the machine: a round may find none.
        assert any(cancel_many(detector, noises) and soon(lambda: cancelled_at(tiny) > before, 2) for _ in range(8))
        assert same(detector.detect(noises[1].pixels, **LOOSE), noises[1].found)


def cancel_many(detector: Detector, noises: list[Shown]) -> bool:
    """Cancel many calls under way, each of which has to end at once; whether any was cancelled at the server."""
    calls = [detector.submit(noises[0].pixels) for _ in range(200)]
    time.sleep(0.1)
    started = time.monotonic()
    for call in calls:
        call.cancel()
    outcomes = [CancelledError() if call.cancelled() else call.exception(5) for call in calls]
    assert time.monotonic() - started < 5
    assert {type(outcome) for outcome in outcomes} <= {type(None), Cancelled, CancelledError}
    return any(isinstance(outcome, Cancelled) for outcome in outcomes)


def test_cancelled_future_ends_at_once(tiny_url: str, noises: list[Shown]) -> None:
    with Detector(tiny_url, timeout=TIMEOUT_S) as detector:
        detector.detect(noises[0].pixels)
        calls = [detector.submit(noises[number % len(noises)].pixels, **LOOSE) for number in range(300)]
        started = time.monotonic()
        cancelled = [call.cancel() for call in calls]
        for call in calls:
            call.exception(5) if not call.cancelled() else None
        assert time.monotonic() - started < 3
        assert any(cancelled)
        for number, call in enumerate(calls):
            if not call.cancelled() and call.exception() is None:
                assert same(call.result(), noises[number % len(noises)].found)
        assert not calls[0].cancel()


def test_cancelled_task_reaches_the_server(shapes: Running, picture: bytes) -> None:
    async def run() -> None:
        async with AsyncDetector(url_of(shapes, "grpc"), timeout=TIMEOUT_S) as detector:
            await detector.detect(picture)
            tasks = [asyncio.create_task(detector.detect(picture)) for _ in range(60)]
            await asyncio.sleep(0.2)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert any(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)

    before = cancelled_at(shapes)
    asyncio.run(run())
    assert soon(lambda: cancelled_at(shapes) > before)


def test_stream_that_is_left_cancels_what_is_on_its_way(shapes: Running, picture: bytes) -> None:
    async def run() -> None:
        async with AsyncDetector(url_of(shapes, "grpc"), timeout=TIMEOUT_S) as detector:
            stream = detector.stream([picture] * 500, in_flight=60)
            await anext(stream)
            started = time.monotonic()
            await stream.aclose()  # type: ignore[attr-defined]
            assert time.monotonic() - started < 2
            assert len(await detector.detect(picture)) > 0

    before = cancelled_at(shapes)
    asyncio.run(run())
    assert soon(lambda: cancelled_at(shapes) > before)
