"""What `pinstream detect` prints: tables, counts of classes, and JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from pinstream_cli.console import Console
from pinstream_cli.detect.progress import Bar
from pinstream_cli.detect.records import Record
from pinstream_cli.detect.report import Ending, Tables, report
from pinstream_cli.detect.tables import ClassCounts, detections_table, timing_table
from pinstream_client import Detections, ModelTiming, PinstreamError, ServerError

NAMES = ("person", "dog")
TIMING = ModelTiming("yolox", 1, 2, 0, 0, 2, 0)


def two() -> Detections:
    return Detections(
        np.array([[1, 2, 30.26, 40], [1000, 2000, 3000, 4000]]), np.array([0.91, 0.4]), np.array([1, 0]), NAMES
    )


def ending(**given: object) -> Ending:
    values = {"server": "http://host:1", "model": "yolox", "seconds": 0.5, "sent": 1, "timings": (TIMING,)}
    return Ending(**{**values, **given})  # type: ignore[arg-type]


def console() -> Console:
    return Console(file=io.StringIO(), width=500, markup=False, highlight=False, emoji=False)


def lines(out: Console) -> list[str]:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def test_table_has_one_unbroken_line_for_each_object_whatever_the_names() -> None:
    path = Path("/very/long/" + "x" * 150) / "[red]dog[/red] :dog:.jpg"
    out = console()
    failed = Record("c.jpg", PinstreamError("no"))
    out.print(detections_table([Record(str(path), two()), Record("b.jpg", two()[:0]), failed]))
    rows = [line.split() for line in lines(out)]
    rows = [row for row in rows if row and (row[0].startswith("/very") or row[0] in ("b.jpg", "c.jpg"))]
    assert [row[2:] for row in rows[:2]] == [
        ["dog", "0.910", "1.0,", "2.0,", "30.3,", "40.0"],
        ["person", "0.400", "1000.0,", "2000.0,", "3000.0,", "4000.0"],
    ]
    assert rows[0][:2] == [str(path).split()[0], ":dog:.jpg"]
    assert rows[2:] == [["b.jpg", "(nothing", "found)"]]


def test_timing_table_has_the_ensemble_first_and_its_steps_below() -> None:
    timings = [ModelTiming("yolox", 3, 30.5, 1, 2, 3, 4), ModelTiming("yolox_detector", 3, 20.25, 0.5, 1, 2, 3)]
    timings.append(ModelTiming("yolox_idle", 0, 0, 0, 0, 0, 0))
    out = console()
    out.print(timing_table(timings))
    assert [line.split() for line in lines(out) if "yolox" in line] == [
        ["yolox", "3", "30.50", "1.00", "2.00", "3.00", "4.00"],
        ["yolox_detector", "3", "20.25", "0.50", "1.00", "2.00", "3.00"],
    ]


def test_classes_are_counted_by_object_and_by_image_the_most_frequent_first() -> None:
    counts = ClassCounts()
    counts.add(two())
    counts.add(two()[[0, 0]])
    out = console()
    out.print(counts.table())
    assert [line.split() for line in lines(out)[-3:-1]] == [["dog", "3", "2", "0.910"], ["person", "1", "1", "0.400"]]


@pytest.mark.parametrize("summary", [False, True])
def test_tables_say_what_was_written_and_what_an_earlier_run_did(summary: bool) -> None:
    out = console()
    tables = Tables(out, summary=summary)
    tables.add(Record("a.jpg", two(), annotated="out/a.png"))
    tables.add(Record("b.jpg", two(), annotated="out/b.png"))
    tables.finish(ending(written=("found.csv",)))
    text = "\n".join(lines(out))
    assert "2 images (1 of them in an earlier run) in 0.50 s through http://host:1" in text
    assert "wrote found.csv" in text
    assert ("wrote out/a.png" in text) == (not summary)
    assert ("wrote 2 annotated files, the last one out/b.png" in text) == summary


def test_json_has_every_image_with_its_detections_or_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    out = report("json", NAMES)
    out.add(Record("a.jpg", two(), annotated="o/a.png"))
    out.add(Record("b.jpg", ServerError("no")))
    out.add(Record("c.mp4", two()[:0], frame=3, time_s=0.1))
    out.finish(ending())
    value = json.loads(capsys.readouterr().out)
    assert (value["server"], value["model"], value["seconds"]) == ("http://host:1", "yolox", 0.5)
    assert value["images"][0]["detections"][0]["class"] == "dog"
    assert value["images"][0]["annotated"] == "o/a.png"
    assert value["images"][1] == {"image": "b.jpg", "error": "no"}
    assert value["images"][2] == {"image": "c.mp4", "frame": 3, "time_s": 0.1, "detections": []}
    assert value["server_timing"][0]["compute_infer_ms"] == 2


def test_lines_are_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    out = report("jsonl", NAMES)
    out.add(Record("a.jpg", two()))
    assert json.loads(capsys.readouterr().out)["image"] == "a.jpg"
    out.finish(ending())
    assert capsys.readouterr().out == ""


def bar_text(total: int | None, terminal: bool) -> str:
    file = io.StringIO()
    with Bar(Console(file=file, force_terminal=terminal, width=120, color_system=None), total, already=2) as bar:
        bar.advance()
        bar.advance(failed=True)
    return file.getvalue()


def test_bar_shows_how_far_it_is_how_fast_what_is_left_and_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # as a dumb one has no bar
    text = bar_text(10, terminal=True)
    assert "4/10" in text
    for words in ("images/s", "left", "1 failed"):
        assert words in text
    assert "left" not in bar_text(None, terminal=True)


def test_there_is_no_bar_where_nobody_looks() -> None:
    assert bar_text(10, terminal=False) == ""
