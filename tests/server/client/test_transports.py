"""Every transport, over both protocols and in both kinds of client, gives what the whole service gives."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pinstream_client import (
    AsyncDetector,
    Detections,
    Detector,
    InvalidImage,
    InvalidRequest,
    ModelNotFound,
    PinstreamError,
    SharedMemoryRefused,
)
from tests.server.client.conftest import LOOSE, PICTURE, TIMEOUT_S, Shown, same, url_of
from tests.server.running import Running

TRANSPORTS = ("encoded", "tensor", "shm")
THRESHOLDS: tuple[dict[str, Any], ...] = ({}, {"conf": 0.05, "iou": 0.9}, {"max_det": 2}, {"conf": 0.9, "iou": 0.1})


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_transports_agree(shapes: Running, url: str, transport: Any, compression: Any, several: list[Shown]) -> None:
    with Detector(url, timeout=TIMEOUT_S, transport=transport, compression=compression) as detector:
        for one in several[:2]:
            found = detector.detect(one.pixels, **LOOSE)
            assert same(found, one.found)
            assert found.names == one.found.names
            assert found.image_size == one.found.image_size
        assert detector.transport == transport


@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_thresholds_mean_the_same_on_both_sides(
    shapes: Running, pixels: NDArray[np.uint8], thresholds: dict[str, Any]
) -> None:
    url = url_of(shapes, "grpc")
    with Detector(url, timeout=TIMEOUT_S) as there, Detector(url, timeout=TIMEOUT_S, transport="shm") as here:
        assert same(there.detect(pixels, **thresholds), here.detect(pixels, **thresholds), pixels=1e-3)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_paths_bytes_grey_and_slices_are_taken(
    shapes: Running, transport: Any, pixels: NDArray[np.uint8], picture: bytes
) -> None:
    import cv2

    with Detector(url_of(shapes, "grpc"), timeout=TIMEOUT_S, transport=transport) as detector:
        expected = detector.detect(pixels)
        for image in (str(PICTURE), PICTURE, picture, bytearray(picture), memoryview(picture)):
            assert same(detector.detect(image), expected)
        turned = np.ascontiguousarray(pixels[::-1, ::-1])
        assert same(detector.detect(pixels[::-1, ::-1]), detector.detect(turned))
        grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)
        assert same(detector.detect(grey), detector.detect(np.repeat(grey[:, :, None], 3, axis=2)))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_transports_refuse_the_same(url: str, transport: Any, pixels: NDArray[np.uint8]) -> None:
    with Detector(url, timeout=TIMEOUT_S, transport=transport) as detector:
        for wrong in ({"conf": 1.5}, {"iou": -0.1}, {"max_det": 0}, {"max_det": 10**6}):
            with pytest.raises(InvalidRequest, match=f"request parameter '{next(iter(wrong))}': expected .* number"):
                detector.detect(pixels, **wrong)
        for image in (b"", "no-such-file.jpg", np.zeros((4, 4)), np.zeros((0, 4, 3), np.uint8)):
            with pytest.raises(InvalidImage):
                detector.detect(image)
        with pytest.raises(InvalidRequest):
            detector.detect(b"no image")
        assert len(detector.detect(pixels)) > 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_asyncio_gives_the_same(url: str, transport: Any, several: list[Shown], picture: bytes) -> None:
    async def run() -> None:
        async with AsyncDetector(url, timeout=TIMEOUT_S, transport=transport) as detector:
            found = await detector.detect([one.pixels for one in several], **LOOSE)
            assert all(same(left, one.found) for left, one in zip(found, several, strict=True))
            assert same(await detector.detect(PICTURE), await detector.detect(picture))
            assert await detector.is_ready()
            await detector.wait_ready(5)
            assert await detector.class_names() == several[0].found.names
            mixed = await detector.detect([picture, b"x", "no-such.jpg"], on_error="return")
            assert [type(one) for one in mixed] == [Detections, type(mixed[1]), InvalidImage]
            assert isinstance(mixed[1], InvalidRequest)
            with pytest.raises(InvalidRequest):
                await detector.detect([picture, b"x"])
        with pytest.raises(PinstreamError, match="this AsyncDetector is closed"):
            await detector.detect(picture)

    asyncio.run(run())


def test_asyncio_client_goes_on_in_another_loop(url: str, picture: bytes) -> None:
    detector = AsyncDetector(url, timeout=TIMEOUT_S)
    counts = {len(asyncio.run(detector.detect(picture))) for _ in range(2)}
    asyncio.run(detector.close())
    assert len(counts) == 1
    assert counts != {0}


def test_server_timings_are_there_when_asked_for(url: str, picture: bytes) -> None:
    with Detector(url, timeout=TIMEOUT_S, server_timings=True) as detector:
        for _ in range(5):
            timings = {timing.model: timing for timing in detector.detect(picture).server_timings}
            # Over HTTP a server goes on with what a client gave up, in the tests before, and counts that as well. It
            # counts an ensemble's request after its answer.
            if timings["yolox_detector"].requests == timings["yolox"].requests == 1:
                break
    assert next(iter(timings)) == "yolox"
    assert timings["yolox_detector"].requests == 1
    assert 0 < timings["yolox_detector"].compute_ms < timings["yolox"].total_ms
    with Detector(url, timeout=TIMEOUT_S) as detector:
        assert detector.detect(picture).server_timings == ()


def test_shared_memory_without_a_detection_service_says_so(shapes: Running) -> None:
    with (
        Detector(url_of(shapes, "grpc"), model="yolox_preprocess", timeout=TIMEOUT_S, transport="shm") as detector,
        pytest.raises(ModelNotFound),
    ):
        detector.detect(np.zeros((8, 8, 3), np.uint8))


def test_shared_memory_of_another_host_is_noticed_once_and_done_without(
    url: str, several: list[Shown], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    # A directory that the server does not look into: what a client on another host, or in another container, has.
    monkeypatch.setattr("pinstream_client.regions.DIRECTORY", tmp_path)
    with Detector(url, timeout=TIMEOUT_S, transport="shm") as detector:
        with pytest.warns(SharedMemoryRefused, match="Unable to open shared memory region") as warned:
            found = detector.detect([one.pixels for one in several], **LOOSE)
        assert sum(one.category is SharedMemoryRefused for one in warned) == 1
        assert all(same(left, one.found) for left, one in zip(found, several, strict=True))
        assert detector.transport == "tensor"
    assert list(tmp_path.iterdir()) == []
