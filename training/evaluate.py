"""What a network finds in the pictures of a pool, and how good that is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.mosaic import plain
from training.pool import PicturePool
from training.precision import Found, Truth, average_precision
from training.simota import overlap
from training.yolox import cells, decode

# As YOLOX evaluates.
CONFIDENCE, NMS_IOU = 0.01, 0.65
_CANDIDATES = 300


def evaluate(model: nn.Module, pool: PicturePool, count: int, num_classes: int) -> NDArray[np.float64]:
    """AP of every class at every IoU threshold, FP64 [classes, 10], on the first pictures of a pool."""
    found = list(detect(model, pool, count))
    truth = []
    for boxes, labels in zip(pool.boxes[:count].cpu().numpy(), pool.labels[:count].cpu().numpy(), strict=True):
        truth.append(Truth(boxes[labels >= 0], labels[labels >= 0]))
    return average_precision(found, truth, num_classes)


def detect(model: nn.Module, pool: PicturePool, count: int, batch: int = 64) -> Iterator[Found]:
    """What a network in evaluation mode finds in the first pictures of a pool, in letterbox pixels."""
    size = pool.images.shape[1]
    grid = cells(size, size, pool.images.device)
    for chosen in torch.arange(count, device=pool.images.device).split(batch):
        with torch.no_grad():
            raw = model(plain(pool, chosen)[0])
            boxes, scores, labels = select(raw, grid)
        limit = pool.extents[chosen].repeat(1, 2)[:, None]
        boxes = torch.minimum(boxes.clamp(min=0), limit)
        for image in zip(boxes.cpu().numpy(), scores.cpu().numpy(), labels.cpu().numpy(), strict=True):
            kept = image[1] > CONFIDENCE
            yield Found(image[0][kept], image[1][kept], image[2][kept])


def select(raw: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best detections of a batch, without those of a class that overlap a better one.

    Args:
        raw: The network's output, FP32 [batch, N, 5 + classes].
        grid: Its cells, FP32 [N, 3].

    Returns:
        Boxes FP32 [batch, n, 4], scores FP32 [batch, n] (0 for what is suppressed), labels INT64 [batch, n].
    """
    best, labels = raw[..., 5:].sigmoid().max(-1)
    scores, rows = (best * raw[..., 4].sigmoid()).topk(min(_CANDIDATES, raw.shape[1]))
    labels = labels.gather(1, rows)
    boxes = decode(raw.gather(1, rows[..., None].expand(-1, -1, raw.shape[-1])), grid[rows])
    rivals = overlap(boxes[:, :, None], boxes[:, None]) > NMS_IOU
    rivals &= labels[:, :, None] == labels[:, None]
    rivals = rivals.triu(1)
    kept = scores > CONFIDENCE
    for row in range(scores.shape[1]):
        kept = kept & ~(rivals[:, row] & kept[:, row, None])
    return boxes, scores * kept, labels
