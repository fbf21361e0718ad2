"""The client's CUDA shared memory against a real server: the same results, and nothing left with the server."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from pinstream_cli.build import build_service
from pinstream_client import Detector, SharedMemoryRefused
from pinstream_client.regions import PREFIX
from tests.server.running import Running, running

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The service with the built-in model."""
    built = tmp_path_factory.mktemp("cuda-client") / "service"
    build_service(ROOT / "models" / "shapes_nano.onnx", built, images=[ROOT / "models" / "demo.jpg"])
    with running(built) as server:
        yield server


def regions(server: Running) -> set[str]:
    """The regions of GPU memory that the server knows of us."""
    client = triton_grpc.InferenceServerClient(server.grpc_url)
    known = client.get_cuda_shared_memory_status(as_json=True).get("regions", {})
    client.close()
    return {name for name in known if name.startswith(PREFIX)}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_gpu_memory_gives_what_the_whole_service_gives(shapes: Running, protocol: str) -> None:
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("cuda.bindings")
    url = f"grpc://{shapes.grpc_url}" if protocol == "grpc" else f"http://{shapes.http_url}"
    pixels = cv2.imread(str(ROOT / "models" / "demo.jpg"))
    images = [np.ascontiguousarray(pixels[:, 32 * step :]) for step in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", SharedMemoryRefused)
        with Detector(url, timeout=TIMEOUT_S) as there, Detector(url, timeout=TIMEOUT_S, transport="cuda") as here:
            expected = there.detect(images)
            for found in (here.detect(images), list(here.stream(images, in_flight=2))):
                for left, right in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(left.class_ids, right.class_ids)
                    np.testing.assert_allclose(left.boxes, right.boxes, atol=0.01)
                    np.testing.assert_allclose(left.scores, right.scores, atol=1e-4)
            assert here.transport == "cuda"
            assert regions(shapes)
    assert regions(shapes) == set()
