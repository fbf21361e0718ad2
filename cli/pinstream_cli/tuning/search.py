"""The search: one thing after the other, short windows, and at the end the best against what was there before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pinstream_cli.benchmark.report import spread
from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.tuning.settings import Settings, with_changes

# Settings that gain less than this, or less than the spread, are not worth having.
WORTH_IT = 1.02
FINAL_WINDOWS = 3
# More concurrency that gains less than this share is not tried further.
STILL_GROWS = 1.01


@dataclass(frozen=True)
class Trial:
    """What some settings gave.

    Attributes:
        settings: The settings.
        concurrency: At which they gave most within the target.
        sample: The window there; None where the model did not load.
        within: Whether p99 met the target.
        problem: Why the model did not load.
    """

    settings: Settings
    concurrency: int = 0
    sample: Sample | None = None
    within: bool = False
    problem: str = ""

    @property
    def score(self) -> tuple[int, float]:
        """Higher is better: throughput within the target; outside of it, the shorter p99."""
        if self.sample is None:
            return (0, 0.0)
        return (2, self.sample.images_per_s) if self.within else (1, -self.sample.p99_ms)


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        trials: All, in their order.
        best: The one to be written.
        gain: Median throughput of the best, relative to the configuration that was there; 1 where that is the best.
        spread: Of the gain over the final windows.
    """

    trials: list[Trial]
    best: Trial
    gain: float
    spread: float


# Loads the model with some settings; raises CannotLoad.
Load = Callable[[Settings], None]
# Measures one window at a concurrency.
Measure = Callable[[int], Sample]


class CannotLoad(Exception):
    """The server refused a configuration; the text says why."""


def search(
    load: Load,
    measure: Measure,
    steps: Sequence[Sequence[Mapping[str, Any]]],
    concurrencies: Sequence[int],
    target_ms: float | None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Find the settings that give the highest throughput.

    Args:
        load: Loads the model with some settings.
        measure: Measures one window of it.
        steps: What to try, list by list; see settings.steps.
        concurrencies: At which throughput is looked for, ascending.
        target_ms: What p99 may be at most; None for anything.
        out_of_time: Whether to try nothing more.

    Raises:
        CannotLoad: The configuration as it is cannot be loaded.
    """

    def attempt(settings: Settings) -> Trial:
        load(settings)
        return best_concurrency(settings, measure, concurrencies, target_ms)

    first = best = attempt(Settings())
    trials = [first]
    for step in steps:
        start = best.settings
        for changes in step:
            if out_of_time():
                break
            settings = with_changes(start, changes)
            if any(trial.settings == settings for trial in trials):
                continue
            try:
                trial = attempt(settings)
            except CannotLoad as error:
                trial = Trial(settings, problem=str(error))
            trials.append(trial)
            best = max(best, trial, key=lambda one: one.score)
    return _confirmed(first, best, trials, load, measure)


def best_concurrency(
    settings: Settings, measure: Measure, concurrencies: Sequence[int], target_ms: float | None
) -> Trial:
    """The concurrency with the highest throughput whose p99 is within the target; if none, that of the least p99."""
    best: Trial | None = None
    for concurrency in concurrencies:
        sample = measure(concurrency)
        within = target_ms is None or sample.p99_ms <= target_ms
        trial = Trial(settings, concurrency, sample, within)
        grows = best is None or best.sample is None or sample.images_per_s > STILL_GROWS * best.sample.images_per_s
        if best is None or trial.score > best.score:
            best = trial
        if not within or not grows:
            break
    assert best is not None
    return best


def _confirmed(first: Trial, best: Trial, trials: list[Trial], load: Load, measure: Measure) -> Outcome:
    """The best in turn with the configuration as it was: a lucky window does not change a configuration."""
    if best is first:
        return Outcome(trials, first, 1.0, 0.0)
    gains = []
    for _ in range(FINAL_WINDOWS):
        rates = []
        for trial in (first, best):
            load(trial.settings)
            rates.append(measure(trial.concurrency).images_per_s)
        gains.append(rates[1] / rates[0])
    gain, apart = median(gains), spread(gains)
    # Where only the best meets the target, throughput is not what it is chosen for.
    worth_it = gain > WORTH_IT and min(gains) > 1 if best.within == first.within else best.within
    return Outcome(trials, best, gain, apart) if worth_it else Outcome(trials, first, 1.0, apart)
