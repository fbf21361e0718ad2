"""What an interrupted run leaves, and what the next one takes over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinstream_cli.detect.journal import Journal
from pinstream_cli.detect.records import Record
from pinstream_cli.errors import CommandError
from pinstream_client import Detections, ServerError

NAMES = ("person",)
SETTINGS: dict[str, Any] = {"model": "yolox", "conf": 0.25}


def record(image: str) -> Record:
    return Record(image, Detections(np.array([[1, 2, 3, 4]]), np.array([0.5]), np.array([0]), NAMES))


def opened(path: Path, **given: Any) -> Journal:
    return Journal(path, given.pop("settings", SETTINGS), NAMES, **given)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The journal of a run that was killed in the middle of a line."""
    path = tmp_path / "found.csv.part"
    journal = opened(path)
    journal.add(record("a.jpg"), "1-1")
    journal.add(Record("bad.jpg", ServerError("no")), "")
    journal.add(record("b.jpg"), "2-2")
    journal.close()
    with path.open("a") as file:
        file.write('{"stamp": "3-3", "image": "c.jpg", "detec')
    return path


def test_what_is_finished_is_taken_over_and_what_failed_or_is_torn_is_not(left: Path) -> None:
    journal = opened(left)
    assert journal.done == {("a.jpg", "1-1"), ("b.jpg", "2-2")}
    journal.add(record("c.jpg"), "3-3")
    assert [kept.image for kept in journal.records()] == ["a.jpg", "b.jpg", "c.jpg"]
    assert journal.done >= {("c.jpg", "3-3")}


def test_an_image_that_changed_or_is_not_wanted_any_more_is_not_taken_over(left: Path) -> None:
    journal = opened(left, wanted={("a.jpg", "9-9"), ("b.jpg", "2-2")})
    assert journal.done == {("b.jpg", "2-2")}
    assert [kept.image for kept in journal.records()] == ["b.jpg"]


def test_restart_forgets_everything(left: Path) -> None:
    journal = opened(left, restart=True)
    assert journal.done == set()
    assert list(journal.records()) == []


def test_other_settings_are_refused_and_cost_nothing(left: Path) -> None:
    before = left.read_bytes()
    with pytest.raises(CommandError, match=r"conf 0\.25, now not given.*--restart"):
        opened(left, settings={"model": "yolox", "conf": None})
    assert left.read_bytes() == before


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "found.csv.part"
    path.write_text(json.dumps({"image": "a.jpg"}) + "\n")
    with pytest.raises(CommandError, match="--restart"):
        opened(path)


def test_an_empty_file_is_a_journal_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "found.csv.part"
    path.touch()
    assert opened(path).done == set()


def test_nothing_is_left_of_a_run_that_is_done(left: Path) -> None:
    opened(left).remove()
    assert list(left.parent.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot write"):
        opened(tmp_path / "no" / "such.part")
