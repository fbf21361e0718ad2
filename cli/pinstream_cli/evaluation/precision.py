"""Average precision as COCO counts it, by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from pinstream_cli.evaluation.annotations import Annotations
from pinstream_client import Detections

# COCO counts the best of an image only.
MOST_DETECTIONS = 100
_SIZES = ("all", "small", "medium", "large")
_AT_50, _AT_75 = 0, 5  # of the ten IoU thresholds 0.50, 0.55, ..., 0.95


@dataclass(frozen=True)
class ClassPrecision:
    """The precision of one category; None where the file has no object of it.

    Attributes:
        name: The category.
        objects: How many there are, without crowds.
        ap: Mean over the IoU thresholds 0.50 to 0.95, 0 to 1.
        ap50: At 0.50.
        ap75: At 0.75.
    """

    name: str
    objects: int
    ap: float | None
    ap50: float | None
    ap75: float | None


@dataclass(frozen=True)
class Precision:
    """COCO's measures over all categories, 0 to 1; None where the file has no object that counts.

    Attributes:
        ap: Mean over categories and the IoU thresholds 0.50 to 0.95: "the" AP.
        ap50: At 0.50.
        ap75: At 0.75.
        small: `ap` of objects of fewer than 32 x 32 pixels.
        medium: Up to 96 x 96.
        large: Larger.
        classes: Each category by itself, in the file's order.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    classes: tuple[ClassPrecision, ...]


def measure(truth: Annotations, found: dict[int, Detections], categories: Sequence[int | None]) -> Precision:
    """Holds detections against the truth. An image that nothing was found in, or that is not in `found`, counts.

    Args:
        truth: What there is.
        found: What was found, by image id.
        categories: The category id of every class number, or None for classes to leave out.
    """
    wanted = COCO(
        {
            "images": [{"id": number} for number in truth.images],
            "annotations": [dict(entry) for entry in truth.objects],
            "categories": [{"id": number, "name": name} for number, name in truth.categories.items()],
        }
    )
    results = [entry for number, detections in found.items() for entry in _results(number, detections, categories)]
    evaluation = COCOeval_faster(wanted, wanted.loadRes(results), iouType="bbox")
    evaluation.params.maxDets = [MOST_DETECTIONS]
    evaluation.params.areaRngLbl = list(_SIZES)
    evaluation.evaluate()
    evaluation.accumulate()
    # FP64 [thresholds, recalls, categories, sizes, limits], -1 where there is nothing to be found.
    table = np.asarray(evaluation.eval["precision"])[..., 0]
    counts = dict.fromkeys(truth.categories, 0)
    for entry in truth.objects:
        counts[entry["category_id"]] += not entry["iscrowd"]
    classes = [
        ClassPrecision(name, counts[number], *_over_thresholds(table[:, :, [index], 0]))
        for index, (number, name) in enumerate(truth.categories.items())
    ]
    small, medium, large = (_mean(table[..., index]) for index in range(1, len(_SIZES)))
    return Precision(*_over_thresholds(table[..., 0]), small, medium, large, tuple(classes))


def _over_thresholds(table: NDArray[Any]) -> tuple[float | None, float | None, float | None]:
    """AP, AP50 and AP75 of precisions [thresholds, recalls, categories]."""
    return _mean(table), _mean(table[_AT_50]), _mean(table[_AT_75])


def _mean(precision: NDArray[Any]) -> float | None:
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else None


def _results(image: int, detections: Detections, categories: Sequence[int | None]) -> list[dict[str, Any]]:
    """Detections as COCO's result format has them, best first."""
    corners = detections.boxes.astype(np.float64)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return [
        {"image_id": image, "category_id": category, "bbox": box.tolist(), "score": float(score)}
        for box, score, label in zip(boxes, detections.scores, detections.class_ids, strict=True)
        if (category := categories[int(label)]) is not None
    ]
