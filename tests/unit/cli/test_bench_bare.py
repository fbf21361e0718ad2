"""The bare loops that serving is held against."""

from __future__ import annotations

import time

import pytest

from pinstream_cli.benchmark.bare import run_in_threads


def test_a_thread_that_is_done_sooner_does_not_count_as_idle() -> None:
    # One run each, of 50 ms and of 300: 20 and 3.3 runs a second.
    durations = iter([0.05, 0.3])
    sample = run_in_threads(lambda: time.sleep(next(durations)), batch=1, threads=2, seconds=0.04)
    assert sample.images_per_s == pytest.approx(1 / 0.05 + 1 / 0.3, rel=0.2)
