"""Where a server is: ``localhost``, ``localhost:8001``, ``grpc://host:8001``, ``http://host``, ``https://host``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

from .errors import InvalidURL

Protocol = Literal["grpc", "http"]

DEFAULT_PORTS: dict[str, int] = {"grpc": 8001, "http": 8000, "grpcs": 8001, "https": 443}
_PROTOCOLS = get_args(Protocol)
_FORM = "[grpc://|grpcs://|http://|https://]host[:port]"


@dataclass(frozen=True)
class Address:
    """A protocol, a host and a port.

    Attributes:
        secure: Whether the connection is encrypted (TLS).
    """

    protocol: Protocol
    host: str
    port: int
    secure: bool = False

    @property
    def netloc(self) -> str:
        """``host:port``, an IPv6 host in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"{self.protocol}{'s' if self.secure else ''}://{self.netloc}"


def parse_url(url: str, protocol: str | None = None) -> Address:
    """Reads a server URL, with or without a scheme.

    Args:
        url: ``[grpc://|grpcs://|http://|https://]host[:port]``; an IPv6 host in brackets. The two with an s are
            encrypted. Default ports are 8001 for gRPC, 8000 for HTTP and 443 for HTTPS.
        protocol: "grpc" or "http". None takes the URL's scheme, else gRPC.

    Raises:
        InvalidURL: The URL cannot be read, or its scheme contradicts ``protocol``.
    """
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        scheme, rest = "", url.strip()
    secure = scheme in ("grpcs", "https")
    plain = scheme[:-1] if secure else scheme
    if scheme and protocol and plain != protocol:
        raise InvalidURL(f"the URL '{url}' says {scheme} but the protocol is '{protocol}': leave out one of the two")
    chosen = plain or protocol or "grpc"
    if chosen not in _PROTOCOLS:
        raise InvalidURL(f"unknown protocol '{chosen}' for '{url}': expected one of {', '.join(_PROTOCOLS)}")
    host, port = _host_and_port(url, rest)
    default = DEFAULT_PORTS[chosen + "s" if secure else chosen]
    return Address(cast(Protocol, chosen), host, default if port is None else port, secure)


def _host_and_port(url: str, rest: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidURL(f"cannot read the URL '{url}' ({error}): expected {_FORM}") from None
    # urlsplit would take what stands before an @ for a password, and a path, query or fragment would be lost unsaid.
    if not host or port == 0 or parts.path.strip("/") or parts.query or parts.fragment or "@" in rest:
        raise InvalidURL(f"cannot use the URL '{url}': expected {_FORM} and nothing else")
    return host, port
