"""Runs a real tritonserver for tests, on free ports, the way `pinstream serve` does."""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pinstream_cli.serve import serving
from pinstream_cli.triton import Endpoints, TritonServer


@dataclass(frozen=True)
class Running:
    """A server under test."""

    endpoints: Endpoints
    server: TritonServer
    console: io.StringIO

    @property
    def grpc_url(self) -> str:
        """host:port of gRPC."""
        return f"{self.endpoints.host}:{self.endpoints.grpc}"

    @property
    def http_url(self) -> str:
        """host:port of HTTP."""
        return f"{self.endpoints.host}:{self.endpoints.http}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self.endpoints.host}:{self.endpoints.metrics}/metrics"


def free_endpoints() -> Endpoints:
    """Three ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        ports = [s.getsockname()[1] for s in sockets]
    return Endpoints("127.0.0.1", *ports)


@contextlib.contextmanager
def running(
    model: Path | None = None, *, repositories: Sequence[Path] = (), extra: Sequence[str] = (), name: str | None = None
) -> Iterator[Running]:
    """A server with every model ready; see pinstream_cli.serve.serving."""
    endpoints = free_endpoints()
    text = io.StringIO()
    console = Console(file=text, width=200)
    with serving(
        model,
        name=name,
        repositories=repositories,
        endpoints=endpoints,
        extra=extra,
        console=console,
        verbose=True,
        startup_timeout_s=120,
    ) as server:
        yield Running(endpoints, server, text)
