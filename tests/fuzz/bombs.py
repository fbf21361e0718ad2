"""Pictures of a few kilobytes that cost a decoder far more than their pixels do."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

from tests.fuzz import layouts

COMMENT = b"\xff\xfe\0\2"
END_OF_IMAGE = b"\xff\xd9"


def scans(side: int, count: int) -> bytes:
    """A grey progressive JPEG with so many more scans, all of them empty: each goes through all pixels again.

    Args:
        side: Pixels; blocks are of 8 x 8.
        count: Scans beside those of the picture.
    """
    # One code, of one bit: 2^14 blocks without anything, and more by the 14 bits that follow (ITU-T T.81, G.1.2.2).
    table = b"\xff\xc4" + struct.pack(">H", 20) + bytes([0x11, 1, *[0] * 15, 0xE0])
    blocks, bits = (side // 8) ** 2, ""
    while blocks > 0:
        run = max(16384, min(blocks, 32767))
        bits += "0" + format(run - 16384, "014b")
        blocks -= run
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    scan = b"\xff\xda" + struct.pack(">H", 8) + bytes([1, 1, 0x01, 1, 63, 0x00]) + coded
    return jpeg(side, progressive=True).removesuffix(END_OF_IMAGE) + table + scan * count + END_OF_IMAGE


def jpeg(side: int, *, progressive: bool = False) -> bytes:
    """A grey JPEG without anything to see."""
    stream = io.BytesIO()
    Image.new("L", (side, side), 128).save(stream, "JPEG", progressive=progressive)
    return stream.getvalue()


def inserted(data: bytes, more: bytes) -> bytes:
    """A JPEG with something before its first segment."""
    return data[:2] + more + data[2:]


def png(kind: bytes, nbytes: int, *, behind_pixels: bool) -> bytes:
    """A PNG of 4 x 4 pixels with a chunk, zTXt or iCCP, that unpacks to so many bytes."""
    pixels = (b"IDAT", zlib.compress(bytes(4 * 13)))
    packed = (kind, b"a\0\0" + zlib.compress(bytes([97]) * nbytes, 9))
    header = (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    return layouts.png(header, *((pixels, packed) if behind_pixels else (packed, pixels)))


def chunks(count: int) -> bytes:
    """A PNG of 4 x 4 pixels with so many empty pieces of them beside the one that has them."""
    pixels = [(b"IDAT", zlib.compress(bytes(4 * 13))), *[(b"IDAT", b"")] * count]
    return layouts.png((b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)), *pixels)
