"""Ports that somebody takes in the moment between the look at them and the server's start."""

from __future__ import annotations

import io
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pinstream_cli.console import Console
from pinstream_cli.errors import CommandError
from pinstream_cli.serving import serving
from pinstream_cli.triton import Endpoints
from tests import onnx_models


class Rival(io.StringIO):
    """A terminal that takes a port with the first line of Triton's log, a second before Triton does."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self.socket = socket.socket()

    def write(self, text: str) -> int:
        if not self.socket.getsockname()[1]:
            self.socket.bind(("127.0.0.1", self._port))
        return super().write(text)


@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_the_error_names_a_port_that_was_taken_meanwhile(tmp_path: Path, service: str) -> None:
    # One service is started after the other: that an earlier one has started says nothing of the rest.
    model = onnx_models.classifier(tmp_path / "classifier.onnx")
    endpoints = Endpoints.free()
    rival = Rival(getattr(endpoints, service))
    with (
        rival.socket,
        pytest.raises(CommandError, match=f"Triton ended .*:{getattr(endpoints, service)}' already in use"),
        serving(model, endpoints=endpoints, console=Console(file=rival, width=200), verbose=True),
    ):
        pass


def test_free_ports_are_none_that_clients_get() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for _ in range(50):
        endpoints = Endpoints.free()
        ports = {endpoints.http, endpoints.grpc, endpoints.metrics}
        assert len(ports) == 3
        assert not any(first <= port <= last for port in ports)
        # Nor such as other processes get by this, which look before this one's server has them.
        assert {(port - first + 12_000) % 64 for port in ports} == {os.getpid() % 64}


def test_threads_that_look_for_free_ports_side_by_side_find_different_ones() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: Endpoints.free(), range(30)))
    assert len({port for endpoints in found for port in (endpoints.http, endpoints.grpc, endpoints.metrics)}) == 90


def test_a_service_that_is_switched_off_in_any_of_tritons_words_is_not_waited_for(classifier: Path) -> None:
    off, console = ["--allow-metrics", "Off"], Console(file=io.StringIO())
    with serving(classifier, endpoints=Endpoints.free(), extra=off, console=console, startup_timeout_s=20):
        pass
