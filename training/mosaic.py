"""Mosaic: four pictures in one, on the device (YOLOX, arXiv 2107.08430, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from training.pool import PAD_VALUE, PicturePool

# The share of an object that must be left for it to be learnt, and the shortest side in pixels.
LEAST_LEFT, SHORTEST = 0.4, 6.0
SCALES = (0.5, 1.4)


def plain(pool: PicturePool, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures as they are.

    Args:
        pool: Where they are taken from.
        chosen: Which ones, INT64 [batch].

    Returns:
        Images FP32 [batch, 3, size, size], boxes FP32 [batch, objects, 4], labels INT64 [batch, objects], -1 for none.
    """
    return pool.images[chosen].permute(0, 3, 1, 2).float(), pool.boxes[chosen], pool.labels[chosen]


def mosaic(pool: PicturePool, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Four pictures side by side, each at a scale and with a cut-out of its own.

    Args:
        pool: Where they are taken from.
        chosen: Which ones, INT64 [batch, 4]: top left, top right, bottom left, bottom right.

    Returns:
        Images FP32 [batch, 3, size, size], boxes FP32 [batch, objects, 4], labels INT64 [batch, objects], -1 for none.
    """
    batch, size, device = len(chosen), pool.images.shape[1], chosen.device
    middle = (torch.rand(batch, 2, device=device) * 0.5 + 0.25).mul(size).round()
    low, high = _quarters(middle, size)
    scale = torch.empty(batch, 4, 1, device=device).uniform_(*SCALES)
    extent = pool.extents[chosen]
    # Where a picture's own corner comes to lie: the quarter shows a random part of it, or all of it somewhere.
    origin = low - torch.rand(batch, 4, 2, device=device) * (extent * scale - (high - low))
    images = _sample(pool, chosen, middle, origin, scale)
    boxes, labels = pool.boxes[chosen], pool.labels[chosen]
    moved = boxes * scale[..., None, :] + origin.repeat(1, 1, 2)[..., None, :]
    clipped = torch.minimum(torch.maximum(moved, low.repeat(1, 1, 2)[..., None, :]), high.repeat(1, 1, 2)[..., None, :])
    left, whole = clipped[..., 2:] - clipped[..., :2], moved[..., 2:] - moved[..., :2]
    kept = (left.prod(-1) >= LEAST_LEFT * whole.prod(-1)) & (left.amin(-1) >= SHORTEST)
    return images, clipped.flatten(1, 2), torch.where(kept, labels, -1).flatten(1)


def _quarters(middle: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The top-left and bottom-right corners of the four quarters, each FP32 [batch, 4, 2], from where they meet."""
    x, y = middle.unbind(-1)
    zero, full = torch.zeros_like(x), torch.full_like(x, size)
    low = torch.stack([zero, zero, x, zero, zero, y, x, y], -1)
    high = torch.stack([x, y, full, y, x, full, full, full], -1)
    return low.view(-1, 4, 2), high.view(-1, 4, 2)


def _sample(pool: PicturePool, chosen: Tensor, middle: Tensor, origin: Tensor, scale: Tensor) -> Tensor:
    """Every pixel of the mosaics, interpolated between four of its picture; FP32 [batch, 3, size, size]."""
    size, device = pool.images.shape[1], chosen.device
    position = torch.arange(size, device=device) + 0.5
    quarter = (position >= middle[:, 1:])[:, :, None] * 2 + (position >= middle[:, :1])[:, None, :].long()
    image = torch.arange(len(chosen), device=device)[:, None, None]
    ratio, corner = scale[image, quarter], origin[image, quarter]
    x = (position - corner[..., 0]) / ratio[..., 0] - 0.5
    y = (position[:, None] - corner[..., 1]) / ratio[..., 0] - 0.5
    left, top = x.floor(), y.floor()
    share_x, share_y = (x - left)[..., None], (y - top)[..., None]
    source = chosen[image, quarter]

    def pixels(row: Tensor, column: Tensor) -> Tensor:
        return pool.images[source, row.long().clamp(0, size - 1), column.long().clamp(0, size - 1)].float()

    upper = torch.lerp(pixels(top, left), pixels(top, left + 1), share_x)
    lower = torch.lerp(pixels(top + 1, left), pixels(top + 1, left + 1), share_x)
    outside = (x < -0.5) | (y < -0.5) | (x > size - 0.5) | (y > size - 0.5)
    return torch.lerp(upper, lower, share_y).masked_fill(outside[..., None], PAD_VALUE).permute(0, 3, 1, 2)
