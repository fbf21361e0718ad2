"""Every image of an annotation file through the service, several at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinstream_cli.evaluation.annotations import Annotations
from pinstream_client import Detections, Detector, ModelNotFound, PinstreamError, ServerNotReady, ServerUnreachable
from pinstream_client.drawing import require_opencv
from pinstream_client.errors import InvalidImage
from pinstream_client.images import encode

# After these no other image fares better.
_SERVER_IS_GONE = (ServerUnreachable, ServerNotReady, ModelNotFound)

# Makes the bytes that are sent out of an image file.
Encode = Callable[[Path], bytes]


@dataclass(frozen=True)
class Outcome:
    """What came of the images.

    Attributes:
        detections: By image id, of those that worked.
        failed: Why the others did not, by image id.
        image_bytes: Mean size of what was sent for an image.
        seconds: Wall clock for all.
    """

    detections: dict[int, Detections]
    failed: dict[int, str]
    image_bytes: float
    seconds: float


def detect_all(
    detector: Detector,
    truth: Annotations,
    as_sent: Encode,
    progress: Callable[[], None] = lambda: None,
    **thresholds: Any,
) -> Outcome:
    """Finds what the service sees in every image.

    Args:
        detector: The service; its `in_flight` is how many images are under way at once.
        truth: The images.
        as_sent: How an image is sent.
        progress: Called once an image.
        thresholds: conf, iou and max_det, as `Detector.detect` takes them.

    Raises:
        PinstreamError: The service is gone. The failure of a single image is an entry of the outcome.
    """
    found: dict[int, Detections] = {}
    failed: dict[int, str] = {}
    sizes: list[int] = []

    def detect_one(path: Path) -> Detections:
        data = as_sent(path)
        sizes.append(len(data))
        return detector.detect(data, **thresholds)

    started = time.perf_counter()
    with ThreadPoolExecutor(detector.in_flight, thread_name_prefix="pinstream-eval") as pool:
        futures: dict[Future[Detections], int] = {
            pool.submit(detect_one, path): number for number, path in truth.images.items()
        }
        try:
            for future in as_completed(futures):
                try:
                    found[futures[future]] = future.result()
                except _SERVER_IS_GONE:
                    raise
                except PinstreamError as error:
                    failed[futures[future]] = str(error)
                progress()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    seconds = time.perf_counter() - started
    return Outcome(found, failed, sum(sizes) / max(len(sizes), 1), seconds)


def jpeg(quality: int) -> Encode:
    """Sends an image as JPEG of a quality from 0 to 100, whatever its file is.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    cv2 = require_opencv()

    def as_jpeg(path: Path) -> bytes:
        # Turned upright as its EXIF orientation says, as the service does; the JPEG has no such note.
        image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
        if image is None:
            raise InvalidImage(f"image file {path} does not exist or does not decode as JPEG, PNG, BMP or WebP")
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return bytes(data)

    return as_jpeg


def as_it_is(path: Path) -> bytes:
    """Sends the file's own bytes."""
    return encode(path)
