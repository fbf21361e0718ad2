"""Detectors that are asked themselves (``transport="tensor"``) and give what is no detection, or ask for too much."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pinstream_client import Detector, ModelNotFound, PinstreamError, ServerError, ServerUnreachable
from tests.network import http_answer, serving_connections

IMAGE = np.zeros((64, 64, 3), np.uint8)
ENSEMBLE = {
    "ensemble_scheduling": {
        "step": [
            {"model_name": "d", "output_map": {"candidates": "c"}},
            {"model_name": "after", "input_map": {"candidates": "c"}},
        ]
    }
}
PIXELS = {"name": "images", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}
CANDIDATES = {"name": "candidates", "datatype": "FP32", "shape": [-1, 2, 6]}
BOXES = [1.0, 2, 3, 4, 0.9, 5], [1.0, 2, 3, 4, 0.0, 0]


@contextlib.contextmanager
def asking(
    candidates: Any = BOXES,
    dtype: str = "FP32",
    pixels: dict[str, Any] = PIXELS,
    parameters: dict[str, Any] | None = None,
) -> Iterator[Detector]:
    """A client of a detector that gives ``candidates``."""
    output = {"name": "candidates", "datatype": dtype, "shape": [1, len(candidates), 6], "data": candidates}
    told: dict[bytes, Any] = {
        b"GET /v2/models/yolox/config ": ENSEMBLE,
        b"GET /v2/models/after/config ": {"parameters": parameters or {}},
        b"GET /v2/models/d ": {"name": "d", "inputs": [pixels], "outputs": [CANDIDATES]},
        b"GET /v2/models/yolox ": {
            "inputs": [{"name": "image"}],
            "outputs": [{"name": name} for name in ("num_dets", "det_boxes", "det_scores", "det_classes")],
        },
        b"POST /v2/models/d/infer ": {"outputs": [output]},
    }

    def handle(connection: socket.socket, _: int) -> None:
        received = b""
        while piece := connection.recv(1 << 20):
            received += piece
            head, end, body = received.partition(b"\r\n\r\n")
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]) if end else 0
            if end and len(body) >= length:
                answer = next(value for start, value in told.items() if received.startswith(start))
                connection.sendall(http_answer(json.dumps(answer).encode()))
                received = b""

    with serving_connections(handle) as netloc, Detector(f"http://{netloc}", timeout=5, transport="tensor") as detector:
        yield detector


def test_what_a_detector_gives_is_taken() -> None:
    with asking() as detector:
        (found,) = detector.detect(IMAGE)
    assert (found.box.tolist(), round(found.score, 3), found.class_id) == ([1, 2, 3, 4], 0.9, 5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", [0, 5])
def test_detection_that_has_no_numbers_is_the_detectors_failure(column: int, value: float) -> None:
    box = [*BOXES[0]]
    box[column] = value
    with (
        asking([box, BOXES[1]]) as detector,
        pytest.raises(ServerError, match=r"'d' at .* cannot be used: .*no number"),
    ):
        detector.detect(IMAGE)


@pytest.mark.parametrize("number", [-1, 65536, 3e9])
def test_class_that_there_cannot_be_is_the_detectors_failure(number: float) -> None:
    with asking([[*BOXES[0][:5], number], BOXES[1]]) as detector, pytest.raises(ServerError, match="out of range"):
        detector.detect(IMAGE)


def test_candidates_of_another_shape_or_type_are_the_detectors_failure() -> None:
    with asking(BOXES[:1]) as detector, pytest.raises(ServerError, match=r"\[1, 1, 6\]: expected float32 \[1, 2, 6\]"):
        detector.detect(IMAGE)
    with asking(dtype="FP64") as detector, pytest.raises(ServerError, match="float64"):
        detector.detect(IMAGE)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [-1, 1 << 20, 1 << 20, 3]},  # three terabytes
        {"shape": [-1, 64, 1 << 14, 3]},
        {"shape": [-1, 64, 0, 3]},
        {"shape": [64, 64, 3]},
        {"datatype": "FP32"},
    ],
)
def test_input_that_no_detector_has_is_refused_before_memory_is_taken(changes: dict[str, Any]) -> None:
    with asking(pixels={**PIXELS, **changes}) as detector, pytest.raises(ModelNotFound, match="at most 8192 pixels"):
        detector.detect(IMAGE)


@pytest.mark.parametrize("changes", [{"name": 5}, {"name": ["images"]}, {"shape": "wide"}, {"datatype": "XX"}])
def test_metadata_that_no_triton_gives_is_told(changes: dict[str, Any]) -> None:
    with asking(pixels={**PIXELS, **changes}) as detector, pytest.raises(ServerUnreachable, match="not Triton's"):
        detector.detect(IMAGE)


@pytest.mark.parametrize("value", ["much", 5, [], None, "9" * 5000])
def test_thresholds_that_are_no_numbers_are_told(value: Any) -> None:
    with asking(parameters={"MAX_DET": {"string_value": value}}) as detector, contextlib.suppress(PinstreamError):
        detector.detect(IMAGE)
