"""A result file's pictures, whichever its suite has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pinstream_cli.benchmark.plots.breakdown import stages
from pinstream_cli.benchmark.plots.curves import batch_sizes, growth, image_sizes, latency_growth, latency_throughput
from pinstream_cli.benchmark.plots.theme import check_matplotlib

__all__ = ["check_matplotlib", "draw", "why_nothing"]

# The suite of which no request is sent to a server, and the others.
BARE_LOOPS = "engine"
SUITES = (BARE_LOOPS, "serve", "ensemble", "compare", "sweep")


def draw(content: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw what there is to draw.

    Args:
        content: Of a result file.
        directory: Where to; made if it is not there.

    Returns:
        The files.
    """
    if content.get("suite") not in SUITES or not content.get("rows"):
        return []
    if content["suite"] == BARE_LOOPS:
        return batch_sizes(content, directory)
    written = growth(content, directory) + image_sizes(content, directory) + latency_growth(content, directory)
    if not written:
        written = latency_throughput(content, directory)
    return written + stages(content, directory)


def why_nothing(content: Mapping[str, Any]) -> str:
    """Why there is nothing to draw of a result file's content."""
    suite = content.get("suite")
    if suite not in SUITES:
        whose = f"is of {suite}" if suite else "does not say of which suite it is"
        return f"it {whose}, and pictures are of what {', '.join(SUITES[:-1])} and {SUITES[-1]} measure"
    if not content.get("rows"):
        return f"it is of {suite}, and has no rows"
    return "none of its rows has stages_ms, by which rows of requests are told from bare loops; measure it again"
