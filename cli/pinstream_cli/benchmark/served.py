"""A model behind Triton as a subject: perf_analyzer sends, and the CPU time is told apart by process."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from pinstream_cli.benchmark import perf_analyzer
from pinstream_cli.benchmark.cpu import cpu_times
from pinstream_cli.benchmark.install import Tool
from pinstream_cli.benchmark.perf_analyzer import Load
from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.benchmark.target import Target


@dataclass(frozen=True)
class Transport:
    """A way to the server."""

    name: str
    protocol: str
    shared_memory: bool


TRANSPORTS = {
    "grpc": Transport("gRPC", "grpc", False),
    "grpc+shm": Transport("gRPC, shared memory", "grpc", True),
    "http": Transport("HTTP", "http", False),
    "http+shm": Transport("HTTP, shared memory", "http", True),
}


@dataclass(frozen=True)
class Client:
    """perf_analyzer and the server it is pointed at.

    Attributes:
        tool: The perf_analyzer.
        server: The server.
        keep: Where its raw CSV files are kept, if they are.
        ends: When time is up, by time.monotonic: then no window that was too short is measured again.
    """

    tool: Tool
    server: Target
    keep: Path | None = None
    ends: float = math.inf


class Served:
    """Requests to one model.

    Args:
        client: Who sends, and where to.
        transport: How.
        load: What; its protocol, URL and shared memory follow from the transport.
        name: For the table; the transport's by default.
    """

    def __init__(self, client: Client, transport: Transport, load: Load, name: str = "") -> None:
        url = client.server.url(transport.protocol)
        self._load = replace(load, protocol=transport.protocol, url=url, shared_memory=transport.shared_memory)
        self._client = client
        self._number = count()
        self.name = name or transport.name
        self.batch = load.batch
        self.concurrency = 0 if load.rate else load.concurrency
        self.rate = load.rate
        self._transport = transport
        # What a window has to be at least, as far as is known.
        self._least_s = 0.0

    def measure(self, seconds: float) -> Sample:
        """See sample.Subject."""
        server, model, asked_s = self._client.server, self._load.model, max(seconds, self._least_s)
        images, stages, steps = server.images_served(model), server.stages(model), server.steps(model)
        used = cpu_times()
        sample = perf_analyzer.run(self._client.tool, self._load, asked_s, self._raw_file(), self._client.ends)
        used = cpu_times().since(used)
        if sample.seconds > asked_s:
            self._least_s = sample.seconds
        of_server = {**server.stages(model).means_since(stages), **server.steps(model).means_since(steps)}
        return replace(
            sample,
            cpu_ms=server.cpu_ms_per_image(used, server.images_served(model) - images),
            stages_ms={**sample.stages_ms, **of_server},
        )

    def _raw_file(self) -> Path | None:
        if self._client.keep is None:
            return None
        transport = self._transport.name.lower().replace(", ", "-").replace(" ", "-")
        pace = f"r{self.rate:.0f}" if self.rate else f"c{self.concurrency}"
        name = f"{self._load.model}-{transport}-b{self.batch}-{pace}-{next(self._number)}.csv"
        return self._client.keep / name
