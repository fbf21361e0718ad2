"""One HTTP connection whose exchanges end with their deadline.

What comes in is read by the parser in C that tritonclient[http] brings along; http.client's own costs several times
what all the rest of a call does.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from geventhttpclient.response import HTTPParseError, HTTPResponse

from . import errors
from .address import Address
from .http_calls import Answer
from .options import Options
from .transport import Deadline

_BLOCK = 1 << 16
_MOST_HEAD = 1 << 16  # bytes of the lines before a body
# Up to here one write of header and body together costs less than a second write.
_ONE_WRITE = 1 << 18


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

    def recv(self, *args: Any) -> bytes:
        self.arm()
        return super().recv(*args)  # type: ignore[misc, no-any-return]

    def arm(self) -> None:
        left = self.deadline.left()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left)  # type: ignore[attr-defined]


class DeadlineSocket(_Armed, socket.socket):
    """A socket that keeps a deadline."""


class DeadlineTLSSocket(_Armed, ssl.SSLSocket):
    """The same, encrypted."""


class _Response(HTTPResponse):
    """Of one request, as it comes in."""

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.body = bytearray()

    def _on_body(self, data: bytes | bytearray) -> None:
        self.body += data

    def is_whole(self) -> bool:
        """Whether all of it is here, which an interim answer (1xx) announces only."""
        return self.message_complete and self.get_code() >= 200

    def end(self) -> None:
        """Nothing more will come.

        Raises:
            http.client.HTTPException: Something is missing. That the connection ends is well for a body of no length.
        """
        if not self.message_begun:
            raise http.client.RemoteDisconnected("the connection was closed without an answer")
        with contextlib.suppress(HTTPParseError):
            self.feed(b"")
        if not self.is_whole():
            raise http.client.IncompleteRead(bytes(self.body))


class Connection:
    """A connection to one server; for one thread at a time.

    Args:
        address: The server.
        context: For an encrypted connection.
        options: Of connecting, and how large an answer may be.
    """

    def __init__(self, address: Address, context: ssl.SSLContext | None, options: Options) -> None:
        self._address = address
        self._context = context
        self._connect_timeout = options.connect_timeout
        self._most = options.max_answer_bytes
        self._host = address.netloc if address.netloc.isascii() else address.netloc.encode("idna").decode()
        self._sock: DeadlineSocket | DeadlineTLSSocket | None = None
        self._interrupted = False

    @property
    def is_open(self) -> bool:
        """Whether another exchange can go over it."""
        return self._sock is not None

    def exchange(
        self, deadline: Deadline, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        """Sends a request and reads its answer.

        Raises:
            TimeoutError: The deadline passed.
            OSError, http.client.HTTPException: The connection cannot be made, broke, or leads to no HTTP server.
            AnswerTooLarge: More came than an answer may have.
        """
        sock = self._sock
        if sock is None:
            sock = self._sock = self._connect(deadline)
        if self._interrupted:  # before there was a socket to shut down
            raise ConnectionAbortedError("the call was given up")
        sock.deadline = deadline
        # A server that refuses a large body says why and closes before it has read all: its answer is still to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send(sock, method, path, body or b"", headers)
        response = self._received(sock, _Response(method))
        if response.should_close():
            self.close()
        found = {name.lower(): value for name, value in response.items()}
        return Answer(response.get_code(), found, response.body)

    def interrupt(self) -> None:
        """Ends the exchange that another thread waits for: it fails at once, and the server sees the connection end."""
        self._interrupted = True
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes it. May be called twice."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _received(self, sock: DeadlineSocket | DeadlineTLSSocket, response: _Response) -> _Response:
        received = 0
        while not response.is_whole():
            data = sock.recv(_BLOCK)
            if data:
                response.feed(data)
            else:
                response.end()
            # All that comes counts: lines behind the pieces of a body, and answers before the last, are kept as well.
            received += len(data)
            if received > self._most + _MOST_HEAD or len(response.body) > self._most:
                raise errors.too_large(self._address, self._most)
            if received > _MOST_HEAD and not response.headers_complete:
                raise http.client.HTTPException(f"more than {_MOST_HEAD} bytes of headers")
        return response

    def _send(
        self, sock: DeadlineSocket | DeadlineTLSSocket, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> None:
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._host}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "\r\n"]).encode()
        if len(body) <= _ONE_WRITE:
            sock.sendall(head + body)
        else:
            sock.sendall(head)
            sock.sendall(body)

    def _connect(self, deadline: Deadline) -> DeadlineSocket | DeadlineTLSSocket:
        """A socket connected to the first of the host's addresses that answers."""
        limit = self._connect_timeout
        if limit is None or limit >= deadline.left():
            return self._connected(deadline)
        try:
            return self._connected(Deadline(limit))
        except TimeoutError:
            raise ConnectTimeout(f"no connection within {limit:g} s") from None

    def _connected(self, deadline: Deadline) -> DeadlineSocket | DeadlineTLSSocket:
        failure: OSError = OSError("the host has no address")
        for family, kind, _, _, target in socket.getaddrinfo(
            self._address.host, self._address.port, type=socket.SOCK_STREAM
        ):
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
        wrapped = self._context.wrap_socket(sock, server_hostname=self._address.host, do_handshake_on_connect=False)
        assert isinstance(wrapped, DeadlineTLSSocket)
        wrapped.deadline = deadline
        try:
            wrapped.arm()
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped
