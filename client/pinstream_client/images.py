"""What `detect` accepts, as the encoded bytes that the service takes.

A file is sent as it is: its own bytes are the smallest and most exact form of the picture. An array is wrapped as an
uncompressed BMP, which loses nothing, costs one copy and needs no image library.
"""

from __future__ import annotations

import struct
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidImage, MissingExtra

ImageLike: TypeAlias = "str | PathLike[str] | bytes | bytearray | memoryview | NDArray[Any]"

_FILE_HEADER = struct.Struct("<2sIHHI")
_INFO_HEADER = struct.Struct("<IiiHHIIiiII")
_GRAY_PALETTE = np.repeat(np.arange(256, dtype=np.uint8), 4).reshape(256, 4) * np.array([1, 1, 1, 0], np.uint8)
_MAX_FILE_BYTES = 2**32 - 1


def encode(image: ImageLike) -> bytes:
    """Returns the bytes of an image file.

    Args:
        image: A path, the bytes of a JPEG, PNG, BMP or WebP file, or a uint8 array: [height, width, 3] in BGR order,
            [height, width] or [height, width, 1] in grey.

    Raises:
        InvalidImage: No such file, no bytes, or an array of another dtype or shape.
    """
    if isinstance(image, np.ndarray):
        return encode_bmp(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        data, source = bytes(image), "the image given as bytes"
    elif isinstance(image, (str, PathLike)):
        data, source = _read(Path(image)), f"image file {image}"
    else:
        raise InvalidImage(f"cannot send a {type(image).__name__}: expected a path, bytes or a NumPy array")
    if not data:
        raise InvalidImage(f"{source} is empty: expected a JPEG, PNG, BMP or WebP file")
    return data


def encode_bmp(pixels: NDArray[Any]) -> bytes:
    """Wraps pixels as an uncompressed BMP file: 24 bits for colour, 8 bits with a grey palette for grey.

    Args:
        pixels: uint8, [height, width, 3] in BGR order, [height, width] or [height, width, 1].

    Raises:
        InvalidImage: Another dtype or shape, no pixels, or more than a BMP file can hold.
    """
    if pixels.dtype != np.uint8:
        raise InvalidImage(f"the image array is {pixels.dtype}: expected uint8 with values 0 to 255")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise InvalidImage(
            f"the image array has shape {pixels.shape}: expected [height, width, 3] in BGR order, or [height, width]"
        )
    height, width = pixels.shape[:2]
    row_bytes = pixels[0].size
    stride = -(-row_bytes // 4) * 4
    palette = _GRAY_PALETTE.tobytes() if pixels.ndim == 2 else b""
    offset = _FILE_HEADER.size + _INFO_HEADER.size + len(palette)
    file_bytes = offset + stride * height
    if file_bytes > _MAX_FILE_BYTES:
        raise InvalidImage(f"the image array of {width} x {height} pixels is larger than 4 GiB: send an encoded file")
    bits, colours = (8, 256) if palette else (24, 0)
    parts: list[Any] = [
        _FILE_HEADER.pack(b"BM", file_bytes, 0, 0, offset),
        _INFO_HEADER.pack(_INFO_HEADER.size, width, height, 1, bits, 0, stride * height, 0, 0, colours, 0),
        palette,
    ]
    # Rows go bottom-up, the one order that every decoder reads, each padded to 4 bytes. Joined as they are they are
    # copied once.
    rows = np.ascontiguousarray(pixels)[::-1]
    padding = bytes(stride - row_bytes)
    parts.extend((part for row in rows for part in (row, padding)) if padding else rows)
    return b"".join(parts)


def as_bgr(image: ImageLike, purpose: str = "look at") -> NDArray[np.uint8]:
    """The pixels of an image. Files need OpenCV.

    Args:
        image: A path, the bytes of a file, or a uint8 array: [height, width, 3] in BGR order, or grey.
        purpose: What cannot be done with an image that has none, for the error.

    Returns:
        uint8 [height, width, 3] in BGR order, a file's turned upright as its EXIF orientation says. May be the caller's
        own array.

    Raises:
        InvalidImage: The image cannot be read, or is an array of another dtype or shape.
        MissingExtra: OpenCV is not installed.
    """
    if not isinstance(image, np.ndarray):
        cv2 = require_opencv()
        decoded = cv2.imdecode(np.frombuffer(encode(image), np.uint8), cv2.IMREAD_COLOR)
        if decoded is None:
            raise InvalidImage(f"cannot {purpose} the image: it does not decode as JPEG, PNG, BMP or WebP")
        return np.asarray(decoded, np.uint8)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise InvalidImage(
            f"cannot {purpose} {image.dtype} {image.shape}: expected uint8 [height, width, 3] in BGR order, or grey"
        )
    if image.size == 0:
        raise InvalidImage(f"the image array has shape {image.shape}: expected at least one pixel")
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image


def require_opencv() -> Any:
    """OpenCV's module.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra(f'drawing and decoding need OpenCV ({error}): pip install "pinstream[draw]"') from None
    return cv2


def array_size(image: ImageLike) -> tuple[int, int] | None:
    """(width, height) of an array; None for a file, whose size the decoder alone knows (EXIF may turn it)."""
    return (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) and image.ndim >= 2 else None


def _read(path: Path) -> bytes:
    try:
        if path.is_char_device() or path.is_block_device():  # some of which never end
            raise InvalidImage(f"{path} is a device; expected an image file")
        return path.read_bytes()
    except OSError as error:
        raise InvalidImage(f"cannot read image file {path}: {error.strerror or error}") from None
