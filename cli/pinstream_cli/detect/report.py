"""What `detect` prints on standard output, in the format that was asked for."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, Protocol

from pinstream_cli.console import Console
from pinstream_cli.detect.formats import Writer, writer
from pinstream_cli.detect.records import Record
from pinstream_cli.detect.tables import ClassCounts, detections_table, plain_console, timing_table
from pinstream_client import Detections, ModelTiming

FORMATS = ("table", "summary", "json", "jsonl", "csv", "coco")


@dataclass(frozen=True)
class Ending:
    """What is known when all is done.

    Attributes:
        server: Address of the server.
        model: Name of the ensemble.
        seconds: Wall clock of this run.
        sent: Images that this run sent and got an answer for; the others are an earlier run's.
        timings: The server's own time split; empty when the server does not tell it.
        written: Files that were written, besides those that the records name.
    """

    server: str
    model: str
    seconds: float
    sent: int
    timings: tuple[ModelTiming, ...]
    written: tuple[str, ...] = ()


class Report(Protocol):
    """Prints records."""

    def add(self, record: Record) -> None:
        """Takes one image's record."""

    def finish(self, ending: Ending) -> None:
        """Prints what is left to print."""


class Tables:
    """A table of all objects, or of the classes alone, and the server's time split.

    Args:
        console: Where it is printed.
        summary: Count the classes instead of listing the objects: for more images than one wants to read.
    """

    def __init__(self, console: Console, *, summary: bool = False) -> None:
        self._console = console
        self._summary = summary
        self._records: list[Record] = []
        self._counts = ClassCounts()
        self._images = 0
        self._round_trips_ms = 0.0
        self._annotated: dict[str, None] = {}

    def add(self, record: Record) -> None:
        """Collects it."""
        if record.annotated is not None:
            self._annotated[record.annotated] = None
        if not isinstance(record.result, Detections):
            return
        self._images += 1
        self._round_trips_ms += record.result.round_trip_ms or 0.0
        if self._summary:
            self._counts.add(record.result)
        else:
            self._records.append(record)

    def finish(self, ending: Ending) -> None:
        """Prints the tables."""
        if self._images:
            self._console.print(self._counts.table() if self._summary else detections_table(self._records))
            self._console.print(self._sentence(ending))
            split = timing_table(ending.timings) if ending.timings else "the server does not tell its time split"
            self._console.print(split)
        annotated = list(self._annotated)
        if self._summary and len(annotated) > 1:
            self._console.print(f"wrote {len(annotated)} annotated files, the last one {annotated[-1]}")
            annotated = []
        for path in (*annotated, *ending.written):
            self._console.print(f"wrote {path}")

    def _sentence(self, ending: Ending) -> str:
        earlier = self._images - ending.sent
        resumed = f" ({earlier} of them in an earlier run)" if earlier > 0 else ""
        return (
            f"{self._images} image{'s' if self._images > 1 else ''}{resumed} in {ending.seconds:.2f} s through "
            f"{ending.server}; round trip {self._round_trips_ms / self._images:.1f} ms on average"
        )


class Json:
    """One JSON document of the whole run."""

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []

    def add(self, record: Record) -> None:
        """Collects it."""
        self._images.append(record.to_dict())

    def finish(self, ending: Ending) -> None:
        """Prints the document."""
        document = {
            "server": ending.server,
            "model": ending.model,
            "images": self._images,
            "seconds": round(ending.seconds, 4),
            "server_timing": [timing.to_dict() for timing in ending.timings],
        }
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


class Stream:
    """One of the formats that a file can have as well."""

    def __init__(self, out: Writer) -> None:
        self._out = out

    def add(self, record: Record) -> None:
        """Prints it at once where the format allows it."""
        self._out.add(record)

    def finish(self, ending: Ending) -> None:
        """Prints what is left."""
        self._out.finish()


def report(name: str, names: tuple[str, ...]) -> Report:
    """The report of a format out of `FORMATS`.

    Args:
        name: The format.
        names: The model's labels.
    """
    if name in ("table", "summary"):
        return Tables(plain_console(), summary=name == "summary")
    return Json() if name == "json" else Stream(writer(name, sys.stdout, names))
