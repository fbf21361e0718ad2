"""One run of `pinstream detect`, from the first image to the list of those that failed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pinstream_cli.detect import formats
from pinstream_cli.detect.annotate import Annotator
from pinstream_cli.detect.journal import Journal
from pinstream_cli.detect.progress import Bar
from pinstream_cli.detect.records import Record
from pinstream_cli.detect.report import Report
from pinstream_cli.detect.requests import SERVER_IS_GONE, Result, results
from pinstream_cli.detect.sources import Item
from pinstream_cli.detect.watch import POLL_S, Watch
from pinstream_cli.errors import CommandError
from pinstream_client import Detections, Detector, PinstreamError


@dataclass
class Run:
    """What a run asks, and where its results go.

    Attributes:
        detector: Who is asked.
        thresholds: conf, iou and max_det, as `Detector.detect` takes them.
        report: Prints the results.
        annotator: Draws them, or None.
        journal: Keeps them until the end, or None where nothing is written.
        bar: Shows how far it is.
        verbose: Say a line about each image.
        failed: Images without a result, and those that could not be drawn.
        sent: How many images the server has answered.
        seen: How many images there were in all.
    """

    detector: Detector
    thresholds: dict[str, Any]
    report: Report
    annotator: Annotator | None
    journal: Journal | None
    bar: Bar
    verbose: bool = False
    failed: list[tuple[str, PinstreamError]] = field(default_factory=list)
    sent: int = 0
    seen: int = 0

    def resume(self) -> None:
        """Takes over what an interrupted run has finished."""
        for record in self.journal.records() if self.journal is not None else ():
            self.seen += 1
            self.report.add(record)
            if self.annotator is not None and record.annotated is not None:
                self.annotator.keep(Path(record.annotated))

    def over(self, items: Iterable[Item], watch: Watch | None = None) -> None:
        """Detects on all items.

        Raises:
            ServerUnreachable, ServerNotReady, ModelNotFound: The server is gone.
            CommandError: A result cannot be written.
        """
        for item, result in results(self.detector, items, self.thresholds):
            self._take(item, result)
            if watch is not None:
                watch.done(item)

    def watch(self, watch: Watch) -> None:
        """Detects on whatever comes, until it is interrupted. A server that goes away is waited for."""
        while True:
            started = time.monotonic()
            found = watch.poll()
            listing_s = time.monotonic() - started
            try:
                self.over(found, watch)
            except SERVER_IS_GONE as error:
                self.bar.say(f"waiting for the server: {error}")
                self._wait_for_server()
            # A directory of very many images is not listed all the time.
            time.sleep(max(POLL_S, 4 * listing_s))

    def fail(self, name: str, error: PinstreamError) -> None:
        """An image or a video that never got so far as to be sent."""
        self._count(Record(name, error), failed=True)
        self.failed.append((name, error))

    def _take(self, item: Item, result: Result) -> None:
        annotated, problem = None, result if isinstance(result, PinstreamError) else None
        if isinstance(result, Detections):
            self.sent += 1
            if self.annotator is not None:
                try:
                    annotated = str(self.annotator.write(item, result))
                except PinstreamError as error:
                    problem = error
        record = Record(item.name, result, item.frame, item.time_s, annotated)
        if self.journal is not None:
            self.journal.add(record, "" if problem else item.stamp)
        self._count(record, failed=problem is not None)
        if problem is not None:
            self.failed.append((record.where, problem))

    def _count(self, record: Record, failed: bool) -> None:
        self.seen += 1
        self.report.add(record)
        self.bar.advance(failed)
        if not self.verbose:
            return
        if isinstance(record.result, Detections):
            found = f"{len(record.result)} object{'' if len(record.result) == 1 else 's'}"
            self.bar.say(f"{record.where}: {found}, {record.result.round_trip_ms or 0:.1f} ms")
        else:
            self.bar.say(f"{record.where}: {record.result}")

    def _wait_for_server(self) -> None:
        while not self.detector.is_ready():
            time.sleep(POLL_S)
        self.bar.say("the server is back")


def save(path: Path, journal: Journal, names: tuple[str, ...]) -> None:
    """Writes the file of results from the journal, whole or not at all.

    Args:
        path: The file; its suffix chooses the format.
        journal: All results.
        names: The model's labels.

    Raises:
        CommandError: It cannot be written.
    """
    name = formats.format_of(path)
    assert name is not None  # the command line has been checked
    scratch = path.with_name(path.name + ".new")
    try:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            out = formats.writer(name, file, names)
            for record in journal.records():
                out.add(record)
            out.finish()
        os.replace(scratch, path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        scratch.unlink(missing_ok=True)


def failures(failed: Sequence[tuple[str, PinstreamError]], seen: int) -> list[str]:
    """The lines that list what failed."""
    head = f"{len(failed)} of {seen} image{'' if seen == 1 else 's'} failed:"
    return [head, *(f"  {name}: {error}" for name, error in failed)]
