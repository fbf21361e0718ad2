"""YOLOX's own reading of its input and output, in plain NumPy: the yardstick that serving graphs are measured against.

Written from the contract, not for speed: images are BGR, 0-255, letterboxed to the top-left corner; every anchor is one
cell of a grid of stride 8, 16 or 32; the score of a class is objectness x class score.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pinstream_cli.build_error import BuildError

STRIDES = (8, 16, 32)
PAD_VALUE = 114

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Anchors:
    """Every anchor of a batch, read in full.

    Attributes:
        boxes: FP32 [batch, N, 4], x1, y1, x2, y2 in letterbox pixels.
        scores: FP32 [batch, N], objectness x best class score.
        class_scores: FP32 [batch, N, C], the class scores alone.
    """

    boxes: Floats
    scores: Floats
    class_scores: Floats


def anchor_count(input_size: tuple[int, int]) -> int:
    """How many anchors YOLOX has for an input of (height, width) pixels."""
    height, width = input_size
    return sum((height // stride) * (width // stride) for stride in STRIDES)


def anchor_cells(input_size: tuple[int, int]) -> Floats:
    """The grid cell of every anchor: FP32 [N, 3] of column, row and stride, in the order of YOLOX's output."""
    height, width = input_size
    levels = []
    for stride in STRIDES:
        rows, columns = np.mgrid[: height // stride, : width // stride]
        levels.append(np.stack([columns.ravel(), rows.ravel(), np.full(rows.size, stride)], axis=1))
    cells: Floats = np.concatenate(levels).astype(np.float32)
    return cells


def decode(head: Floats, cells: Floats) -> Floats:
    """Centres and sizes in letterbox pixels from the raw head [batch, N, 5 + C]; a new array of the same shape."""
    grid, stride = cells[:, :2], cells[:, 2:]
    decoded = head.copy()
    decoded[..., :2] = (head[..., :2] + grid) * stride
    decoded[..., 2:4] = np.exp(head[..., 2:4]) * stride
    return decoded


def read_anchors(decoded: Floats) -> Anchors:
    """Corners and scores from a decoded head [batch, N, 5 + C] of centre x, centre y, width, height, scores."""
    centre, half = decoded[..., :2], decoded[..., 2:4] / 2
    class_scores = decoded[..., 5:]
    return Anchors(
        boxes=np.concatenate([centre - half, centre + half], axis=-1),
        scores=decoded[..., 4] * class_scores.max(axis=-1),
        class_scores=class_scores,
    )


def letterbox(image: Image, input_size: tuple[int, int]) -> Image:
    """An image of any size as the network wants it.

    Args:
        image: UINT8 [h, w, 3], BGR.
        input_size: Height and width of the network's input.

    Returns:
        UINT8 [height, width, 3]: the image scaled by min(height / h, width / w), its size truncated to whole pixels, in
        the top-left corner; the rest is grey 114.
    """
    import cv2

    height, width = input_size
    ratio = min(height / image.shape[0], width / image.shape[1])
    # A picture of 1 x 5000 would scale to zero rows; one is the least that can be resized to.
    resized_height, resized_width = max(1, int(image.shape[0] * ratio)), max(1, int(image.shape[1] * ratio))
    canvas = np.full((height, width, 3), PAD_VALUE, np.uint8)
    resized = cv2.resize(image, (resized_width, resized_height), interpolation=cv2.INTER_LINEAR)
    canvas[:resized_height, :resized_width] = resized
    return canvas


def load_letterboxed(path: Path, input_size: tuple[int, int]) -> Image:
    """An image file, decoded and letterboxed.

    Raises:
        BuildError: The file is missing or no image that OpenCV reads.
    """
    import cv2

    if not path.is_file():
        raise BuildError(f"{path}: no such image file; --image takes pictures to check the built graph with")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise BuildError(f"{path}: not an image that OpenCV can read; --image takes JPEG, PNG, BMP or WebP files")
    return letterbox(image.astype(np.uint8, copy=False), input_size)


def random_image(input_size: tuple[int, int], seed: int = 0) -> Image:
    """Noise over the whole range of values, UINT8 [height, width, 3], the same for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, (*input_size, 3), dtype=np.uint8)


def structured_image(input_size: tuple[int, int]) -> Image:
    """A scene of edges and areas, UINT8 [height, width, 3]: a gradient, discs and bars, different in every channel.

    Left and right, top and bottom, blue and red all differ, so that a transposed axis or channel cannot go unseen.
    """
    height, width = input_size
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    scene = np.stack([x, y, (x + y) / 2], axis=-1) * 255
    for centre_x, centre_y, radius, colour in ((0.3, 0.4, 0.15, (255, 40, 0)), (0.7, 0.25, 0.1, (0, 220, 60))):
        scene[(x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2] = colour
    scene[(y > 0.6) & (y < 0.9) & (x > 0.5) & (x < 0.6)] = (10, 10, 240)
    image: Image = scene.astype(np.uint8)
    return image
