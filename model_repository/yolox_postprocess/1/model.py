"""The last step of the yolox ensemble: the detector's candidates in, detections in original pixels out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

# What the steps share lies with the ensemble.
sys.path.append(str(Path(__file__).parents[2] / "yolox" / "1"))

from yolox_steps.detector import DEFAULT_NAME, read_detector
from yolox_steps.errors import RequestError
from yolox_steps.nms import CLASS, SCORE, Y2, select, to_original_pixels
from yolox_steps.parameters import Parameters, Thresholds
from yolox_steps.replies import config_parameters, reply_to_each

# Dimensions of each input, the batch counted.
NDIM = {"candidates": 3, "letterbox": 2, "after": 2}


class TritonPythonModel:
    """One instance: suppresses, scales and clips, image by image."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the defaults of the thresholds from config.pbtxt."""
        config = config_parameters(json.loads(args["model_config"]))
        detector = read_detector(pb_utils.get_model_dir(), config.get("DETECTOR", DEFAULT_NAME))
        self._parameters = Parameters(config, detector.candidates)
        self._class_names = np.array([label.encode() for label in detector.labels], np.object_)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each request by itself."""
        return reply_to_each(requests, self._reply)

    def _reply(self, request: Any) -> list[Any]:
        thresholds = self._parameters.of_request(request.parameters())
        given = _inputs(request)
        outputs = []
        if "class_names" in request.requested_output_names():
            rows = len(next(iter(given.values())))
            outputs.append(pb_utils.Tensor("class_names", np.tile(self._class_names, (rows, 1))))
        if "candidates" in given:
            outputs += self._detections(given["candidates"], given["letterbox"], thresholds)
        return outputs

    def _detections(
        self, candidates: npt.NDArray[np.float32], letterboxes: npt.NDArray[np.float32], thresholds: Thresholds
    ) -> list[Any]:
        """Tensors of the detections out of `candidates` [n, K, 6] and `letterboxes` [n, 3]."""
        rows = (len(candidates), thresholds.max_det)
        counts = np.zeros((len(candidates), 1), np.int32)
        boxes = np.zeros((*rows, 4), np.float32)
        scores = np.zeros(rows, np.float32)
        classes = np.zeros(rows, np.int32)
        for index, letterbox in enumerate(letterboxes):
            detections = select(candidates[index], thresholds)
            count = len(detections)
            counts[index] = count
            boxes[index, :count] = to_original_pixels(detections[:, : Y2 + 1], letterbox)
            scores[index, :count] = detections[:, SCORE]
            classes[index, :count] = detections[:, CLASS]
        return [
            pb_utils.Tensor("num_dets", counts),
            pb_utils.Tensor("det_boxes", boxes),
            pb_utils.Tensor("det_scores", scores),
            pb_utils.Tensor("det_classes", classes),
            pb_utils.Tensor("answered", counts),
        ]


def _inputs(request: Any) -> dict[str, npt.NDArray[Any]]:
    """The request's tensors by name: candidates and letterbox, or `after` alone, each with a batch dimension."""
    given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    if given.keys() != {"after"} and not given.keys() >= {"candidates", "letterbox"}:
        found = ", ".join(given) or "nothing"
        raise RequestError(f"found the inputs {found}; expected candidates and letterbox, or after alone")
    # Triton takes a batch of 0 for a request without a batch dimension.
    if any(array.ndim != NDIM[name] for name, array in given.items()):
        shapes = ", ".join(f"{name} of shape {list(array.shape)}" for name, array in given.items())
        raise RequestError(f"found {shapes}; expected a batch dimension of at least 1")
    return given
