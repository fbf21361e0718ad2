"""HTTP for asyncio, on aiohttp. A cancelled task closes its connection."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import aiohttp
from yarl import URL

from . import errors
from .address import Address
from .http_calls import Answer, HttpCalls, Question
from .options import Options
from .tls import tls_context
from .transport import Deadline, InferRequest


class AsyncHttpTransport(HttpCalls):
    """A pool of keep-alive connections to one server, for one event loop."""

    def __init__(self, address: Address, options: Options) -> None:
        super().__init__(address, options)
        self._base = f"{'https' if address.secure else 'http'}://{address.netloc}"
        context = tls_context(options.tls) if address.secure else True
        connector = aiohttp.TCPConnector(ssl=context)
        # What aiohttp decompresses has no limit, nor has what it keeps of cookies.
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def close(self) -> None:
        """See `AsyncTransport`."""
        await self._session.close()

    async def _call(
        self, question: Question, read: Callable[[Answer], Any], timeout: float, request: InferRequest | None = None
    ) -> Any:
        if timeout <= 0:
            raise errors.deadline_exceeded(self.address, timeout)
        body, headers = self._prepared(question)
        deadline = Deadline(timeout)
        try:
            answer = await asyncio.wait_for(self._exchange(question, body, headers), timeout)
        except errors.PinstreamError:
            raise
        except aiohttp.ServerTimeoutError:
            connect = self._options.connect_timeout or timeout
            raise errors.unreachable(self.address, f"no connection within {connect:g} s") from None
        except asyncio.TimeoutError:
            raise errors.deadline_exceeded(self.address, timeout) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._typed(error) from None
        except RuntimeError as error:  # what aiohttp raises on a closed session
            raise errors.unreachable(self.address, str(error), transient=False) from None
        if "content-encoding" in answer.headers:  # which takes a while
            answer = await asyncio.to_thread(self._decoded, answer, headers["accept-encoding"], deadline)
        return self._understood(answer, read)

    async def _exchange(self, question: Question, body: bytes | None, headers: dict[str, str]) -> Answer:
        try:
            return await self._once(question, body, headers)
        except aiohttp.ServerDisconnectedError:
            # The server closed the idle connection meanwhile: that is no failure, a new one will do.
            return await self._once(question, body, headers)

    async def _once(self, question: Question, body: bytes | None, headers: dict[str, str]) -> Answer:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._options.connect_timeout)
        url = URL(self._base + question.path, encoded=True)
        async with self._session.request(
            question.method, url, data=body, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            content = await self._body(response)
            return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, content)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        pieces, size = [], 0
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > self._options.max_answer_bytes:
                raise errors.too_large(self.address, self._options.max_answer_bytes)
        return b"".join(pieces)

    def _typed(self, error: Exception) -> errors.PinstreamError:
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return errors.unreachable(self.address, "the host name is not known", transient=False)
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            certificate = error.certificate_error
            reason = getattr(certificate, "verify_message", "") or str(certificate)
            return errors.unreachable(self.address, reason, transient=False)
        if isinstance(error, aiohttp.ClientConnectorError):
            return errors.unreachable(self.address, _reason(error.os_error))
        if isinstance(error, aiohttp.ClientPayloadError):
            return errors.unreachable(self.address, "the connection broke within the answer")
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return errors.unreachable(self.address, "what answers there does not speak HTTP")
        if isinstance(error, OSError):
            return errors.unreachable(self.address, _reason(error))
        return errors.unreachable(self.address, "what answers there does not speak HTTP", transient=False)


def _reason(error: OSError) -> str:
    """What the system calls it; asyncio writes "Connect call failed" in its place."""
    return os.strerror(error.errno) if error.errno else error.strerror or str(error)
