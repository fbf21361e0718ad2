"""Boxes and labels on pictures."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pinstream_client import Detections, InvalidImage
from pinstream_client.drawing import class_colour
from pinstream_client.images import encode

pytest.importorskip("cv2")


def one(box: tuple[float, ...] = (40, 50, 160, 170), class_id: int = 0) -> Detections:
    return Detections(np.array([box]), np.array([0.5]), np.array([class_id]), ("dog",))


def test_box_is_drawn_in_its_class_colour_on_a_copy() -> None:
    image = np.zeros((200, 240, 3), np.uint8)
    drawn = one().draw(image)
    assert not image.any()
    assert drawn.shape == image.shape
    for y, x in ((100, 40), (100, 160), (170, 100)):
        assert np.abs(drawn[y, x].astype(int) - class_colour(0)).max() < 60
    assert not drawn[110, 100].any()
    assert not drawn[190, 230].any()


def test_classes_differ_in_colour() -> None:
    colours = np.array([class_colour(class_id) for class_id in range(8)])
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2) + np.eye(8) * 1000
    assert distances.min() > 40


def test_lines_grow_with_the_picture() -> None:
    def line_width(side: int) -> int:
        drawn = one((side / 4, side / 4, side * 3 / 4, side * 3 / 4)).draw(np.zeros((side, side, 3), np.uint8))
        return int(drawn[side // 2, : side // 2].any(axis=1).sum())

    assert line_width(2400) >= 3 * line_width(240)


def test_what_lies_beyond_the_picture_is_left_out_however_far() -> None:
    image = np.zeros((200, 240, 3), np.uint8)
    near, far = one((40, 50, 1000, 1000)).draw(image), one((40, 50, 3e38, 3e38)).draw(image)
    np.testing.assert_array_equal(near, far)
    assert one((-3e38, -3e38, 3e38, 3e38)).draw(image).any()


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 300, 3), (300, 5, 3), (20, 20), (20, 20, 1)])
def test_label_stays_in_pictures_of_any_shape(shape: tuple[int, ...]) -> None:
    drawn = one((-10, -10, 1000, 1000)).draw(np.zeros(shape, np.uint8))
    assert drawn.shape == (*shape[:2], 3)
    assert drawn.any()


def test_label_is_inside_the_picture_for_a_box_at_its_upper_edge() -> None:
    drawn = one((40, 0, 160, 170)).draw(np.zeros((200, 240, 3), np.uint8))
    assert (drawn[2:12, 60:70] == class_colour(0)).all(axis=2).any()


def test_captions_of_boxes_at_one_place_do_not_hide_each_other() -> None:
    boxes = np.array([[60, 60, 190, 190], [64, 62, 186, 188], [58, 57, 180, 180]])
    crowd = Detections(boxes, np.array([0.9, 0.8, 0.7]), np.array([0, 1, 2]), ("dog", "cat", "fox"))

    def pixels(of: Detections, class_id: int) -> int:
        return int((of.draw(np.zeros((240, 260, 3), np.uint8)) == class_colour(class_id)).all(axis=2).sum())

    for class_id in range(3):
        alone = pixels(crowd[class_id : class_id + 1], class_id)
        assert pixels(crowd, class_id) > 0.7 * alone, "a caption of which less is seen is hidden by another"


def test_path_and_bytes_are_drawn_like_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 240, 3), np.uint8)
    path = tmp_path / "picture.bmp"
    path.write_bytes(encode(pixels))
    np.testing.assert_array_equal(one().draw(path), one().draw(pixels))
    np.testing.assert_array_equal(one().draw(path.read_bytes()), one().draw(pixels))


def test_nothing_found_gives_the_picture_itself() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    np.testing.assert_array_equal(one()[:0].draw(pixels), pixels)


def test_picture_that_does_not_decode_is_refused() -> None:
    with pytest.raises(InvalidImage, match="does not decode"):
        one().draw(b"no picture")
    with pytest.raises(InvalidImage, match="float64"):
        one().draw(np.zeros((3, 3, 3)))


def test_without_opencv_the_error_names_the_extra() -> None:
    script = """
import sys
sys.modules["cv2"] = None
import numpy as np
from pinstream_client import Detections, MissingExtra
try:
    Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0)).draw(np.zeros((2, 2, 3), np.uint8))
except MissingExtra as error:
    print(error)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(root / "client")},
    )
    assert 'pip install "pinstream[draw]"' in done.stdout
    assert done.stdout.count("\n") == 1
