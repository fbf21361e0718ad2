"""From the detector's candidates to detections, as the service's own postprocessing does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidRequest
from .transport import Parameter

Floats = NDArray[np.float32]

# Columns of a candidate.
X1, Y1, X2, Y2, SCORE, CLASS = range(6)


@dataclass(frozen=True)
class Thresholds:
    """What makes a candidate a detection.

    Attributes:
        conf: Lowest score, 0 to 1.
        iou: Highest overlap (intersection over union) of two detections of one class, 0 to 1.
        max_det: Most detections per image.
    """

    conf: float = 0.25
    iou: float = 0.45
    max_det: int = 100

    def overridden(self, given: Mapping[str, Parameter], candidates: int) -> Thresholds:
        """These, with what a call gives instead.

        Args:
            given: conf, iou, max_det; numbers.
            candidates: The detector's candidates per image, the highest max_det there can be.

        Raises:
            InvalidRequest: Out of range, in the service's words.
        """
        for name, highest in (("conf", 1), ("iou", 1), ("max_det", candidates)):
            lowest = int(name == "max_det")
            value = given.get(name)
            if value is not None and not lowest <= float(value) <= highest:
                kind = "a whole number" if lowest else "a number"
                raise InvalidRequest(
                    f"request parameter '{name}': expected {kind} from {lowest} to {highest}, found {value!r}"
                )
        return replace(self, **given) if given else self  # type: ignore[arg-type]


def select(candidates: Floats, thresholds: Thresholds) -> Floats:
    """Per-class non-maximum suppression.

    Of two candidates of one class that overlap by more than ``iou`` the better one is kept; among equal scores the
    earlier one counts as better. Areas are (x2 - x1) x (y2 - y1), without a pixel added.

    Args:
        candidates: float32 [K, 6]: x1, y1, x2, y2, score, class, in any order.
        thresholds: What is kept.

    Returns:
        float32 [n, 6] with n at most ``max_det``, best score first.
    """
    left = candidates[candidates[:, SCORE] >= thresholds.conf]
    left = left[np.argsort(-left[:, SCORE], kind="stable")]
    kept: list[Floats] = []
    # Usually few pass the threshold, and of those most fall to the first: no more is compared than has to be.
    while len(left) and len(kept) < thresholds.max_det:
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[~_suppressed(best, left, thresholds.iou)]
    return np.array(kept, np.float32).reshape(-1, 6)


def to_original_pixels(boxes: Floats, ratio: float, width: int, height: int) -> Floats:
    """Scales boxes [n, 4] from the letterbox back to the original image and clips them to it."""
    edges = np.array([width, height, width, height], np.float32)
    original: Floats = np.clip(boxes / np.float32(ratio), np.float32(0), edges)
    return original


def _suppressed(best: Floats, others: Floats, iou: float) -> NDArray[np.bool_]:
    width = np.minimum(best[X2], others[:, X2]) - np.maximum(best[X1], others[:, X1])
    height = np.minimum(best[Y2], others[:, Y2]) - np.maximum(best[Y1], others[:, Y1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    union = _area(best) + _area(others) - intersection
    # Multiplied instead of divided: boxes without area have no union to divide by. The threshold is rounded to the
    # service's precision, which decides about pairs that lie on it.
    over: Any = intersection > np.float32(iou) * union
    suppressed: NDArray[np.bool_] = over & (others[:, CLASS] == best[CLASS])
    return suppressed


def _area(boxes: Floats) -> Any:
    return (boxes[..., X2] - boxes[..., X1]) * (boxes[..., Y2] - boxes[..., Y1])
