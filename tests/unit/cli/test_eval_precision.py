"""COCO's precision out of annotations and detections, against known cases and a plain NumPy computation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinstream_cli.evaluation.annotations import Annotations, read_annotations
from pinstream_cli.evaluation.precision import measure
from pinstream_client import Detections
from training.precision import Found, Truth, average_precision


def labelled(directory: Path, objects: list[dict[str, Any]], images: int = 1, categories: int = 2) -> Annotations:
    """Objects are annotations as COCO has them; image and category ids count from 1."""
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(1, images + 1)],
        "categories": [{"id": number, "name": f"thing {number}"} for number in range(1, categories + 1)],
        "annotations": objects,
    }
    (directory / "annotations.json").write_text(json.dumps(content))
    (directory / "1.jpg").touch()
    return read_annotations(directory / "annotations.json", directory)


def thing(box: list[float], image: int = 1, category: int = 1, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, **more}


def detections(boxes: Any, scores: Any, labels: Any) -> Detections:
    return Detections(np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(scores), np.asarray(labels))


def test_everything_found_exactly_is_one_and_sizes_are_told_apart(tmp_path: Path) -> None:
    boxes = [[0.0, 0.0, 20.0, 20.0], [50.0, 50.0, 60.0, 60.0], [100.0, 100.0, 200.0, 200.0]]
    truth = labelled(tmp_path, [thing(box) for box in boxes])
    corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
    found = measure(truth, {1: detections(corners[1:], [0.9, 0.8], [0, 0])}, (1, 2))
    assert found.small == 0.0
    assert found.medium == pytest.approx(1)
    assert found.large == pytest.approx(1)
    # Two of three found: precision 1 up to recall 2/3, which are 67 of 101 points.
    assert found.ap == found.ap50 == found.ap75 == pytest.approx(67 / 101)
    assert [each.objects for each in found.classes] == [3, 0]
    assert found.classes[1].ap is None, "nothing of this class is there"


def test_an_area_that_is_stated_decides_over_that_of_the_box(tmp_path: Path) -> None:
    truth = labelled(tmp_path, [thing([0, 0, 100, 100], area=900)])
    found = measure(truth, {1: detections([[0, 0, 100, 100]], [0.5], [0])}, (1, 2))
    assert found.small == pytest.approx(1)
    assert found.large is None


def test_images_without_detections_count(tmp_path: Path) -> None:
    truth = labelled(tmp_path, [thing([0, 0, 50, 50]), thing([0, 0, 50, 50], image=2)], images=2)
    one = detections([[0, 0, 50, 50]], [0.9], [0])
    assert measure(truth, {1: one}, (1, 2)).ap == measure(truth, {1: one, 2: detections([], [], [])}, (1, 2)).ap
    assert measure(truth, {1: one}, (1, 2)).ap == pytest.approx(51 / 101)
    assert measure(truth, {}, (1, 2)).ap == 0


def test_a_crowd_is_neither_found_nor_missed(tmp_path: Path) -> None:
    crowd = thing([200, 200, 100, 100], iscrowd=1)
    truth = labelled(tmp_path, [thing([0, 0, 50, 50]), crowd])
    both = detections([[200, 200, 240, 240], [0, 0, 50, 50]], [0.9, 0.8], [0, 0])
    assert measure(truth, {1: both}, (1, 2)).ap == pytest.approx(1)
    assert measure(truth, {1: both}, (1, 2)).classes[0].objects == 1


def test_classes_are_numbered_by_the_map_and_those_outside_it_are_left_out(tmp_path: Path) -> None:
    truth = labelled(tmp_path, [thing([0, 0, 50, 50], category=2)])
    # Class 0 would be a false alarm of a higher score if it counted.
    both = detections([[60, 60, 90, 90], [0, 0, 50, 50]], [0.9, 0.8], [0, 1])
    assert measure(truth, {1: both}, (None, 2)).ap == pytest.approx(1)
    assert measure(truth, {1: both}, (2, 2)).ap == pytest.approx(0.5)
    assert measure(truth, {1: both}, (2, 1)).ap == 0


def test_agrees_with_a_plain_computation_on_random_detections(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    objects, wanted, found, plain = [], [], {}, []
    for image in range(1, 31):
        count = int(rng.integers(0, 8))
        corners = np.concatenate([rng.uniform(0, 300, (count, 2)), rng.uniform(40, 120, (count, 2))], axis=1)
        labels = rng.integers(0, 3, count)
        objects += [thing(box, image, int(label) + 1) for box, label in zip(corners.tolist(), labels, strict=True)]
        corners[:, 2:] += corners[:, :2]
        wanted.append(Truth(corners.astype(np.float32), labels))
        guesses = np.concatenate(
            [corners + rng.normal(0, 5, corners.shape), rng.uniform(0, 300, (3, 4)).cumsum(axis=1)]
        )
        guessed = np.concatenate([labels, rng.integers(0, 3, 3)])
        scores = rng.permutation(len(guesses)) / len(guesses) + image * 1e-4  # no two alike
        found[image] = detections(guesses, scores, guessed)
        plain.append(Found(guesses.astype(np.float32), scores.astype(np.float32), guessed))
    truth = labelled(tmp_path, objects, images=30, categories=3)
    table = average_precision(plain, wanted, 3)
    got = measure(truth, found, (1, 2, 3))
    assert 0.2 < table.mean() < 0.8
    assert got.ap == pytest.approx(table.mean(), abs=1e-6)
    assert got.ap50 == pytest.approx(table[:, 0].mean(), abs=1e-6)
    assert [each.ap for each in got.classes] == pytest.approx(table.mean(axis=1).tolist(), abs=1e-6)
