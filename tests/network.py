"""Peers on the network that behave badly, as plain sockets: what a client meets when no Triton is there."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def closed_port() -> Iterator[str]:
    """``127.0.0.1:port`` where nobody listens. The port stays taken, so that nobody else will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """``127.0.0.1:port`` that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def serving_connections(handle: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """``127.0.0.1:port`` that hands each connection and its number to ``handle`` in a thread, and closes it after."""
    stopped = threading.Event()

    def run(connection: socket.socket, number: int) -> None:
        # A client that has given up breaks the connection: no failure of the test.
        with connection, contextlib.suppress(OSError):
            handle(connection, number)

    def accept(listener: socket.socket) -> None:
        number = 0
        while not stopped.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.settimeout(10)
                threading.Thread(target=run, args=(connection, number), daemon=True).start()
                number += 1

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.05)
        thread = threading.Thread(target=accept, args=(listener,), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stopped.set()
            thread.join()


def read_http_request(connection: socket.socket) -> bytes:
    """One HTTP request without a body; b"" when the client has closed the connection."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            return b""
        received += piece
    return received


def http_answer(body: bytes, status: str = "200 OK") -> bytes:
    """A complete HTTP answer that keeps the connection."""
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)
