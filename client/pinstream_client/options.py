"""How a client connects: encryption, headers, compression."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Literal, TypeAlias

from .errors import InvalidRequest

Compression: TypeAlias = Literal["gzip", "deflate"]
Headers: TypeAlias = "Mapping[str, str] | Callable[[], Mapping[str, str]]"
Token: TypeAlias = "str | Callable[[], str]"
File: TypeAlias = "str | PathLike[str]"

# What the raw outputs of large batches need, and what a machine has to spare for an answer that is none.
MAX_ANSWER_BYTES = 512 << 20
_NAME = re.compile(r"[a-z0-9_.-]+")  # what gRPC takes, and HTTP as well


@dataclass(frozen=True)
class TLS:
    """Files of an encrypted connection, each in PEM.

    Attributes:
        ca: Certificates of the authorities to trust; the system's own when None.
        cert: The client's certificate chain, for servers that ask who is there.
        key: The private key of ``cert``.
    """

    ca: File | None = None
    cert: File | None = None
    key: File | None = None


@dataclass(frozen=True)
class Options:
    """What every connection of a client has in common.

    Attributes:
        tls: Files of encrypted connections.
        headers: Sent with every request: HTTP headers, for gRPC metadata. A callable is asked anew for each attempt,
            so that it can give a token that expires.
        token: Sent as ``Authorization: Bearer``; a callable is asked anew for each attempt.
        compression: Of requests, and over HTTP of answers as well.
        connect_timeout: Seconds after which a connection attempt counts as failed; None leaves it the whole timeout.
        max_answer_bytes: How large an answer may be, unpacked.
    """

    tls: TLS = TLS()
    headers: Headers | None = None
    token: Token | None = None
    compression: Compression | None = None
    connect_timeout: float | None = None
    max_answer_bytes: int = MAX_ANSWER_BYTES

    def __post_init__(self) -> None:
        if self.compression not in (None, "gzip", "deflate"):
            raise ValueError(f"compression is {self.compression!r}: expected 'gzip', 'deflate' or None")
        if (self.tls.cert is None) != (self.tls.key is None):
            raise ValueError("a TLS client certificate needs both its files: give cert and key")
        if self.max_answer_bytes < 1:
            raise ValueError(f"max_answer_bytes is {self.max_answer_bytes}: expected at least 1")

    @property
    def max_description_bytes(self) -> int:
        """How much of an answer may be JSON, or tell of models.

        As Python's values that takes some twenty times as much, and two seconds for 8 MiB, which no deadline ends: so
        it is a 64th of ``max_answer_bytes``, at least 1 MiB.
        """
        return max(self.max_answer_bytes // 64, 1 << 20)

    def headers_now(self) -> dict[str, str]:
        """The headers of one attempt, names in lower case as gRPC wants them and HTTP does not mind.

        Raises:
            InvalidRequest: One that cannot be sent. A line break in it would begin another header.
        """
        if self.headers is None and self.token is None:
            return {}
        given = self.headers() if callable(self.headers) else self.headers or {}
        headers = {name.lower(): value for name, value in given.items()}
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token() if callable(self.token) else self.token}"
        for name, value in headers.items():
            if not (isinstance(value, str) and value.isascii() and value.isprintable() and _NAME.fullmatch(name)):
                shown = "" if name == "authorization" else f" {value!r}"
                raise InvalidRequest(f"the header '{name}'{shown} cannot be sent: expected one line of ASCII text")
        return headers
