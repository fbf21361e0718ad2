"""Decoding: every format and pixel layout a user can send, and every way in which bytes are no image."""

from __future__ import annotations

import io
import itertools
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from yolox_steps import decode as decoding
from yolox_steps.decode import DEFAULT_MAX_PIXELS, decode, decode_to_fit, prepare_process
from yolox_steps.errors import RequestError

HEIGHT, WIDTH = 60, 96


@pytest.fixture(autouse=True, params=["simplejpeg", "OpenCV alone"])
def decoding_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The switches of a decoding process, and the test process's own ones back afterwards."""
    assert decoding.fast_decode_jpeg is not None, (
        "simplejpeg is not installed, so that half of these tests show nothing"
    )
    if request.param != "simplejpeg":
        monkeypatch.setattr(decoding, "fast_decode_jpeg", None)
    threads, level, pillow_limit = cv2.getNumThreads(), cv2.getLogLevel(), Image.MAX_IMAGE_PIXELS
    prepare_process()
    yield
    cv2.setNumThreads(threads)
    cv2.setLogLevel(level)
    Image.MAX_IMAGE_PIXELS = pillow_limit


def picture() -> Image.Image:
    """Smooth, so that lossy formats keep it, and different in every corner and channel."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([x * 2, y * 4, 255 - x - y], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def bgr(image: Image.Image) -> npt.NDArray[np.int64]:
    return np.asarray(image.convert("RGB"))[..., ::-1].astype(np.int64)


def assert_shows(data: bytes, expected: npt.NDArray[np.int64], tolerance: int = 0) -> None:
    found = decode(data, DEFAULT_MAX_PIXELS)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header_only(width: int, height: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 20),
        ("JPEG", {"quality": 95, "subsampling": 0}, 8),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 8),
        ("JPEG", {"quality": 95, "subsampling": 0, "restart_marker_blocks": 2}, 8),
    ],
)
def test_decodes_every_format_to_bgr(file_format: str, options: dict[str, Any], tolerance: int) -> None:
    assert_shows(encoded(picture(), file_format, **options), bgr(picture()), tolerance)


@pytest.mark.parametrize("mode", ["L", "P", "1"])
@pytest.mark.parametrize("file_format", ["PNG", "BMP"])
def test_grey_and_palette_become_bgr(file_format: str, mode: str) -> None:
    image = picture().convert(mode)
    assert_shows(encoded(image, file_format), bgr(image))


def test_grey_jpeg_becomes_bgr() -> None:
    image = picture().convert("L")
    assert_shows(encoded(image, "JPEG", quality=95), bgr(image), tolerance=4)


def test_cmyk_jpeg_becomes_bgr() -> None:
    data = encoded(picture().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert_shows(data, bgr(picture()), tolerance=16)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_alpha_is_dropped_and_nothing_is_blended_in(file_format: str) -> None:
    image = picture()
    image.putalpha(Image.linear_gradient("L").resize((WIDTH, HEIGHT)))
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    assert_shows(encoded(image, file_format, **options), bgr(picture()))


@pytest.mark.parametrize("channels", [1, 3])
def test_of_16_bits_the_high_8_are_kept(channels: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    assert_shows(data, np.broadcast_to(pixels >> 8, (HEIGHT, WIDTH, 3)).astype(np.int64))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_of_an_animation_the_first_picture_is_taken(file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(picture(), file_format, save_all=True, append_images=[ImageOps.invert(picture())], **options)
    assert_shows(data, bgr(picture()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [("JPEG", {"quality": 95, "subsampling": 0}, 8), ("PNG", {}, 0), ("WEBP", {"lossless": True}, 0)],
)
def test_exif_orientation_is_honoured(
    file_format: str, options: dict[str, Any], tolerance: int, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), file_format, exif=exif.tobytes(), **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (upright.width < upright.height) == (orientation >= 5)
    assert_shows(data, bgr(upright), tolerance)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_does_not_exist_is_passed_over(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    assert decode(encoded(picture(), file_format, exif=exif.tobytes()), DEFAULT_MAX_PIXELS).shape == (HEIGHT, WIDTH, 3)


def refusal(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> str:
    with pytest.raises(RequestError) as caught:
        decode(data, max_pixels)
    return str(caught.value)


def test_empty_bytes() -> None:
    assert "no bytes at all" in refusal(b"")


def test_a_text_file_is_quoted_and_the_formats_are_named() -> None:
    text = refusal(b"hello, I am a text file")
    assert "23 bytes that begin with b'hello, I am a te'" in text
    assert "JPEG, PNG, BMP or WebP" in text


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_although_the_libraries_know_them(file_format: str) -> None:
    assert "no image" in refusal(encoded(picture(), file_format))


def big_jpeg(**options: Any) -> bytes:
    """Noise, so that it is large; a row of smooth pixels at the bottom would hide what is missing."""
    noise = np.random.default_rng(2).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), "JPEG", **options)


@pytest.mark.parametrize("keep", [0.999, 0.9, 0.5, 0.1, 0.01, 0.003])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}], ids=str)
def test_a_jpeg_cut_short(options: dict[str, Any], keep: float) -> None:
    data = big_jpeg(**options)
    assert "cut short" in refusal(data[: int(len(data) * keep)])


def with_thumbnail(data: bytes) -> bytes:
    """The JPEG with a whole JPEG, its end-of-image marker included, inside its metadata."""
    thumbnail = encoded(picture().resize((16, 10)), "JPEG")
    return data[:2] + b"\xff\xe3" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]


def test_a_jpeg_cut_short_does_not_pass_for_the_end_of_its_thumbnail(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever OpenCV makes of it: some versions return a picture that is half grey.
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((200, 300, 3), np.uint8))
    whole = with_thumbnail(big_jpeg())
    decode(whole, DEFAULT_MAX_PIXELS)
    assert "no end-of-image marker" in refusal(whole[:-2])


def test_a_jpeg_with_a_thumbnail_or_with_something_appended_is_whole() -> None:
    data = encoded(picture(), "JPEG", quality=95, subsampling=0)
    assert_shows(with_thumbnail(data), bgr(picture()), tolerance=8)
    # Phones append films; these bytes look like the start of another scan.
    assert_shows(data + b"\xff\xda" + bytes(100), bgr(picture()), tolerance=8)


@pytest.mark.parametrize("missing", [1, 12, 13, 100, 1000])
@pytest.mark.parametrize("file_format", ["PNG", "BMP", "WEBP"])
def test_other_formats_cut_short(file_format: str, missing: int) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), file_format)
    assert "cut short" in refusal(data[:-missing])


def test_a_damaged_png() -> None:
    data = bytearray(encoded(picture(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert "damaged" in refusal(bytes(data))


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded although too large")

    monkeypatch.setattr(cv2, "imdecode", never)
    text = refusal(png_header_only(20000, 20000))
    assert "20000 x 20000 = 400000000 pixels" in text
    assert f"allowed are {DEFAULT_MAX_PIXELS}" in text
    assert "MAX_IMAGE_PIXELS" in text


def test_the_pixel_limit_itself_is_allowed() -> None:
    data = encoded(picture(), "PNG")
    assert decode(data, WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)
    assert "too large" in refusal(data, WIDTH * HEIGHT - 1)


def test_random_bytes_behind_an_honest_signature_end_in_a_refusal() -> None:
    random = np.random.default_rng(4)
    for signature in (b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF\x40\x00\x00\x00WEBPVP8 "):
        for _ in range(200):
            refusal(signature + random.bytes(80))


def test_a_damaged_animation_does_not_end_the_process() -> None:
    # Found by fuzzing: OpenCV 4.11 crashes on it.
    data = (Path(__file__).parents[2] / "data" / "damaged.apng").read_bytes()
    assert b"fcTL" in data
    assert "damaged" in refusal(data)


def test_what_decoders_print_about_pictures_goes_nowhere_and_python_is_still_heard() -> None:
    script = """
import os, sys
from yolox_steps.decode import mute_decoders
mute_decoders()
os.write(2, b"libpng error")
print("python", file=sys.stderr)
"""
    package = Path(decoding.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=package)
    assert done.stderr == "python\n"


def test_a_chunk_that_claims_gigabytes_is_refused_before_they_are_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    # Found by fuzzing: 132 bytes made OpenCV 4.11 allocate 4 GiB and think for seconds.
    def never(*_: object) -> None:
        raise AssertionError("given to OpenCV")

    data = encoded(picture(), "PNG")
    at = data.index(b"IDAT") - 4
    monkeypatch.setattr(cv2, "imdecode", never)
    assert "a chunk that ends behind them" in refusal(data[:at] + b"\xff\xff\xff\x7f" + data[at + 4 :])


@pytest.mark.parametrize(
    ("height", "width", "reduction"), [(416, 416, 1), (831, 700, 1), (832, 832, 2), (1000, 1700, 4), (4001, 3000, 8)]
)
def test_a_large_jpeg_is_decoded_no_larger_than_needed(height: int, width: int, reduction: int) -> None:
    image, full = decode_to_fit(encoded(plain(height, width), "JPEG"), DEFAULT_MAX_PIXELS, 416, 416)
    assert full == (height, width)
    assert image.shape[:2] == (-(-height // reduction), -(-width // reduction))


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "WEBP"])
def test_other_formats_are_decoded_in_full(file_format: str) -> None:
    image, full = decode_to_fit(encoded(plain(900, 1000), file_format), DEFAULT_MAX_PIXELS, 416, 416)
    assert image.shape[:2] == full == (900, 1000)


def test_a_picture_turned_upright_has_its_sides_the_other_way_round() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(plain(900, 1701), "JPEG", exif=exif.tobytes())
    image, full = decode_to_fit(data, DEFAULT_MAX_PIXELS, 416, 416)
    assert full == (1701, 900)
    assert image.shape[:2] == (426, 225)


def test_a_reduced_picture_is_the_picture_made_smaller() -> None:
    image, _ = decode_to_fit(encoded(plain(1664, 1664), "JPEG", quality=100), DEFAULT_MAX_PIXELS, 416, 416)
    assert np.abs(image - bgr(plain(1664, 1664).resize((416, 416), Image.Resampling.BOX))).mean() < 2


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (17, 33), (101, 203), (640, 481)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_jpeg_has_the_pixels_that_opencv_gives_it(size: tuple[int, int], mode: str) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)
    image = Image.fromarray(cv2.GaussianBlur(noise, (5, 5), 1.5)).convert(mode)
    for quality, progressive, subsampling in itertools.product((30, 95), (False, True), (0, 1, 2)):
        chroma = {} if mode == "L" else {"subsampling": subsampling}
        data = encoded(image, "JPEG", quality=quality, progressive=progressive, **chroma)
        for height in (size[0], -(-size[0] // 2), -(-size[0] // 4), -(-size[0] // 8)):
            found, _ = decode_to_fit(data, DEFAULT_MAX_PIXELS, height, 4096)
            reduction = next(by for by in (1, 2, 4, 8) if found.shape[0] == -(-size[0] // by))
            flags = {1: cv2.IMREAD_COLOR, **decoding._REDUCED}[reduction]
            np.testing.assert_array_equal(found, cv2.imdecode(np.frombuffer(data, np.uint8), flags))


def test_damaged_exif_leaves_the_picture_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(), "JPEG", exif=exif.tobytes())
    at = data.index(b"Exif") + 6
    assert decode(data, DEFAULT_MAX_PIXELS).shape == (WIDTH, HEIGHT, 3)
    assert decode(data[:at] + b"\xff" * 8 + data[at + 8 :], DEFAULT_MAX_PIXELS).shape == (HEIGHT, WIDTH, 3)


def test_damaged_jpegs_are_taken_or_refused_the_same_with_and_without_simplejpeg(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library, rng = decoding.fast_decode_jpeg, np.random.default_rng(4)
    whole = encoded(picture(), "JPEG", quality=80)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 1 + rng.integers(4)):
            data[at] = rng.integers(256)
        found = []
        for used in (library, None):
            monkeypatch.setattr(decoding, "fast_decode_jpeg", used)
            try:
                found.append(decode(bytes(data), DEFAULT_MAX_PIXELS).tobytes())
            except RequestError as error:
                found.append(str(error).encode())
                refused += 1
        assert found[0] == found[1]
    assert 20 < refused < 580


def plain(height: int, width: int) -> Image.Image:
    """A smooth picture, of which any size shows the same."""
    rows, columns = np.mgrid[:height, :width]
    channels = rows * 255 // height, columns * 255 // width, (rows + columns) * 255 // (height + width)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
