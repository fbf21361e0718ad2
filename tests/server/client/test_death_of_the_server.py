"""The server is killed in the middle of it all, and comes back: no wrong answer, and every call ends in its time."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pinstream_cli.console import Console
from pinstream_cli.serve import serving
from pinstream_cli.triton import Endpoints, TritonServer
from pinstream_cli.triton.access import Access
from pinstream_client import AsyncDetector, Detector, PinstreamError
from tests.server.client.conftest import LOOSE, Shown, same

OPEN = Access(client_shm=True)
TIMEOUT_S = 3.0
GRACE_S = 1.5  # for a busy machine


@contextlib.contextmanager
def server_at(endpoints: Endpoints, service: Path) -> Iterator[TritonServer]:
    console = Console(file=io.StringIO())
    with serving(service, endpoints=endpoints, console=console, startup_timeout_s=120, access=OPEN) as server:
        yield server


def kill(server: TritonServer) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait(10)


class Outcomes:
    """What became of calls, each held against what it should have been."""

    def __init__(self) -> None:
        self.right = 0
        self.wrong: list[Any] = []
        self.late: list[float] = []
        self.untyped: list[BaseException] = []
        self.errors: set[str] = set()

    def ended(self, started: float, right: bool | None, error: BaseException | None) -> None:
        took = time.monotonic() - started
        if took > TIMEOUT_S + GRACE_S:
            self.late.append(took)
        if error is None:
            self.right += bool(right)
            if not right:
                self.wrong.append(right)
        elif isinstance(error, PinstreamError):
            self.errors.add(type(error).__name__)
        else:
            self.untyped.append(error)

    def assert_honest(self) -> None:
        assert (self.wrong, self.late, self.untyped) == ([], [], [])
        assert self.errors  # else nothing was killed at all


@pytest.mark.parametrize("transport", ["encoded", "shm"])
def test_threads_survive_the_death_of_the_server(tiny_service: Path, transport: Any, noises: list[Shown]) -> None:
    endpoints = Endpoints.free()
    stop = threading.Event()
    outcomes = {"grpc": Outcomes(), "http": Outcomes(), "asyncio": Outcomes()}
    urls = {"grpc": f"grpc://{endpoints.grpc_url}", "http": f"http://{endpoints.http_url}"}

    def keep_calling(detector: Detector, outcome: Outcomes) -> None:
        for one in itertools.cycle(noises):
            if stop.is_set():
                return
            started = time.monotonic()
            try:
                right = same(detector.detect(one.pixels, **LOOSE), one.found)
            except BaseException as error:
                outcome.ended(started, None, error)
                time.sleep(0.02)
            else:
                outcome.ended(started, right, None)

    async def keep_awaiting(detector: AsyncDetector, outcome: Outcomes) -> None:
        for one in itertools.cycle(noises):
            if stop.is_set():
                return
            started = time.monotonic()
            try:
                right = same(await detector.detect(one.pixels, **LOOSE), one.found)
            except Exception as error:
                outcome.ended(started, None, error)
                await asyncio.sleep(0.02)
            else:
                outcome.ended(started, right, None)

    async def asynchronous() -> None:
        async with AsyncDetector(urls["grpc"], timeout=TIMEOUT_S, transport=transport) as detector:
            await asyncio.gather(*(keep_awaiting(detector, outcomes["asyncio"]) for _ in range(3)))

    with contextlib.ExitStack() as stack:
        detectors = {
            protocol: stack.enter_context(Detector(url, timeout=TIMEOUT_S, transport=transport))
            for protocol, url in urls.items()
        }
        callers = [
            threading.Thread(target=keep_calling, args=(detectors[protocol], outcomes[protocol]))
            for protocol in urls
            for _ in range(3)
        ]
        callers.append(threading.Thread(target=lambda: asyncio.run(asynchronous())))
        with server_at(endpoints, tiny_service) as server:
            for detector in detectors.values():
                detector.wait_ready(30)
            for caller in callers:
                caller.start()
            time.sleep(1)
            kill(server)
            time.sleep(0.5)
        rights = [one.right for one in outcomes.values()]
        assert all(rights)
        with server_at(endpoints, tiny_service):
            for detector in detectors.values():
                detector.wait_ready(30)
            time.sleep(2)
            stop.set()
            for caller in callers:
                caller.join()
            # Triton waits half a minute for the end of connections that are open.
            stack.close()
    for outcome, right in zip(outcomes.values(), rights, strict=True):
        outcome.assert_honest()
        assert outcome.right > right, "no call answered after the server came back"
    for detector in detectors.values():
        assert detector.transport == transport
