"""The detector that the steps work for, as its sidecar `model.json` describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDECAR = "model.json"
DEFAULT_NAME = "yolox_detector"
CANDIDATE_FIELDS = 6


class DetectorError(RuntimeError):
    """The detector's sidecar is missing or does not describe a detector that these steps fit."""


@dataclass(frozen=True)
class Detector:
    """What the steps need to know of the detector.

    Attributes:
        height: Input height in pixels.
        width: Input width in pixels.
        candidates: Number of candidates it returns per image.
        labels: Class names in the order of the class numbers; empty if the model has none.
    """

    height: int
    width: int
    candidates: int
    labels: tuple[str, ...]


def read_detector(model_dir: str | Path, name: str) -> Detector:
    """Reads the sidecar of the newest version of a model in the same repository.

    Args:
        model_dir: The version directory of the model that asks, `<repository>/<model>/<version>`.
        name: The detector's model name.

    Raises:
        DetectorError: There is no sidecar, or it describes no such detector.
    """
    path = _newest_sidecar(Path(model_dir).parents[1] / name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DetectorError(f"{path} cannot be read: {error}. {_REMEDY}") from error
    try:
        return _detector(content)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DetectorError(
            f"{path} does not describe a YOLOX detector with inputs [-1, H, W, 3] and outputs [-1, K, "
            f"{CANDIDATE_FIELDS}]: {type(error).__name__}: {error}. {_REMEDY}"
        ) from error


_REMEDY = (
    "Start the server with `pinstream serve --model MODEL`, which builds the detector and puts it in its place, or "
    "build it there yourself: `pinstream build MODEL.onnx -o DIRECTORY`"
)


def _newest_sidecar(model: Path) -> Path:
    """The sidecar in the version directory of the highest number."""
    versions = [path.parent for path in model.glob(f"*/{SIDECAR}") if path.parent.name.isdecimal()]
    if not versions:
        raise DetectorError(f"no detector: {model}/1/{SIDECAR} does not exist. {_REMEDY}")
    return max(versions, key=lambda version: int(version.name)) / SIDECAR


def _detector(content: Mapping[str, Any]) -> Detector:
    _, height, width, channels = content["inputs"][0]["shape"]
    _, candidates, fields = content["outputs"][0]["shape"]
    if (channels, fields) != (3, CANDIDATE_FIELDS) or min(height, width, candidates) < 1:
        raise ValueError(f"found {content['inputs'][0]['shape']} and {content['outputs'][0]['shape']}")
    return Detector(int(height), int(width), int(candidates), tuple(str(label) for label in content.get("labels", ())))
