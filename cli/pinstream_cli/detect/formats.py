"""Records as JSON Lines, CSV and COCO JSON."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import IO, Any, Protocol

from pinstream_cli.detect.coco import CocoDataset
from pinstream_cli.detect.records import Record
from pinstream_client import Detections, PinstreamError

COLUMNS = ("image", "frame", "time_s", "class", "class_id", "score", "x1", "y1", "x2", "y2", "error")
SUFFIXES = {".jsonl": "jsonl", ".csv": "csv", ".json": "coco"}
# What spreadsheets take for a formula, full-width too, also behind blanks and what is not seen, which some pass over; a
# tab or a new line whatever is behind it; and the mark.
_FORMULA = re.compile("[\\s\\0-\\x1f\u200b\ufeff]*[=+\\-@\uff1d\uff0b\uff0d\uff20]|[\\t\\r\\n']")


class Writer(Protocol):
    """Writes records in one format."""

    def add(self, record: Record) -> None:
        """Takes one image's record."""

    def finish(self) -> None:
        """Writes what could not be written before all were there."""


class JsonLines:
    """One JSON object a line, for each image."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def add(self, record: Record) -> None:
        """Writes the line at once."""
        self._file.write(json.dumps(record.to_dict(), ensure_ascii=False) + "\n")
        self._file.flush()

    def finish(self) -> None:
        """Nothing is left to write."""


class Csv:
    """One row for each object; an image without any, or with an error, has one row without a class.

    Texts that a spreadsheet would run are marked; see `marked`.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._writer = csv.writer(file, lineterminator="\n")
        # The other one leaves a carriage return unquoted, at which readers begin a row.
        self._quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._writer.writerow(COLUMNS)

    def add(self, record: Record) -> None:
        """Writes the rows at once."""
        for row in _rows(record):
            out = self._quoting if any("\r" in str(cell) for cell in row) else self._writer
            out.writerow(row)
        self._file.flush()

    def finish(self) -> None:
        """Nothing is left to write."""


class Coco:
    """One COCO data set of all images; see `CocoDataset`."""

    def __init__(self, file: IO[str], names: tuple[str, ...]) -> None:
        self._file = file
        self._dataset = CocoDataset(names)

    def add(self, record: Record) -> None:
        """Collects an image that worked."""
        if isinstance(record.result, Detections):
            self._dataset.add(record.where, record.result)

    def finish(self) -> None:
        """Writes the data set."""
        json.dump(self._dataset.to_dict(), self._file, ensure_ascii=False)
        self._file.write("\n")


def writer(name: str, file: IO[str], names: tuple[str, ...]) -> Writer:
    """The writer of a format: "jsonl", "csv" or "coco".

    Args:
        name: The format.
        file: Where it is written.
        names: The model's labels.
    """
    if name == "coco":
        return Coco(file, names)
    return JsonLines(file) if name == "jsonl" else Csv(file)


def format_of(path: Path) -> str | None:
    """The format that a file's suffix stands for, or None."""
    return SUFFIXES.get(path.suffix.lower())


def marked(text: str) -> str:
    """A cell's text with a ' in front where a spreadsheet would take it for a formula, or where it begins with one.

    File names and labels are other people's. Whoever wants the text itself takes one ' from the front.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def _rows(record: Record) -> list[list[Any]]:
    time_s = "" if record.time_s is None else f"{record.time_s:.3f}"
    start = [marked(record.image), "" if record.frame is None else record.frame, time_s]
    if isinstance(record.result, PinstreamError):
        return [[*start, *[""] * 7, marked(str(record.result))]]
    found = [item.to_dict() for item in record.result]
    return [[*start, marked(item["class"]), item["class_id"], item["score"], *item["box"], ""] for item in found] or [
        [*start, *[""] * 8]
    ]
