"""Records as JSON Lines, CSV and COCO JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import IO, Any, Protocol

from pinstream_cli.detect.coco import CocoDataset
from pinstream_cli.detect.records import Record
from pinstream_client import Detections, PinstreamError

COLUMNS = ("image", "frame", "time_s", "class", "class_id", "score", "x1", "y1", "x2", "y2", "error")
SUFFIXES = {".jsonl": "jsonl", ".csv": "csv", ".json": "coco"}


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
    """One row for each object; an image without any, or with an error, has one row without a class."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def add(self, record: Record) -> None:
        """Writes the rows at once."""
        self._writer.writerows(_rows(record))
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


def _rows(record: Record) -> list[list[Any]]:
    time_s = "" if record.time_s is None else f"{record.time_s:.3f}"
    start = [record.image, "" if record.frame is None else record.frame, time_s]
    if isinstance(record.result, PinstreamError):
        return [[*start, *[""] * 7, str(record.result)]]
    found = [item.to_dict() for item in record.result]
    return [[*start, item["class"], item["class_id"], item["score"], *item["box"], ""] for item in found] or [
        [*start, *[""] * 8]
    ]
