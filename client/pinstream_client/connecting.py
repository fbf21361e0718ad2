"""From what a user says about servers to a cluster and its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .address import Protocol, parse_url
from .cluster import Cluster
from .options import TLS, Compression, Headers, Options, Token
from .retry import Retry

# How many results, times those in flight, a stream holds back for one before them that takes long.
AHEAD = 4
# Of several servers one that takes longer to connect to is left out: the others are better company for the call.
_CONNECT_S = 2.0


def connecting(
    url: str | Sequence[str],
    protocol: Protocol | None,
    *,
    tls: TLS | bool,
    headers: Headers | None,
    token: Token | None,
    compression: Compression | None,
    retry: Retry,
    max_answer_bytes: int,
) -> tuple[Cluster, Options]:
    """Reads the arguments that all clients have in common; see `Detector`.

    Raises:
        InvalidURL: A URL cannot be read.
        ValueError: No URL, or an option that is out of range.
    """
    urls = [url] if isinstance(url, str) else list(url)
    if not urls:
        raise ValueError("no URL: give at least one")
    addresses = [parse_url(one, protocol) for one in urls]
    if tls:
        addresses = [replace(address, secure=True) for address in addresses]
    options = Options(
        tls=tls if isinstance(tls, TLS) else TLS(),
        headers=headers,
        token=token,
        compression=compression,
        connect_timeout=_CONNECT_S if len(addresses) > 1 else None,
        max_answer_bytes=max_answer_bytes,
    )
    return Cluster(addresses, retry), options


def require_positive(timeout: float, in_flight: int = 1, most: int | None = None) -> None:
    """Raises ValueError for a timeout or a number of requests that is not above 0, and for more than ``most``."""
    if timeout <= 0:
        raise ValueError(f"timeout is {timeout}: expected seconds above 0")
    if in_flight < 1:
        raise ValueError(f"in_flight is {in_flight}: expected at least 1")
    if most is not None and in_flight > most:
        raise ValueError(
            f"in_flight is {in_flight}: expected at most {most}, each of which takes a thread; AsyncDetector takes more"
        )
