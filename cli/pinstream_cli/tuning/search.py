"""The search: one thing after the other, short windows, and at the end the best against what was there before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from pinstream_cli.benchmark.report import spread
from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.errors import CommandError
from pinstream_cli.tuning.settings import Settings, with_changes

# Settings that gain less than this, or less than the spread, are not worth having.
WORTH_IT = 1.02
FINAL_WINDOWS = 3
# More concurrency is not tried further where it gains less than this share so many times in a row: one window may be
# unlucky, and so may a size that fills no batch.
STILL_GROWS, PATIENCE = 1.01, 2


@dataclass(frozen=True)
class Trial:
    """What some settings gave.

    Attributes:
        settings: The settings.
        concurrency: At which they gave most within the target.
        sample: The window there, or the medians of the final ones; None where there is none.
        within: Whether p99 met the target.
        problem: Why there is none: the model did not load, or no window could be measured.
        windows: Of which the sample is the median.
    """

    settings: Settings
    concurrency: int = 0
    sample: Sample | None = None
    within: bool = False
    problem: str = ""
    windows: int = 1

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
        untried: What there was no time for.
    """

    trials: list[Trial]
    best: Trial
    gain: float
    spread: float
    untried: tuple[Settings, ...] = ()


# Loads the model with some settings; raises CannotLoad.
Load = Callable[[Settings], None]
# Measures one window at a concurrency; raises CommandError.
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
    tried: Callable[[Trial], None] = lambda trial: None,
    begin: Callable[[int], None] = lambda to_come: None,
) -> Outcome:
    """Find the settings that give the highest throughput.

    Args:
        load: Loads the model with some settings.
        measure: Measures one window of it.
        steps: What to try, list by list; see settings.steps.
        concurrencies: At which throughput is looked for, ascending.
        target_ms: What p99 may be at most; None for anything.
        out_of_time: Whether to try nothing more.
        tried: Told of each trial when it is done.
        begin: Told when a list of what to try begins, and how many are to come with it.

    Raises:
        CannotLoad: The configuration as it is cannot be loaded.
        CommandError: Nothing can be measured of it.
    """

    def attempt(settings: Settings) -> Trial:
        load(settings)
        return best_concurrency(settings, measure, concurrencies, target_ms)

    best = attempt(Settings())
    if best.sample is None:
        raise CommandError(best.problem)
    trials = [best]
    tried(best)
    untried: list[Settings] = []
    for number, step in enumerate(steps):
        begin(len(steps) - number)
        start = best.settings
        for changes in step:
            settings = with_changes(start, changes)
            if any(trial.settings == settings for trial in trials):
                continue
            if out_of_time():
                untried.append(settings)
                continue
            try:
                trial = attempt(settings)
            except CannotLoad as error:
                trial = Trial(settings, problem=f"does not load: {error}")
            trials.append(trial)
            tried(trial)
            best = max(best, trial, key=lambda one: one.score)
    return replace(_confirmed(trials, load, measure, target_ms, out_of_time), untried=tuple(untried))


def best_concurrency(
    settings: Settings, measure: Measure, concurrencies: Sequence[int], target_ms: float | None
) -> Trial:
    """The concurrency with the highest throughput whose p99 is within the target; if none, that of the least p99.

    Where requests are refused, as a limit on the queue has it, more of them under way are not tried.
    """
    best: Trial | None = None
    in_vain = 0
    for concurrency in concurrencies:
        try:
            sample = measure(concurrency)
        except CommandError as error:
            best = best or Trial(settings, problem=str(error))
            break
        within = target_ms is None or sample.p99_ms <= target_ms
        trial = Trial(settings, concurrency, sample, within)
        grows = best is None or best.sample is None or sample.images_per_s > STILL_GROWS * best.sample.images_per_s
        if best is None or trial.score > best.score:
            best = trial
        in_vain = 0 if grows else in_vain + 1
        if not within or in_vain == PATIENCE:
            break
    assert best is not None
    return best


def _confirmed(
    trials: list[Trial], load: Load, measure: Measure, target_ms: float | None, out_of_time: Callable[[], bool]
) -> Outcome:
    """The best in turn with the configuration as it was: a lucky window does not change a configuration.

    What a single window said of both is replaced by the medians of these. Where the best does not keep to the target in
    them, the next best has its turn.
    """
    apart = 0.0
    for best in sorted(trials[1:], key=lambda trial: trial.score, reverse=True):
        if best.score <= trials[0].score:
            break
        before, after = _final_windows(trials[0], best, load, measure)
        first, last = _judged(trials[0], before, target_ms), _judged(best, after, target_ms)
        trials[0], trials[trials.index(best)] = first, last
        gains = [new.images_per_s / old.images_per_s for old, new in zip(before, after, strict=True)]
        apart = spread(gains)
        if _worth_it(first, last, gains, [old.p99_ms / new.p99_ms for old, new in zip(before, after, strict=True)]):
            return Outcome(trials, last, median(gains), apart)
        if last.within == best.within or out_of_time():
            break
    return Outcome(trials, trials[0], 1.0, apart)


def _final_windows(first: Trial, best: Trial, load: Load, measure: Measure) -> tuple[list[Sample], list[Sample]]:
    """Windows of both, in turn; whoever was last begins the next round, so that it need not be loaded again."""
    windows: tuple[list[Sample], list[Sample]] = ([], [])
    turns = list(zip((first, best), windows, strict=True))
    for _ in range(FINAL_WINDOWS):
        for trial, samples in turns:
            load(trial.settings)
            samples.append(measure(trial.concurrency))
        turns.reverse()
    return windows


def _judged(trial: Trial, windows: Sequence[Sample], target_ms: float | None) -> Trial:
    """A trial by the medians of several windows."""
    rate, p50, p99 = (median(getattr(one, name) for one in windows) for name in ("images_per_s", "p50_ms", "p99_ms"))
    within = target_ms is None or p99 <= target_ms
    return replace(trial, sample=Sample(rate, p50, p99), within=within, windows=len(windows))


def _worth_it(first: Trial, best: Trial, gains: Sequence[float], nearer: Sequence[float]) -> bool:
    """Whether the best is better beyond the spread in what counts.

    Args:
        first: The configuration as it was.
        best: The best of the others.
        gains: Throughput of the best relative to the first, window by window.
        nearer: p99 of the first relative to the best, likewise.
    """
    if best.within != first.within:
        return best.within
    # Where neither meets the target, nearness to it is what the best was chosen for.
    counts = gains if best.within else nearer
    return median(counts) > WORTH_IT and min(counts) > 1
