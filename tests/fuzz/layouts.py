"""Pictures in layouts that no encoder here writes, of random colours."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

# Of each of Adam7's passes: the first column and row, and how far apart they are.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGB_ALPHA: 4}
_UNCOMPRESSED, _RLE8, _RLE4, _BITFIELDS = 0, 1, 2, 3
_END_OF_LINE, _END_OF_PICTURE = b"\0\0", b"\0\1"


def bmps(width: int, height: int) -> Iterator[bytes]:
    """BMPs in run-length encoding, of 16 bits, with masks, from top to bottom, and with OS/2's header."""
    random = np.random.default_rng(0)
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256))
    runs = (bytes((width, row)) + _END_OF_LINE for row in range(height))
    # Six pixels as they are, the rest of the line as a run, and at the end a step to the right.
    mixed = (b"\0\6" + bytes(range(6)) + bytes((width - 6, row)) + _END_OF_LINE for row in range(height))
    yield bmp(width, height, 8, _RLE8, b"".join(runs) + _END_OF_PICTURE, palette)
    yield bmp(width, height, 8, _RLE8, b"".join(mixed) + b"\0\2\1\1" + _END_OF_PICTURE, palette)
    runs = (bytes((width, row * 17 % 256)) + _END_OF_LINE for row in range(height))
    yield bmp(width, height, 4, _RLE4, b"".join(runs) + _END_OF_PICTURE, palette[:64])
    yield bmp(width, height, 16, _UNCOMPRESSED, random.bytes(width * height * 2))
    for bits, *masks in ((16, 0xF800, 0x7E0, 0x1F), (16, 0x7C00, 0x3E0, 0x1F), (32, 0xFF0000, 0xFF00, 0xFF)):
        pixels = random.bytes(width * height * bits // 8)
        yield bmp(width, height, bits, _BITFIELDS, pixels, struct.pack("<III", *masks))
    yield bmp(width, -height, 24, _UNCOMPRESSED, random.bytes(width * height * 3))
    os2 = struct.pack("<IHHI", 0, 0, 0, 26) + struct.pack("<IHHHH", 12, width, height, 1, 24)
    yield b"BM" + os2 + random.bytes(width * height * 3)


def bmp(width: int, height: int, bits: int, compression: int, pixels: bytes, table: bytes = b"") -> bytes:
    """A BMP of Windows' oldest header; `table` has the masks of BITFIELDS, or the palette, 4 bytes a colour."""
    offset = 54 + len(table)
    colours = 0 if compression == _BITFIELDS else len(table) // 4
    info = (40, width, height, 1, bits, compression, len(pixels), 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", offset + len(pixels), 0, 0, offset, *info) + table + pixels


def pngs(width: int, height: int) -> Iterator[bytes]:
    """PNGs of all colour types, interlaced and not, of 1 to 16 bits a channel."""
    random = np.random.default_rng(0)
    kinds = ((_RGB, 8), (_RGB, 16), (_RGB_ALPHA, 16), (_GREY_ALPHA, 8), (_GREY_ALPHA, 16), (_PALETTE, 4))
    for colour, depth in (*kinds, (_PALETTE, 2), (_GREY, 1), (_GREY, 2), (_GREY, 16)):
        for passes in (_ADAM7, ((0, 0, 1, 1),)):
            rows = b""
            for left, top, across, down in passes:
                columns = -(-(width - left) // across)
                for _ in range(top, height, down):
                    rows += b"\0" + random.bytes(-(-columns * _CHANNELS[colour] * depth // 8))
            header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, len(passes) > 1)
            palette = [(b"PLTE", bytes(range(3 << depth)))] if colour == _PALETTE else []
            yield png((b"IHDR", header), *palette, (b"IDAT", zlib.compress(rows)))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, each with its name, and the one at the end."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (*chunks, (b"IEND", b""))
    )
