"""What an evaluation found: rows of precision, the result file, the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from rich import box
from rich.table import Table

from pinstream_cli.benchmark import environment
from pinstream_cli.evaluation.annotations import Annotations
from pinstream_cli.evaluation.precision import Precision
from pinstream_cli.evaluation.run import Outcome

_MEASURES = ("ap", "ap50", "ap75", "small", "medium", "large")


@dataclass(frozen=True)
class Row:
    """One pass over the images.

    Attributes:
        name: How the images were sent.
        outcome: What came of them.
        precision: How good that is.
    """

    name: str
    outcome: Outcome
    precision: Precision


@dataclass(frozen=True)
class Evaluation:
    """A whole evaluation.

    Attributes:
        truth: What the images hold.
        server: Where the service is.
        model: Its name there.
        thresholds: The request parameters conf, iou and max_det.
        rows: The files as they are first.
        notes: What a reader has to know.
    """

    truth: Annotations
    server: str
    model: str
    thresholds: dict[str, Any]
    rows: Sequence[Row]
    notes: Sequence[str]

    @property
    def failures(self) -> list[tuple[str, int, str]]:
        """Every image that failed: how it was sent, its id, and why."""
        return [(row.name, number, why) for row in self.rows for number, why in sorted(row.outcome.failed.items())]


def as_json(evaluation: Evaluation, command: str) -> dict[str, Any]:
    """The result file's content."""
    truth = evaluation.truth
    return {
        "suite": "eval",
        **environment.origin(command),
        "versions": environment.versions(**{"faster-coco-eval": metadata.version("faster-coco-eval")}),
        "method": {
            "annotations": str(truth.file),
            "images": len(truth.images),
            "objects": len(truth.objects),
            "server": evaluation.server,
            "model": evaluation.model,
            **evaluation.thresholds,
        },
        "notes": list(evaluation.notes),
        "rows": [_row(row) for row in evaluation.rows],
        "classes": [_rounded(asdict(each)) for each in evaluation.rows[0].precision.classes],
        "failed": [
            {"sent": sent, "image_id": number, "file": str(truth.images[number]), "error": why}
            for sent, number, why in evaluation.failures
        ],
    }


def _row(row: Row) -> dict[str, Any]:
    measures = {name: getattr(row.precision, name) for name in _MEASURES}
    return {
        "name": row.name,
        "images": len(row.outcome.detections),
        "kib_per_image": round(row.outcome.image_bytes / 1024, 1),
        **_rounded(measures),
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def class_table(evaluation: Evaluation) -> Table:
    """One row for each category, for the files as they are."""
    table = _table("class", "objects", "AP", "AP50", "AP75")
    for each in evaluation.rows[0].precision.classes:
        table.add_row(each.name, str(each.objects), *(_shown(value) for value in (each.ap, each.ap50, each.ap75)))
    return table


def summary_table(evaluation: Evaluation) -> Table:
    """COCO's measures over all categories, one row for each way the images were sent."""
    table = _table("images sent", "KiB each", "AP", "AP50", "AP75", "small", "medium", "large")
    for row in evaluation.rows:
        measures = (_shown(getattr(row.precision, name)) for name in _MEASURES)
        table.add_row(row.name, f"{row.outcome.image_bytes / 1024:.1f}", *measures)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
