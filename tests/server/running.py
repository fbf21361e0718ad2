"""Runs a real tritonserver for tests, on free ports, the way `pinstream serve` does."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pinstream_cli.console import Console
from pinstream_cli.serving import serving
from pinstream_cli.triton import Access, Endpoints, TritonServer

# What most tests need: shared memory from clients, models loaded and unloaded.
OPEN = Access(client_shm=True, control=True)


class Reached(Protocol):
    """A server that requests can be sent to."""

    @property
    def grpc_url(self) -> str:
        """host:port of gRPC."""

    @property
    def http_url(self) -> str:
        """host:port of HTTP."""

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""


@dataclass(frozen=True)
class Running:
    """A server under test."""

    endpoints: Endpoints
    server: TritonServer
    console: io.StringIO

    @property
    def grpc_url(self) -> str:
        """host:port of gRPC."""
        return self.endpoints.grpc_url

    @property
    def http_url(self) -> str:
        """host:port of HTTP."""
        return self.endpoints.http_url

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self.endpoints.host}:{self.endpoints.metrics}/metrics"


@contextlib.contextmanager
def running(
    model: Path | None = None,
    *,
    repositories: Sequence[Path] = (),
    extra: Sequence[str] = (),
    name: str | None = None,
    access: Access = OPEN,
    verify: bool = False,
) -> Iterator[Running]:
    """A server with every model ready; see pinstream_cli.serving."""
    endpoints = Endpoints.free()
    text = io.StringIO()
    console = Console(file=text, width=200)
    with serving(
        model,
        name=name,
        repositories=repositories,
        endpoints=endpoints,
        extra=extra,
        access=access,
        verify=verify,
        console=console,
        verbose=True,
        startup_timeout_s=120,
    ) as server:
        yield Running(endpoints, server, text)
