"""Whether more load ever gives less: read off rows of rising concurrency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pinstream_cli.benchmark.report import Row

# From this share of the best throughput on, a server is saturated.
SATURATED = 0.95


@dataclass(frozen=True)
class Axis:
    """Rows that differ in one thing.

    Attributes:
        title: What grows.
        values: Of it, rising.
        rows: Numbers of the rows in the result.
    """

    title: str
    values: tuple[int, ...]
    rows: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """For the result file."""
        return asdict(self)


@dataclass(frozen=True)
class Fall:
    """Less throughput at more concurrency, by more than the spread of both.

    Attributes:
        best: The lower concurrency.
        worse: The higher one.
        share: How much of the throughput is lost, 0 to 1.
    """

    best: int
    worse: int
    share: float

    def as_json(self) -> dict[str, Any]:
        """For the result file."""
        return asdict(self)


def falls(rows: Sequence[Row]) -> list[Fall]:
    """Where throughput is below that of the best lower concurrency by more than half the spread of both.

    Args:
        rows: By rising concurrency.
    """
    found = []
    best = rows[0] if rows else None
    for row in rows:
        assert best is not None
        tolerance = (best.images_per_s * best.spread + row.images_per_s * row.spread) / 2
        if best.images_per_s - row.images_per_s > tolerance:
            found.append(Fall(best.concurrency, row.concurrency, round(1 - row.images_per_s / best.images_per_s, 3)))
        best = max(best, row, key=lambda one: one.images_per_s)
    return found


def saturation(rows: Sequence[Row]) -> int:
    """The lowest concurrency that gives nearly the best throughput; 0 without rows."""
    best = max((row.images_per_s for row in rows), default=0.0)
    return next((row.concurrency for row in rows if row.images_per_s >= SATURATED * best), 0)


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the rows say, for a reader."""
    if len(rows) < 2:
        return []
    first, last = rows[0].concurrency, rows[-1].concurrency
    found = falls(rows)
    lost = "; ".join(f"by {fall.share:.1%} from concurrency {fall.best} to {fall.worse}" for fall in found)
    verdict = f"falls {lost}" if found else "never falls beyond the spread"
    said = [f"From concurrency {first} to {last} throughput {verdict}."]
    full = [row for row in rows if row.concurrency >= saturation(rows)]
    if len(full) > 1:
        times = [row.p50_ms / row.concurrency for row in full]
        said.append(
            f"Saturated from concurrency {full[0].concurrency} on; there p50 is {min(times):.3g} to {max(times):.3g} "
            "ms for each request under way."
        )
    return said
