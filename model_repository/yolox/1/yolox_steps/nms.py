"""From candidates to detections: threshold, per-class non-maximum suppression, original pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from yolox_steps.parameters import Thresholds

FloatArray = npt.NDArray[np.float32]

# Columns of a candidate.
X1, Y1, X2, Y2, SCORE, CLASS = range(6)
_STARTS, _ENDS = slice(X1, Y1 + 1), slice(X2, Y2 + 1)
# Columns of a letterbox's width and height, for each column of a box.
_EDGES = np.array([1, 2, 1, 2])

# Candidates are compared pairwise, this many at a time: bounds the memory, and most of a long tail is never looked at.
_BLOCK = 256


def select(candidates: FloatArray, thresholds: Thresholds) -> FloatArray:
    """Picks the detections out of one image's candidates.

    Of two candidates of one class that overlap by more than `iou` only the better is kept; among equal scores the
    earlier one counts as better. Areas are (x2 - x1) x (y2 - y1), without a pixel added.

    Args:
        candidates: FP32 [K, 6]: x1, y1, x2, y2, score, class, in any order.
        thresholds: Lowest score (itself allowed), highest overlap (itself allowed), and most detections.

    Returns:
        The detections, FP32 [n, 6] with n at most `max_det`, best score first.
    """
    candidates = candidates[candidates[:, SCORE] >= thresholds.conf]
    candidates = candidates[(-candidates[:, SCORE]).argsort(kind="stable")]
    kept = candidates[:0]
    for start in range(0, len(candidates), _BLOCK):
        block = candidates[start : start + _BLOCK]
        if len(kept):
            block = block[_compatible(kept, block, thresholds.iou).all(axis=0)]
        chosen = block[_greedy(_compatible(block, block, thresholds.iou))]
        kept = (np.concatenate([kept, chosen]) if len(kept) else chosen)[: thresholds.max_det]
        if len(kept) == thresholds.max_det:
            break
    return kept


def to_original_pixels(boxes: FloatArray, letterbox: FloatArray) -> FloatArray:
    """Scales boxes from the letterbox back to the original image and clips them to it.

    Args:
        boxes: FP32 [n, 4]: x1, y1, x2, y2 in letterbox pixels.
        letterbox: FP32 [3]: ratio, original width, original height.

    Returns:
        FP32 [n, 4] in original pixels.
    """
    original: FloatArray = (boxes / letterbox[0]).clip(0, letterbox[_EDGES])
    return original


def _compatible(first: FloatArray, second: FloatArray, iou: float) -> npt.NDArray[np.bool_]:
    """Which pairs may both be detections: BOOL [n, m] for rows [n, 6] and [m, 6]."""
    # As columns, which are each beside the other's: of few candidates it is the calls that take the time.
    a, b = np.ascontiguousarray(first.T)[:, :, None], np.ascontiguousarray(second.T)[:, None, :]
    sides = np.minimum(a[_ENDS], b[_ENDS]) - np.maximum(a[_STARTS], b[_STARTS])
    intersection = np.multiply(*np.maximum(sides, 0))
    union = _area(a) + _area(b) - intersection
    # Multiplied instead of divided: boxes without area have no union to divide by.
    compatible: npt.NDArray[np.bool_] = (intersection <= iou * union) | (a[CLASS] != b[CLASS])
    return compatible


def _area(columns: FloatArray) -> FloatArray:
    area: FloatArray = np.multiply(*(columns[_ENDS] - columns[_STARTS]))
    return area


def _greedy(compatible: npt.NDArray[np.bool_]) -> list[int]:
    """Goes from best to worst and takes each one that fits all those taken before it."""
    alive = np.ones(len(compatible), np.bool_)
    chosen = []
    for index, row in enumerate(compatible):
        if alive[index]:
            chosen.append(index)
            alive &= row
    return chosen
