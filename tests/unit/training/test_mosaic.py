"""In a mosaic, boxes lie where the things lie, and what is cut off or too small is not to be learnt."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="mosaics are made by PyTorch, which nothing else here needs")

from training.mosaic import LEAST_LEFT, SHORTEST, mosaic, plain  # noqa: E402

SIZE, BATCH = 128, 48
# Each picture has one thing, of a colour of its own (BGR): a part of a mosaic is known by it.
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)
BOXES = torch.tensor([[20, 30, 70, 60], [5, 5, 25, 95], [40, 40, 120, 90], [60, 10, 68, 18]], dtype=torch.float32)
EXTENTS = torch.tensor([[128, 96], [96, 128], [128, 128], [128, 80]], dtype=torch.float32)
NONE = [0, 0, 0, 0]


@pytest.fixture(scope="module")
def pool() -> Any:
    """Four pictures, one thing each and room for one more; what `mosaic` reads of a PicturePool."""
    images = torch.full((4, SIZE, SIZE, 3), 114, dtype=torch.uint8)
    for image, colour, (x1, y1, x2, y2), (width, height) in zip(
        images, COLOURS, BOXES.int().tolist(), EXTENTS.int().tolist(), strict=True
    ):
        image[:height, :width] = 0
        image[y1:y2, x1:x2] = colour
    boxes = torch.stack([BOXES, torch.tensor(NONE).expand(4, 4).float()], dim=1)
    labels = torch.tensor([[3, -1], [1, -1], [4, -1], [2, -1]])
    return SimpleNamespace(images=images, boxes=boxes, labels=labels, extents=EXTENTS, capacity=4, count=4)


@pytest.fixture(scope="module")
def made(pool: Any) -> tuple[Any, Any, Any]:
    """Mosaics of all four, in the order of the quarters."""
    torch.manual_seed(0)
    images, boxes, labels = mosaic(pool, torch.arange(4).expand(BATCH, 4))
    return images, boxes.view(BATCH, 4, 2, 4), labels.view(BATCH, 4, 2)


def shown(image: Any, colour: Any) -> Any:
    """Where an image [3, h, w] shows a colour by half or more, BOOL [h, w]."""
    on, off = colour > 0, colour == 0
    return (image[on] > 127).all(0) & (image[off] < 57).all(0)


def test_shapes_and_types_are_those_of_plain_pictures(pool: Any, made: tuple[Any, Any, Any]) -> None:
    images, boxes, labels = plain(pool, torch.tensor([2, 0]))
    assert images.dtype == made[0].dtype == torch.float32
    assert images.shape == (2, 3, SIZE, SIZE)
    assert made[0].shape == (BATCH, 3, SIZE, SIZE)
    assert (boxes.shape, labels.shape) == ((2, 2, 4), (2, 2))
    assert images[0].permute(1, 2, 0).equal(pool.images[2].float()), "in the order that was asked for"
    assert labels.tolist() == [[4, -1], [3, -1]]
    assert labels.dtype == made[2].dtype == torch.int64


def test_boxes_lie_where_the_things_lie(made: tuple[Any, Any, Any]) -> None:
    seen = 0
    for image, boxes, labels in zip(*made, strict=True):
        for colour, box, label in zip(COLOURS, boxes[:, 0], labels[:, 0], strict=True):
            if label < 0:
                continue
            rows, columns = shown(image, colour).nonzero().unbind(-1)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(box.numpy(), [float(value) for value in found], atol=1.5)
            seen += 1
    assert seen > BATCH, "a good part of the things is there to be learnt"


def test_labels_go_with_their_things_and_absent_ones_stay_absent(made: tuple[Any, Any, Any]) -> None:
    labels = made[2]
    for quarter, label in enumerate([3, 1, 4, 2]):
        learnt = set(labels[:, quarter, 0].tolist())
        assert learnt <= {label, -1}
        assert label in learnt, "in some mosaic each of them is seen"
    assert (labels[:, :, 1] == -1).all()


def test_what_is_cut_off_or_too_small_is_not_learnt(made: tuple[Any, Any, Any]) -> None:
    _, boxes, labels = made
    kept = boxes[:, :, 0][labels[:, :, 0] >= 0]
    assert ((kept[:, 2:] - kept[:, :2]) >= SHORTEST).all()
    assert (labels[:, 3, 0] == -1).any(), "the smallest thing of all is at times too small"
    scales = (1 / 0.5) ** 2
    for image, quarter, label in zip(made[0], boxes, labels, strict=True):
        for index, colour in enumerate(COLOURS):
            visible = int(shown(image, colour).sum())
            whole = float((BOXES[index, 2:] - BOXES[index, :2]).prod())
            if visible < LEAST_LEFT * whole / scales * 0.7:  # too little of it at any scale
                assert label[index, 0] == -1
        assert ((quarter[:, 0] >= 0) & (quarter[:, 0] <= SIZE)).all()


def test_every_quarter_shows_its_own_picture_alone(made: tuple[Any, Any, Any]) -> None:
    for image, boxes, labels in zip(*made, strict=True):
        places = {}
        for index, colour in enumerate(COLOURS):
            if (mask := shown(image, colour)).any():
                rows, columns = mask.nonzero().unbind(-1)
                places[index] = (columns.float().mean(), rows.float().mean())
        for left, right in ((0, 1), (2, 3)):
            if left in places and right in places:
                assert places[left][0] < places[right][0]
        for upper, lower in ((0, 2), (1, 3)):
            if upper in places and lower in places:
                assert places[upper][1] < places[lower][1]
        assert len(boxes) == len(labels) == 4


def test_what_no_picture_covers_is_grey() -> None:
    white = torch.full((1, SIZE, SIZE, 3), 255, dtype=torch.uint8)
    extents = torch.full((1, 2), float(SIZE))
    blank = SimpleNamespace(
        images=white, boxes=torch.zeros(1, 1, 4), labels=torch.full((1, 1), -1), extents=extents, capacity=1, count=1
    )
    torch.manual_seed(0)
    images = mosaic(blank, torch.zeros(BATCH, 4, dtype=torch.long))[0]  # type: ignore[arg-type]
    assert set(images.unique().tolist()) == {114.0, 255.0}, "a picture of half its size leaves room in its quarter"


def test_the_same_seed_makes_the_same_mosaic_and_another_one_another(pool: Any, made: tuple[Any, Any, Any]) -> None:
    chosen = torch.arange(4).expand(BATCH, 4)
    torch.manual_seed(0)
    assert mosaic(pool, chosen)[0].equal(made[0])
    assert not mosaic(pool, chosen)[0].equal(made[0])
