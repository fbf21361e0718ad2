"""A result file's pictures, whichever its suite has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pinstream_cli.benchmark.plots.breakdown import stages
from pinstream_cli.benchmark.plots.curves import batch_sizes, growth, latency_growth, latency_throughput
from pinstream_cli.benchmark.plots.theme import check_matplotlib

__all__ = ["check_matplotlib", "draw"]

# The suite of which no request is sent to a server.
BARE_LOOPS = "engine"


def draw(content: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw what there is to draw.

    Args:
        content: Of a result file.
        directory: Where to; made if it is not there.

    Returns:
        The files.
    """
    if content["suite"] == BARE_LOOPS:
        return batch_sizes(content, directory)
    written = growth(content, directory) + latency_growth(content, directory)
    if not written:
        written = latency_throughput(content, directory)
    return written + stages(content, directory)
