"""The detector that the steps work for, as its sidecar `model.json` describes it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDECAR = "model.json"
DEFAULT_NAME = "yolox_detector"
CANDIDATE_FIELDS = 6
# Of config.pbtxt: what may look like a field and is none, and the versions of a policy that names some.
_NO_FIELDS = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""")
_SPECIFIC = re.compile(r"\bversion_policy\s*:?\s*[{<]\s*specific\s*:?\s*[{<]([^}>]*)")


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
    """Reads the sidecar of the version of a model in the same repository that Triton serves.

    Args:
        model_dir: The version directory of the model that asks, `<repository>/<model>/<version>`.
        name: The detector's model name.

    Raises:
        DetectorError: There is no sidecar, or it describes no such detector.
    """
    return read_sidecar(_served_sidecar(Path(model_dir).parents[1] / name))


def read_sidecar(path: Path) -> Detector:
    """Reads the sidecar of one version.

    Raises:
        DetectorError: It cannot be read, or describes no such detector.
    """
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


def _served_sidecar(model: Path) -> Path:
    """The sidecar of the newest version that the version policy takes and that is whole.

    Where the newest would not load, Triton goes on with the one before.
    """
    taken = _specific_versions(model / "config.pbtxt")
    paths = {int(path.parent.name): path for path in model.glob(f"*/{SIDECAR}") if path.parent.name.isdecimal()}
    newest_first = [paths[number] for number in sorted(paths, reverse=True) if taken is None or number in taken]
    if not newest_first:
        missing = model / str(min(taken or (), default=1)) / SIDECAR
        raise DetectorError(f"no detector: {missing} does not exist. {_REMEDY}")
    # One alone is not read through: if it will not load, there is no service.
    if len(newest_first) == 1:
        return newest_first[0]
    return next(filter(_is_whole, newest_first), newest_first[0])


def _specific_versions(config: Path) -> set[int] | None:
    """The versions that a model's version policy names; None where it takes the newest, or all."""
    try:
        text = config.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    named = _SPECIFIC.search(_NO_FIELDS.sub("", text))
    return {int(number) for number in re.findall("[0-9]+", named[1])} if named else None


def _is_whole(sidecar: Path) -> bool:
    """Whether the model file beside a sidecar is the one that it was written for."""
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        # Beside a plan that is not there, the ONNX file that it was built of is served.
        for entry in (content, content.get("onnx", {})):
            file = sidecar.parent / Path(entry["file"]).name
            if file.is_file():
                return bool(_sha256(file) == entry["sha256"])
    except (OSError, ValueError, AttributeError, LookupError, TypeError, RecursionError):
        pass
    return False


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _detector(content: Mapping[str, Any]) -> Detector:
    _, height, width, channels = content["inputs"][0]["shape"]
    _, candidates, fields = content["outputs"][0]["shape"]
    if (channels, fields) != (3, CANDIDATE_FIELDS) or min(height, width, candidates) < 1:
        raise ValueError(f"found {content['inputs'][0]['shape']} and {content['outputs'][0]['shape']}")
    return Detector(int(height), int(width), int(candidates), tuple(str(label) for label in content.get("labels", ())))
