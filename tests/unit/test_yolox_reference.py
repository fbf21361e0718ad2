"""The yardstick itself, held against what is known of one image."""

from __future__ import annotations

import cv2
import numpy as np

from tests.shared_files import shared_image, shared_model
from tests.yolox_reference import reference_detections


def test_finds_dog_bicycle_and_car() -> None:
    image = cv2.imread(str(shared_image()))
    assert image is not None
    boxes, scores, classes = reference_detections(shared_model(), image.astype(np.uint8))
    found = {int(number): box for number, box in zip(classes[::-1], boxes[::-1], strict=True)}
    dog, bicycle, car = 16, 1, 2
    expected = {dog: (133, 207, 326, 543), bicycle: (52, 137, 572, 424), car: (466, 78, 693, 171)}
    for number, box in expected.items():
        assert np.abs(found[number] - box).max() < 3
    assert (scores[:3] > 0.79).all()
    assert (np.diff(scores) <= 0).all()
    assert boxes.dtype == scores.dtype == np.float32
    assert classes.dtype == np.int32
