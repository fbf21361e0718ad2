"""The end of tuning: which of two settings is written, by the windows of both in turn."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.tuning.final import confirmed
from pinstream_cli.tuning.settings import AS_CONFIGURED, Settings
from pinstream_cli.tuning.trial import Trial

TARGET_MS = 50.0
STEADY = (100.0, 100.0, 100.0)


def is_written(rates: Sequence[float], p99_ms: Sequence[float] = (40.0,) * 3, p99_before_ms: float = 40.0) -> bool:
    """Whether settings with these windows are, where the configuration has 100 images a second in each of its own."""
    windows = {
        AS_CONFIGURED: [Sample(rate, 1.0, p99_before_ms) for rate in STEADY],
        Settings(instances=2): [Sample(rate, 1.0, p99) for rate, p99 in zip(rates, p99_ms, strict=True)],
    }
    trials = [Trial(settings, AS_CONFIGURED, 8, Sample(100.0, 1.0, 1.0), within=True) for settings in windows]
    loaded = []
    outcome = confirmed(
        trials,
        lambda settings, concurrency: loaded.append(settings),
        lambda concurrency: windows[loaded[-1]].pop(0),
        TARGET_MS,
        lambda: False,
    )
    return outcome.best is not outcome.trials[0]


@pytest.mark.parametrize(
    ("rates", "written"),
    [((102.0, 103.0, 104.0), True), ((101.0, 102.0, 150.0), False), ((99.0, 130.0, 150.0), False)],
)
def test_where_both_keep_the_target_the_faster_by_two_percent_and_never_slower_is_written(
    rates: Sequence[float], written: bool
) -> None:
    assert is_written(rates) is written


def test_where_one_keeps_the_target_it_is_written_whatever_its_throughput() -> None:
    assert is_written((50.0, 50.0, 50.0), p99_before_ms=60.0)
    assert not is_written((200.0, 200.0, 200.0), p99_ms=(40.0, 60.0, 60.0))


@pytest.mark.parametrize(
    ("p99_ms", "written"),
    [((75.0, 76.0, 77.0), True), ((79.0, 79.0, 60.0), False), ((81.0, 60.0, 60.0), False)],
)
def test_where_neither_keeps_the_target_the_nearer_by_two_percent_and_never_farther_is_written(
    p99_ms: Sequence[float], written: bool
) -> None:
    assert is_written((50.0, 50.0, 50.0), p99_ms, p99_before_ms=80.0) is written
