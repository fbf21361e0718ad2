"""Average precision as COCO counts it, in NumPy: 10 IoU thresholds, 101 recalls, 100 detections an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.sprites import Floats

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
_MOST_DETECTIONS = 100


@dataclass(frozen=True)
class Found:
    """The detections in one image: boxes FP32 [n, 4], scores FP32 [n] and labels INT64 [n]."""

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Truth:
    """The objects in one image: boxes FP32 [n, 4] and labels INT64 [n]."""

    boxes: Floats
    labels: NDArray[np.int64]


def average_precision(found: Sequence[Found], truth: Sequence[Truth], num_classes: int) -> NDArray[np.float64]:
    """AP of every class at every threshold, FP64 [classes, 10], 0 to 1; not a number for a class without objects."""
    found = [_best(image) for image in found]
    table = np.full((num_classes, len(IOU_THRESHOLDS)), np.nan)
    for label in range(num_classes):
        scores, hits, objects = [], [], 0
        for detections, image in zip(found, truth, strict=True):
            mine, wanted = detections.labels == label, image.boxes[image.labels == label]
            order = np.argsort(-detections.scores[mine], kind="stable")
            scores.append(detections.scores[mine][order])
            hits.append(_hits(overlaps(detections.boxes[mine][order], wanted)))
            objects += len(wanted)
        if objects:
            order = np.argsort(-np.concatenate(scores), kind="stable")
            table[label] = [_area(row, objects) for row in np.concatenate(hits, axis=1)[:, order]]
    return table


def overlaps(first: Floats, second: Floats) -> Floats:
    """Intersection over union of boxes [n, 4] and [m, 4], FP32 [n, m]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (first, second)]
    return np.asarray(both / np.maximum(areas[0][:, None] + areas[1][None] - both, 1e-9), np.float32)


def _best(image: Found) -> Found:
    order = np.argsort(-image.scores, kind="stable")[:_MOST_DETECTIONS]
    return Found(image.boxes[order], image.scores[order], image.labels[order])


def _hits(iou: Floats) -> NDArray[np.bool_]:
    """Which detections find an object, BOOL [10, n], from the IoU [n, m] of detections, best first, and objects."""
    hits = np.zeros((len(IOU_THRESHOLDS), len(iou)), bool)
    if not iou.size:
        return hits
    for row, threshold in enumerate(IOU_THRESHOLDS):
        free = iou.copy()
        for detection in np.flatnonzero(iou.max(axis=1) >= threshold):
            best = int(free[detection].argmax())
            if free[detection, best] >= threshold:
                hits[row, detection] = True
                free[:, best] = -1  # an object is found once
    return hits


def _area(hits: NDArray[np.bool_], objects: int) -> float:
    """The area under precision over recall, from detections in the order of their scores."""
    true = np.cumsum(hits)
    precision = true / np.arange(1, len(hits) + 1)
    # The best precision at this recall or a higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    index = np.searchsorted(true / objects, _RECALLS, side="left")
    return float(np.append(envelope, 0.0)[np.minimum(index, len(hits))].mean())
