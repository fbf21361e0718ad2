"""Broken networks, made by a proxy before a real server: every call answers rightly, or with a typed error in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pinstream_client import AsyncDetector, DeadlineExceeded, Detections, Detector, Retry, ServerUnreachable
from tests.server.client.conftest import LOOSE, TIMEOUT_S, Shown, same
from tests.server.running import Running, running
from tests.toxic import ToxicProxy, toxic_proxy

# What a call may take beyond its timeout on a busy machine.
GRACE_S = 1.0


@pytest.fixture
def proxy(tiny: Running, protocol: str) -> Iterator[ToxicProxy]:
    """A proxy before the server, for each protocol."""
    with toxic_proxy(tiny.grpc_url if protocol == "grpc" else tiny.http_url) as proxy:
        yield proxy


@pytest.fixture
def own_proxy(tiny_service: Path, protocol: str) -> Iterator[ToxicProxy]:
    """The same before a server that nobody else uses: of calls that are given up Triton 2.51 may crash."""
    with running(tiny_service) as server, toxic_proxy(getattr(server, f"{protocol}_url")) as proxy:
        yield proxy


@pytest.fixture
def url(proxy: ToxicProxy, protocol: str) -> str:
    return f"{protocol}://{proxy.netloc}"


def test_delay_costs_time_and_nothing_else(proxy: ToxicProxy, url: str, noises: list[Shown]) -> None:
    proxy.delay_s = 0.03
    with Detector(url, timeout=TIMEOUT_S) as detector:
        found = detector.detect([one.pixels for one in noises], **LOOSE)
        assert all(same(left, one.found) for left, one in zip(found, noises, strict=True))
        assert all((one.round_trip_ms or 0) >= 60 for one in found)


@pytest.mark.parametrize("transport", ["encoded", "shm"])
def test_stall_ends_with_the_timeout(proxy: ToxicProxy, url: str, transport: Any, noises: list[Shown]) -> None:
    with Detector(url, timeout=TIMEOUT_S, transport=transport) as detector:
        detector.detect(noises[0].pixels)
        proxy.stalled = True
        detector.timeout = 0.5
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
            detector.detect(noises[0].pixels)
        assert 0.4 < time.monotonic() - started < 0.5 + GRACE_S
        proxy.stalled = False
        detector.timeout = TIMEOUT_S
        # Answers that come too late belong to nobody.
        for one in noises:
            assert same(detector.detect(one.pixels, **LOOSE), one.found)


def test_stall_ends_with_the_timeout_in_asyncio(proxy: ToxicProxy, url: str, noises: list[Shown]) -> None:
    async def run() -> None:
        async with AsyncDetector(url, timeout=TIMEOUT_S) as detector:
            await detector.detect(noises[0].pixels)
            proxy.stalled = True
            detector.timeout = 0.5
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
                await detector.detect(noises[0].pixels)
            assert 0.4 < time.monotonic() - started < 0.5 + GRACE_S
            proxy.stalled = False
            detector.timeout = TIMEOUT_S
            for one in noises:
                assert same(await detector.detect(one.pixels, **LOOSE), one.found)

    asyncio.run(run())


def test_reset_between_calls_is_not_noticed(proxy: ToxicProxy, url: str, noises: list[Shown]) -> None:
    with Detector(url, timeout=TIMEOUT_S) as detector:
        for one in noises:
            assert same(detector.detect(one.pixels, **LOOSE), one.found)
            proxy.reset()
    assert proxy.connections >= len(noises)


def test_reset_between_calls_is_not_noticed_in_asyncio(proxy: ToxicProxy, url: str, noises: list[Shown]) -> None:
    async def run() -> None:
        async with AsyncDetector(url, timeout=TIMEOUT_S) as detector:
            for one in noises:
                assert same(await detector.detect(one.pixels, **LOOSE), one.found)
                proxy.reset()

    asyncio.run(run())


def test_reset_within_an_answer_is_tried_again_and_then_told(proxy: ToxicProxy, url: str, noises: list[Shown]) -> None:
    retry = Retry(attempts=3, first=0.05)
    with Detector(url, timeout=TIMEOUT_S, retry=retry) as detector:
        detector.detect(noises[0].pixels)
        proxy.reset()
        proxy.reset_after, before = 150, proxy.connections
        with pytest.raises(ServerUnreachable):
            detector.detect(noises[0].pixels)
        assert proxy.connections - before >= 3
        proxy.reset_after = None
        assert same(detector.detect(noises[1].pixels, **LOOSE), noises[1].found)


@pytest.mark.parametrize("transport", ["encoded", "shm"])
def test_half_closed_connections_are_replaced(proxy: ToxicProxy, url: str, transport: Any, noises: list[Shown]) -> None:
    with Detector(url, timeout=TIMEOUT_S, transport=transport) as detector:
        for one in noises[:3]:
            assert same(detector.detect(one.pixels, **LOOSE), one.found)
            proxy.half_close()


def test_resets_at_random_moments_make_no_wrong_answer(
    own_proxy: ToxicProxy, protocol: str, noises: list[Shown]
) -> None:
    with Detector(f"{protocol}://{own_proxy.netloc}", timeout=5, retry=Retry(attempts=5, first=0.02)) as detector:
        calls = []
        for number in range(120):
            calls.append((noises[number % len(noises)], detector.submit(noises[number % len(noises)].pixels, **LOOSE)))
            if number % 15 == 7:
                time.sleep(0.05)
                own_proxy.reset()
        outcomes = {True: 0, False: 0}
        for one, call in calls:
            error = call.exception(timeout=5 + GRACE_S)
            assert error is None or isinstance(error, (ServerUnreachable, DeadlineExceeded)), error
            if error is None:
                assert same(call.result(), one.found)
            outcomes[error is None] += 1
    assert outcomes[True] > 40, outcomes  # how many the eight resets spare is up to the machine


def test_refused_connection_is_told_at_once_and_forgotten_when_it_is_over(
    proxy: ToxicProxy, url: str, noises: list[Shown]
) -> None:
    with Detector(url, timeout=TIMEOUT_S) as detector:
        detector.detect(noises[0].pixels)
        proxy.refuse()
        started = time.monotonic()
        with pytest.raises(ServerUnreachable):
            detector.detect(noises[0].pixels)
        assert time.monotonic() - started < 5
        assert not detector.is_ready()
        proxy.accept()
        detector.wait_ready(timeout=10)
        assert same(detector.detect(noises[0].pixels, **LOOSE), noises[0].found)


def test_retry_never_begins_after_the_deadline(proxy: ToxicProxy, url: str, noises: list[Shown]) -> None:
    with Detector(url, timeout=TIMEOUT_S, retry=Retry(attempts=50, first=0.3, longest=0.3)) as detector:
        detector.detect(noises[0].pixels)
        proxy.refuse()
        detector.timeout = 1.0
        started = time.monotonic()
        with pytest.raises((ServerUnreachable, DeadlineExceeded)):
            detector.detect(noises[0].pixels)
        assert time.monotonic() - started < 1.0 + GRACE_S


def test_server_that_comes_back_within_the_timeout_answers(proxy: ToxicProxy, url: str, noises: list[Shown]) -> None:
    with Detector(url, timeout=20, retry=Retry(attempts=100, first=0.1, longest=0.2)) as detector:
        detector.detect(noises[0].pixels)
        proxy.refuse()
        call = detector.submit(noises[1].pixels, **LOOSE)
        time.sleep(1)
        assert not call.done()
        proxy.accept()
        found = call.result(20)
        assert isinstance(found, Detections)
        assert same(found, noises[1].found)
