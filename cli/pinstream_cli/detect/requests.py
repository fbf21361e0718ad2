"""Images to the server and results back, several on their way at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from pinstream_cli.detect.sources import Item
from pinstream_client import (
    Detections,
    Detector,
    ImageLike,
    ModelNotFound,
    PinstreamError,
    ServerNotReady,
    ServerUnreachable,
)

# What `Detector.stream` raises in any case: these say that no other image will fare better now.
SERVER_IS_GONE = (ServerUnreachable, ServerNotReady, ModelNotFound)

Result = Detections | PinstreamError


def results(detector: Detector, items: Iterable[Item], thresholds: dict[str, Any]) -> Iterator[tuple[Item, Result]]:
    """Each image with what came of it, in the order of the images.

    Args:
        detector: Who is asked.
        items: The images; taken only as fast as results are.
        thresholds: conf, iou and max_det, as `Detector.stream` takes them.

    Raises:
        ServerUnreachable, ServerNotReady, ModelNotFound: The server is gone. Any other error belongs to its image.
    """
    sent: deque[Item] = deque()

    def images() -> Iterator[ImageLike]:
        for item in items:
            sent.append(item)
            yield item.image

    for result in detector.stream(images(), **thresholds, on_error="return"):
        yield sent.popleft(), result
