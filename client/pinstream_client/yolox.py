"""The `yolox` ensemble as a client sees it: names of tensors and parameters, requests, answers.

No network in here, so that every kind of client shares it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cancellation import Cancellation
from .detections import Detections
from .errors import InvalidRequest, ModelNotFound
from .images import ImageLike
from .transport import InferRequest, Json, Parameter

IMAGE = "image"
NUM_DETS, BOXES, SCORES, CLASSES = "num_dets", "det_boxes", "det_scores", "det_classes"
CLASS_NAMES = "class_names"
DETECTION_OUTPUTS = (NUM_DETS, BOXES, SCORES, CLASSES)
# A bitmap of one black pixel: its file's header, its own, and a row of three bytes that is padded to four.
ONE_PIXEL = struct.pack("<2sIHHI IiiHHIIiiII 4x", b"BM", 58, 0, 0, 54, 40, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0)


@dataclass(frozen=True)
class DetectRequest:
    """What a caller wants to know about one image.

    Attributes:
        image: As `Detector.detect` takes it.
        parameters: conf, iou, max_det where they are given.
        cancellation: Gives the call up from another thread.
    """

    image: ImageLike
    parameters: dict[str, Parameter] = field(default_factory=dict)
    cancellation: Cancellation | None = None


def detection_request(
    model: str, image: bytes, parameters: dict[str, Parameter], cancellation: Cancellation | None = None
) -> InferRequest:
    """The request for one encoded image: ``image`` BYTES [1, 1]."""
    tensors = {IMAGE: _image_tensor(image)}
    return InferRequest(model, tensors, DETECTION_OUTPUTS, parameters, cancellation=cancellation)


def class_names_request(model: str) -> InferRequest:
    """The request for the labels alone, with the smallest image there is: the service wants one for every request."""
    return InferRequest(model, {IMAGE: _image_tensor(ONE_PIXEL)}, (CLASS_NAMES,))


def request_parameters(conf: float | None, iou: float | None, max_det: int | None) -> dict[str, Parameter]:
    """The parameters that were given; the service has the defaults and checks the ranges.

    Raises:
        InvalidRequest: Not a number.
    """
    given: dict[str, Parameter] = {}
    for name, value, kind in (("conf", conf, float), ("iou", iou, float), ("max_det", max_det, int)):
        if value is None:
            continue
        try:
            number = kind(value)
        except (TypeError, ValueError):
            raise InvalidRequest(f"{name} is {value!r}: expected a number") from None
        # JSON has no such numbers: over HTTP the whole request would be unreadable.
        if not np.isfinite(number) or number != value:
            raise InvalidRequest(f"{name} is {value!r}: expected {'a whole number' if kind is int else 'a finite one'}")
        given[name] = number
    return given


def read_detections(
    outputs: dict[str, NDArray[Any]],
    names: tuple[str, ...],
    image_size: tuple[int, int] | None = None,
    round_trip_ms: float | None = None,
) -> Detections:
    """The answer for one image, without the zeros that pad it."""
    count = int(outputs[NUM_DETS].ravel()[0])
    return Detections(
        boxes=outputs[BOXES].reshape(-1, 4)[:count],
        scores=outputs[SCORES].ravel()[:count],
        class_ids=outputs[CLASSES].ravel()[:count],
        names=names,
        image_size=image_size,
        round_trip_ms=round_trip_ms,
    )


def read_class_names(outputs: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    """The labels out of the answer to `class_names_request`."""
    return tuple(bytes(name).decode("utf-8", "replace") for name in outputs[CLASS_NAMES].ravel())


def tells_class_names(model: str, metadata: Json) -> bool:
    """Whether the model has the output ``class_names``.

    Raises:
        ModelNotFound: The model's inputs and outputs are not those of the detection service.
    """
    inputs = {tensor["name"] for tensor in metadata.get("inputs", [])}
    outputs = {tensor["name"] for tensor in metadata.get("outputs", [])}
    if inputs != {IMAGE} or not outputs.issuperset(DETECTION_OUTPUTS):
        raise ModelNotFound(
            f"model '{model}' is no detection service: it has inputs {sorted(inputs)} and outputs {sorted(outputs)}, "
            f"expected ['{IMAGE}'] and {list(DETECTION_OUTPUTS)}"
        )
    return CLASS_NAMES in outputs


def _image_tensor(image: bytes) -> NDArray[Any]:
    # An object array: np.bytes_ would strip the zeros at the end of a file.
    tensor = np.empty((1, 1), dtype=np.object_)
    tensor[0, 0] = image
    return tensor
