"""Gates: what the built-in model finds through the whole service, against ONNX Runtime and a plain post-processing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

from pinstream_cli.evaluation.annotations import Annotations, read_annotations
from pinstream_cli.evaluation.precision import MOST_DETECTIONS, Precision, measure
from pinstream_cli.main import main
from pinstream_cli.yolox_service import build_service
from pinstream_client import Detections, Detector
from tests.server.running import Running, running
from tests.yolox_reference import reference_detections
from training.shapes import HELD_OUT_SEED, LABELS, render, write_coco

MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "shapes_nano.onnx"
PICTURES = 200
# As YOLOX evaluates.
CONF, IOU = 0.01, 0.65


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    folder = tmp_path_factory.mktemp("held_out")
    write_coco(folder, range(HELD_OUT_SEED, HELD_OUT_SEED + PICTURES), processes=2)
    return read_annotations(folder / "annotations.json", folder)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The service with the built-in model."""
    built = tmp_path_factory.mktemp("shapes")
    build_service(MODEL, built, labels=MODELS / "shapes.txt")
    with running(built) as server:
        yield server


def evaluate(server: Running, truth: Annotations, *arguments: str, protocol: str = "grpc") -> Result:
    url = f"{protocol}://{server.grpc_url if protocol == 'grpc' else server.http_url}"
    given = ["--annotations", str(truth.file), "--images", str(truth.file.parent), "-u", url]
    return CliRunner().invoke(main, ["eval", *given, *arguments])


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    image: Any = cv2.imread(str(path))
    return np.asarray(image, np.uint8)


def by_reference(truth: Annotations) -> Precision:
    """The precision of ONNX Runtime's own answers."""
    found = {}
    for number, path in truth.images.items():
        boxes, scores, classes = reference_detections(MODEL, read_image(path), CONF, IOU)
        found[number] = Detections(boxes[:MOST_DETECTIONS], scores[:MOST_DETECTIONS], classes[:MOST_DETECTIONS])
    return measure(truth, found, tuple(truth.categories))


def test_the_service_is_as_precise_as_onnx_runtime(shapes: Running, held_out: Annotations, tmp_path: Path) -> None:
    done = evaluate(shapes, held_out, "--json", str(tmp_path / "eval.json"))
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "eval.json").read_text())
    (row,) = result["rows"]
    expected = by_reference(held_out)
    assert row["images"] == PICTURES
    for name in ("ap", "ap50", "ap75", "small", "medium", "large"):
        assert row[name] == pytest.approx(getattr(expected, name), abs=0.002), name
    assert row["ap"] >= 0.8, "the model card says 0.843 on 1000 pictures"
    assert row["ap50"] >= 0.95, "the model card says 0.978"
    # Class by class as well, matched by name.
    assert result["notes"] == []
    assert [entry["name"] for entry in result["classes"]] == list(LABELS)
    for entry, wanted in zip(result["classes"], expected.classes, strict=True):
        assert entry["ap"] == pytest.approx(wanted.ap, abs=0.01), entry["name"]
        assert f" {entry['name']}" in done.stdout
    assert f" {row['ap']:.4f}" in done.stdout


# Neither square nor divisible by anything: a pixel more or less in the letterbox would move every box.
SIZES = [(333, 517), (517, 333), (97, 131), (31, 31), (417, 415), (831, 415), (1200, 300), (1999, 3001)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pictures_of_odd_sizes_equal_the_reference(shapes: Running, size: tuple[int, int]) -> None:
    height, width = size
    image = np.asarray(cv2.resize(render(HELD_OUT_SEED + 19).image, (width, height)), np.uint8)
    boxes, scores, classes = reference_detections(MODEL, image, conf=0.05, iou=IOU)
    with Detector(f"grpc://{shapes.grpc_url}", timeout=60) as detector:
        found = detector.detect(image, conf=0.05, iou=IOU)
    assert len(found) >= 10
    np.testing.assert_array_equal(found.class_ids, classes)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-2)


def part_of(truth: Annotations, count: int, folder: Path, **changed: Any) -> Annotations:
    """The first pictures of an annotation file in a folder of their own; entries of `changed` replace the file's."""
    content = json.loads(truth.file.read_text())
    images = content["images"][:count]
    known = {image["id"] for image in images}
    content |= {"images": images, "annotations": [a for a in content["annotations"] if a["image_id"] in known]}
    for image in images:
        shutil.copy(truth.file.parent / image["file_name"], folder)
    (folder / "annotations.json").write_text(json.dumps(content | changed))
    return read_annotations(folder / "annotations.json", folder)


def test_pictures_that_fail_are_listed_and_count(shapes: Running, held_out: Annotations, tmp_path: Path) -> None:
    truth = part_of(held_out, 12, tmp_path)
    whole = evaluate(shapes, truth, "--json", str(tmp_path / "whole.json"), protocol="http")
    assert whole.exit_code == 0, whole.output
    missing, damaged = list(truth.images)[2:4]
    truth.images[missing].unlink()
    truth.images[damaged].write_bytes(truth.images[damaged].read_bytes()[:500])
    done = evaluate(shapes, truth, "--json", str(tmp_path / "part.json"))
    assert done.exit_code == 1
    assert "2 of 12 images failed" in done.stderr
    assert f"image {missing} (as they are): cannot read image file" in done.stderr
    assert f"image {damaged} (as they are): the server refused the request" in done.stderr
    assert "Traceback" not in done.output
    before, after = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "part.json"))
    assert [entry["image_id"] for entry in after["failed"]] == [missing, damaged]
    assert after["rows"][0]["images"] == 10
    assert after["rows"][0]["ap"] < before["rows"][0]["ap"]


def test_stronger_compression_costs_bytes_and_precision(shapes: Running, held_out: Annotations, tmp_path: Path) -> None:
    truth = part_of(held_out, 40, tmp_path)
    done = evaluate(shapes, truth, "--jpeg-quality", "95,10", "--json", str(tmp_path / "eval.json"))
    assert done.exit_code == 0, done.output
    original, fine, coarse = json.loads((tmp_path / "eval.json").read_text())["rows"]
    assert [row["name"] for row in (original, fine, coarse)] == ["as they are", "JPEG 95", "JPEG 10"]
    assert coarse["kib_per_image"] < 0.5 * fine["kib_per_image"]
    assert abs(fine["ap"] - original["ap"]) < 0.02
    assert coarse["ap"] < original["ap"] - 0.02


def test_other_categories_than_the_model_s_are_said(shapes: Running, held_out: Annotations, tmp_path: Path) -> None:
    renamed = [{"id": 13 - number, "name": f"thing {number}"} for number in range(1, 13)]
    done = evaluate(shapes, part_of(held_out, 12, tmp_path, categories=renamed))
    assert done.exit_code == 0, done.output
    assert "note: 12 of 12 classes matched by order, not by name: ball = thing 12, cube = thing 11" in done.stdout
    done = evaluate(shapes, part_of(held_out, 12, tmp_path, categories=[*renamed, {"id": 13, "name": "other"}]))
    assert done.exit_code == 2
    assert done.stderr.startswith("error: the model's 12 classes (ball, cube, mug, star, ...) are not the file's 13 ")


def test_a_server_without_the_model_is_one_line(shapes: Running, held_out: Annotations) -> None:
    done = evaluate(shapes, held_out, "--model", "yolo")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: the server at ")
    assert done.stderr.count("\n") == 1
