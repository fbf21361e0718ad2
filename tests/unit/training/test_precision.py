"""Average precision, against cases whose value is known."""

import numpy as np
import pytest

from training.precision import IOU_THRESHOLDS, Found, Truth, average_precision

BOX = np.array([[10, 10, 50, 50]], np.float32)


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Found:
    return Found(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64))


def truth(boxes: list[list[float]], labels: list[int]) -> Truth:
    return Truth(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))


def test_everything_found_exactly_is_one() -> None:
    table = average_precision([found([[0, 0, 9, 9]], [0.9], [1])], [truth([[0, 0, 9, 9]], [1])], 2)
    assert np.isnan(table[0]).all(), "a class without objects has no precision"
    np.testing.assert_allclose(table[1], 1)


def test_nothing_found_is_zero() -> None:
    np.testing.assert_array_equal(average_precision([found([], [], [])], [truth([[0, 0, 9, 9]], [0])], 1), [[0.0] * 10])


def test_a_box_counts_up_to_its_overlap() -> None:
    # 35 of 40 pixels of the width: IoU 0.875.
    table = average_precision([found([[10, 10, 45, 50]], [0.9], [0])], [truth(BOX.tolist(), [0])], 1)
    np.testing.assert_array_equal(table[0], (IOU_THRESHOLDS <= 0.875).astype(float))


def test_a_second_detection_of_an_object_is_wrong() -> None:
    both = found([[10, 10, 50, 50], [10, 10, 50, 50]], [0.9, 0.8], [0, 0])
    images = [both, found([[10, 10, 50, 50]], [0.7], [0])]
    table = average_precision(images, [truth(BOX.tolist(), [0])] * 2, 1)
    # Precision 1 up to recall 0.5 (51 of 101 points), 2/3 after.
    assert table[0, 0] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_wrong_class_is_wrong() -> None:
    table = average_precision([found(BOX.tolist(), [0.9], [1])], [truth(BOX.tolist(), [0])], 2)
    np.testing.assert_array_equal(table[0], 0.0)


def test_scores_are_ranked_over_all_images() -> None:
    # A false alarm that scores higher than the only hit halves the precision.
    images = [found([[70, 70, 90, 90]], [0.9], [0]), found(BOX.tolist(), [0.5], [0])]
    table = average_precision(images, [truth([], []), truth(BOX.tolist(), [0])], 1)
    np.testing.assert_allclose(table[0], 0.5)
