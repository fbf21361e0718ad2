"""What is tried, what it gave, and what a search finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.tuning.settings import AS_CONFIGURED, Settings

# Loads the model with some settings, unless it is loaded so, and warms it up with so many requests under way; raises
# CannotLoad, and CommandError where the server does not do what it is told.
LoadSettings = Callable[[Settings, int], None]
# Measures one window with so many requests under way; raises CommandError.
Measure = Callable[[int], Sample]


class CannotLoad(Exception):
    """The server refused a configuration; the text says why."""


@dataclass(frozen=True)
class Trial:
    """Some settings, and what they gave.

    Attributes:
        settings: The settings.
        base: The best before, of which they change something.
        concurrency: At which they gave most within the target.
        sample: The medians of the windows there; None where there is none.
        within: Whether p99 met the target.
        problem: Why there is none, or none of the end: the model did not load, or no window could be measured.
        windows: How many there were.
    """

    settings: Settings
    base: Settings = AS_CONFIGURED
    concurrency: int = 0
    sample: Sample | None = None
    within: bool = False
    problem: str = ""
    windows: int = 0

    def __str__(self) -> str:
        """The settings; of those that change the best before, what they change."""
        return f"+ {self.settings.beyond(self.base)}" if self.base != AS_CONFIGURED else str(self.settings)

    def judged(self, concurrency: int, windows: Sequence[Sample], target_ms: float | None) -> Trial:
        """The trial by the medians of windows at a concurrency."""
        rate, p50, p99 = (
            median(getattr(one, name) for one in windows) for name in ("images_per_s", "p50_ms", "p99_ms")
        )
        within = target_ms is None or p99 <= target_ms
        return replace(
            self, concurrency=concurrency, sample=Sample(rate, p50, p99), within=within, windows=len(windows)
        )


def score(trial: Trial) -> tuple[int, float]:
    """Higher is better: throughput within the target; outside of it, the shorter p99."""
    if trial.sample is None:
        return (0, 0.0)
    return (2, trial.sample.images_per_s) if trial.within else (1, -trial.sample.p99_ms)


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        trials: All, in their order.
        best: The one to be written.
        gain: Median throughput of the best, relative to the configuration that was there; 1 where that is the best.
        untried: What there was no time for.
        seconds: That the search took, the server's start among them.
    """

    trials: list[Trial]
    best: Trial
    gain: float
    untried: tuple[Trial, ...] = ()
    seconds: float = 0.0
