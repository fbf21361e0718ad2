"""A thin client of the YOLOX detection service.

from pinstream_client import Detector

with Detector("localhost:8001") as detector:
    print(detector.detect("dog.jpg"))
"""

from .address import Address, parse_url
from .detections import Detection, Detections
from .detector import Detector
from .errors import (
    DeadlineExceeded,
    InvalidImage,
    InvalidRequest,
    InvalidURL,
    MissingExtra,
    ModelNotFound,
    PinstreamError,
    ServerError,
    ServerNotReady,
    ServerUnreachable,
)
from .images import ImageLike
from .labels import COCO
from .timing import ModelTiming, Statistics

__all__ = [
    "COCO",
    "Address",
    "DeadlineExceeded",
    "Detection",
    "Detections",
    "Detector",
    "ImageLike",
    "InvalidImage",
    "InvalidRequest",
    "InvalidURL",
    "MissingExtra",
    "ModelNotFound",
    "ModelTiming",
    "PinstreamError",
    "ServerError",
    "ServerNotReady",
    "ServerUnreachable",
    "Statistics",
    "parse_url",
]
