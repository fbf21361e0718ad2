"""Triton's HTTP calls, whoever waits for them: `http_transport` in a thread, `http_async` in an event loop.

tritonclient's HTTP clients are left aside. The one for threads belongs to a single thread (its sockets hang on one
gevent hub), and its timeouts count each socket operation anew, so that a call has no deadline; the one for asyncio has
no timeout for a call either.
"""

from __future__ import annotations

import contextlib
import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from . import errors
from .address import Address
from .http_compression import COMPRESS, Overflowing, decompressed
from .http_messages import infer_body, read_outputs
from .options import Options
from .reading import UNREADABLE, Reading
from .transport import Deadline, InferRequest

_HEADER_LENGTH = "inference-header-content-length"
# What Triton's HTTP front end, or a proxy before it, answers, in the names of gRPC.
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    499: "CANCELLED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
}
# Of the body of a refusal so much is read.
_MOST_OF_REFUSAL = 1 << 20


@dataclass(frozen=True)
class Question:
    """An HTTP request.

    Attributes:
        model: The model that it is about, if any.
        compressible: Triton decompresses it; it does so for inference alone.
    """

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    compressible: bool = False


@dataclass(frozen=True)
class Answer:
    """An HTTP response: header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray


class HttpCalls(ABC):
    """The methods of `Transport`, each handed to ``_call`` with what makes its result of an HTTP answer."""

    def __init__(self, address: Address, options: Options) -> None:
        self.address = address
        self._options = options

    def infer(self, request: InferRequest, timeout: float) -> Any:
        """See `Transport`."""
        body, header_length = infer_body(request, timeout)
        path = f"{_model_path(request.model, request.version)}/infer"
        headers = {_HEADER_LENGTH: str(header_length)}
        question = Question("POST", path, body, headers, request.model, compressible=True)
        return self._call(question, lambda answer: self._outputs(answer, request), timeout, request)

    def model_ready(self, model: str, timeout: float) -> Any:
        """See `Transport`."""
        return self._call(Question("GET", f"{_model_path(model)}/ready", model=model), self._ready, timeout)

    def model_metadata(self, model: str, timeout: float, version: str = "") -> Any:
        """See `Transport`."""
        return self._ask(Question("GET", _model_path(model, version), model=model), timeout)

    def model_config(self, model: str, timeout: float) -> Any:
        """See `Transport`."""
        return self._ask(Question("GET", f"{_model_path(model)}/config", model=model), timeout)

    def repository_index(self, timeout: float) -> Any:
        """See `Transport`."""
        return self._ask(Question("POST", "/v2/repository/index"), timeout)

    def statistics(self, timeout: float) -> Any:
        """See `Transport`."""
        return self._ask(Question("GET", "/v2/models/stats"), timeout)

    def register_system_region(self, name: str, key: str, nbytes: int, timeout: float) -> Any:
        """See `Transport`."""
        body = {"key": key, "offset": 0, "byte_size": nbytes}
        return self._tell(f"/v2/systemsharedmemory/region/{quote(name)}/register", timeout, body)

    def unregister_system_region(self, name: str, timeout: float) -> Any:
        """See `Transport`."""
        return self._tell(f"/v2/systemsharedmemory/region/{quote(name)}/unregister", timeout)

    def register_cuda_region(self, name: str, handle: bytes, device: int, nbytes: int, timeout: float) -> Any:
        """See `Transport`."""
        body = {"raw_handle": {"b64": handle.decode()}, "device_id": device, "byte_size": nbytes}
        return self._tell(f"/v2/cudasharedmemory/region/{quote(name)}/register", timeout, body)

    def unregister_cuda_region(self, name: str, timeout: float) -> Any:
        """See `Transport`."""
        return self._tell(f"/v2/cudasharedmemory/region/{quote(name)}/unregister", timeout)

    def _ask(self, question: Question, timeout: float) -> Any:
        return self._call(question, lambda answer: self._json(answer, question.model), timeout)

    def _tell(self, path: str, timeout: float, body: dict[str, Any] | None = None) -> Any:
        question = Question("POST", path, b"" if body is None else json.dumps(body).encode())
        return self._call(question, self._done, timeout)

    @abstractmethod
    def _call(
        self,
        question: Question,
        read: Callable[[Answer], Any],
        timeout: float,
        request: InferRequest | None = None,
    ) -> Any:
        """Sends ``question`` and reads the answer with ``read``; ``request`` is the inference it belongs to, if any."""

    def _decoded(self, answer: Answer, asked: str, deadline: Deadline) -> Answer:
        """An answer without the content encoding that it has; ``asked`` are those that the request said it takes."""
        most = self._options.max_answer_bytes
        with Reading(self.address):
            try:
                encoding = answer.headers["content-encoding"].lower()
                return replace(answer, body=decompressed(answer.body, encoding, asked, most, deadline))
            except Overflowing:
                raise errors.too_large(self.address, most) from None
            except TimeoutError:
                raise errors.deadline_exceeded(self.address, deadline.seconds) from None

    def _understood(self, answer: Answer, read: Callable[[Answer], Any]) -> Any:
        """What ``read`` makes of an answer, which may be anything."""
        with Reading(self.address):
            return read(answer)

    def _prepared(self, question: Question) -> tuple[bytes | None, dict[str, str]]:
        """The body as it goes out, and all headers."""
        headers = {"accept-encoding": "identity", **self._options.headers_now(), **question.headers}
        compression = self._options.compression
        if compression is None or not question.compressible:
            return question.body or None, headers
        headers.update({"accept-encoding": compression, "content-encoding": compression})
        return COMPRESS[compression](question.body), headers

    def _ready(self, answer: Answer) -> bool:
        if answer.status in (401, 403):
            self._done(answer)
        return answer.status == 200

    def _done(self, answer: Answer, model: str = "") -> None:
        if 300 <= answer.status < 400:
            # Headers, keys among them, would go to whom the server names.
            where = answer.headers.get("location", "nowhere")
            reason = f"it redirects to {where}, which is not followed: give the address that is meant"
            raise errors.unreachable(self.address, reason, transient=False)
        if answer.status != 200:
            code = _CODES.get(answer.status, f"HTTP {answer.status}")
            raise errors.from_status(code, _error_text(answer), self.address, model)

    def _json(self, answer: Answer, model: str) -> Any:
        self._done(answer, model)
        return self._parsed(answer.body)

    def _outputs(self, answer: Answer, request: InferRequest) -> dict[str, Any]:
        self._done(answer, request.model)
        body, given = answer.body, answer.headers.get(_HEADER_LENGTH)
        length = len(body) if given is None else int(given)
        if not 0 <= length <= len(body):
            raise ValueError(f"{_HEADER_LENGTH} {length} of a body of {len(body)} bytes")
        outputs = read_outputs(self._parsed(body[:length]), memoryview(body)[length:])
        request.require_answered(outputs, self.address)
        return outputs

    def _parsed(self, text: bytes | bytearray) -> Any:
        most = self._options.max_description_bytes
        if len(text) > most:
            raise errors.too_large(self.address, most, "the JSON")
        return json.loads(text)


@functools.cache
def _model_path(model: str, version: str = "") -> str:
    return f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def _error_text(answer: Answer) -> str:
    with contextlib.suppress(*UNREADABLE):
        return str(json.loads(answer.body[:_MOST_OF_REFUSAL])["error"])
    return answer.body[:200].decode("utf-8", "replace") or f"HTTP status {answer.status}"
