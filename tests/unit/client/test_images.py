"""Everything that `detect` accepts, as bytes that a decoder turns back into the same pixels."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pinstream_client import InvalidImage
from pinstream_client.images import array_size, encode

cv2 = pytest.importorskip("cv2")


def decode(data: bytes, flags: int | None = None) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR if flags is None else flags)
    assert image is not None
    return np.asarray(image)


@given(height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_colour_array_decodes_to_the_same_pixels(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_array_equal(decode(encode(pixels)), pixels)


@given(height=st.integers(1, 20), width=st.integers(1, 20), extra_axis=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_grey_array_decodes_to_the_same_pixels(height: int, width: int, extra_axis: bool, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    data = encode(pixels[:, :, None] if extra_axis else pixels)
    np.testing.assert_array_equal(decode(data, cv2.IMREAD_GRAYSCALE), pixels)
    np.testing.assert_array_equal(decode(data), np.repeat(pixels[:, :, None], 3, axis=2))


def test_array_that_is_not_contiguous_decodes_to_the_same_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 31, 3), np.uint8)
    for view in (
        pixels[::2],
        pixels[:, ::-1],
        pixels[:, :, ::-1],
        pixels.transpose(1, 0, 2),
        np.asfortranarray(pixels),
    ):
        np.testing.assert_array_equal(decode(encode(view)), view)


def test_bmp_header_tells_the_size_of_the_file() -> None:
    data = encode(np.zeros((3, 5, 3), np.uint8))
    assert data[:2] == b"BM"
    assert struct.unpack_from("<I", data, 2) == (len(data),)
    assert len(data) == 54 + 3 * 16


def test_file_is_sent_as_it_is(tmp_path: Path) -> None:
    # np.bytes_ would strip the zeros at the end.
    data = b"\xff\xd8 any bytes \x00\x00"
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    for image in (str(path), path, data, bytearray(data), memoryview(data)):
        assert encode(image) == data


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32: expected uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\): expected"),
        (np.zeros((4,), np.uint8), r"shape \(4,\): expected"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \(1, 4, 4, 3\): expected"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\): expected"),
        (np.uint8(3) * np.ones((), np.uint8), "expected"),
        (b"", "is empty"),
        ("no/such/file.jpg", "no/such/file.jpg: No such file"),
        (Path(), "Is a directory"),
        (Path("/dev/zero"), "is a device"),
        (42, "cannot send a int"),
        (None, "cannot send a NoneType"),
    ],
)
def test_image_that_cannot_be_sent_says_why(image: Any, words: str) -> None:
    with pytest.raises(InvalidImage, match=words) as caught:
        encode(image)
    assert "\n" not in str(caught.value)


def test_empty_file_says_its_name(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(InvalidImage, match=r"empty\.jpg is empty"):
        encode(tmp_path / "empty.jpg")


def test_size_is_known_of_arrays_only() -> None:
    assert array_size(np.zeros((4, 6, 3), np.uint8)) == (6, 4)
    assert array_size(np.zeros((4, 6), np.uint8)) == (6, 4)
    assert array_size("dog.jpg") is None
