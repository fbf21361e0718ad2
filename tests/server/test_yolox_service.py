"""The YOLOX service on a real Triton, held against ONNX Runtime and a plain reading of YOLOX's post-processing."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from grpc import RpcError, StatusCode, insecure_channel
from PIL import Image
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from pinstream.tensors import Array
from pinstream_client import Detections, Detector
from tests.server.running import Running, running
from tests.server.test_plain_models import infer, together
from tests.shared_files import shared_image, shared_model
from tests.yolox_exports import Export
from tests.yolox_reference import reference_detections

PROTOCOLS = pytest.mark.parametrize("protocol", ["grpc", "http"])


def detect(service: Running, protocol: str, image: Any, **parameters: Any) -> Detections:
    url = service.grpc_url if protocol == "grpc" else service.http_url
    with Detector(f"{protocol}://{url}", timeout=60) as detector:
        found = detector.detect(image, **parameters)
    assert isinstance(found, Detections)
    return found


def overlaps(left: Array, right: Array) -> Array:
    """Intersection over union of boxes [n,4] with boxes [n,4], pair by pair."""
    low, high = np.maximum(left[:, :2], right[:, :2]), np.minimum(left[:, 2:], right[:, 2:])
    both = (high - low).clip(0).prod(axis=1)
    return np.asarray(both / (np.prod(left[:, 2:] - left[:, :2], 1) + np.prod(right[:, 2:] - right[:, :2], 1) - both))


def assert_equal_to_reference(found: Detections, model: Path, image: Array, **thresholds: float) -> None:
    boxes, scores, classes = reference_detections(model, image, **thresholds)
    assert len(found) == len(boxes) > 0
    np.testing.assert_array_equal(found.class_ids, classes)
    np.testing.assert_allclose(found.scores, scores, atol=0.01)
    assert overlaps(found.boxes, boxes).min() >= 0.99


@PROTOCOLS
def test_dog_bicycle_and_car_are_found_and_equal_to_the_reference(service: Running, protocol: str) -> None:
    path = shared_image()
    found = detect(service, protocol, path, conf=0.25, iou=0.45)
    names = [item.name for item in found]
    assert {"dog", "bicycle"} <= set(names)
    assert {"car", "truck"} & set(names)
    image = cv2.imread(str(path))
    assert_equal_to_reference(found, shared_model(), image, conf=0.25, iou=0.45)


@pytest.mark.parametrize(("conf", "iou"), [(0.01, 0.65), (0.1, 0.3), (0.6, 0.45)])
def test_other_thresholds_equal_the_reference_too(service: Running, conf: float, iou: float) -> None:
    path = shared_image()
    found = detect(service, "grpc", path, conf=conf, iou=iou, max_det=300)
    assert_equal_to_reference(found, shared_model(), cv2.imread(str(path)), conf=conf, iou=iou)


def encoded(image: Array, suffix: str) -> bytes:
    done, data = cv2.imencode(suffix, image)
    assert done
    return bytes(data)


@pytest.mark.parametrize("size", [(100, 1000), (1000, 100), (37, 53), (2600, 1800)], ids=str)
def test_images_of_any_shape_equal_the_reference(service: Running, size: tuple[int, int]) -> None:
    image: Any = cv2.resize(cv2.imread(str(shared_image())), size)
    boxes, _, _ = reference_detections(shared_model(), image, conf=0.05)
    found = detect(service, "grpc", encoded(image, ".png"), conf=0.05)
    assert len(found) == len(boxes)
    if len(boxes):
        assert_equal_to_reference(found, shared_model(), image, conf=0.05)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".jpg"])
def test_every_format_is_taken(service: Running, suffix: str) -> None:
    image = cv2.imread(str(shared_image()))
    assert "dog" in {item.name for item in detect(service, "grpc", encoded(image, suffix))}


def test_exif_orientation_is_honoured(service: Running) -> None:
    upright = Image.open(shared_image())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise for looking at
    turned = io.BytesIO()
    upright.rotate(90, expand=True).save(turned, "JPEG", quality=95, exif=exif)
    found = detect(service, "grpc", turned.getvalue())
    expected = detect(service, "grpc", shared_image())
    assert found.class_ids[0] == expected.class_ids[0]
    assert overlaps(found.boxes[:1], expected.boxes[:1])[0] > 0.9


def huge_png_header() -> bytes:
    """A PNG that says it has 20,000 x 20,000 pixels, and little more."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def ensemble(service: Running, protocol: Any, images: list[bytes], parameters: dict[str, Any] | None = None) -> Any:
    """One raw request to the ensemble, as any Triton client can send it."""
    client = protocol.InferenceServerClient(service.grpc_url if protocol is grpc else service.http_url)
    data = np.array([[image] for image in images], object)
    tensor = protocol.InferInput("image", list(data.shape), np_to_triton_dtype(data.dtype))
    tensor.set_data_from_numpy(data)
    names = ["num_dets", "det_boxes", "det_scores", "det_classes"]
    outputs = [protocol.InferRequestedOutput(name) for name in names]
    try:
        result = client.infer("yolox", [tensor], outputs=outputs, parameters=parameters)
        return {name: result.as_numpy(name) for name in names}
    finally:
        client.close()


@pytest.mark.parametrize("protocol", [grpc, http], ids=["grpc", "http"])
def test_several_images_a_request(service: Running, protocol: Any) -> None:
    dog = shared_image().read_bytes()
    blank = encoded(np.full((50, 80, 3), 127, np.uint8), ".png")
    answer = ensemble(service, protocol, [dog, blank, dog], {"max_det": 7})
    assert answer["num_dets"].shape == (3, 1)
    assert answer["det_boxes"].shape == (3, 7, 4)
    assert answer["det_scores"].shape == answer["det_classes"].shape == (3, 7)
    assert answer["num_dets"][1, 0] == 0
    for name in answer:
        np.testing.assert_array_equal(answer[name][0], answer[name][2])


BAD_IMAGES = {
    "empty bytes": lambda: b"",
    "truncated jpeg": lambda: shared_image().read_bytes()[:60_000],
    "text": lambda: b"this is not an image\n" * 50,
    "huge header": huge_png_header,
}


@pytest.mark.parametrize("protocol", [grpc, http], ids=["grpc", "http"])
@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_an_invalid_argument(service: Running, protocol: Any, kind: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        ensemble(service, protocol, [BAD_IMAGES[kind]()])
    text = str(caught.value)
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    assert "Traceback" not in text
    if kind == "huge header":
        assert "400,000,000" in text or "400000000" in text or "20000 x 20000" in text


def test_bad_images_cost_their_neighbours_nothing(service: Running) -> None:
    dog = shared_image().read_bytes()
    expected = ensemble(service, grpc, [dog])
    calls: list[Any] = [lambda: ensemble(service, grpc, [dog]) for _ in range(12)]
    calls += [lambda make=make: ensemble(service, grpc, [make()]) for make in BAD_IMAGES.values()]
    outcomes = together(calls)
    for outcome in outcomes[:12]:
        for name, array in expected.items():
            np.testing.assert_allclose(outcome[name], array, atol=1e-3)
    assert all(isinstance(outcome, InferenceServerException) for outcome in outcomes[12:])


@pytest.mark.parametrize("protocol", [grpc, http], ids=["grpc", "http"])
@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"conf": 1.5}, "conf"),
        ({"conf": -0.1}, "conf"),
        ({"conf": "high"}, "conf"),
        ({"iou": 2.0}, "iou"),
        ({"max_det": 0}, "max_det"),
        ({"max_det": 100000}, "max_det"),
        ({"confidence": 0.5}, "confidence"),
    ],
)
def test_a_wrong_parameter_is_an_invalid_argument(
    service: Running, protocol: Any, parameters: dict[str, Any], named: str
) -> None:
    with pytest.raises(InferenceServerException, match=named) as caught:
        ensemble(service, protocol, [shared_image().read_bytes()], parameters)
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 416, 416, 3), np.float32), np.zeros((1, 416, 415, 3), np.uint8), np.zeros((416, 416, 3), np.uint8)],
    ids=["dtype", "shape", "rank"],
)
def test_the_detector_refuses_a_wrong_tensor(service: Running, images: Array) -> None:
    with pytest.raises(InferenceServerException, match=r"images|batch-size") as caught:
        infer(service, "yolox_detector", images=images)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_no_size_that_overflows_gets_to_the_last_step(service: Running) -> None:
    """As with other dimensions than its own: its process ended, and the service with it."""
    request = grpc.service_pb2.ModelInferRequest(model_name="yolox_postprocess")
    for name, shape, nbytes in (("candidates", [1, 2**61, 6], 0), ("letterbox", [1, 3], 12)):
        request.inputs.add(name=name, datatype="FP32", shape=shape)
        request.raw_input_contents.append(bytes(nbytes))
    with insecure_channel(service.grpc_url) as channel:
        with pytest.raises(RpcError, match="unexpected shape for input 'candidates'") as caught:
            grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=10)
        assert caught.value.code() == StatusCode.INVALID_ARGUMENT


def test_the_detector_answers_without_the_ensemble(service: Running) -> None:
    candidates = infer(service, "yolox_detector", images=np.zeros((5, 416, 416, 3), np.uint8)).as_numpy("candidates")
    assert candidates.shape == (5, 300, 6)
    assert (np.diff(candidates[:, :, 4], axis=1) <= 0).all()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """The service with a small network of our own making, so that it is tested wherever the tests run."""
    export = Export(size=(96, 160)).save(tmp_path_factory.mktemp("small") / "small.onnx")
    with running(export) as server:
        yield server, export


@PROTOCOLS
def test_a_network_of_another_size_and_other_classes(small: tuple[Running, Path], protocol: str) -> None:
    service, export = small
    image = np.random.default_rng(5).integers(0, 256, (70, 210, 3), dtype=np.uint8)
    boxes, scores, classes = reference_detections(export, image, conf=0.3, iou=0.45)
    found = detect(service, protocol, encoded(image, ".png"), conf=0.3, iou=0.45, max_det=300)
    assert len(found) == len(boxes) > 0
    np.testing.assert_allclose(np.sort(found.scores), np.sort(scores), atol=0.01)
    assert set(found.class_ids.tolist()) == set(classes.tolist())


@pytest.mark.parametrize("size", [(333, 517), (1, 4000), (4000, 1), (1, 1), (2, 999), (97, 161)], ids=str)
def test_images_that_do_not_divide_equal_the_reference(small: tuple[Running, Path], size: tuple[int, int]) -> None:
    service, export = small
    image = np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8)
    boxes, scores, classes = reference_detections(export, image, conf=0.3, iou=0.45)
    found = detect(service, "grpc", encoded(image, ".png"), conf=0.3, iou=0.45, max_det=300)
    np.testing.assert_array_equal(found.class_ids, classes)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, boxes, rtol=1e-5, atol=1e-3)
    assert len(found) > 0
