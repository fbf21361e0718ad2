"""Whether a service is ready that several servers make up."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from pinstream_client import Detector, Model, ServerNotReady, ServerUnreachable
from pinstream_client.address import parse_url
from pinstream_client.cluster import Cluster
from pinstream_client.retry import NO_RETRY
from pinstream_client.steps import Ask
from pinstream_client.transport import Deadline
from tests.network import closed_port, http_answer, read_http_request, serving_connections

READY, NOT_READY = http_answer(b""), http_answer(b"", "400 Bad Request")


def saying(answer: bytes) -> Callable[[socket.socket, int], None]:
    def handle(connection: socket.socket, _: int) -> None:
        while read_http_request(connection):
            connection.sendall(answer)

    return handle


def test_one_server_that_has_the_model_ready_is_enough_and_none_is_not() -> None:
    with (
        serving_connections(saying(NOT_READY)) as first,
        serving_connections(saying(READY)) as second,
        closed_port() as closed,
    ):
        urls = [f"http://{netloc}" for netloc in (first, closed, second)]
        with Detector(urls, timeout=5) as detector, Model(urls, "m", timeout=5) as model:
            assert all(detector.is_ready() for _ in urls)
            assert all(model.is_ready() for _ in urls)
        with Model(urls[:2], "m", timeout=5) as model, pytest.raises(ServerNotReady, match=f"{first} and .*{closed}"):
            model.wait_ready(0.1)
        with Model(urls[1:2], "m", timeout=5) as model, pytest.raises(ServerUnreachable):
            model.wait_ready(0.1)


def test_a_server_that_says_yes_takes_part_again() -> None:
    cluster = Cluster([parse_url("http://a:1"), parse_url("http://b:1")], NO_RETRY)
    for server in (0, 1):
        cluster.endpoints.failed(server)
    asking = cluster.any_says(lambda server, left: True, Deadline(5))
    asked = next(asking)
    assert isinstance(asked, Ask)
    with pytest.raises(StopIteration) as end:
        asking.send(True)
    assert end.value.value is True
    assert [cluster.endpoints.pick() for _ in range(2)] == [asked.server] * 2
