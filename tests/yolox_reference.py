"""What YOLOX finds in an image, worked out the plain way: the yardstick for the service.

The original export, run by ONNX Runtime, then YOLOX's own post-processing in NumPy, written to be read. Shares no code
with what it measures.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

STRIDES = (8, 16, 32)


def reference_detections(
    onnx_path: str | Path, image_bgr: npt.NDArray[np.uint8], conf: float = 0.25, iou: float = 0.45
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Runs YOLOX on one image.

    Args:
        onnx_path: An undecoded export with a static batch of 1: `images` FP32 [1, 3, H, W] in, FP32
            [1, anchors, 5 + classes] out, objectness and classes between 0 and 1.
        image_bgr: The image, UINT8 [h, w, 3].
        conf: Lowest objectness times class probability.
        iou: Highest overlap of two detections of one class.

    Returns:
        Boxes FP32 [n, 4] (x1, y1, x2, y2 in pixels of the image, clipped to it), scores FP32 [n] and classes INT32 [n],
        best score first.
    """
    session = _session(str(onnx_path))
    height, width = session.get_inputs()[0].shape[2:]
    network_input, ratio = _preprocess(image_bgr, height, width)
    (output,) = session.run(None, {session.get_inputs()[0].name: network_input})
    boxes, scores, classes = _decode(output[0], height, width)
    kept = _nms_per_class(boxes, scores, classes, conf, iou)
    boxes = boxes[kept] / ratio
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, image_bgr.shape[1])
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, image_bgr.shape[0])
    return boxes.astype(np.float32), scores[kept].astype(np.float32), classes[kept].astype(np.int32)


@cache
def _session(path: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _preprocess(image: npt.NDArray[np.uint8], height: int, width: int) -> tuple[FloatArray, float]:
    canvas = np.full((height, width, 3), 114, np.uint8)
    ratio = min(height / image.shape[0], width / image.shape[1])
    # YOLOX itself fails on images so long and thin that truncation leaves no pixel of a side; one is kept.
    rows, columns = (max(1, int(side * ratio)) for side in image.shape[:2])
    canvas[:rows, :columns] = cv2.resize(image, (columns, rows)).reshape(rows, columns, 3)
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], np.float32), ratio


def _decode(output: FloatArray, height: int, width: int) -> tuple[FloatArray, FloatArray, IntArray]:
    """Boxes in letterbox pixels, and for each the best class and its score."""
    centres, sizes, offset = [], [], 0
    for stride in STRIDES:
        rows, columns = height // stride, width // stride
        level = output[offset : offset + rows * columns]
        offset += rows * columns
        y, x = np.divmod(np.arange(rows * columns), columns)
        centres.append((level[:, :2] + np.stack([x, y], axis=1)) * stride)
        sizes.append(np.exp(level[:, 2:4]) * stride)
    centre, size = np.concatenate(centres), np.concatenate(sizes)
    assert offset == len(output), "not an undecoded YOLOX output of this size"
    scores = output[:, 4:5] * output[:, 5:]
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1), scores.max(axis=1), scores.argmax(axis=1)


def _nms_per_class(boxes: FloatArray, scores: FloatArray, classes: IntArray, conf: float, iou: float) -> list[int]:
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] < conf:
            break
        same_class = [other for other in kept if classes[other] == classes[index]]
        if all(_iou(boxes[index], boxes[other]) <= iou for other in same_class):
            kept.append(int(index))
    return kept


def _iou(a: FloatArray, b: FloatArray) -> float:
    width = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])))
    height = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])))
    both = width * height
    return both / (float((a[2] - a[0]) * (a[3] - a[1])) + float((b[2] - b[0]) * (b[3] - b[1])) - both)
