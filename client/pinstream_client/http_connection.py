"""One HTTP connection of the standard library whose exchanges end with their deadline."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from .address import Address
from .http_calls import Answer, decompressed
from .transport import Deadline


class ConnectTimeout(OSError):
    """No connection within the time that an attempt has, while the call has more."""


class _Armed:
    """Gives each operation of a socket what is left of the deadline, not the whole timeout anew."""

    deadline: Deadline

    def connect(self, target: Any) -> None:
        self.arm()
        super().connect(target)  # type: ignore[misc]

    def send(self, *args: Any) -> int:
        self.arm()
        return super().send(*args)  # type: ignore[misc, no-any-return]

    def sendall(self, *args: Any) -> None:
        self.arm()
        super().sendall(*args)  # type: ignore[misc]

    def recv_into(self, *args: Any) -> int:
        self.arm()
        return super().recv_into(*args)  # type: ignore[misc, no-any-return]

    def arm(self) -> None:
        left = self.deadline.left()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left)  # type: ignore[attr-defined]


class DeadlineSocket(_Armed, socket.socket):
    """A socket that keeps a deadline."""


class DeadlineTLSSocket(_Armed, ssl.SSLSocket):
    """The same, encrypted."""


class Connection(http.client.HTTPConnection):
    """A connection to one server; for one thread at a time.

    Args:
        address: The server.
        context: For an encrypted connection.
        connect_timeout: Seconds for connecting; None leaves it the call's.
    """

    sock: DeadlineSocket | DeadlineTLSSocket | None

    def __init__(self, address: Address, context: ssl.SSLContext | None, connect_timeout: float | None) -> None:
        super().__init__(address.host, address.port)
        self._context = context
        self._connect_timeout = connect_timeout
        self._deadline = Deadline(0)

    def exchange(
        self, deadline: Deadline, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        """Sends a request and reads its answer.

        Raises:
            TimeoutError: The deadline passed.
            OSError, http.client.HTTPException: The connection cannot be made, broke, or leads to no HTTP server.
        """
        self._deadline = deadline
        if self.sock is not None:
            self.sock.deadline = deadline
        # A server that refuses a large body says why and closes before it has read all: its answer is still to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.request(method, path, body, dict(headers))
        response = self.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        content = response.read()
        try:
            return Answer(response.status, found, decompressed(content, found.get("content-encoding", "")))
        except ValueError as error:
            raise http.client.HTTPException(str(error)) from None

    def connect(self) -> None:
        """Connects to the first of the host's addresses that answers."""
        deadline, limited = self._deadline, False
        if self._connect_timeout is not None and self._connect_timeout < deadline.left():
            deadline, limited = Deadline(self._connect_timeout), True
        try:
            self.sock = self._connected(deadline)
        except TimeoutError:
            if limited:
                raise ConnectTimeout(f"no connection within {self._connect_timeout:g} s") from None
            raise
        self.sock.deadline = self._deadline

    def interrupt(self) -> None:
        """Ends the exchange that another thread waits for: it fails at once, and the server sees the connection end."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def _connected(self, deadline: Deadline) -> DeadlineSocket | DeadlineTLSSocket:
        failure: OSError = OSError("the host has no address")
        for family, kind, _, _, target in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            sock = DeadlineSocket(family, kind)
            sock.deadline = deadline
            try:
                sock.connect(target)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock if self._context is None else self._encrypted(sock, deadline)
            except OSError as error:
                sock.close()
                failure = error
        raise failure

    def _encrypted(self, sock: DeadlineSocket, deadline: Deadline) -> DeadlineTLSSocket:
        assert self._context is not None
        wrapped = self._context.wrap_socket(sock, server_hostname=self.host, do_handshake_on_connect=False)
        assert isinstance(wrapped, DeadlineTLSSocket)
        wrapped.deadline = deadline
        try:
            wrapped.arm()
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped
