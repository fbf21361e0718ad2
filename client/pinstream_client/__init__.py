"""A thin client of the YOLOX detection service, and of any other model of a Triton server.

from pinstream_client import Detector, Model

with Detector("localhost:8001") as detector:
    print(detector.detect("dog.jpg"))
with Model("localhost:8001", "classifier") as model:
    print(model(pixels=array))
"""

from .address import Address, parse_url
from .async_detector import AsyncDetector
from .async_model import AsyncModel
from .calls import Call
from .detections import Detection, Detections
from .detector import Detector
from .errors import (
    AccessDenied,
    AnswerTooLarge,
    Cancelled,
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
from .model import Model
from .options import TLS
from .retry import Retry
from .shared_memory import SharedMemoryRefused
from .tensors import TensorSpec
from .timing import ModelTiming, Statistics

__all__ = [
    "COCO",
    "TLS",
    "AccessDenied",
    "Address",
    "AnswerTooLarge",
    "AsyncDetector",
    "AsyncModel",
    "Call",
    "Cancelled",
    "DeadlineExceeded",
    "Detection",
    "Detections",
    "Detector",
    "ImageLike",
    "InvalidImage",
    "InvalidRequest",
    "InvalidURL",
    "MissingExtra",
    "Model",
    "ModelNotFound",
    "ModelTiming",
    "PinstreamError",
    "Retry",
    "ServerError",
    "ServerNotReady",
    "ServerUnreachable",
    "SharedMemoryRefused",
    "Statistics",
    "TensorSpec",
    "parse_url",
]
