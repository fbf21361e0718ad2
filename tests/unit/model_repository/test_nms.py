"""Suppression against a plain pair-by-pair reference; scaling and clipping against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from yolox_steps import nms
from yolox_steps.nms import select, to_original_pixels
from yolox_steps.parameters import Thresholds

FloatArray = npt.NDArray[np.float32]


def rows(*candidates: tuple[float, ...]) -> FloatArray:
    return np.array(candidates, np.float32).reshape(-1, 6)


def overlap(a: FloatArray, b: FloatArray) -> float:
    width = max(0.0, float(min(a[2], b[2])) - float(max(a[0], b[0])))
    height = max(0.0, float(min(a[3], b[3])) - float(max(a[1], b[1])))
    area_a, area_b = float(a[2] - a[0]) * float(a[3] - a[1]), float(b[2] - b[0]) * float(b[3] - b[1])
    union = area_a + area_b - width * height
    return width * height / union if union else 0.0


def reference(candidates: FloatArray, conf: float, iou: float, max_det: int) -> FloatArray:
    """Class by class, pair by pair; then the best of all classes."""
    kept: list[FloatArray] = []
    for number in np.unique(candidates[:, 5]):
        of_class = [row for row in candidates if row[5] == number and row[4] >= np.float32(conf)]
        of_class.sort(key=lambda row: -row[4])
        chosen: list[FloatArray] = []
        for row in of_class:
            if all(overlap(row, other) <= iou for other in chosen):
                chosen.append(row)
        kept += chosen
    kept.sort(key=lambda row: -row[4])
    return np.array(kept[:max_det], np.float32).reshape(-1, 6)


def crowd(seed: int, count: int, objects: int, classes: int) -> FloatArray:
    """Candidates in heaps around objects, best score first and no score twice, as a detector returns them."""
    random = np.random.default_rng(seed)
    which = random.integers(0, objects, count)
    centre = random.uniform(0, 400, (objects, 2))[which] + random.normal(0, 6, (count, 2))
    half = random.uniform(8, 60, (objects, 2))[which] * random.uniform(0.8, 1.2, (count, 2))
    scores = (random.permutation(count)[:, None] + 1) / (count + 1)
    classes_of = random.integers(0, classes, objects)[which][:, None]
    candidates = np.concatenate([centre - half, centre + half, scores, classes_of], axis=1).astype(np.float32)
    best_first: FloatArray = candidates[np.argsort(-candidates[:, 4])]
    return best_first


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("conf", "iou", "max_det"), [(0.25, 0.45, 100), (0.0, 0.65, 300), (0.6, 0.1, 5), (0.0, 0.0, 300), (0.0, 1.0, 300)]
)
def test_equals_the_reference_on_random_crowds(seed: int, conf: float, iou: float, max_det: int) -> None:
    candidates = crowd(seed, count=300, objects=25, classes=4)
    found = select(candidates, Thresholds(conf, iou, max_det))
    assert np.array_equal(found, reference(candidates, conf, iou, max_det))


@pytest.mark.parametrize("count", [255, 256, 257, 700])
def test_candidates_of_several_blocks_suppress_each_other(count: int) -> None:
    candidates = crowd(seed=9, count=count, objects=12, classes=2)
    assert np.array_equal(select(candidates, Thresholds(0.0, 0.5, 700)), reference(candidates, 0.0, 0.5, 700))


def test_a_small_block_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = crowd(seed=10, count=100, objects=10, classes=3)
    whole = select(candidates, Thresholds(0.0, 0.45, 20))
    monkeypatch.setattr(nms, "_BLOCK", 7)
    assert np.array_equal(select(candidates, Thresholds(0.0, 0.45, 20)), whole)


def test_candidates_in_any_order_give_the_same() -> None:
    candidates = crowd(seed=11, count=200, objects=10, classes=3)
    shuffled = np.random.default_rng(0).permutation(candidates)
    assert np.array_equal(select(shuffled, Thresholds()), select(candidates, Thresholds()))


def test_of_equal_scores_the_earlier_candidate_is_kept() -> None:
    first, second = (0, 0, 10, 10, 0.5, 1), (0, 0, 10, 9, 0.5, 1)
    assert np.array_equal(select(rows(first, second), Thresholds()), rows(first))
    assert np.array_equal(select(rows(second, first), Thresholds()), rows(second))


def test_candidates_of_equal_scores_stay_in_their_order() -> None:
    # Enough of them for a sort that does not keep the order to lose it.
    apart = rows(*[(20 * i, 0, 20 * i + 10, 10, 0.5 + 0.1 * (i % 3), 0) for i in range(200)])
    expected = np.concatenate([apart[2::3], apart[1::3], apart[0::3]])
    assert np.array_equal(select(apart, Thresholds(max_det=200)), expected)


def test_classes_do_not_suppress_each_other() -> None:
    candidates = rows((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 1), (0, 0, 10, 10, 0.7, 0))
    assert np.array_equal(select(candidates, Thresholds()), candidates[:2])


def test_a_score_equal_to_conf_is_kept() -> None:
    candidates = rows((0, 0, 10, 10, 0.3, 0), (50, 0, 60, 10, np.nextafter(np.float32(0.3), np.float32(0)), 0))
    assert np.array_equal(select(candidates, Thresholds(conf=0.3)), candidates[:1])


def test_an_overlap_equal_to_iou_is_kept() -> None:
    # 10 x 10 and 10 x 5 within it: exactly one half.
    candidates = rows((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 5, 0.8, 0))
    assert len(select(candidates, Thresholds(iou=0.5))) == 2
    assert len(select(candidates, Thresholds(iou=0.49))) == 1


def test_areas_have_no_pixel_added() -> None:
    # Overlap 1/3 = 0.333; with the pixel that some implementations add it would be 22/44 = 0.5.
    candidates = rows((0, 0, 2, 1, 0.9, 0), (1, 0, 3, 1, 0.8, 0))
    assert len(select(candidates, Thresholds(iou=0.4))) == 2


def test_what_is_suppressed_suppresses_nothing() -> None:
    # A chain: the second overlaps both, the third overlaps only the second.
    chain = rows((0, 0, 10, 10, 0.9, 0), (4, 0, 14, 10, 0.8, 0), (8, 0, 18, 10, 0.7, 0))
    assert np.array_equal(select(chain, Thresholds(iou=0.3)), chain[[0, 2]])


def test_max_det_keeps_the_best_over_all_classes() -> None:
    apart = rows(*[(20 * i, 0, 20 * i + 10, 10, 0.9 - 0.1 * i, i % 2) for i in range(5)])
    assert np.array_equal(select(apart, Thresholds(max_det=3)), apart[:3])


@pytest.mark.parametrize("candidates", [rows(), rows((0, 0, 10, 10, 0.1, 0))], ids=["none", "none good enough"])
def test_no_detections(candidates: FloatArray) -> None:
    found = select(candidates, Thresholds())
    assert found.shape == (0, 6)
    assert to_original_pixels(found[:, :4], np.array([0.5, 100, 100], np.float32)).shape == (0, 4)


def test_boxes_without_area_and_scores_that_are_no_number() -> None:
    candidates = rows((5, 5, 5, 5, 0.9, 0), (5, 5, 5, 5, 0.8, 0), (0, 0, 1, 1, np.nan, 0))
    with np.errstate(all="raise"):
        assert np.array_equal(select(candidates, Thresholds()), candidates[:2])


def test_boxes_are_scaled_by_the_ratio_and_clipped_to_the_image() -> None:
    boxes = np.array([[10, 20, 30, 40], [-5, -5, 500, 500]], np.float32)
    found = to_original_pixels(boxes, np.array([0.5, 768, 576], np.float32))
    assert found.dtype == np.float32
    assert found.tolist() == [[20, 40, 60, 80], [0, 0, 768, 576]]
