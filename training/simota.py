"""SimOTA, which says what each cell has to learn, and the losses (YOLOX, arXiv 2107.08430, section 2.1).

Only cells near the centre of an object can be given to it: the 3x3 around it on each of the three levels, 27 in all.
All that follows is worked out for these 27 alone, in tensors of fixed shape [batch, objects, 27], without a loop and
without waiting for the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.yolox import STRIDES, decode

# Cost of a match: classes + 3 x box. Loss: 5 x box + objectness + classes. Both as in the authors' release.
BOX_COST, BOX_LOSS = 3.0, 5.0
# The number of cells for an object is the sum of its 10 highest IoUs (dynamic k).
MOST_CELLS = 10
_NEVER = 1e8


@dataclass(frozen=True)
class Assignment:
    """Which cells answer for which object.

    Attributes:
        rows: INT64 [batch, objects, 27], the rows of the output that each object may be given to.
        matched: BOOL, the same shape: those that it is given to. No row has two objects.
    """

    rows: Tensor
    matched: Tensor


def candidate_rows(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The 3x3 cells around the centre of each box, on all levels.

    Args:
        boxes: FP32 [..., 4], x1, y1, x2, y2 in pixels.
        height: Of the network's input in pixels.
        width: Likewise.

    Returns:
        Rows of the output, INT64 [..., 27], and which of them exist, BOOL [..., 27]; the others are 0.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    steps = torch.arange(-1, 2, device=boxes.device)
    rows, exist, first = [], [], 0
    for stride in STRIDES:
        cell = (centre / stride).floor().long()
        column = (cell[..., 0, None, None] + steps).expand(*cell.shape[:-1], 3, 3)
        row = (cell[..., 1, None, None] + steps[:, None]).expand(*cell.shape[:-1], 3, 3)
        down, across = height // stride, width // stride
        inside = (column >= 0) & (column < across) & (row >= 0) & (row < down)
        rows.append(torch.where(inside, first + row * across + column, 0).flatten(-2))
        exist.append(inside.flatten(-2))
        first += down * across
    return torch.cat(rows, dim=-1), torch.cat(exist, dim=-1)


def assign(raw: Tensor, grid: Tensor, boxes: Tensor, labels: Tensor, image_size: tuple[int, int]) -> Assignment:
    """Gives cells to objects by the lowest cost.

    Args:
        raw: The network's output, FP32 [batch, N, 5 + classes].
        grid: Its cells, FP32 [N, 3].
        boxes: The objects, FP32 [batch, objects, 4], x1, y1, x2, y2 in pixels.
        labels: Their classes, INT64 [batch, objects]; -1 where there is no object.
        image_size: Height and width of the network's input.
    """
    with torch.no_grad():
        rows, exist = candidate_rows(boxes, *image_size)
        possible = exist & (labels >= 0)[..., None]
        near = _take(raw, rows)
        iou = overlap(decode(near, grid[rows]), boxes[..., None, :])
        # Scores as they are used in the end: objectness x class, under a root that keeps both in the same range.
        score = (near[..., 4:5].sigmoid() * near[..., 5:].sigmoid()).sqrt().clamp(1e-6, 1 - 1e-6)
        wanted = _one_hot(labels, raw.shape[-1] - 5)[..., None, :].expand_as(score)
        cost = functional.binary_cross_entropy(score, wanted, reduction="none").sum(-1)
        cost = torch.where(possible, cost - BOX_COST * (iou + 1e-8).log(), _NEVER)
        cheapest = cost.topk(MOST_CELLS, largest=False)
        count = torch.where(possible, iou, 0).topk(MOST_CELLS).values.sum(-1).long().clamp(min=1)
        taken = torch.arange(MOST_CELLS, device=raw.device) < count[..., None]
        taken &= cheapest.values < _NEVER
        matched = torch.zeros_like(possible).scatter(-1, cheapest.indices, taken)
        # A cell that several objects want goes to the one that it costs least.
        price = torch.where(matched, cost, _NEVER)
        lowest = torch.full(raw.shape[:2], _NEVER, device=raw.device)
        lowest = lowest.scatter_reduce(1, rows.flatten(1), price.flatten(1), "amin")
        return Assignment(rows, matched & (price <= lowest.gather(1, rows.flatten(1)).view_as(price)))


def losses(
    raw: Tensor, grid: Tensor, boxes: Tensor, labels: Tensor, image_size: tuple[int, int], with_l1: bool
) -> dict[str, Tensor]:
    """The weighted losses of a batch, each a scalar; training minimises their sum.

    Args:
        raw: The network's output, FP32 [batch, N, 5 + classes].
        grid: Its cells, FP32 [N, 3].
        boxes: The objects, FP32 [batch, objects, 4], x1, y1, x2, y2 in pixels.
        labels: Their classes, INT64 [batch, objects]; -1 where there is no object.
        image_size: Height and width of the network's input.
        with_l1: Whether undecoded boxes are compared as well, as at the end of training.

    Returns:
        "box" (1 - IoU squared), "objectness" and "class" (binary cross entropy), and "l1".
    """
    assignment = assign(raw, grid, boxes, labels, image_size)
    rows, matched = assignment.rows, assignment.matched.float()
    number = matched.sum().clamp(min=1)
    near, near_cells = _take(raw, rows), grid[rows]
    iou = overlap(decode(near, near_cells), boxes[..., None, :])
    answers = torch.zeros(raw.shape[:2], device=raw.device)
    answers = answers.scatter_reduce(1, rows.flatten(1), matched.flatten(1), "amax")
    # A class is worth as much as its box is right.
    wanted = _one_hot(labels, raw.shape[-1] - 5)[..., None, :] * iou.detach()[..., None]
    class_loss = functional.binary_cross_entropy_with_logits(near[..., 5:], wanted, reduction="none").sum(-1)
    result = {
        "box": BOX_LOSS * ((1 - iou**2) * matched).sum() / number,
        "objectness": functional.binary_cross_entropy_with_logits(raw[..., 4], answers, reduction="sum") / number,
        "class": (class_loss * matched).sum() / number,
    }
    if with_l1:
        difference = (near[..., :4] - _encode(boxes[..., None, :], near_cells)).abs().sum(-1)
        result["l1"] = (difference * matched).sum() / number
    return result


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] that broadcast, x1, y1, x2, y2."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1)
    return both / (areas - both).clamp(min=1e-6)


def _encode(boxes: Tensor, near_cells: Tensor) -> Tensor:
    """What the network has to put out for a box; the reverse of `decode`."""
    column_row, stride = near_cells[..., :2], near_cells[..., 2:]
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return torch.cat([centre / stride - column_row, (size / stride).clamp(min=1e-6).log()], dim=-1)


def _take(raw: Tensor, rows: Tensor) -> Tensor:
    """Rows [batch, objects, 27] of an output [batch, N, columns]: [batch, objects, 27, columns]."""
    index = rows.flatten(1)[..., None].expand(-1, -1, raw.shape[-1])
    return raw.gather(1, index).view(*rows.shape, raw.shape[-1])


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """FP32 [..., classes]; all zero where the label is -1."""
    return (labels[..., None] == torch.arange(num_classes, device=labels.device)).float()
