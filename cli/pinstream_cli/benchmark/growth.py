"""Whether more load ever gives less, and whether latency grows no faster than load: read off rows of rising load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from pinstream_cli.benchmark.report import Row

# From this share of the best throughput on, a server is saturated.
SATURATED = 0.95
# Past that p50 grows linearly where it lies no further apart than this for each image under way.
LINEAR = 0.1
# A fall of more than this share is told even where it lies within the spread: then that tells little.
WORTH_A_WORD = 0.05
CONCURRENCY, BATCH = "concurrency {}", "{} images a request"


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
    """Less throughput at more load.

    Attributes:
        best: The lower load.
        worse: The higher one.
        share: How much of the throughput is lost, 0 to 1.
        tolerance: Half the spread of both, as such a share: what may be chance.
    """

    best: int
    worse: int
    share: float
    tolerance: float

    def as_json(self) -> dict[str, Any]:
        """For the result file."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Growth:
    """What rows of rising load say.

    Attributes:
        values: The load: concurrency, or images a request.
        falls: Where throughput is below that of the best lower load by more than half the spread of both.
        hidden: Where it is by no more than that, but by more than WORTH_A_WORD.
        saturated_at: The lowest load that gives nearly the best throughput; 0 without rows.
        p50_per_image_ms: p50 for each image under way, from saturation on. Linear growth is one number for all loads.
    """

    values: tuple[int, ...]
    falls: tuple[Fall, ...]
    hidden: tuple[Fall, ...]
    saturated_at: int
    p50_per_image_ms: tuple[float, ...]

    @property
    def p50_within(self) -> float:
        """How far p50 for each image under way lies apart past saturation: (largest - smallest) / median."""
        times = self.p50_per_image_ms
        return (max(times) - min(times)) / median(times) if times else 0.0

    def as_json(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "falls": [fall.as_json() for fall in self.falls],
            "hidden": [fall.as_json() for fall in self.hidden],
            "saturated_at": self.saturated_at,
            "p50_per_image_within": round(self.p50_within, 3),
        }

    def sentences(self, unit: str) -> list[str]:
        """The same for a reader; nothing of a single row.

        Args:
            unit: CONCURRENCY or BATCH.
        """
        if len(self.values) < 2:
            return []

        lost = "; ".join(f"by {f.share:.1%} from {unit.format(f'{f.best} to {f.worse}')}" for f in self.falls)
        verdict = f"falls {lost}" if self.falls else "never falls beyond the spread"
        said = [f"From {unit.format(f'{self.values[0]} to {self.values[-1]}')} throughput {verdict}."]
        if self.hidden:
            less = [
                f"{f.share:.1%} from {unit.format(f'{f.best} to {f.worse}')} (up to {f.tolerance:.1%} may be chance)"
                for f in self.hidden
            ]
            said.append(f"Within the spread it is less by {'; by '.join(less)}.")
        saturated, times = unit.format(self.saturated_at), self.p50_per_image_ms
        if len(times) < 2:
            return [*said, f"Saturated only at {saturated}: how p50 grows past that was not measured."]
        linear = "grows linearly" if self.p50_within <= LINEAR else "does not grow linearly"
        said.append(
            f"Saturated from {saturated} on; there p50 {linear}: it is {min(times):.3g} to {max(times):.3g} ms "
            f"for each image under way, {self.p50_within:.1%} apart."
        )
        return said


def growth(rows: Sequence[Row], values: Sequence[int]) -> Growth:
    """Read it off.

    Args:
        rows: By rising load.
        values: The load of each.
    """
    at = _saturated_at(rows, values)
    full = [row for row, value in zip(rows, values, strict=True) if value >= at]
    times = tuple(row.p50_ms / (row.concurrency * row.batch) for row in full)
    less = _less_than_before(rows, values)
    falls = tuple(fall for fall in less if fall.share > fall.tolerance)
    hidden = tuple(fall for fall in less if WORTH_A_WORD < fall.share <= fall.tolerance)
    return Growth(tuple(values), falls, hidden, at, times)


def _less_than_before(rows: Sequence[Row], values: Sequence[int]) -> list[Fall]:
    """Each load that gives less than the best lower one; the spread of a single window is taken as 0."""
    found = []
    best, best_at = (rows[0], values[0]) if rows else (None, 0)
    for row, value in zip(rows, values, strict=True):
        assert best is not None
        tolerance = (best.images_per_s * (best.spread or 0.0) + row.images_per_s * (row.spread or 0.0)) / 2
        if row.images_per_s < best.images_per_s:
            share = 1 - row.images_per_s / best.images_per_s
            found.append(Fall(best_at, value, share, tolerance / best.images_per_s))
        elif row.images_per_s > best.images_per_s:
            best, best_at = row, value
    return found


def _saturated_at(rows: Sequence[Row], values: Sequence[int]) -> int:
    best = max((row.images_per_s for row in rows), default=0.0)
    return next((value for row, value in zip(rows, values, strict=True) if row.images_per_s >= SATURATED * best), 0)
