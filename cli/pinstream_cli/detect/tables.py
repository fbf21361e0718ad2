"""What a person reads: tables of objects, of classes, and of the server's time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table

from pinstream_cli.console import Console
from pinstream_cli.detect.records import Record
from pinstream_client import Detections, ModelTiming

# A table that is not printed on a terminal is as wide as its contents: a wrapped row is of no use in a file or a pipe.
_UNLIMITED_WIDTH = 100_000


def plain_console() -> Console:
    """Standard output, where file and class names are printed as they are, whatever brackets and colons they have."""
    width = None if sys.stdout.isatty() else _UNLIMITED_WIDTH
    return Console(width=width)


def detections_table(records: Sequence[Record]) -> Table:
    """One row for each object; an image without any has a row that says so, one that failed has none."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("box x1, y1, x2, y2 (pixels)", no_wrap=True)
    for record in records:
        if not isinstance(record.result, Detections):
            continue
        for item in record.result:
            corners = ", ".join(f"{value:.1f}" for value in item.box)
            table.add_row(record.where, item.name, f"{item.score:.3f}", corners)
        if not len(record.result):
            table.add_row(record.where, "(nothing found)", "", "")
    return table


@dataclass
class ClassCount:
    """How often a class was found."""

    objects: int = 0
    images: int = 0
    best: float = 0.0


@dataclass
class ClassCounts:
    """Every class that was found, over all images."""

    by_name: dict[str, ClassCount] = field(default_factory=dict)

    def add(self, detections: Detections) -> None:
        """Counts one image's objects."""
        for item in detections:
            count = self.by_name.setdefault(item.name, ClassCount())
            count.objects += 1
            count.best = max(count.best, item.score)
        for name in {item.name for item in detections}:
            self.by_name[name].images += 1

    def table(self) -> Table:
        """One row for each class, the most frequent first."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("class", no_wrap=True)
        for heading in ("objects", "images", "best score"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, count in sorted(self.by_name.items(), key=lambda entry: (-entry[1].objects, entry[0])):
            table.add_row(name, str(count.objects), str(count.images), f"{count.best:.3f}")
        return table


def timing_table(timings: Sequence[ModelTiming]) -> Table:
    """The server's time split: the ensemble first, then its steps; without those that were not asked."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("server, ms per request", no_wrap=True)
    for heading in ("requests", "total", "queue", "input", "infer", "output"):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, timing in enumerate(timings):
        if not timing.requests:
            continue  # with --transport tensor, only the detector works
        stages = (timing.queue_ms, timing.compute_input_ms, timing.compute_infer_ms, timing.compute_output_ms)
        table.add_row(
            ("  " if index else "") + timing.model,
            str(timing.requests),
            *(f"{value:.2f}" for value in (timing.total_ms, *stages)),
        )
    return table
