"""Where some settings give most: at which number of requests under way, and how much, by more than one window each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.errors import CommandError
from pinstream_cli.tuning.trial import Measure, Trial, score

# Windows of which the slower has less than this share of the other's throughput do not agree.
AGREE = 0.95
# More concurrency is not tried further where it gains less than this share so many times in a row: a size may fill no
# batch. Once is enough where another setting has shown the way up to there.
STILL_GROWS, ROUNDS_IN_VAIN = 1.01, 2


def best_concurrency(
    trial: Trial, concurrencies: Sequence[int], start: int, measure: Measure, target_ms: float | None
) -> Trial:
    """The concurrency with the highest throughput whose p99 is within the target; if none, that of the least p99.

    Where requests are refused, as a limit on the queue has it, more of them under way are not tried.

    Args:
        trial: What is measured.
        concurrencies: Where to look, ascending.
        start: Which of them is first: it goes up from there, and down only where that one misses the target.
        measure: Measures one window.
        target_ms: What p99 may be at most; None for anything.
    """
    rounds_in_vain = ROUNDS_IN_VAIN if start == 0 else 1
    best = _climb(trial, concurrencies[start:], rounds_in_vain, measure, target_ms)
    for concurrency in reversed(concurrencies[:start]):
        if best.within:
            break
        best = max(best, _looked_at(trial, concurrency, measure, target_ms), key=score)
    return best


def _climb(
    trial: Trial, concurrencies: Sequence[int], rounds_in_vain: int, measure: Measure, target_ms: float | None
) -> Trial:
    """The best up to where p99 misses the target, requests are refused, or throughput grows no more."""
    best, in_vain = trial, 0
    for concurrency in concurrencies:
        found = _looked_at(trial, concurrency, measure, target_ms)
        if found.sample is None:
            return best if best.sample else found
        grows = best.sample is None or found.sample.images_per_s > STILL_GROWS * best.sample.images_per_s
        best = max(best, found, key=score)
        in_vain = 0 if grows else in_vain + 1
        if not found.within or in_vain == rounds_in_vain:
            break
    return best


def _looked_at(trial: Trial, concurrency: int, measure: Measure, target_ms: float | None) -> Trial:
    """The trial by two windows, or by three where those do not agree: a single one that is spoilt decides nothing."""
    try:
        windows = [measure(concurrency), measure(concurrency)]
        if not _agree(windows, target_ms):
            windows.append(measure(concurrency))
    except CommandError as error:
        return replace(trial, problem=str(error))
    return trial.judged(concurrency, windows, target_ms)


def _agree(windows: Sequence[Sample], target_ms: float | None) -> bool:
    rates = [window.images_per_s for window in windows]
    within = {target_ms is None or window.p99_ms <= target_ms for window in windows}
    return min(rates) >= AGREE * max(rates) and len(within) == 1
