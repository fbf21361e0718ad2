"""A model behind Triton as a subject: perf_analyzer sends, and the CPU time is told apart by process."""

from __future__ import annotations

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
    """perf_analyzer, the server it is pointed at, and where its raw CSV files are kept, if they are."""

    tool: Tool
    server: Target
    keep: Path | None = None


class Served:
    """Requests to one model.

    Args:
        client: Who sends, and where to.
        transport: How.
        load: What; its protocol, URL and shared memory follow from the transport.
    """

    def __init__(self, client: Client, transport: Transport, load: Load) -> None:
        url = client.server.url(transport.protocol)
        self._load = replace(load, protocol=transport.protocol, url=url, shared_memory=transport.shared_memory)
        self._client = client
        self._number = count()
        self.name = transport.name
        self.batch = load.batch
        self.concurrency = load.concurrency

    def measure(self, seconds: float) -> Sample:
        """See sample.Subject."""
        server = self._client.server
        images, used = server.images_served(self._load.model), cpu_times()
        row = perf_analyzer.run(self._client.tool, self._load, seconds, self._raw_file())
        used = cpu_times().since(used)
        images = server.images_served(self._load.model) - images
        return replace(perf_analyzer.sample(row), cpu_ms=server.cpu_ms_per_image(used, images))

    def _raw_file(self) -> Path | None:
        if self._client.keep is None:
            return None
        transport = self.name.lower().replace(", ", "-").replace(" ", "-")
        name = f"{self._load.model}-{transport}-b{self.batch}-c{self.concurrency}-{next(self._number)}.csv"
        return self._client.keep / name
