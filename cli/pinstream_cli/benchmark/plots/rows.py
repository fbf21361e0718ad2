"""The rows of a result file, sorted into what a picture shows as one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def series_of(rows: Sequence[Row], reference: str) -> dict[str, list[Row]]:
    """Rows of the same name and batch size, by rising concurrency.

    Args:
        rows: Of a result file.
        reference: Name of the bare loop, which is no line.

    Returns:
        By label; requests sent at random times are left out.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["name"] == reference or row.get("requests_per_s") or not row.get("stages_ms"):
            continue
        label = row["name"] if row["batch"] == 1 else f"{row['name']}, {row['batch']} images a request"
        found.setdefault(label, []).append(row)
    return {label: sorted(rows, key=lambda row: row["concurrency"]) for label, rows in found.items()}


def names_of(content: Mapping[str, Any]) -> str:
    """Machine and commit, in one line for below a picture."""
    machine = content["machine"]
    where = ", ".join(dict.fromkeys(gpu.split(",")[0] for gpu in machine["gpus"])) or machine["cpu"]
    return f"{where}, {machine['cores']} cores; commit {content['commit'][:9]}, {content['date'][:10]}"
