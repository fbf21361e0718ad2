"""Held-out pictures as a serving graph takes them, and how precise its candidates are. NumPy and OpenCV alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.precision import Found, Truth, average_precision
from training.shapes import HELD_OUT_SEED, LABELS, TRAINING_SEED, render_many
from yolox_steps.letterbox import letterbox
from yolox_steps.nms import select
from yolox_steps.parameters import Thresholds

# As YOLOX evaluates.
THRESHOLDS = Thresholds(conf=0.01, iou=0.65, max_det=100)


@dataclass(frozen=True)
class HeldOut:
    """Pictures and what is in them.

    Attributes:
        images: UINT8 [n, size, size, 3], letterboxed.
        truth: What there is, in pixels of `images`.
    """

    images: NDArray[np.uint8]
    truth: list[Truth]


def held_out(count: int, processes: int = 2, size: int = 416) -> HeldOut:
    """The first held-out pictures."""
    images = np.empty((count, size, size, 3), np.uint8)
    truth = []
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + count)
    for picture, out in zip(render_many(seeds, processes), images, strict=True):
        ratio = letterbox(picture.image, out=out)
        truth.append(Truth(picture.boxes * np.float32(ratio), picture.labels))
    return HeldOut(images, truth)


def write_training_pictures(folder: Path, count: int, processes: int = 2) -> Path:
    """Pictures to calibrate on, as JPEG files in a folder; none of them is a held-out one."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(render_many(range(TRAINING_SEED, TRAINING_SEED + count), processes)):
        (folder / f"{index:06d}.jpg").write_bytes(picture.jpeg)
    return folder


def precision(candidates: Sequence[NDArray[np.float32]], pictures: HeldOut) -> float:
    """AP (IoU 0.50 to 0.95) of a serving graph's candidates, FP32 [K, 6] for each picture, 0 to 1."""
    found = []
    for rows in candidates:
        kept = select(rows, THRESHOLDS)
        found.append(Found(kept[:, :4], kept[:, 4], kept[:, 5].astype(np.int64)))
    return float(np.nanmean(average_precision(found, pictures.truth, len(LABELS))))
