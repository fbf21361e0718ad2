"""JSON Lines, CSV and COCO JSON."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest

from pinstream_cli.detect import formats
from pinstream_cli.detect.coco import CocoDataset
from pinstream_cli.detect.records import Record, read_record
from pinstream_client import COCO, Detections, ServerError
from pinstream_client.yolox import HIGHEST_CLASS

NAMES = ("person", 'a "quoted", name')


def two(size: tuple[int, int] | None = None) -> Detections:
    boxes = np.array([[1, 2, 30.26, 40.5], [10, 20, 30, 40]])
    return Detections(boxes, np.array([0.91234567, 0.4]), np.array([1, 0]), NAMES, size, 1.5)


def written(name: str, *records: Record) -> str:
    file = io.StringIO()
    out = formats.writer(name, file, NAMES)
    for record in records:
        out.add(record)
    out.finish()
    return file.getvalue()


def test_csv_has_a_row_for_each_object_and_one_for_what_has_none() -> None:
    text = written(
        "csv",
        Record("a,b.jpg", two()),
        Record("clip.mp4", two()[:1], frame=3, time_s=0.12),
        Record("empty.jpg", two()[:0]),
        Record("bad.jpg", ServerError("no\x2c really")),
    )
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["image"] for row in rows] == ["a,b.jpg", "a,b.jpg", "clip.mp4", "empty.jpg", "bad.jpg"]
    assert [row["class"] for row in rows] == [NAMES[1], NAMES[0], NAMES[1], "", ""]
    assert rows[0] | {"error": ""} == {
        "image": "a,b.jpg", "frame": "", "time_s": "", "class": NAMES[1], "class_id": "1", "score": "0.91235",
        "x1": "1.0", "y1": "2.0", "x2": "30.26", "y2": "40.5", "error": "",
    }  # fmt: skip
    assert (rows[2]["frame"], rows[2]["time_s"]) == ("3", "0.120")
    assert rows[4]["error"] == "no, really"


RUN = ["=HYPERLINK(1)", "+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "'=1", "'s"]
BEHIND_BLANKS = [" =1", "\xa0+1", "\x0b-1", " \t@SUM(1)", "\u3000\uff1d1", "\x01=1", "\ufeff=1"]


@pytest.mark.parametrize("text", RUN + BEHIND_BLANKS)
def test_csv_marks_what_a_spreadsheet_would_run_so_that_it_can_be_taken_back(text: str) -> None:
    names = (text, "car")
    found = Detections(np.array([[-1.5, 2, 30, 40]]), np.array([0.9]), np.array([0]), names, None, 1.5)
    rows = list(
        csv.DictReader(io.StringIO(written("csv", Record(text, found), Record("b.jpg", ServerError(text))), newline=""))
    )
    assert (rows[0]["image"], rows[0]["class"]) == (f"'{text}",) * 2
    # An error's text is on one line already, with escapes for what cannot be printed.
    assert rows[1]["error"] in (f"'{text}", ascii(text)[1:-1])
    assert rows[0]["x1"] == "-1.5"
    # In the other formats it is as it is.
    assert json.loads(written("jsonl", Record(text, found)))["image"] == text


@pytest.mark.parametrize("name", ["cat - dog.jpg", "a+b@c=d.jpg", " dog.jpg", "a; -1.jpg", "/=1/a.jpg", ""])
def test_csv_leaves_ordinary_names_as_they_are(name: str) -> None:
    assert next(csv.DictReader(io.StringIO(written("csv", Record(name, two())))))["image"] == name


def test_json_lines_are_one_object_each() -> None:
    text = written("jsonl", Record("a.jpg", two()), Record("b.jpg", ServerError("no")))
    first, second = map(json.loads, text.splitlines())
    assert first["detections"][0]["box"] == [1, 2, 30.26, 40.5]
    assert second == {"image": "b.jpg", "error": "no"}


def test_coco_is_a_data_set_with_scores() -> None:
    value = json.loads(written("coco", Record("x/000000397133.jpg", two((640, 480))), Record("b.jpg", two()[:0])))
    assert value["images"] == [
        {"id": 397133, "file_name": "x/000000397133.jpg", "width": 640, "height": 480},
        {"id": 397134, "file_name": "b.jpg"},
    ]
    assert value["categories"] == [{"id": 1, "name": "person"}, {"id": 2, "name": NAMES[1]}]
    first = value["annotations"][0]
    assert first["bbox"] == [1, 2, 29.26, 38.5]
    assert first["area"] == pytest.approx(29.26 * 38.5, abs=0.01)
    assert {name: first[name] for name in ("id", "image_id", "category_id", "score", "iscrowd")} == {
        "id": 1, "image_id": 397133, "category_id": 2, "score": 0.91235, "iscrowd": 0,
    }  # fmt: skip


def test_coco_ids_are_those_of_cocos_own_files() -> None:
    categories = {entry["name"]: entry["id"] for entry in CocoDataset(COCO).to_dict()["categories"]}
    # A few from instances_val2017.json.
    for name, number in (("person", 1), ("stop sign", 13), ("dog", 18), ("backpack", 27), ("toothbrush", 90)):
        assert categories[name] == number


def test_a_class_without_a_label_has_an_id_of_its_own() -> None:
    dataset = CocoDataset(NAMES[:1])
    dataset.add("a.jpg", two())
    value = dataset.to_dict()
    assert [entry["category_id"] for entry in value["annotations"]] == [2, 1]
    assert [entry["id"] for entry in value["categories"]] == [1]


def test_the_highest_class_that_there_can_be_takes_no_time() -> None:
    dataset = CocoDataset(COCO)
    highest = Detections(np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.array([HIGHEST_CLASS], np.int32))
    started = time.monotonic()
    dataset.add("a.jpg", highest)
    assert time.monotonic() - started < 5
    assert dataset.to_dict()["annotations"][0]["category_id"] == 90 + HIGHEST_CLASS - 79


def test_images_of_the_same_number_have_ids_of_their_own() -> None:
    dataset = CocoDataset(NAMES)
    for name in ("a/7.jpg", "b/7.jpg", "x.jpg", "0.jpg", "clip.mp4 frame 3", "a/7.jpg"):
        dataset.add(name, two()[:0])
    ids = [image["id"] for image in dataset.to_dict()["images"]]
    assert ids[0] == 7
    assert len(set(ids)) == len(ids) == 5
    assert min(ids) > 0


@pytest.mark.parametrize(
    ("name", "expected"), [("a.jsonl", "jsonl"), ("a.CSV", "csv"), ("a.json", "coco"), ("a.txt", None), ("csv", None)]
)
def test_the_suffix_chooses_the_format(name: str, expected: str | None) -> None:
    assert formats.format_of(Path(name)) == expected


@pytest.mark.parametrize(
    "record",
    [
        Record("a.jpg", two((640, 480)), annotated="out/a.png"),
        Record("clip.mp4", two()[:0], frame=3, time_s=0.1),
        Record("b.jpg", ServerError("no")),
    ],
)
def test_a_record_reads_back_as_it_was_written(record: Record) -> None:
    entry = json.loads(json.dumps(record.to_dict()))
    again = read_record(entry, NAMES)
    assert again.to_dict() == entry
    assert again.where == record.where
