"""Requests of mixed sizes to the YOLOX service, from clients of whom some give up."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import cv2
from tritonclient.grpc import service_pb2

from pinstream_client.payloads import told_timeout

MODEL = "yolox"
# Images of a request, and their longer sides; most requests have one image of a usual size.
COUNTS = (1, 1, 1, 1, 2, 2, 4, 8)
KINDS = 200
SIDES = (320, 640, 640, 1280, 1920)
# Of all clients so many give up, after anything up to so many seconds.
GIVING_UP, SHORTEST_PATIENCE_S, LONGEST_PATIENCE_S = 0.2, 0.1, 1.0
# Of those so many have said so when they asked, as pinstream's own client does; nobody knows of the others.
SAYING_SO = 0.5


class Mix:
    """Requests of mixed sizes, by random numbers.

    They are written once, so that sending them takes as little as can be from the cores that the service needs.

    Args:
        picture: The file that all images are made of.
        seed: Of the random numbers.
    """

    def __init__(self, picture: Path, seed: int = 0) -> None:
        original = cv2.imread(str(picture))
        scales = [side / max(original.shape[:2]) for side in SIDES]
        resized = [cv2.resize(original, None, fx=scale, fy=scale) for scale in scales]
        self._encoded = [bytes(cv2.imencode(".jpg", image)[1]) for image in resized]
        self._random = random.Random(seed)
        counts = self._random.choices(COUNTS, k=KINDS)
        self._requests = [(_request(self._random.choices(self._encoded, k=count)), count) for count in counts]
        self.mean_images = statistics.mean(counts)

    def request(self) -> tuple[bytes, int]:
        """The next request, and how many images it has."""
        return self._random.choice(self._requests)

    def probe(self) -> bytes:
        """The same small request each time."""
        return _request(self._encoded[1:2])

    def patience(self) -> float | None:
        """Seconds after which the next client gives up; None for one that does not."""
        return (
            self._random.uniform(SHORTEST_PATIENCE_S, LONGEST_PATIENCE_S) if self._random.random() < GIVING_UP else None
        )

    def told(self, patience: float) -> bytes:
        """What a client adds to its request that gives up after `patience` seconds: as often as not, nothing."""
        if self._random.random() >= SAYING_SO:
            return b""
        # Messages of protobuf one behind the other are one message.
        more = service_pb2.ModelInferRequest()
        more.parameters["timeout"].int64_param = told_timeout(patience)
        return bytes(more.SerializeToString())

    def pause(self, rate: float) -> float:
        """Seconds to the next client where `rate` come a second, each by its own clock."""
        return self._random.expovariate(rate)


def _request(encoded: Sequence[bytes]) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="image", datatype="BYTES", shape=[len(encoded), 1])
    request.raw_input_contents.append(b"".join(len(e).to_bytes(4, "little") + e for e in encoded))
    return bytes(request.SerializeToString())
