"""Connections that ask for nothing: they take open files, of which there are as many as the machine allows."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.serve_process import Serve, ready

HALF_A_REQUEST = b"POST /v2/models/classifier/infer HTTP/1.1\r\nContent-Le"
HALF_A_GREETING = b"PRI * HTTP/2.0\r\n"
FEW = 256


@contextlib.contextmanager
def few_files() -> Iterator[None]:
    """Lets what is started have few files open, unless it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_idle_connections_than_a_shell_allows_lock_nobody_out(
    start: Callable[..., Serve], classifier: Path
) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 8 * FEW:
        pytest.skip("no more files may be open here")
    with few_files():
        serve = start("--model", classifier)
    serve.wait_for("Stop with Ctrl-C")
    with contextlib.ExitStack() as held:
        for port, words in ((serve.endpoints.http, HALF_A_REQUEST), (serve.endpoints.grpc, HALF_A_GREETING)):
            for _ in range(2 * FEW):
                held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)).sendall(words)
        assert ready(serve.endpoints)
    assert ready(serve.endpoints)
