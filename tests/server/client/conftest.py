"""The detection service with the built-in model, and with one so small that the network costs next to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pinstream_cli.yolox_service import build_service
from pinstream_client import Detections, Detector
from tests.server.running import Running, running
from tests.yolox_exports import Export

ROOT = Path(__file__).parents[3]
PICTURE = ROOT / "models" / "demo.jpg"
PROTOCOLS = ("grpc", "http")
# Random weights are sure of nothing.
LOOSE: dict[str, Any] = {"conf": 0.05, "max_det": 20}
TIMEOUT_S = 60.0  # for calls that are to succeed, on a busy machine


@pytest.fixture(scope="session")
def shapes_service(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service of the built-in model, built."""
    built = tmp_path_factory.mktemp("shapes") / "service"
    build_service(ROOT / "models" / "shapes_nano.onnx", built, labels=ROOT / "models" / "shapes.txt", images=[PICTURE])
    return built


@pytest.fixture(scope="session")
def shapes(shapes_service: Path) -> Iterator[Running]:
    """A server with it. Nobody stops it."""
    with running(shapes_service) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_service(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service of a network with random weights for 64 x 64 pixels, built."""
    directory = tmp_path_factory.mktemp("tiny")
    build_service(Export(batch=None, seed=3).save(directory / "tiny.onnx"), directory / "service", images=[PICTURE])
    return directory / "service"


@pytest.fixture(scope="session")
def tiny(tiny_service: Path) -> Iterator[Running]:
    """A server with it. Nobody stops it."""
    with running(tiny_service) as server:
        yield server


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    """Each protocol."""
    return str(request.param)


@pytest.fixture
def url(shapes: Running, protocol: str) -> str:
    """The server with the built-in model, for each protocol."""
    return url_of(shapes, protocol)


@pytest.fixture
def tiny_url(tiny: Running, protocol: str) -> str:
    """The server with the small network, for each protocol."""
    return url_of(tiny, protocol)


@pytest.fixture(scope="session")
def picture() -> bytes:
    """The built-in picture, encoded."""
    return PICTURE.read_bytes()


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    """The built-in picture, decoded."""
    cv2 = pytest.importorskip("cv2")
    return np.asarray(cv2.imread(str(PICTURE)), np.uint8)


@dataclass(frozen=True)
class Shown:
    """A picture, and what the service finds in it."""

    pixels: NDArray[np.uint8]
    found: Detections


@pytest.fixture(scope="session")
def several(shapes: Running, pixels: NDArray[np.uint8]) -> list[Shown]:
    """Pictures and what the built-in model finds in them."""
    return _shown(shapes, [np.ascontiguousarray(pixels[:, 48 * step :]) for step in range(4)])


@pytest.fixture(scope="session")
def noises(tiny: Running) -> list[Shown]:
    """Pictures and what the small network makes of them."""
    return _shown(tiny, [np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8) for seed in range(6)])


def _shown(server: Running, images: list[NDArray[np.uint8]]) -> list[Shown]:
    """No two of them show the same, so that a mixed-up answer is a wrong one."""
    with Detector(url_of(server, "grpc"), timeout=TIMEOUT_S) as detector:
        shown = [Shown(image, found) for image, found in zip(images, detector.detect(images, **LOOSE), strict=True)]
    for index, one in enumerate(shown):
        assert all(not same(one.found, other.found) for other in shown[index + 1 :])
    return shown


def url_of(server: Running, protocol: str) -> str:
    """A server's URL."""
    return f"grpc://{server.grpc_url}" if protocol == "grpc" else f"http://{server.http_url}"


def same(left: Detections, right: Detections, pixels: float = 0.01) -> bool:
    """Whether two results say the same; batches of other sizes differ in the last bits."""
    return (
        len(left) == len(right)
        and bool(np.array_equal(left.class_ids, right.class_ids))
        and bool(np.allclose(left.boxes, right.boxes, atol=pixels))
        and bool(np.allclose(left.scores, right.scores, atol=1e-4))
    )
