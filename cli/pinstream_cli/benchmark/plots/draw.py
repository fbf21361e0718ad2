"""A result file's pictures, whichever its suite has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pinstream_cli.benchmark.plots.breakdown import stages
from pinstream_cli.benchmark.plots.curves import growth, latency_throughput
from pinstream_cli.benchmark.plots.theme import check_matplotlib

__all__ = ["check_matplotlib", "draw"]


def draw(content: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw what there is to draw.

    Args:
        content: Of a result file.
        directory: Where to; made if it is not there.

    Returns:
        The files.
    """
    written = growth(content, directory)
    if not written:
        written = latency_throughput(content, directory)
    return written + stages(content, directory)
