"""The end of a search: the best in turn with what was there before.

Minutes lie between the windows of a search, and a machine's speed may be another in each. So what was there meets the
best of the others even where it seemed better, and neither a lucky window nor a bad minute decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.errors import CommandError
from pinstream_cli.tuning.trial import CannotLoad, LoadSettings, Measure, Outcome, Trial, score

# What a gain has to be by the median of the final windows; none of them may be a loss.
WORTH_IT = 1.02
FINAL_WINDOWS = 3


class _Failed(Exception):
    """A trial could not be loaded or measured for its final windows; the text says why."""

    def __init__(self, trial: Trial, why: str) -> None:
        super().__init__(f"failed at the end: {why}")
        self.trial = trial


def confirmed(
    trials: list[Trial], load: LoadSettings, measure: Measure, target_ms: float | None, out_of_time: Callable[[], bool]
) -> Outcome:
    """What comes of trials, of which the first is the configuration as it was.

    What was measured before of the two is replaced by the medians of these windows. Where the best of the others does
    not keep to the target in them, or one of its windows fails, the next best has its turn. Where one of the
    configuration as it was fails, there is nothing to compare with, and it stays.
    """
    for best in sorted(trials[1:], key=score, reverse=True):
        if not best.sample or best.within < trials[0].within:
            break
        try:
            before, after = _final_windows(trials[0], best, load, measure)
        except _Failed as failed:
            trials[trials.index(failed.trial)] = replace(failed.trial, problem=str(failed))
            if trials[0].problem or out_of_time():
                break
            continue
        first = trials[0].judged(trials[0].concurrency, before, target_ms)
        last = best.judged(best.concurrency, after, target_ms)
        trials[0], trials[trials.index(best)] = first, last
        gains = [new.images_per_s / old.images_per_s for old, new in zip(before, after, strict=True)]
        if _worth_it(first, last, gains, [old.p99_ms / new.p99_ms for old, new in zip(before, after, strict=True)]):
            return Outcome(trials, last, median(gains))
        if last.within == best.within or out_of_time():
            break
    return Outcome(trials, trials[0], 1.0)


def _final_windows(
    first: Trial, best: Trial, load: LoadSettings, measure: Measure
) -> tuple[list[Sample], list[Sample]]:
    """Windows of both, in turn; whoever was last begins the next round, so that it need not be loaded again.

    Raises:
        _Failed: There is none of one of them.
    """
    windows: tuple[list[Sample], list[Sample]] = ([], [])
    turns = list(zip((first, best), windows, strict=True))
    for _ in range(FINAL_WINDOWS):
        for trial, samples in turns:
            try:
                load(trial.settings, trial.concurrency)
                samples.append(measure(trial.concurrency))
            except CannotLoad as error:
                raise _Failed(trial, f"does not load: {error}") from None
            except CommandError as error:
                raise _Failed(trial, str(error)) from None
        turns.reverse()
    return windows


def _worth_it(first: Trial, best: Trial, gains: Sequence[float], nearer: Sequence[float]) -> bool:
    """Whether the best is to be written.

    It is where it alone keeps the target, whatever its throughput. Where both keep it, it has to be faster, and where
    neither does, nearer to it: by more than WORTH_IT in the median, and at all in each pair of windows.

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
