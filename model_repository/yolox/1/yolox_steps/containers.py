"""What JPEG and PNG files are made of, looked at before any decoder does.

Decoders take whatever a file strings together, and some of it costs them seconds or gigabytes: that is refused, or left
out where it says nothing of the pixels. Called by decode.py.
"""

from __future__ import annotations

import re

from yolox_steps.errors import RequestError

JPEG_SIGNATURE, PNG_SIGNATURE = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

# Segments of a JPEG before its pixels, stray bytes between them, and segments behind: Pillow looks at each for itself.
# Profiles come in pieces of 64 KiB, so that photographs have some tens.
MOST_SEGMENTS = 10_000
# Pillow joins those of EXIF one by one, in a time that grows with the square of their number; there is to be one.
MOST_EXIF = 100
# Each scan goes through all pixels, whatever it has of them; encoders write ten, and some a few more.
MOST_SCANS = 100
# Chunks of a PNG, each looked at as well. Pixels come in pieces of 8 KiB from most encoders.
MOST_CHUNKS = 50_000

# Markers as ITU-T T.81 has them (table B.1), by their second byte.
_PADDING, _START_OF_SCAN, _END_OF_IMAGE = 0xFF, 0xDA, 0xD9
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6})
# Its decoder makes pixels up where there are no more bytes: a kilobyte takes half a minute. No camera writes it.
_ARITHMETIC = frozenset(range(0xC9, 0xD0)) - {0xCC}
_APP1, _EXIF = 0xE1, b"Exif\0\0"
# Markers of which a length follows. The others stand alone, or are none.
_WITH_LENGTH = frozenset(range(0xC0, 0xFF)) - frozenset(range(0xD0, 0xDA))
# Among coded pixels 0xFF is followed by 0, or makes a restart marker.
_BEHIND_PIXELS = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

_PIXELS, _END = b"IDAT", b"IEND"
# The orientation, which a PNG's decoder needs beside the chunks that the standard calls critical.
_ORIENTATION = b"eXIf"


def found(data: bytes) -> str:
    """A file in words, for what is said of it."""
    return f"{len(data)} bytes that begin with {data[:16]!r}"


def decodable(data: bytes) -> bytes:
    """The file as decoders bear it: a PNG without what says nothing of its pixels, any other as it came.

    Raises:
        RequestError: It would cost a decoder far more than its pixels do, or is cut short.
    """
    if data.startswith(PNG_SIGNATURE):
        return _plain_png(data)
    if data.startswith(JPEG_SIGNATURE):
        _check_scans(data)
    return data


def is_whole_jpeg(data: bytes) -> bool:
    """Whether an end-of-image marker follows a JPEG's pixels; one before them is a thumbnail's, within the metadata."""
    return data.rfind(bytes([0xFF, _END_OF_IMAGE]), _first_scan(data)[0]) >= 0


def _check_scans(data: bytes) -> None:
    position, several = _first_scan(data)
    scans = segments = 0
    while several and (marker := _BEHIND_PIXELS.search(data, position)):
        kind = marker[0][1]
        if kind == _END_OF_IMAGE:
            return
        scans += kind == _START_OF_SCAN
        segments += 1
        if scans > MOST_SCANS:
            raise RequestError(
                f"too costly: found {found(data)}, and more than {MOST_SCANS} scans, each of which goes through all "
                "pixels; write the file again"
            )
        if segments > MOST_SEGMENTS:
            raise _too_many_segments(data)
        position = marker.end() + _length(data, kind, marker.end())


def _first_scan(data: bytes) -> tuple[int, bool]:
    """Where a JPEG's first scan begins, or its end where there is none; and whether others may follow it."""
    position, steps, exif, parts, progressive = 2, 0, 0, 0, False
    while position + 1 < len(data):
        steps += 1
        if steps > MOST_SEGMENTS:
            raise _too_many_segments(data)
        kind = data[position + 1]
        if data[position] != 0xFF or kind == _PADDING:
            position += 1
            continue
        if kind == _START_OF_SCAN:
            return position, progressive or data[position + 4 : position + 5] != bytes([parts])
        exif += kind == _APP1 and data.startswith(_EXIF, position + 4)
        if exif > MOST_EXIF:
            raise RequestError(f"too costly: found {found(data)}, and more than {MOST_EXIF} pieces of EXIF; write one")
        if kind in _ARITHMETIC:
            raise RequestError(
                f"too costly: found {found(data)}, and arithmetic coding; write the file again, with Huffman's"
            )
        if kind in _START_OF_FRAME:
            progressive, parts = kind in _PROGRESSIVE, int.from_bytes(data[position + 9 : position + 10], "big")
        position += 2 + _length(data, kind, position + 2)
    return len(data), False


def _length(data: bytes, kind: int, position: int) -> int:
    """Bytes of a segment behind its marker, which begin with their number."""
    return int.from_bytes(data[position : position + 2], "big") if kind in _WITH_LENGTH else 0


def _too_many_segments(data: bytes) -> RequestError:
    return RequestError(
        f"too costly: found {found(data)}, and more than {MOST_SEGMENTS} segments and stray bytes around its pixels; "
        "write the file again"
    )


def _plain_png(data: bytes) -> bytes:
    """A PNG with its pixels and what they need, and nothing behind them.

    What is left out: texts and colour profiles, which unpack to a thousand times their size and are not looked at; the
    chunks of an animation, which leaves its first picture, since OpenCV 4.11 crashes on damaged ones. OpenCV also
    allocates whatever length a chunk claims, up to 4 GiB.

    Raises:
        RequestError: A chunk claims more bytes than there are, there are very many, or none holds pixels.
    """
    kept, start, kind, pixels = [PNG_SIGNATURE], len(PNG_SIGNATURE), b"", False
    for _ in range(MOST_CHUNKS):
        kind = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            raise RequestError(f"cut short or damaged: found {found(data)}, and a chunk that ends behind them")
        pixels |= kind == _PIXELS
        # A small first letter says that a chunk can be left out (https://www.w3.org/TR/png-3/#5Chunk-naming-conventions).
        if kind[:1].isupper() or kind == _ORIENTATION:
            kept.append(data[start:end])
        start = end
        if kind == _END:
            break
    else:
        raise RequestError(f"too costly: found {found(data)}, and more than {MOST_CHUNKS} chunks; write the file again")
    # Without pixels OpenCV reads on behind the end.
    if not pixels:
        raise RequestError(f"cut short or damaged: found {found(data)}, and no pixels in them")
    return b"".join(kept)
