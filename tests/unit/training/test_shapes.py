"""The drawn pictures: the same for the same seed, boxes that are exact, and a folder that COCO's tools can read."""

import json
import math
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.shapes import HELD_OUT_SEED, LABELS, LEAST_SEEN, MOST_THINGS, SMALLEST, Picture, main, render, write_coco
from training.sprites import Image, contrasting
from training.things import draw


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [render(HELD_OUT_SEED + index) for index in range(80)]


def test_the_same_seed_gives_the_same_picture(pictures: list[Picture]) -> None:
    again = render(HELD_OUT_SEED + 3)
    assert again.jpeg == pictures[3].jpeg
    np.testing.assert_array_equal(again.boxes, pictures[3].boxes)
    np.testing.assert_array_equal(again.labels, pictures[3].labels)


def test_other_seeds_give_other_pictures(pictures: list[Picture]) -> None:
    assert len({picture.jpeg for picture in pictures}) == len(pictures)


def test_boxes_have_an_area_and_lie_in_the_picture(pictures: list[Picture]) -> None:
    for picture in pictures:
        height, width = picture.image.shape[:2]
        x1, y1, x2, y2 = picture.boxes.T
        assert (x1 >= 0).all()
        assert (y1 >= 0).all()
        assert (x2 <= width).all()
        assert (y2 <= height).all()
        assert (picture.areas > 0).all()
        assert (picture.areas <= (x2 - x1) * (y2 - y1)).all()
        assert len(picture.labels) <= MOST_THINGS


def test_things_are_not_too_small_to_be_told_apart(pictures: list[Picture]) -> None:
    for picture in pictures:
        longest = (picture.boxes[:, 2:] - picture.boxes[:, :2]).max(axis=1, initial=0)
        # A thing cut off by the edge or half hidden may be shorter than it was drawn, a slanted one as well.
        assert (longest >= SMALLEST * LEAST_SEEN * 0.7 * max(picture.image.shape)).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("label", range(len(LABELS)), ids=LABELS)
def test_a_sprite_fills_its_frame_and_is_as_long_as_asked(label: int, seed: int) -> None:
    size = (18, 40, 100, 300)[seed]
    sprite = draw(np.random.default_rng([label, seed]), label, size, (128.0, 128.0, 128.0))
    for edge in (sprite.coverage[0], sprite.coverage[-1], sprite.coverage[:, 0], sprite.coverage[:, -1]):
        assert edge.max() > 0, "an empty margin would make the box too large"
    length = float(math.hypot(*sprite.coverage.shape))
    assert 0.75 * size <= length <= 1.7 * size
    assert (sprite.colour <= 255 * sprite.coverage[..., None] + 1e-3).all(), "colour where there is no thing"


def test_boxes_are_tight_around_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a plain ground, without shadow, noise or blur, the pixels that differ from it are the things themselves."""
    from training import shapes

    grey = 128

    drawn: list[Image] = []

    def keep(rng: np.random.Generator, image: Image) -> Image:
        drawn.append(image.copy())
        return image

    monkeypatch.setattr(shapes, "background", lambda rng, h, w: np.full((h, w, 3), grey, np.uint8))
    monkeypatch.setattr(shapes, "_cast_shadow", lambda *_: None)
    monkeypatch.setattr(shapes, "_photograph", keep)
    checked = 0
    for seed in range(200):
        picture = shapes.render(seed)
        if len(picture.labels) != 1:
            continue
        different = np.abs(drawn[-1].astype(int) - grey).max(axis=2) > 0
        rows, columns = np.flatnonzero(different.any(axis=1)), np.flatnonzero(different.any(axis=0))
        seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        # A pixel that is covered by less than half is not counted in, and no edge is blurred over more than one.
        difference = picture.boxes[0] - seen
        assert (difference[:2] >= 0).all()
        assert (difference[2:] <= 0).all()
        assert (np.abs(difference) <= 2).all(), (seed, LABELS[picture.labels[0]], difference)
        checked += 1
    assert checked >= 8


def test_a_hidden_part_is_left_out_of_the_box() -> None:
    from training.shapes import _extents

    owner = np.full((20, 30), -1, np.int16)
    owner[5:15, 4:20] = 0
    owner[0:20, 12:30] = 1  # lies over the right half
    boxes, areas = _extents(owner, 2)
    np.testing.assert_array_equal(boxes, [[4, 5, 12, 15], [12, 0, 30, 20]])
    np.testing.assert_array_equal(areas, [80, 360])


def test_no_thing_is_mostly_hidden_by_later_ones() -> None:
    from training.shapes import _fits

    owner = np.full((20, 30), -1, np.int16)
    owner[:, :10] = 0
    solid = np.ones((20, 10), bool)
    assert not _fits(owner, [200], solid, 0, 5, least_seen=0.6), "would leave half of the first thing"
    assert _fits(owner, [200], solid, 0, 7, least_seen=0.6)
    assert not _fits(owner, [200], solid, 0, 25, least_seen=0.6), "half outside the picture"


def test_all_classes_come_about_equally_often(pictures: list[Picture]) -> None:
    counts = Counter(int(label) for picture in pictures for label in picture.labels)
    assert set(counts) == set(range(len(LABELS)))
    assert min(counts.values()) > 0.6 * max(counts.values()), counts


def test_pictures_are_wide_and_tall_and_of_many_sizes(pictures: list[Picture]) -> None:
    ratios = [picture.image.shape[1] / picture.image.shape[0] for picture in pictures]
    assert min(ratios) < 0.6
    assert max(ratios) > 1.8
    assert len({picture.image.shape for picture in pictures}) > 60


def test_a_colour_stands_out_from_the_other() -> None:
    rng = np.random.default_rng(0)
    distances = [math.dist(contrasting(rng, other), other) for other in [(90.0, 120.0, 100.0)] * 50]
    assert min(distances) > 60


def test_write_coco_describes_the_pictures_it_writes(tmp_path: Path) -> None:
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + 3)
    write_coco(tmp_path, seeds, processes=1)
    content = json.loads((tmp_path / "annotations.json").read_text())
    assert [category["name"] for category in content["categories"]] == list(LABELS)
    assert [category["id"] for category in content["categories"]] == list(range(1, len(LABELS) + 1))
    assert len({entry["id"] for entry in content["annotations"]}) == len(content["annotations"])
    assert [image["id"] for image in content["images"]] == list(seeds)
    for image in content["images"]:
        picture = render(image["id"])
        stored = cv2.imread(str(tmp_path / image["file_name"]))
        assert stored is not None
        np.testing.assert_array_equal(stored, picture.image)
        assert stored.shape == (image["height"], image["width"], 3)
        entries = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in entries)]
        np.testing.assert_array_equal(np.array(corners, np.float32), picture.boxes)
        assert [entry["category_id"] - 1 for entry in entries] == picture.labels.tolist()
        assert [entry["area"] for entry in entries] == picture.areas.tolist()
        assert all(entry["iscrowd"] == 0 for entry in entries)


def test_the_label_file_of_the_model_names_the_classes() -> None:
    path = Path(__file__).parents[3] / "models" / "shapes.txt"
    assert path.read_text(encoding="utf-8").splitlines() == list(LABELS)


def test_the_command_writes_pictures_of_either_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, skip, first in (("held-out", 0, HELD_OUT_SEED), ("training", 5, 5)):
        out = tmp_path / split
        command = ["shapes", "--out", str(out), "--count", "2", "--split", split, "--skip", str(skip)]
        monkeypatch.setattr(sys, "argv", [*command, "--processes", "1"])
        main()
        assert sorted(path.name for path in out.glob("*.jpg")) == [f"{first + n:06d}.jpg" for n in range(2)]
        assert (out / f"{first:06d}.jpg").read_bytes() == render(first).jpeg
