"""The corpus of pictures: every format and layout that is taken, and those that lie about themselves."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import cv2
import numpy as np
from PIL import Image

from tests.fuzz import bombs, layouts

HEIGHT, WIDTH = 20, 28
ORIENTATION, DESCRIPTION = 0x0112, 0x010E


def _picture(seed: int = 0) -> Image.Image:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([x * 8, y * 12, 255 - x - y - seed], axis=-1).astype(np.uint8))


def _encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


@cache
def corpus() -> tuple[bytes, ...]:
    """Well-formed pictures, of a few kilobytes but for EXIF."""
    picture = _picture()
    alpha = picture.copy()
    alpha.putalpha(128)
    animation = {"save_all": True, "append_images": [_picture(50), _picture(90)]}
    pictures = [
        _encoded(picture, "JPEG"),
        _encoded(picture, "JPEG", progressive=True),
        _encoded(picture, "JPEG", restart_marker_blocks=1),
        _encoded(picture, "JPEG", subsampling=0, quality=100, icc_profile=bytes(300)),
        _encoded(picture.convert("L"), "JPEG"),
        _encoded(picture.convert("CMYK"), "JPEG"),
        _encoded(picture, "MPO", **animation),
        _encoded(picture, "PNG"),
        _encoded(picture.convert("L"), "PNG"),
        _encoded(picture.convert("1"), "PNG"),
        _encoded(picture.convert("P"), "PNG", transparency=3),
        _encoded(alpha, "PNG"),
        _encoded(picture, "PNG", **animation),
        _encoded(picture, "BMP"),
        _encoded(picture.convert("L"), "BMP"),
        _encoded(picture.convert("1"), "BMP"),
        _encoded(alpha, "BMP"),
        _encoded(picture, "WEBP"),
        _encoded(picture, "WEBP", lossless=True),
        _encoded(alpha, "WEBP", quality=50),
        _encoded(picture, "WEBP", **animation),
    ]
    sixteen = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    pictures += [cv2.imencode(".png", channels)[1].tobytes() for channels in (sixteen, sixteen[..., 0])]
    # A hundred megabytes in a text and in a colour profile, which nobody reads.
    pictures += [
        bombs.png(kind, 100 << 20, behind_pixels=behind) for kind in (b"zTXt", b"iCCP") for behind in (False, True)
    ]
    for exif in _exif():
        pictures += [_encoded(picture, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")]
    return (*pictures, *layouts.bmps(WIDTH, HEIGHT), *layouts.pngs(WIDTH, HEIGHT))


def _exif() -> list[bytes]:
    """Orientations that there are and that there are not, beside nothing, much, and what contradicts itself."""
    written = []
    for orientation, description in ((0, ""), (3, ""), (6, "x" * 60_000), (9, ""), (65535, "")):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        if description:
            exif[DESCRIPTION] = description
        written.append(exif.tobytes())
    entry = struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0)
    head = b"Exif\0\0II*\0" + struct.pack("<I", 8)
    # A directory that is followed by itself, and one of 65535 entries of which few are there.
    return [*written, head + struct.pack("<H", 1) + entry + struct.pack("<I", 8), head + b"\xff\xff" + entry * 50]


@cache
def liars() -> tuple[bytes, ...]:
    """Decompression bombs, sizes that are none, and other formats: refused as they are, and starting points too."""
    empty = Image.new("RGB", (1, 1))
    return (
        b"",
        b"GIF89a" + bytes(20),
        _encoded(_picture(), "GIF"),
        _encoded(_picture(), "TIFF"),
        _encoded(_picture(), "PPM"),
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        png(60_000, 60_000, b""),
        png(0, 0, b""),
        png(1, 2**31 - 1, b""),
        # 3000 x 3000 pixels in nine kilobytes, told truly.
        png(3000, 3000, zlib.compress(bytes(3000 * 9001), 9)),
        bombs.scans(24, 200),
        bombs.inserted(bombs.jpeg(24), b"\xff" * 20_000),
        bombs.inserted(bombs.jpeg(24), bombs.COMMENT * 20_000),
        bombs.chunks(60_000),
        bmp(50_000, 50_000),
        bmp(4, -(2**31)),
        bmp(0, 0),
        _jpeg_claiming(_encoded(_picture(), "JPEG"), 65_500, 65_500),
        _jpeg_claiming(_encoded(_picture(), "JPEG"), 0, 0),
        _encoded(empty, "WEBP", lossless=True)[:24] + b"\xff" * 6,
        b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff",
        # Two frame headers, the first small and the second large.
        _jpeg_claiming(_encoded(_picture(), "JPEG"), 9000, 9000, keep=True),
    )


def png(width: int, height: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8-bit RGB that says what it is told to, with the compressed `pixels` it is given."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return layouts.png((b"IHDR", header), *chunks, (b"IDAT", pixels))


def bmp(width: int, height: int) -> bytes:
    """A BMP of 24 bits that claims this size and has no pixels."""
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def _jpeg_claiming(data: bytes, width: int, height: int, *, keep: bool = False) -> bytes:
    """A JPEG whose frame header claims another size; with `keep` a second frame header does, behind the first."""
    at = data.index(b"\xff\xc0")
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    frame = data[at : at + 5] + struct.pack(">HH", height, width) + data[at + 9 : at + 2 + length]
    return (
        data[: at + 2 + length] + frame + data[at + 2 + length :]
        if keep
        else data[:at] + frame + data[at + 2 + length :]
    )
