"""The server behind the page: asked for objects, and looked at once a second."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp

from pinstream_cli.detect.connection import told
from pinstream_cli.view.metrics import Metrics, read_metrics
from pinstream_client import AsyncDetector, Detections, ModelTiming, PinstreamError, Statistics

# How often the server is looked at, and how long it may take to answer.
LOOK_S, PATIENCE_S = 1.0, 2.0
_METRICS_PORT = 8002


@dataclass(frozen=True)
class State:
    """What the last look showed.

    Attributes:
        ready: Whether server and model take requests.
        reason: Why not, or "".
        requests_per_s: Answered requests of all clients over the last second.
        timing: The server's time split, averaged over the last second in which there were requests.
        batch: Mean batch size of the detector in that second, or None.
        metrics: Triton's metrics, or None where they are not to be had.
    """

    ready: bool = False
    reason: str = "looking for the server"
    requests_per_s: float = 0.0
    timing: tuple[ModelTiming, ...] = ()
    batch: float | None = None
    metrics: Metrics | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the page reads it."""
        return {
            "ready": self.ready,
            "reason": self.reason,
            "requests_per_s": round(self.requests_per_s, 2),
            "timing": [timing.to_dict() for timing in self.timing],
            "batch": self.batch,
            "metrics": None if self.metrics is None else self.metrics.to_dict(),
        }


@dataclass
class _Counters:
    """What the next look is compared with."""

    at: float = 0.0
    statistics: Statistics | None = None
    metrics: Metrics | None = field(default=None)


class Service:
    """One server's detection service.

    Args:
        url: As `AsyncDetector` takes it.
        protocol: As `AsyncDetector` takes it.
        client: Its other arguments.
        metrics_url: Triton's metrics; port 8002 of the server's host when None.

    Raises:
        InvalidURL: The URL cannot be read.
    """

    def __init__(self, url: str, protocol: Any, client: Mapping[str, Any], metrics_url: str | None = None) -> None:
        self._detector = AsyncDetector(url, protocol, **client)
        # Its own connection and patience, so that a stuck image does not hide the server's state.
        self._looker = AsyncDetector(url, protocol, **{**client, "timeout": PATIENCE_S})
        self.address = str(self._detector.address)
        self.model = self._detector.model
        self.metrics_url = metrics_url or f"http://{_host(self._detector)}:{_METRICS_PORT}/metrics"
        self.state = State()
        self._before = _Counters()

    async def detect(self, image: bytes, conf: float | None, iou: float | None) -> Detections:
        """The objects in an encoded image.

        Raises:
            PinstreamError: As `AsyncDetector.detect` raises it.
        """
        return await self._detector.detect(image, conf=conf, iou=iou)

    async def keep_looking(self) -> None:
        """Keeps `state` up to date, for ever."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session:
            while True:
                started = time.monotonic()
                await self._look(session)
                await asyncio.sleep(max(0.0, LOOK_S - (time.monotonic() - started)))

    async def close(self) -> None:
        """Closes the connections."""
        await self._detector.close()
        await self._looker.close()

    async def _look(self, session: aiohttp.ClientSession) -> None:
        try:
            statistics = await self._ask()
        except PinstreamError as error:
            self.state = replace(self.state, ready=False, reason=told(error), requests_per_s=0.0, metrics=None)
            self._before = _Counters()
            return
        now = _Counters(time.monotonic(), statistics, await self._read_metrics(session))
        self.state = _compared(self.state, self._before, now)
        self._before = now

    async def _ask(self) -> Statistics | None:
        await self._looker.check_ready()
        with contextlib.suppress(PinstreamError):  # some servers do not tell them
            return await self._looker.statistics()
        return None

    async def _read_metrics(self, session: aiohttp.ClientSession) -> Metrics | None:
        try:
            async with session.get(self.metrics_url) as answer:
                answer.raise_for_status()
                return read_metrics(await answer.text(), self.model, f"{self.model}_detector")
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
            return None


def _compared(state: State, before: _Counters, now: _Counters) -> State:
    """The state after a look: rates and averages since the look before."""
    fresh = replace(state, ready=True, reason="", metrics=now.metrics, requests_per_s=0.0)
    if before.statistics is not None and now.statistics is not None:
        timing = now.statistics.since(before.statistics)
        requests = timing[0].requests if timing else 0
        fresh = replace(fresh, requests_per_s=requests / max(now.at - before.at, LOOK_S / 10))
        if requests:
            fresh = replace(fresh, timing=timing)
    if before.metrics is not None and now.metrics is not None:
        executions = now.metrics.executions - before.metrics.executions
        if executions > 0:
            fresh = replace(fresh, batch=round((now.metrics.items - before.metrics.items) / executions, 2))
    return fresh


def _host(detector: AsyncDetector) -> str:
    return detector.address.netloc.rpartition(":")[0]
