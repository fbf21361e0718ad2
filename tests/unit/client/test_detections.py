"""The result type: what it holds, refuses, filters and writes."""

import dataclasses
import json
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pinstream_client import COCO, Detection, Detections, MissingExtra

NAMES = ("person", "bicycle", "car")


def three() -> Detections:
    return Detections(
        boxes=np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11.5, 12]], np.float32),
        scores=np.array([0.9, 0.5, 0.25], np.float32),
        class_ids=np.array([2, 0, 7], np.int32),
        names=NAMES,
        image_size=(640, 480),
        round_trip_ms=12.34567,
    )


def test_iterating_gives_one_detection_after_the_other() -> None:
    found = list(three())
    assert [(item.name, item.class_id) for item in found] == [("car", 2), ("person", 0), ("7", 7)]
    assert [item.score for item in found] == [pytest.approx(0.9), 0.5, 0.25]
    assert found[1].box.tolist() == [5, 6, 7, 8]
    assert len(three()) == 3


def test_index_slice_and_mask() -> None:
    detections = three()
    assert isinstance(detections[-1], Detection)
    assert detections[-1].class_id == 7
    assert detections[np.int64(0)].name == "car"
    assert detections[1:].class_ids.tolist() == [0, 7]
    assert detections[detections.scores > 0.4].class_ids.tolist() == [2, 0]
    assert detections[[2, 0]].class_ids.tolist() == [7, 2]
    assert detections[1:].image_size == (640, 480)
    with pytest.raises(IndexError):
        detections[3]


def test_arrays_are_copies_of_fixed_dtype_that_nobody_can_change() -> None:
    scores = np.array([0.5, 0.4])
    detections = Detections(np.zeros((2, 4)), scores, np.array([0, 1], np.int64))  # type: ignore[arg-type]
    arrays = (detections.boxes, detections.scores, detections.class_ids)
    assert [array.dtype.name for array in arrays] == ["float32", "float32", "int32"]
    scores[0] = 1
    assert detections.scores[0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        detections.boxes[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        detections.names = NAMES  # type: ignore[misc]


@pytest.mark.parametrize(
    ("boxes", "class_ids", "words"),
    [(np.zeros((2, 4)), np.zeros(3), "boxes has shape"), (np.zeros((3, 4)), np.zeros(2), "class_ids has shape")],
)
def test_arrays_of_different_lengths_are_refused(boxes: NDArray[Any], class_ids: NDArray[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Detections(boxes, np.zeros(3, np.float32), class_ids)


def test_nothing_found_is_empty_everywhere() -> None:
    nothing = Detections(np.zeros(0), np.zeros(0), np.zeros(0), NAMES)  # type: ignore[arg-type]
    assert nothing.boxes.shape == (0, 4)
    assert list(nothing) == []
    assert len(nothing.filter(conf=0.1, classes=["car"])) == 0
    assert nothing.to_dict() == {"detections": []}


def test_filter_by_score_and_class() -> None:
    detections = three()
    assert detections.filter(conf=0.5).class_ids.tolist() == [2, 0]
    assert detections.filter(classes=["car", 7]).class_ids.tolist() == [2, 7]
    assert detections.filter(classes="person").class_ids.tolist() == [0]
    assert detections.filter(conf=0.6, classes=["person"]).class_ids.tolist() == []
    assert detections.filter().class_ids.tolist() == detections.class_ids.tolist()
    assert len(detections.filter(classes=[])) == 0


def test_filter_refuses_a_name_that_the_model_does_not_know() -> None:
    with pytest.raises(ValueError, match="no class 'cra' among the model's 3 labels: person, bicycle, car"):
        three().filter(classes=["cra"])


def test_json_has_plain_values() -> None:
    value = json.loads(three().to_json())
    assert value["image_size"] == [640, 480]
    assert value["round_trip_ms"] == 12.346
    assert value["detections"][0] == {"class": "car", "class_id": 2, "score": 0.9, "box": [1.0, 2.0, 3.0, 4.0]}
    assert len(value["detections"]) == 3


def test_repr_says_what_was_found() -> None:
    assert repr(three()) == "<Detections 3: car 0.90, person 0.50, 7 0.25>"


def test_coco_records_have_width_and_height_and_the_annotations_ids() -> None:
    first, *_ = three().to_coco(image_id=17)
    assert first == {"image_id": 17, "category_id": 2, "bbox": [1.0, 2.0, 2.0, 2.0], "score": 0.9}
    assert three()[:2].to_coco("a", category_ids=[10, 20, 30])[0]["category_id"] == 30
    # COCO's own ids have gaps: its last class of 80 is number 90.
    scores, ids = np.array([0.9, 0.8], np.float32), np.array([0, 79], np.int32)
    coco = Detections(np.zeros((2, 4), np.float32), scores, ids, COCO)
    assert [record["category_id"] for record in coco.to_coco(1)] == [1, 90]


def test_coco_records_want_a_category_for_each_class() -> None:
    with pytest.raises(ValueError, match="class 7 has no category: there are 3 category_ids"):
        three().to_coco(1, category_ids=[10, 20, 30])
    beyond = Detections(np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.array([80], np.int32), COCO)
    with pytest.raises(ValueError, match="class 80 has no category: there are 80"):
        beyond.to_coco(1)


def test_supervision_gets_the_same() -> None:
    supervision = pytest.importorskip("supervision")
    theirs = three().to_supervision()
    assert isinstance(theirs, supervision.Detections)
    drawn = supervision.BoxAnnotator().annotate(np.zeros((20, 20, 3), np.uint8), theirs)
    assert drawn.any()
    assert len(three()[:0].to_supervision()) == 0
    np.testing.assert_array_equal(theirs.xyxy, three().boxes)
    assert theirs.data["class_name"].tolist() == ["car", "person", "7"]


def test_supervision_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtra, match="pip install supervision"):
        three().to_supervision()
