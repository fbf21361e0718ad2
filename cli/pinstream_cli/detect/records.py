"""What came of one image, as every output reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pinstream_client import Detections, PinstreamError


@dataclass(frozen=True)
class Record:
    """One image's result.

    Attributes:
        image: What was named on the command line, or a file found below it.
        result: The objects found, or why there are none.
        frame: Number of the frame, from 0, for a video or a camera.
        time_s: When the frame is shown, in seconds from the start, for a video or a camera.
        annotated: Where the annotated picture or video was written.
    """

    image: str
    result: Detections | PinstreamError
    frame: int | None = None
    time_s: float | None = None
    annotated: str | None = None

    @property
    def where(self) -> str:
        """The image's name; a frame's with its number."""
        return self.image if self.frame is None else f"{self.image} frame {self.frame}"

    def to_dict(self) -> dict[str, Any]:
        """JSON's view of it: what is not known is left out."""
        entry: dict[str, Any] = {"image": self.image}
        if self.frame is not None:
            entry["frame"] = self.frame
        if self.time_s is not None:
            entry["time_s"] = round(self.time_s, 3)
        if isinstance(self.result, PinstreamError):
            entry["error"] = str(self.result)
        else:
            entry.update(self.result.to_dict())
        if self.annotated is not None:
            entry["annotated"] = self.annotated
        return entry


def read_record(entry: dict[str, Any], names: tuple[str, ...]) -> Record:
    """`Record.to_dict` read back.

    Args:
        entry: What `to_dict` gave.
        names: The model's labels.

    Raises:
        KeyError, TypeError, ValueError: It is no such thing.
    """
    where = (entry.get("frame"), entry.get("time_s"), entry.get("annotated"))
    if "error" in entry:
        return Record(entry["image"], PinstreamError(entry["error"]), *where)
    found = entry["detections"]
    size = entry.get("image_size")
    detections = Detections(
        boxes=np.array([item["box"] for item in found], np.float32),
        scores=np.array([item["score"] for item in found], np.float32),
        class_ids=np.array([item["class_id"] for item in found], np.int32),
        names=names,
        image_size=(size[0], size[1]) if size else None,
        round_trip_ms=entry.get("round_trip_ms"),
    )
    return Record(entry["image"], detections, *where)
