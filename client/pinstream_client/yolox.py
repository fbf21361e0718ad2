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
from .errors import InvalidRequest, ModelNotFound, printable
from .images import ImageLike
from .reading import text
from .transport import InferRequest, Json, Parameter

IMAGE = "image"
NUM_DETS, BOXES, SCORES, CLASSES = "num_dets", "det_boxes", "det_scores", "det_classes"
CLASS_NAMES = "class_names"
DETECTION_OUTPUTS = (NUM_DETS, BOXES, SCORES, CLASSES)
HIGHEST_CLASS = (1 << 16) - 1  # more than any model has; callers count up to it
_DETECTION_DTYPES = dict(zip(DETECTION_OUTPUTS, map(np.dtype, ("int32", "float32", "float32", "int32")), strict=True))
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
    """The answer for one image, without the zeros that pad it.

    Raises:
        ValueError: The outputs are not the service's, do not fit together, or have numbers that are none.
    """
    for name, dtype in _DETECTION_DTYPES.items():
        if outputs[name].dtype != dtype:
            raise ValueError(f"{name} is {outputs[name].dtype}: expected {dtype}")
    boxes, scores, class_ids = outputs[BOXES], outputs[SCORES].ravel(), outputs[CLASSES].ravel()
    most = len(scores)
    if boxes.shape[-1:] != (4,) or boxes.size != 4 * most or len(class_ids) != most or outputs[NUM_DETS].size != 1:
        shapes = ", ".join(f"{name} {list(outputs[name].shape)}" for name in DETECTION_OUTPUTS)
        raise ValueError(f"shapes {shapes}: expected those of one image, one box, score and class for each detection")
    count = int(outputs[NUM_DETS].ravel()[0])
    if not 0 <= count <= most:
        raise ValueError(f"{NUM_DETS} is {count}: expected 0 to {most}, as there are boxes")
    found = Detections(
        boxes=boxes.reshape(-1, 4)[:count],
        scores=scores[:count],
        class_ids=class_ids[:count],
        names=names,
        image_size=image_size,
        round_trip_ms=round_trip_ms,
    )
    _require_numbers(found)
    return found


def _require_numbers(found: Detections) -> None:
    """Raises ValueError for a box, score or class that is none: NaN, infinite, a class out of range."""
    if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        raise ValueError("a box or score that is not finite")
    lowest, highest = found.class_ids.min(initial=0), found.class_ids.max(initial=0)
    if lowest < 0 or highest > HIGHEST_CLASS:
        raise ValueError(f"classes from {lowest} to {highest}: expected 0 to {HIGHEST_CLASS}")


def read_class_names(outputs: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    """The labels out of the answer to `class_names_request`, `printable`: they are shown in terminals.

    Raises:
        ValueError: They are numbers.
    """
    names = outputs[CLASS_NAMES]
    if names.dtype != np.object_:  # of a number bytes() would make so many zeros
        raise ValueError(f"{CLASS_NAMES} is {names.dtype}: expected BYTES")
    return tuple(
        printable(name.decode("utf-8", "replace") if isinstance(name, bytes) else name) for name in names.ravel()
    )


def tells_class_names(model: str, metadata: Json) -> bool:
    """Whether the model has the output ``class_names``.

    Raises:
        ModelNotFound: The model's inputs and outputs are not those of the detection service.
        KeyError, TypeError, AttributeError: The metadata is not Triton's.
    """
    inputs = {text(tensor["name"]) for tensor in metadata.get("inputs", [])}
    outputs = {text(tensor["name"]) for tensor in metadata.get("outputs", [])}
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
