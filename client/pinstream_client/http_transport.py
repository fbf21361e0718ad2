"""HTTP for threads."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

from . import errors
from .address import Address
from .http_calls import Answer, HttpCalls, Question
from .http_connection import Connection, DeadlineTLSSocket
from .options import Options
from .tls import tls_context
from .transport import Deadline, InferRequest


class HttpTransport(HttpCalls):
    """A pool of keep-alive connections to one server: each call takes one, or opens one."""

    def __init__(self, address: Address, options: Options) -> None:
        super().__init__(address, options)
        self._context = None if not address.secure else tls_context(options.tls, DeadlineTLSSocket)
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False

    def close(self) -> None:
        """See `Transport`."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def abandon(self) -> None:
        """See `Transport`."""
        # Closing a descriptor says nothing to the server as long as the parent has its own.
        for connection in self._idle:
            connection.close()

    def _call(
        self, question: Question, read: Callable[[Answer], Any], timeout: float, request: InferRequest | None = None
    ) -> Any:
        body, headers = self._prepared(question)
        cancellation = request.cancellation if request is not None else None

        def on(connection: Connection) -> Answer:
            guard = contextlib.nullcontext() if cancellation is None else cancellation.cancelling(connection.interrupt)
            with guard:
                return self._on(connection, deadline, question, body, headers)

        deadline = Deadline(timeout)
        try:
            answer = self._on_some_connection(on)
        except (OSError, http.client.HTTPException) as error:
            if cancellation is not None and cancellation.cancelled:
                raise errors.cancelled(self.address) from None
            raise self._typed(error, timeout) from None
        if "content-encoding" in answer.headers:
            answer = self._decoded(answer, headers["accept-encoding"], deadline)
        return self._understood(answer, read)

    def _on_some_connection(self, on: Callable[[Connection], Answer]) -> Answer:
        connection = self._take()
        if connection is not None:
            try:
                return on(connection)
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException):
                pass  # the server closed the idle connection meanwhile: that is no failure, a new one will do
        return on(Connection(self.address, self._context, self._options))

    def _on(
        self,
        connection: Connection,
        deadline: Deadline,
        question: Question,
        body: bytes | None,
        headers: dict[str, str],
    ) -> Answer:
        try:
            answer = connection.exchange(deadline, question.method, question.path, body, headers)
        except BaseException:  # whatever it was, an answer may still be on its way: this connection is spent
            connection.close()
            raise
        self._give_back(connection)
        return answer

    def _typed(self, error: Exception, timeout: float) -> errors.PinstreamError:
        if isinstance(error, errors.PinstreamError):
            return error
        if isinstance(error, TimeoutError):
            return errors.deadline_exceeded(self.address, timeout)
        if isinstance(error, socket.gaierror):
            return errors.unreachable(self.address, "the host name is not known", transient=False)
        if isinstance(error, ssl.SSLCertVerificationError):
            return errors.unreachable(self.address, error.verify_message or str(error), transient=False)
        if isinstance(error, OSError):
            return errors.unreachable(self.address, error.strerror or str(error))
        if isinstance(error, http.client.IncompleteRead):
            return errors.unreachable(self.address, "the connection broke within the answer")
        return errors.unreachable(self.address, "what answers there does not speak HTTP", transient=False)

    def _take(self) -> Connection | None:
        with self._lock:
            if self._closed:
                raise errors.unreachable(self.address, "this client is closed", transient=False)
            return self._idle.pop() if self._idle else None

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            if not self._closed and connection.is_open:
                self._idle.append(connection)
                return
        connection.close()
