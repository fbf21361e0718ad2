"""YOLOX's letterbox, bit for bit as the service's own preprocessing does it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

PAD = 114  # what YOLOX was trained with around the picture
_BITS = 11  # of the fixed-point weights of OpenCV's bilinear resize
_ONE = 1 << _BITS


def letterbox(image: Pixels, out: Pixels) -> float:
    """Resizes an image to fit and puts it into the top-left corner, over grey.

    Args:
        image: uint8 [h, w, 3], BGR.
        out: Where to write, uint8 [H, W, 3]; may lie in shared memory.

    Returns:
        The ratio, letterbox pixels per original pixel.
    """
    height, width = out.shape[:2]
    ratio = min(height / image.shape[0], width / image.shape[1])
    # YOLOX truncates, which leaves nothing of an image that is far longer than wide: keep a row of it.
    rows = max(int(image.shape[0] * ratio), 1)
    columns = max(int(image.shape[1] * ratio), 1)
    cv2 = _opencv()
    if cv2 is not None:
        cv2.resize(image, (columns, rows), dst=out[:rows, :columns], interpolation=cv2.INTER_LINEAR)
    else:
        out[:rows, :columns] = resize(image, columns, rows)
    out[rows:] = PAD
    out[:rows, columns:] = PAD
    return ratio


def resize(image: Pixels, width: int, height: int) -> Pixels:
    """OpenCV's bilinear resize of 8-bit images (``INTER_LINEAR``) in NumPy, with the same fixed-point rounding.

    Args:
        image: uint8 [h, w, channels].
        width: Of the result, at least 1.
        height: Of the result, at least 1.

    Returns:
        uint8 [height, width, channels].
    """
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image
    if (rows, columns) == (2 * height, 2 * width):  # here OpenCV takes the mean of the four
        blocks = image.reshape(height, 2, width, 2, -1).astype(np.uint16)
        halved: Pixels = ((blocks.sum(axis=(1, 3), dtype=np.uint16) + 2) >> 2).astype(np.uint8)
        return halved
    left, right, left_weight, right_weight = _taps(width, columns, clamp_weights=True)
    upper, lower, upper_weight, lower_weight = _taps(height, rows, clamp_weights=False)
    needed, where = np.unique(np.concatenate([upper, lower]), return_inverse=True)
    source = image[needed].astype(np.int32)
    across = source[:, left] * left_weight[:, None] + source[:, right] * right_weight[:, None]
    across >>= 4
    above, below = across[where[:height]], across[where[height:]]
    above *= upper_weight[:, None, None]
    below *= lower_weight[:, None, None]
    above >>= 16
    below >>= 16
    resized: Pixels = ((above + below + 2) >> 2).astype(np.uint8)
    return resized


def _taps(
    count: int, source: int, clamp_weights: bool
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """For each pixel of one axis the two source pixels between which it lies, and their weights of 11 bits.

    At the edges OpenCV takes the last pixel alone along a row, and weighs the clamped rows as they are along a column.
    """
    scale = 1.0 / (count / source)
    at = ((np.arange(count) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    weight = at - first.astype(np.float32)
    if clamp_weights:
        weight[(first < 0) | (first >= source - 1)] = 0
    second_weight = np.rint(weight * np.float32(_ONE)).astype(np.int32)
    first_weight = np.rint((np.float32(1) - weight) * np.float32(_ONE)).astype(np.int32)
    return np.clip(first, 0, source - 1), np.clip(first + 1, 0, source - 1), first_weight, second_weight


@functools.cache
def _opencv() -> Any:
    """OpenCV where it is installed, which is several times faster; else None."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2
