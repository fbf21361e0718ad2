"""Encoded images to pixels, and clear words for what is no image."""

from __future__ import annotations

import io
import os
import sys
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

# Importing a format's plugin registers it; Pillow would otherwise import every format it has at the first WebP.
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError, WebPImagePlugin

from yolox_steps.containers import decodable, found, is_whole_jpeg
from yolox_steps.errors import NO_BYTES, RequestError

try:
    import simplejpeg

    fast_decode_jpeg = simplejpeg.decode_jpeg
except ImportError:  # OpenCV gives the same pixels, and takes longer
    fast_decode_jpeg = None

FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        BmpImagePlugin.BmpImageFile,
        WebPImagePlugin.WebPImageFile,
    )
)

DEFAULT_MAX_PIXELS = 8192 * 8192

# EXIF's tag and its values as the turns that undo them: mirror first, then turn.
_ORIENTATION_TAG = 0x0112
_MIRRORED = frozenset({2, 4, 5, 7})
_TURNS = {
    3: cv2.ROTATE_180,
    4: cv2.ROTATE_180,
    5: cv2.ROTATE_90_COUNTERCLOCKWISE,
    6: cv2.ROTATE_90_CLOCKWISE,
    7: cv2.ROTATE_90_CLOCKWISE,
    8: cv2.ROTATE_90_COUNTERCLOCKWISE,
}
# How much smaller a JPEG can be decoded, the smallest first, and how OpenCV is told to.
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
# With several pictures in one file, Pillow calls a JPEG an MPO.
_JPEG = frozenset({"JPEG", "MPO"})


def prepare_process() -> None:
    """Sets the process-wide switches that decoding many images side by side wants; call it once.

    One thread for OpenCV, since the parallelism is in the instances; no log lines of OpenCV and Pillow about what
    clients send, since those get the error; Pillow's own pixel limit off, since `decode` applies the configured one.
    """
    cv2.setNumThreads(1)
    # OpenCV 5 keeps it elsewhere.
    module = cv2 if hasattr(cv2, "setLogLevel") else getattr(cv2.utils, "logging")  # noqa: B009 - unknown to the stubs
    module.setLogLevel(0)
    warnings.filterwarnings("ignore", module="PIL")
    Image.MAX_IMAGE_PIXELS = None


def mute_decoders() -> None:
    """Keeps what libjpeg and libpng print about clients' pictures out of the server's log, which they would fill.

    They write to file descriptor 2 and take no orders. Python's own errors go where they went before.
    """
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)


def decode(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Decodes one image, turned upright if its EXIF orientation says so.

    Grey, palette and CMYK images become BGR, of 16 bits the high 8 are kept, and an alpha channel is dropped. Of an
    animation it is the first picture.

    Args:
        data: A whole JPEG, PNG, BMP or WebP file.
        max_pixels: Images of more pixels are refused on the strength of their header, before anything is decoded.

    Returns:
        The image, UINT8 [h, w, 3], BGR.

    Raises:
        RequestError: The bytes are no such image, are cut short or damaged, hold more pixels than allowed, or are put
            together so that to read them takes far longer than pixels do.
    """
    data = decodable(data)
    return _pixels(data, _check_header(data, max_pixels), 1)


def decode_to_fit(
    data: bytes, max_pixels: int, height: int, width: int
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """Decodes as `decode` does, a JPEG at 1/2, 1/4 or 1/8 of its size where that is no smaller than what is needed.

    libjpeg then skips most of the work: it leaves out frequencies that the smaller picture has no room for.

    Args:
        data: See decode.
        max_pixels: See decode.
        height: Of the letterbox the image is to go into.
        width: Of the letterbox.

    Returns:
        The image, UINT8 [h, w, 3], BGR, and the height and width it would have in full.

    Raises:
        RequestError: See decode.
    """
    data = decodable(data)
    header = _check_header(data, max_pixels)
    reduction = _reduction(header, height, width)
    image = _pixels(data, header, reduction)
    # Where the picture was turned upright, its sides have changed places.
    full = (header.height, header.width)
    turned = image.shape[:2] != tuple(-(-side // reduction) for side in full)
    return image, full[::-1] if turned else full


def _reduction(header: _Header, height: int, width: int) -> int:
    if header.format != "JPEG":
        return 1
    # Whichever way it will be turned.
    sides = header.width, header.height
    ratio = max(min(height / h, width / w) for w, h in (sides, sides[::-1]))
    return next((by for by in _REDUCED if by * ratio <= 1), 1)


def _pixels(data: bytes, header: _Header, reduction: int) -> npt.NDArray[np.uint8]:
    image = _by_simplejpeg(data, header, reduction)
    if image is None:
        image = _by_opencv(data, header, reduction)
    return upright(image, header.orientation or 1)


def _by_simplejpeg(data: bytes, header: _Header, reduction: int) -> npt.NDArray[np.uint8] | None:
    """A JPEG's pixels, to the last bit those of OpenCV; None for what only OpenCV reads (CMYK, damaged), or refuses."""
    if fast_decode_jpeg is None or header.format not in _JPEG:
        return None
    smaller = {"min_height": -(-header.height // reduction), "min_width": -(-header.width // reduction)}
    try:
        pixels: npt.NDArray[np.uint8] = fast_decode_jpeg(
            data, "BGR", min_factor=reduction, **(smaller if reduction > 1 else {})
        )
    except ValueError:
        return None
    return pixels


def _by_opencv(data: bytes, header: _Header, reduction: int) -> npt.NDArray[np.uint8]:
    flags = _REDUCED.get(reduction, cv2.IMREAD_COLOR)
    if header.orientation is not None:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise RequestError(f"cut short or damaged: found {found(data)}; the header can be read, the pixels cannot")
    return image  # type: ignore[return-value]  # OpenCV's stubs do not say UINT8


def upright(image: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Turns an image as its EXIF orientation asks.

    Args:
        image: The image as stored, UINT8 [h, w, 3].
        orientation: EXIF's number, 1 to 8; any other leaves the image as it is.
    """
    if orientation in _MIRRORED:
        image = cv2.flip(image, 1)  # type: ignore[assignment]
    if orientation in _TURNS:
        image = cv2.rotate(image, _TURNS[orientation])  # type: ignore[assignment]
    return image


@dataclass(frozen=True)
class _Header:
    """What a file says of itself; `orientation` is EXIF's, None where OpenCV turns the picture by itself (PNG, BMP)."""

    format: str | None
    width: int
    height: int
    orientation: int | None


def _check_header(data: bytes, max_pixels: int) -> _Header:
    """Refuses what the header alone shows to be no image, too large, or a JPEG cut short."""
    if not data:
        raise RequestError(NO_BYTES)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            width, height = header.size
            file_format = header.format
            orientation = _jpeg_orientation(header) if file_format in _JPEG else None
            if file_format == "WEBP":
                orientation = header.getexif().get(_ORIENTATION_TAG, 1)
    except UnidentifiedImageError:
        raise RequestError(
            f"no image: found {found(data)}; expected the content of one JPEG, PNG, BMP or WebP file"
        ) from None
    # Pillow's plugins raise whatever their reading of damaged bytes leads to.
    except Exception as error:
        raise RequestError(f"cut short or damaged: found {found(data)}; reading its header: {error}") from None
    if width * height > max_pixels:
        raise RequestError(
            f"too large: found {width} x {height} = {width * height} pixels, allowed are {max_pixels}; send it "
            "smaller, or raise MAX_IMAGE_PIXELS in yolox_preprocess/config.pbtxt"
        )
    if file_format in _JPEG and not is_whole_jpeg(data):
        raise RequestError(f"cut short: found {found(data)}, and no end-of-image marker; send the whole JPEG file")
    return _Header(file_format, width, height, orientation)


def _jpeg_orientation(header: Image.Image) -> int:
    """EXIF's orientation, and nothing of what other metadata claims; upright where EXIF is damaged, as with OpenCV."""
    exif = Image.Exif()
    try:
        exif.load(header.info.get("exif", b""))
        return int(exif.get(_ORIENTATION_TAG, 1))
    # Pillow's reading of damaged bytes leads to all sorts.
    except Exception:
        return 1
