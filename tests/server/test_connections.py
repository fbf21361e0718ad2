"""Connections that ask for nothing: they take open files, of which there are as many as the machine allows."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from tests.open_files import open_files
from tests.server.serve_process import Serve, ready

HALF_A_REQUEST = b"POST /v2/models/classifier/infer HTTP/1.1\r\nContent-Le"
HALF_A_GREETING = b"PRI * HTTP/2.0\r\n"
FEW = 256


def test_more_idle_connections_than_a_shell_allows_lock_nobody_out(
    start: Callable[..., Serve], classifier: Path
) -> None:
    with open_files(FEW):
        serve = start("--model", classifier)
    serve.wait_for("Stop with Ctrl-C")
    with contextlib.ExitStack() as held:
        held.enter_context(open_files(8 * FEW))
        for port, words in ((serve.endpoints.http, HALF_A_REQUEST), (serve.endpoints.grpc, HALF_A_GREETING)):
            for _ in range(2 * FEW):
                held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)).sendall(words)
        assert ready(serve.endpoints)
    assert ready(serve.endpoints)
