"""Letterboxing, bit for bit, against a plain transcription of what YOLOX does to an image before the network."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from yolox_steps.letterbox import letterbox

Image = npt.NDArray[np.uint8]

SIZES = {
    "wide": (300, 1280),
    "tall": (1280, 300),
    "fits": (416, 416),
    "shrinks by a whole number": (832, 832),
    "grows": (97, 131),
    "a pixel": (1, 1),
    "a row": (1, 300),
    "a column": (300, 1),
    "huge": (3000, 4000),
    "divides badly": (49, 49),
    "divides badly on one side": (333, 777),
}
TARGETS = [(416, 416), (640, 640), (320, 608), (608, 320)]


def noise(height: int, width: int) -> Image:
    return np.random.default_rng(height * 7919 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def yolox_letterbox(image: Image, target: tuple[int, int]) -> tuple[Image, float]:
    """The contract: grey 114, the smaller of both ratios, truncated sizes, bilinear, top-left corner."""
    canvas = np.full((target[0], target[1], 3), 114, dtype=np.uint8)
    r = min(target[0] / image.shape[0], target[1] / image.shape[1])
    resized = cv2.resize(
        image, (int(image.shape[1] * r), int(image.shape[0] * r)), interpolation=cv2.INTER_LINEAR
    ).astype(np.uint8)
    canvas[: int(image.shape[0] * r), : int(image.shape[1] * r)] = resized
    return canvas, r


def run(image: Image, target: tuple[int, int]) -> tuple[Image, float]:
    # Rubbish in the output array, and neighbours on both sides, as in a batch.
    batch = noise(3 * target[0], target[1]).reshape(3, *target, 3)
    before = batch.copy()
    ratio = letterbox(image, out=batch[1])
    assert np.array_equal(batch[[0, 2]], before[[0, 2]])
    return batch[1], ratio


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_equals_the_contract_bit_for_bit(size: tuple[int, int], target: tuple[int, int]) -> None:
    image = noise(*size)
    expected, expected_ratio = yolox_letterbox(image, target)
    found, ratio = run(image, target)
    assert ratio == expected_ratio
    assert np.array_equal(found, expected)


def test_truncates_the_resized_size() -> None:
    # 320 / 1000 * 777 = 248.64: row 248 is already padding.
    found, _ = run(np.zeros((777, 1000, 3), np.uint8), (320, 320))
    assert not found[:248].any()
    assert (found[248:] == 114).all()


def test_leaves_the_channels_in_their_order() -> None:
    image = np.empty((10, 10, 3), np.uint8)
    image[:] = (1, 2, 3)
    found, _ = run(image, (20, 20))
    assert found[5, 5].tolist() == [1, 2, 3]


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)], ids=str)
def test_keeps_one_row_of_what_truncation_would_leave_nothing_of(size: tuple[int, int]) -> None:
    found, ratio = run(np.full((*size, 3), 7, np.uint8), (416, 416))
    assert ratio == 416 / 5000
    kept = found[:1] if size[0] == 1 else found[:, :1]
    rest = found[1:] if size[0] == 1 else found[:, 1:]
    assert (kept == 7).all()
    assert (rest == 114).all()


@pytest.mark.parametrize("size", [(832, 832), (1001, 1500), (1500, 1001)])
def test_a_smaller_version_lands_where_the_picture_would(size: tuple[int, int]) -> None:
    image = cv2.GaussianBlur(noise(*size), (0, 0), 8).astype(np.uint8)
    smaller = cv2.resize(image, (-(-size[1] // 2), -(-size[0] // 2)), interpolation=cv2.INTER_AREA).astype(np.uint8)
    expected, found = np.empty((416, 416, 3), np.uint8), np.empty((416, 416, 3), np.uint8)
    assert letterbox(smaller, found, size) == letterbox(image, expected)
    assert np.array_equal(found == 114, expected == 114) or np.abs(found.astype(int) - expected).mean() < 2
    assert np.abs(found.astype(int) - expected).max() <= 4
