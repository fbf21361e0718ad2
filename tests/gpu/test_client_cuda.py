"""The client's CUDA shared memory against a real server: the same results, and nothing left with the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from pinstream_cli.yolox_service import build_service
from pinstream_client import Detector, SharedMemoryRefused
from pinstream_client.regions import DIRECTORY, ON_GPU, PREFIX
from tests.server.running import Running, running

pytestmark = pytest.mark.usefixtures("flavour")

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


def marks() -> set[str]:
    """The files in /dev/shm that tell of regions."""
    return {path.name for path in DIRECTORY.glob(f"{PREFIX}*{ON_GPU}")}


def url_of(server: Running, protocol: str) -> str:
    """A server's URL."""
    return f"grpc://{server.grpc_url}" if protocol == "grpc" else f"http://{server.http_url}"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_gpu_memory_gives_what_the_whole_service_gives(shapes: Running, protocol: str) -> None:
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("cuda.bindings")
    url = url_of(shapes, protocol)
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
    assert marks() == set()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_many_threads_begin_at_once(shapes: Running, protocol: str) -> None:
    pytest.importorskip("cuda.bindings")
    images = [np.full((64, 64, 3), 8 * step, np.uint8) for step in range(32)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", SharedMemoryRefused)
        with Detector(url_of(shapes, protocol), timeout=TIMEOUT_S, transport="cuda", in_flight=16) as here:
            assert len(here.detect(images)) == len(images)
            assert 1 <= len(regions(shapes)) <= 16
    assert regions(shapes) == set()


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("", 0),
        ("raise RuntimeError('a bug')", 1),
        ("time.sleep(60)", -signal.SIGINT),
        ("time.sleep(61)", -signal.SIGKILL),
    ],
    ids=["end", "exception", "ctrl-c", "kill -9"],
)
def test_nothing_is_left_however_a_client_ends(shapes: Running, then: str, code: int) -> None:
    pytest.importorskip("cuda.bindings")
    script = f"""
        import time
        import numpy as np
        from pinstream_client import Detector
        d = Detector({url_of(shapes, "grpc")!r}, timeout=60, transport="cuda")
        d.detect(np.zeros((8, 8, 3), np.uint8))
        assert d.transport == "cuda"
        print("ready", flush=True)
    """
    client = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script) + then],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "client"), *sys.path])},
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n", client.communicate()[1]
    if code < 0:
        assert regions(shapes)
        client.send_signal(-code)
    _, said = client.communicate(timeout=60)
    assert client.returncode == code, said
    if code == -signal.SIGKILL:  # what it left is forgotten with the next one's first region
        assert regions(shapes) == marks() != set()
        with Detector(url_of(shapes, "grpc"), timeout=TIMEOUT_S, transport="cuda") as following:
            following.detect(np.zeros((8, 8, 3), np.uint8))
            assert len(regions(shapes)) == 1
    assert regions(shapes) == set()
    assert marks() == set()
