"""HTTP, on the standard library's connections.

tritonclient builds and reads the bodies; its HTTP client itself is left aside. That one belongs to a single thread (its
sockets hang on one gevent hub), and its timeouts count each socket operation anew, so that a call has no deadline.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import tritonclient.http as triton_http
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from . import errors
from .address import Address
from .transport import Deadline, InferRequest, Json, infer_tensors

_HEADER_LENGTH = "Inference-Header-Content-Length"
# What Triton's HTTP front end answers, in the names of gRPC.
_CODES = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 413: "INVALID_ARGUMENT", 499: "CANCELLED", 503: "UNAVAILABLE"}


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpTransport:
    """A pool of keep-alive connections to one server: each call takes one, or opens one."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._closed = False

    def infer(self, request: InferRequest, timeout: float) -> dict[str, NDArray[Any]]:
        """See `Transport`."""
        try:
            inputs, outputs = infer_tensors(triton_http, request)
            body, header_length = triton_http.InferenceServerClient.generate_request_body(
                inputs, outputs=outputs, parameters=dict(request.parameters)
            )
        except InferenceServerException as error:
            raise errors.InvalidRequest(errors.first_line(error.message())) from None
        headers = {} if header_length is None else {_HEADER_LENGTH: str(header_length)}
        answer = self._ask("POST", f"/v2/models/{quote(request.model)}/infer", timeout, request.model, body, headers)
        length = answer.headers.get(_HEADER_LENGTH)
        try:
            result = triton_http.InferenceServerClient.parse_response_body(
                answer.body, header_length=None if length is None else int(length)
            )
            return {name: result.as_numpy(name) for name in request.outputs}
        except (ValueError, KeyError, TypeError) as error:
            raise errors.unreachable(self.address, f"the answer is not Triton's: {error}") from None

    def server_ready(self, timeout: float) -> bool:
        """See `Transport`."""
        return self._exchange("GET", "/v2/health/ready", timeout).status == 200

    def model_ready(self, model: str, timeout: float) -> bool:
        """See `Transport`."""
        return self._exchange("GET", f"/v2/models/{quote(model)}/ready", timeout).status == 200

    def model_metadata(self, model: str, timeout: float) -> Json:
        """See `Transport`."""
        metadata: Json = self._ask_json("GET", f"/v2/models/{quote(model)}", timeout, model)
        return metadata

    def model_config(self, model: str, timeout: float) -> Json:
        """See `Transport`."""
        config: Json = self._ask_json("GET", f"/v2/models/{quote(model)}/config", timeout, model)
        return config

    def repository_index(self, timeout: float) -> list[Json]:
        """See `Transport`."""
        models: list[Json] = self._ask_json("POST", "/v2/repository/index", timeout)
        return models

    def statistics(self, timeout: float) -> Json:
        """See `Transport`."""
        statistics: Json = self._ask_json("GET", "/v2/models/stats", timeout)
        return statistics

    def close(self) -> None:
        """See `Transport`."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _ask_json(self, method: str, path: str, timeout: float, model: str = "") -> Any:
        answer = self._ask(method, path, timeout, model)
        try:
            return json.loads(answer.body)
        except ValueError as error:
            raise errors.unreachable(self.address, f"the answer is not Triton's: {error}") from None

    def _ask(
        self, method: str, path: str, timeout: float, model: str, body: bytes = b"", headers: Mapping[str, str] = {}
    ) -> _Answer:
        """An exchange whose status has to be 200."""
        answer = self._exchange(method, path, timeout, body, headers)
        if answer.status != 200:
            code = _CODES.get(answer.status, f"HTTP {answer.status}")
            raise errors.from_status(code, _error_text(answer), self.address, model)
        return answer

    def _exchange(
        self, method: str, path: str, timeout: float, body: bytes = b"", headers: Mapping[str, str] = {}
    ) -> _Answer:
        deadline = Deadline(timeout)
        try:
            connection = self._take()
            if connection is not None:
                try:
                    return self._on(connection, deadline, method, path, body, headers)
                except TimeoutError:
                    raise
                except (OSError, http.client.HTTPException):
                    pass  # the server closed the idle connection meanwhile: that is no failure, a new one will do
            return self._on(_Connection(self.address), deadline, method, path, body, headers)
        except TimeoutError:
            raise errors.deadline_exceeded(self.address, timeout) from None
        except socket.gaierror:
            raise errors.unreachable(self.address, "the host name is not known") from None
        except OSError as error:
            raise errors.unreachable(self.address, error.strerror or str(error)) from None
        except http.client.IncompleteRead:
            raise errors.unreachable(self.address, "the connection broke within the answer") from None
        except http.client.HTTPException:
            raise errors.unreachable(self.address, "what answers there does not speak HTTP") from None

    def _on(
        self,
        connection: _Connection,
        deadline: Deadline,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
    ) -> _Answer:
        try:
            answer = connection.exchange(deadline, method, path, body, headers)
        except BaseException:  # whatever it was, an answer may still be on its way: this connection is spent
            connection.close()
            raise
        self._give_back(connection)
        return answer

    def _take(self) -> _Connection | None:
        with self._lock:
            if self._closed:
                raise errors.unreachable(self.address, "this client is closed")
            return self._idle.pop() if self._idle else None

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            if not self._closed and connection.sock is not None:
                self._idle.append(connection)
                return
        connection.close()


class _DeadlineSocket(socket.socket):
    """A socket each of whose operations gets what is left of the deadline, not the whole timeout anew."""

    deadline: Deadline

    def connect(self, target: Any) -> None:
        self._arm()
        super().connect(target)

    def sendall(self, *args: Any) -> None:
        self._arm()
        super().sendall(*args)

    def recv_into(self, *args: Any) -> int:
        self._arm()
        return super().recv_into(*args)

    def _arm(self) -> None:
        left = self.deadline.left()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left)


class _Connection(http.client.HTTPConnection):
    sock: _DeadlineSocket | None

    def __init__(self, address: Address) -> None:
        super().__init__(address.host, address.port)
        self._deadline = Deadline(0)

    def connect(self) -> None:
        failure: OSError = OSError("the host has no address")
        for family, kind, _, _, target in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            sock = _DeadlineSocket(family, kind)
            sock.deadline = self._deadline
            try:
                sock.connect(target)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                failure = error
            else:
                self.sock = sock
                return
        raise failure

    def exchange(self, deadline: Deadline, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> _Answer:
        self._deadline = deadline
        if self.sock is not None:
            self.sock.deadline = deadline
        # A server that refuses a large body says why and closes before it has read all: its answer is still to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.request(method, path, body or None, dict(headers))
        response = self.getresponse()
        return _Answer(response.status, dict(response.getheaders()), response.read())


def _error_text(answer: _Answer) -> str:
    try:
        return str(json.loads(answer.body)["error"])
    except (ValueError, KeyError, TypeError):
        return answer.body[:200].decode("utf-8", "replace") or f"HTTP status {answer.status}"
