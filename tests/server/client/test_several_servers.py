"""Several URLs: asked in turn, a dead one left out and tried again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from pinstream_client import AsyncDetector, Detector, ServerUnreachable
from pinstream_client.endpoints import FIRST_ABSENCE_S
from tests.network import closed_port, silent_server
from tests.server.client.conftest import LOOSE, TIMEOUT_S, Shown, same
from tests.server.running import Running
from tests.toxic import ToxicProxy, toxic_proxy


@pytest.fixture
def two(tiny: Running, protocol: str) -> Iterator[tuple[ToxicProxy, ToxicProxy]]:
    """Two ways to the server, which can be cut one by one."""
    target = tiny.grpc_url if protocol == "grpc" else tiny.http_url
    with toxic_proxy(target) as first, toxic_proxy(target) as second:
        yield first, second


def test_both_are_asked_and_a_dead_one_is_left_out_until_it_is_back(
    two: tuple[ToxicProxy, ToxicProxy], protocol: str, noises: list[Shown]
) -> None:
    first, second = two
    with Detector([f"{protocol}://{one.netloc}" for one in two], timeout=TIMEOUT_S) as detector:
        for one in noises:
            assert same(detector.detect(one.pixels, **LOOSE), one.found)
        assert first.connections > 0
        assert second.connections > 0
        first.refuse()
        for one in noises:
            assert same(detector.detect(one.pixels, **LOOSE), one.found)
        seen = first.connections
        first.accept()
        second.refuse()
        time.sleep(2 * FIRST_ABSENCE_S)
        for one in noises:
            assert same(detector.detect(one.pixels, **LOOSE), one.found)
        assert first.connections > seen
        first.refuse()
        with pytest.raises(ServerUnreachable):
            detector.detect(noises[0].pixels)


def test_asyncio_leaves_a_dead_one_out_as_well(tiny: Running, protocol: str, noises: list[Shown]) -> None:
    target = tiny.grpc_url if protocol == "grpc" else tiny.http_url

    async def run(dead: str) -> None:
        async with AsyncDetector([dead, target], protocol=protocol, timeout=TIMEOUT_S) as detector:  # type: ignore[arg-type]
            found = await detector.detect([one.pixels for one in noises], **LOOSE)
            assert all(same(left, one.found) for left, one in zip(found, noises, strict=True))
            assert await detector.is_ready()

    with closed_port() as dead:
        asyncio.run(run(dead))


def test_protocols_may_be_mixed(tiny: Running, noises: list[Shown]) -> None:
    with Detector([f"grpc://{tiny.grpc_url}", f"http://{tiny.http_url}"], timeout=TIMEOUT_S) as detector:
        for one in noises:
            assert same(detector.detect(one.pixels, **LOOSE), one.found)
        assert detector.statistics().models["yolox"]["success"].count > 0


def test_host_that_does_not_speak_costs_one_call_and_no_more(tiny: Running, noises: list[Shown]) -> None:
    with silent_server() as silent:
        urls = [f"http://{silent}", f"http://{tiny.http_url}"]
        with Detector(urls, timeout=1) as detector:
            failed = 0
            for one in noises:
                try:
                    assert same(detector.detect(one.pixels, **LOOSE), one.found)
                except TimeoutError:
                    failed += 1
        assert failed <= 2
