"""Requests to and answers of the ensemble."""

from typing import Any

import numpy as np
import pytest

from pinstream_client import InvalidRequest, ModelNotFound, yolox


def metadata(inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    return {"inputs": [{"name": name} for name in inputs], "outputs": [{"name": name} for name in outputs]}


def test_image_keeps_the_zeros_at_its_end() -> None:
    tensor = yolox.detection_request("yolox", b"\x00ab\x00\x00", {}).inputs["image"]
    assert tensor.dtype == np.object_
    assert tensor.tolist() == [[b"\x00ab\x00\x00"]]


def test_only_parameters_that_were_given_are_sent() -> None:
    assert yolox.request_parameters(None, None, None) == {}
    given = yolox.request_parameters(np.float32(0.5), 1, np.int64(10))  # type: ignore[arg-type]
    assert given == {"conf": 0.5, "iou": 1.0, "max_det": 10}
    # tritonclient knows Python's own numbers only.
    assert [type(value) for value in given.values()] == [float, float, int]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (("high", None, None), "conf is 'high'"),
        ((float("nan"), None, None), "conf is nan"),
        ((None, float("inf"), None), "iou is inf"),
        ((None, None, 2.5), "max_det is 2.5: expected a whole number"),
        ((None, None, "x"), "max_det is 'x'"),
    ],
)
def test_parameter_that_is_no_number_is_refused(parameters: tuple[Any, Any, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        yolox.request_parameters(*parameters)


def test_answer_without_its_padding() -> None:
    outputs = {
        "num_dets": np.array([[2]], np.int32),
        "det_boxes": np.arange(20, dtype=np.float32).reshape(1, 5, 4),
        "det_scores": np.array([[0.9, 0.8, 0, 0, 0]], np.float32),
        "det_classes": np.array([[1, 0, 0, 0, 0]], np.int32),
    }
    detections = yolox.read_detections(outputs, ("a", "b"), (6, 4), 1.5)
    assert [(item.name, round(item.score, 3), item.box.tolist()) for item in detections] == [
        ("b", 0.9, [0, 1, 2, 3]),
        ("a", 0.8, [4, 5, 6, 7]),
    ]
    assert (detections.image_size, detections.round_trip_ms) == ((6, 4), 1.5)


def test_class_names_are_text() -> None:
    names = np.array([[b"dog", "été".encode(), b"\xff"]], np.object_)
    assert yolox.read_class_names({"class_names": names}) == ("dog", "été", "\ufffd")


def test_service_is_known_by_its_tensors() -> None:
    outputs = list(yolox.DETECTION_OUTPUTS)
    assert yolox.tells_class_names("yolox", metadata(["image"], [*outputs, "class_names"]))
    assert not yolox.tells_class_names("yolox", metadata(["image"], outputs))


@pytest.mark.parametrize(
    "found", [metadata(["input"], ["output"]), metadata(["image"], ["det_boxes"]), metadata([], []), {}]
)
def test_model_of_other_tensors_is_no_detection_service(found: dict[str, Any]) -> None:
    with pytest.raises(ModelNotFound, match=r"'resnet' is no detection service: it has inputs .* expected"):
        yolox.tells_class_names("resnet", found)
