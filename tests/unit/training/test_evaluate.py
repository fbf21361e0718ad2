"""What a network finds in a pool: decoded, suppressed as YOLOX does it, cut to the picture, and counted."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks are run by PyTorch, which nothing else here needs")

from training.evaluate import CONFIDENCE, NMS_IOU, detect, evaluate, select  # noqa: E402
from training.yolox import cells  # noqa: E402

SIZE = 64
GRID = cells(SIZE, SIZE)


def answers(*rows: tuple[list[float], int, float], num_classes: int = 3) -> Any:
    """A network's raw output [1, N, 5 + classes] that has boxes (x1, y1, x2, y2), classes and scores, one a cell."""
    raw = torch.full((1, len(GRID), 5 + num_classes), -12.0)
    raw[..., :4] = 0
    for row, (box, label, score) in enumerate(rows):
        column, line, stride = GRID[row].tolist()
        x1, y1, x2, y2 = box
        raw[0, row, :2] = torch.tensor([(x1 + x2) / 2 / stride - column, (y1 + y2) / 2 / stride - line])
        raw[0, row, 2:4] = torch.tensor([(x2 - x1) / stride, (y2 - y1) / stride]).log()
        raw[0, row, 4] = torch.logit(torch.tensor(score**0.5))
        raw[0, row, 5 + label] = torch.logit(torch.tensor(score**0.5))
    return raw


def kept(raw: Any) -> list[tuple[list[int], int, float]]:
    boxes, scores, labels = select(raw, GRID)
    found = zip(boxes[0], labels[0], scores[0], strict=True)
    return [(box.round().int().tolist(), int(label), round(float(s), 3)) for box, label, s in found if s > 0]


def test_the_lower_score_of_two_that_overlap_goes() -> None:
    assert kept(answers(([4, 4, 30, 30], 1, 0.6), ([5, 4, 31, 30], 1, 0.9))) == [([5, 4, 31, 30], 1, 0.9)]


def test_other_classes_and_smaller_overlaps_stay() -> None:
    other = answers(([4, 4, 30, 30], 1, 0.6), ([5, 4, 31, 30], 2, 0.9))
    assert [(label, score) for _, label, score in kept(other)] == [(2, 0.9), (1, 0.6)]
    # 25 of 39 pixels in width shared: IoU 0.64.
    apart = answers(([0, 0, 32, 32], 1, 0.6), ([7, 0, 39, 32], 1, 0.9))
    assert 0.6 < 25 / 39 < NMS_IOU
    assert len(kept(apart)) == 2


def test_what_a_suppressed_box_overlaps_stays() -> None:
    chain = answers(([0, 0, 32, 32], 1, 0.9), ([6, 0, 38, 32], 1, 0.8), ([12, 0, 44, 32], 1, 0.7))
    assert [score for _, _, score in kept(chain)] == [0.9, 0.7]


def test_scores_of_nothing_are_left_out() -> None:
    assert kept(answers(([4, 4, 30, 30], 1, CONFIDENCE * 0.9))) == []


def test_boxes_end_with_the_picture_and_exact_ones_have_a_precision_of_one() -> None:
    boxes = torch.tensor([[[4.0, 4, 30, 20], [20, 10, 48, 32], [0, 0, 0, 0]]])
    pool: Any = SimpleNamespace(
        images=torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8),
        boxes=boxes,
        labels=torch.tensor([[1, 2, -1]]),
        extents=torch.tensor([[48.0, 32.0]]),
    )
    # The second one is guessed beyond the lower edge of the picture, which ends at 48 x 32.
    raw = answers(([4, 4, 30, 20], 1, 0.9), ([20, 10, 55, 40], 2, 0.8))

    network: Any = lambda images: raw  # noqa: E731 - detect and evaluate do no more with a network than call it

    (found,) = detect(network, pool, 1)
    np.testing.assert_allclose(found.boxes, boxes[0, :2].numpy(), atol=1e-3)
    table = evaluate(network, pool, 1, 3)
    assert np.isnan(table[0]).all()
    np.testing.assert_allclose(table[1:], 1.0)
