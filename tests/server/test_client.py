"""The client and `pinstream detect` against the YOLOX service of a real tritonserver, over both protocols."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pinstream_cli.detect import settled_statistics
from pinstream_cli.main import main
from pinstream_client import (
    COCO,
    DeadlineExceeded,
    Detections,
    Detector,
    InvalidImage,
    InvalidRequest,
    ModelNotFound,
    PinstreamError,
)
from tests.server.running import Running
from tests.shared_files import shared_image

TIMEOUT_S = 60.0


@pytest.fixture(params=["grpc", "http"])
def url(service: Running, request: pytest.FixtureRequest) -> str:
    return f"grpc://{service.grpc_url}" if request.param == "grpc" else f"http://{service.http_url}"


@pytest.fixture
def detector(url: str) -> Iterator[Detector]:
    with Detector(url, timeout=TIMEOUT_S) as detector:
        yield detector


@pytest.fixture(scope="session")
def dog() -> Path:
    return shared_image()


def assert_same(left: Detections, right: Detections) -> None:
    np.testing.assert_allclose(left.boxes, right.boxes, atol=0.01)
    np.testing.assert_allclose(left.scores, right.scores, atol=1e-4)
    np.testing.assert_array_equal(left.class_ids, right.class_ids)


def test_path_bytes_and_pixels_give_the_same_detections(detector: Detector, dog: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    by_path = detector.detect(dog, conf=0.3)
    assert {"dog", "bicycle"} <= {item.name for item in by_path}
    assert {"car", "truck"} & {item.name for item in by_path}
    assert by_path.round_trip_ms is not None
    assert by_path.round_trip_ms > 0
    pixels = cv2.imread(str(dog))
    by_pixels = detector.detect(pixels, conf=0.3)
    assert by_pixels.image_size == (pixels.shape[1], pixels.shape[0])
    for other in (detector.detect(str(dog), conf=0.3), detector.detect(dog.read_bytes(), conf=0.3), by_pixels):
        assert_same(other, by_path)


def test_grey_pixels_are_taken(detector: Detector, dog: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    grey = cv2.imread(str(dog), cv2.IMREAD_GRAYSCALE)
    as_colour = np.repeat(grey[:, :, None], 3, axis=2)
    assert len(detector.detect(grey)) > 0
    assert_same(detector.detect(grey), detector.detect(as_colour))


def test_both_protocols_agree(service: Running, dog: Path) -> None:
    with Detector(service.grpc_url, timeout=TIMEOUT_S) as grpc, Detector(service.http_url, "http", timeout=60) as http:
        assert_same(grpc.detect(dog), http.detect(dog))


def test_parameters_reach_the_service(detector: Detector, dog: Path) -> None:
    everything = detector.detect(dog, conf=0.05, max_det=50)
    assert everything.scores.min() < 0.3
    assert detector.detect(dog, conf=0.5).scores.min() >= 0.5
    assert len(detector.detect(dog, conf=0.05, max_det=2)) == 2
    assert len(detector.detect(dog, conf=0.05, iou=1.0)) > len(detector.detect(dog, conf=0.05, iou=0.1))


def test_labels_come_from_the_service(detector: Detector) -> None:
    assert detector.class_names() == COCO


def test_list_keeps_its_order(detector: Detector, dog: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = cv2.imread(str(dog))
    images = [np.ascontiguousarray(pixels[:, : pixels.shape[1] - 40 * step]) for step in range(10)]
    together = detector.detect(images)
    for image, result in zip(images, together, strict=True):
        assert_same(result, detector.detect(image))
        assert result.image_size == (image.shape[1], image.shape[0])


def test_bad_images_of_a_list_fail_alone(detector: Detector, dog: Path) -> None:
    expected = detector.detect(dog)
    truncated = dog.read_bytes()[:1000]
    results = detector.detect([dog, b"no image", dog, "no/such/file.jpg", truncated, dog], on_error="return")
    for index in (0, 2, 5):
        result = results[index]
        assert isinstance(result, Detections)
        assert_same(result, expected)
    assert isinstance(results[3], InvalidImage)
    for index in (1, 4):
        assert type(results[index]) is InvalidRequest
        assert "\n" not in str(results[index])


def test_bad_image_of_a_list_is_raised_by_default(detector: Detector, dog: Path) -> None:
    with pytest.raises(InvalidRequest):
        detector.detect([dog, b"no image", dog])
    assert len(detector.detect(dog)) > 0
    assert detector.detect([]) == []


@pytest.mark.parametrize("parameters", [{"conf": 1.5}, {"iou": -0.1}, {"max_det": 0}])
def test_parameter_out_of_range_is_refused_by_the_service(
    detector: Detector, dog: Path, parameters: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(parameters))) as caught:
        detector.detect(dog, **parameters)
    assert "\n" not in str(caught.value)


def test_missing_model_says_which_there_are(url: str) -> None:
    with Detector(url, model="yolov99", timeout=TIMEOUT_S) as detector:
        assert not detector.is_ready()
        with pytest.raises(ModelNotFound, match=r"'yolov99'.*yolox_detector"):
            detector.check_ready()
        with pytest.raises(ModelNotFound, match="'yolov99'"):
            detector.detect(np.zeros((8, 8, 3), np.uint8))


def test_model_that_is_no_detection_service_says_so(url: str) -> None:
    with (
        Detector(url, model="yolox_detector", timeout=TIMEOUT_S) as detector,
        pytest.raises(ModelNotFound, match="no detection service"),
    ):
        detector.detect(np.zeros((8, 8, 3), np.uint8))


def test_timeout_counts_the_server_as_well(url: str, dog: Path) -> None:
    with Detector(url, timeout=TIMEOUT_S) as detector:
        detector.class_names()
        detector.timeout = 0.002
        with pytest.raises(DeadlineExceeded):
            detector.detect(dog)
        detector.timeout = TIMEOUT_S
        assert len(detector.detect(dog)) > 0


def test_one_detector_serves_many_threads(detector: Detector, dog: Path) -> None:
    expected = detector.detect(dog)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(4):
                assert_same(detector.detect(dog), expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_ready_while_it_runs(detector: Detector) -> None:
    detector.wait_ready(timeout=10)
    assert detector.is_ready()


def test_statistics_count_the_requests_of_the_ensemble_and_its_steps(detector: Detector, dog: Path) -> None:
    detector.class_names()
    before = settled_statistics(detector)
    found = detector.detect([dog] * 5)
    timings = {timing.model: timing for timing in settled_statistics(detector).since(before)}
    assert list(timings) == ["yolox", "yolox_preprocess", "yolox_detector", "yolox_postprocess"]
    assert [timing.requests for timing in timings.values()] == [5, 5, 5, 5]
    slowest = max(result.round_trip_ms or 0.0 for result in found)
    assert 0 < timings["yolox_detector"].compute_ms < timings["yolox"].total_ms < slowest
    assert timings["yolox_preprocess"].compute_infer_ms > 0


def detect(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["detect", "-t", str(TIMEOUT_S), *arguments])


def test_command_prints_a_table_with_the_time_split(url: str, dog: Path) -> None:
    result = detect(str(dog), "-u", url)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert any(row[:2] == [str(dog), "dog"] for row in rows)
    for model in ("yolox", "yolox_preprocess", "yolox_detector", "yolox_postprocess"):
        (row,) = (row for row in rows if row[:1] == [model])
        assert row[1] == "1"
    assert "round trip" in result.stdout


def test_command_prints_nothing_but_json(url: str, dog: Path) -> None:
    result = detect(str(dog), "-u", url, "--json", "--conf", "0.5", "--max-det", "2")
    value = json.loads(result.stdout)
    (image,) = value["images"]
    assert [found["class"] for found in image["detections"]] == ["dog", "bicycle"]
    assert all(found["score"] >= 0.5 for found in image["detections"])
    assert {timing["model"] for timing in value["server_timing"]} >= {"yolox", "yolox_detector"}


def test_command_writes_annotated_pictures(url: str, dog: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / dog.name
    other.write_bytes(dog.read_bytes())
    result = detect(str(dog), str(other), "-u", url, "--out", str(tmp_path / "out"))
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{dog.stem}-2.png", f"{dog.stem}.png"]
    picture, original = cv2.imread(str(tmp_path / "out" / f"{dog.stem}.png")), cv2.imread(str(dog))
    assert picture.shape == original.shape
    assert (picture != original).any()


def test_command_lists_bad_images_at_the_end(url: str, dog: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    result = detect(str(text), str(dog), "no/such.jpg", "-u", url)
    assert result.exit_code == 1
    assert str(dog) in result.stdout
    head, *lines = result.stderr.splitlines()
    assert head == "2 of 3 images failed:"
    assert [line.split(":")[0].strip() for line in lines] == [str(text), "no/such.jpg"]


def test_command_without_the_model_is_one_line_and_exit_code_2(url: str, dog: Path) -> None:
    result = detect(str(dog), "-u", url, "-m", "yolov99")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "yolov99" in result.stderr


def test_every_error_is_of_the_packages_own_kind(detector: Detector) -> None:
    results = detector.detect([b"", b"x", np.zeros((2, 2)), None, 3], on_error="return")
    assert all(isinstance(result, PinstreamError) for result in results)
