"""Images to the whole service, as the bytes of a file."""

from __future__ import annotations

import time

from . import yolox
from .cluster import Cluster
from .detections import Detections
from .images import ImageLike, array_size, encode
from .steps import Steps, Work
from .transport import Deadline, Outputs


class EncodedRoute:
    """Sends a file's own bytes; pixels are wrapped as an uncompressed BMP, which loses nothing.

    Args:
        cluster: The servers.
        model: Name of the ensemble.
    """

    def __init__(self, cluster: Cluster, model: str) -> None:
        self._cluster = cluster
        self._model = model

    def forget(self) -> None:
        """Nothing is remembered."""

    def read(self, image: ImageLike) -> Steps[bytes]:
        """What is sent of an image. Raises InvalidImage before anything is."""
        # Bytes are there already; a file has to be read, and pixels are to be copied.
        data: bytes = encode(image) if isinstance(image, bytes) else (yield Work(lambda: encode(image)))
        return data

    def detect(
        self, data: bytes, request: yolox.DetectRequest, names: tuple[str, ...], deadline: Deadline
    ) -> Steps[Detections]:
        """The objects in one image that was read."""
        infer = yolox.detection_request(self._model, data, request.parameters, request.cancellation)
        started = time.perf_counter()

        def read(outputs: Outputs) -> Detections:
            round_trip_ms = (time.perf_counter() - started) * 1e3
            return yolox.read_detections(outputs, names, array_size(request.image), round_trip_ms)

        ask = self._cluster.ask(lambda server, left: server.infer(infer, left), deadline, read, self._model)
        found: Detections = yield from ask
        return found
