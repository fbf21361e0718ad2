"""HTTP bodies, compressed and back."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

from .transport import Deadline

# Compression has to be quicker than the network: its first level is, and finds most of what there is.
_LEVEL = 1
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: gzip.compress(body, _LEVEL),
    "deflate": lambda body: zlib.compress(body, _LEVEL),
}
# zlib's names of the two formats.
_FORMATS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_PIECE = 1 << 14  # of which deflate makes 16 MiB at most


class Overflowing(Exception):
    """A body is larger than it may be."""


def decompressed(
    body: bytes | bytearray, encoding: str, asked: str, most: int, deadline: Deadline
) -> bytes | bytearray:
    """A body without its content encoding.

    Args:
        body: As it came.
        encoding: Its content encoding.
        asked: The header Accept-Encoding of the request.
        most: How many bytes there may be.
        deadline: Of the call.

    Raises:
        ValueError: It is damaged, or of an encoding that was not asked for.
        Overflowing: It is larger than that.
        TimeoutError: The deadline passed.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in _FORMATS or encoding not in asked:
        raise ValueError(f"content encoding '{encoding}', which was not asked for")
    try:
        return _inflated(body, _FORMATS[encoding], most, deadline)
    except zlib.error as error:
        raise ValueError(f"damaged {encoding} body: {error}") from None


def _inflated(body: bytes | bytearray, form: int, most: int, deadline: Deadline) -> bytearray:
    stream, inflated = zlib.decompressobj(form), bytearray()
    for start in range(0, len(body), _PIECE):
        piece: bytes | bytearray = body[start : start + _PIECE]
        while piece:
            if stream.eof:  # gzip may come as several, one behind the other
                stream = zlib.decompressobj(form)
            inflated += stream.decompress(piece)
            piece = stream.unused_data
            if len(inflated) > most:
                raise Overflowing
        if deadline.left() <= 0:
            raise TimeoutError("timed out")
    if not stream.eof:
        raise zlib.error("it ends too early")
    return inflated
