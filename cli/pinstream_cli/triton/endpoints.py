"""Where a server listens, and where it is reached."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from pinstream_cli.triton.preflight import resolve

# Reached where one listens on all addresses.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
# The first and last port that Linux gives to outgoing connections.
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
# So many that look for ports side by side, started one after the other, find different ones.
_PROCESSES = 64
# What this process was given of late, and may not have begun to listen on.
_given: deque[int] = deque(maxlen=90)
_giving = threading.Lock()


@dataclass(frozen=True)
class Endpoints:
    """Where the server listens.

    Attributes:
        host: Address; 127.0.0.1 unless told otherwise.
        http: HTTP port.
        grpc: gRPC port.
        metrics: Prometheus port.
        plain_host: Address of HTTP and metrics, which Triton cannot encrypt; empty for `host`.
    """

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    plain_host: str = ""

    @property
    def grpc_url(self) -> str:
        """host:port of gRPC."""
        return _url(self.host, self.grpc)

    @property
    def http_url(self) -> str:
        """host:port of HTTP."""
        return _url(self.plain_host or self.host, self.http)

    @property
    def metrics_url(self) -> str:
        """host:port of the metrics."""
        return _url(self.plain_host or self.host, self.metrics)

    def connections(self) -> dict[str, tuple[str, int]]:
        """Host and port to connect to from this machine, by service as in --allow-http."""
        urls = {"http": self.http_url, "grpc": self.grpc_url, "metrics": self.metrics_url}
        split = {name: url.rpartition(":") for name, url in urls.items()}
        return {name: (host.strip("[]"), int(port)) for name, (host, _, port) in split.items()}

    @classmethod
    def free(cls) -> Endpoints:
        """Three ports of 127.0.0.1 that nobody listens on, nor will by chance before the server does."""
        with contextlib.ExitStack() as stack, _giving:
            ports = [_take_port(stack.enter_context(socket.socket())) for _ in range(3)]
        return cls("127.0.0.1", ports[0], ports[1], ports[2])

    def arguments(self) -> list[str]:
        """As tritonserver's command line has it: its HTTP listens on addresses only, and nowhere for a name.

        Raises:
            CommandError: Nothing knows the host's name.
        """
        host, plain = (resolve(name)[1] for name in (self.host, self.plain_host or self.host))
        # libevhtp wants to be told that an address is IPv6, gRPC wants brackets around it.
        http = f"ipv6:{plain}" if ":" in plain else plain
        grpc = f"[{host}]" if ":" in host else host
        return [
            f"--http-address={http}",
            f"--grpc-address={grpc}",
            f"--metrics-address={http}",
            f"--http-port={self.http}",
            f"--grpc-port={self.grpc}",
            f"--metrics-port={self.metrics}",
        ]


def _take_port(taken: socket.socket) -> int:
    """Bind to a port that outgoing connections never get; to any where there is no such port.

    It is free again before the server has it: processes that look side by side each look among ports of their own, and
    none of these is given again soon.
    """
    first_outgoing = int(_OUTGOING.read_text().split()[0]) if _OUTGOING.exists() else 0
    mine = range(first_outgoing - 12_000 + os.getpid() % _PROCESSES, first_outgoing, _PROCESSES)
    candidates = [port for port in mine if port not in _given] if mine.start > 1024 else []
    for port in random.sample(candidates, min(50, len(candidates))):
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port))
            _given.append(port)
            return port
    taken.bind(("127.0.0.1", 0))
    return int(taken.getsockname()[1])


def _url(host: str, port: int) -> str:
    """host:port to reach a server at from this machine."""
    reached = _LOOPBACK.get(host, host)
    return f"[{reached}]:{port}" if ":" in reached else f"{reached}:{port}"
