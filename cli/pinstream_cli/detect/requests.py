"""Images to the server and results back, several on their way at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pinstream_cli.detect.sources import Item
from pinstream_client import Detections, Detector, ModelNotFound, PinstreamError, ServerNotReady, ServerUnreachable

# These say that no other image will fare better now.
SERVER_IS_GONE = (ServerUnreachable, ServerNotReady, ModelNotFound)

Result = Detections | PinstreamError


def results(
    detector: Detector, items: Iterable[Item], in_flight: int, thresholds: dict[str, Any]
) -> Iterator[tuple[Item, Result]]:
    """Each image with what came of it, in the order of the images.

    Args:
        detector: Who is asked.
        items: The images; taken only as fast as results are.
        in_flight: How many are on their way at once.
        thresholds: conf, iou and max_det, as `Detector.detect` takes them.

    Raises:
        ServerUnreachable, ServerNotReady, ModelNotFound: The server is gone. Any other error belongs to its image.
    """

    def ask(item: Item) -> Result:
        try:
            return detector.detect(item.picture, **thresholds)
        except SERVER_IS_GONE:
            raise
        except PinstreamError as error:
            return error

    window: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(in_flight, thread_name_prefix="detect") as pool:
        try:
            for item in items:
                window.append((item, pool.submit(ask, item)))
                if len(window) == in_flight:
                    yield _first(window)
            while window:
                yield _first(window)
        finally:
            for _, future in window:
                future.cancel()


def _first(window: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    item, future = window.popleft()
    return item, future.result()
