"""What is told of figures that a reader should doubt."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pinstream_cli.benchmark.doubts import doubts
from pinstream_cli.benchmark.sample import Measured, Sample


class Loop:
    """A bare loop that is only looked at."""

    name, concurrency = "bare loop", 2

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def measure(self, seconds: float) -> Sample:
        raise AssertionError(seconds)


class Requests(Loop):
    """Requests, likewise."""

    name, concurrency = "gRPC", 256


def bare(batch: int, rates: Sequence[float], ratio: float = 1.0) -> Measured:
    return Measured(Loop(batch), [Sample(rate, 1.0, 2.0) for rate in rates], [ratio] * len(rates))


def served(rate: float, cpu_ms: float, ratio: float = 0.9) -> Measured:
    details = {"Concurrency": "256"}
    sample = Sample(rate, 256e3 / rate, 300.0, {"tritonserver": cpu_ms - 1, "detector": 1.0}, details=details)
    return Measured(Requests(1), [sample] * 3, [ratio] * 3)


def test_a_loop_that_turns_out_faster_than_the_reference_is_told() -> None:
    (note,) = doubts(bare(4, [98, 100, 102]), [bare(1, [117, 118, 119], ratio=1.18), bare(8, [50, 50], ratio=0.5)])
    assert note.startswith("bare loop, batch 1, concurrency 2, has 1.18 times the throughput of the reference")


def test_what_lies_within_a_spread_is_no_faster() -> None:
    steady, varied = [99.0, 100.0, 101.0], [90.0, 110.0, 112.0]
    for of_reference, of_other in ((steady, varied), (varied, steady)):
        assert doubts(bare(4, of_reference), [bare(1, of_other, ratio=1.1)]) == []
    # What is served may be faster than a bare loop, which has other things to do.
    assert doubts(bare(4, steady), [served(118.0, 2.0, ratio=1.18)]) == []


def test_a_reference_that_varied_is_told() -> None:
    (note,) = doubts(bare(4, [60, 78, 140]), [bare(1, [110, 116, 120], ratio=1.18)])
    assert (
        note
        == "The windows of the reference, bare loop, batch 4, concurrency 2, lie 103% apart: ratios to it mean little."
    )
    assert doubts(bare(4, [90, 100, 114]), []) == []


def test_more_cpu_than_there_is_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    reference = bare(32, [2760.0])
    (note,) = doubts(reference, [served(2367.0, 6.967), served(2300.0, 6.967)])
    assert "more than the 16 cores there are of gRPC, batch 1, concurrency 256: 16.5. The load" in note
    assert doubts(reference, [served(2300.0, 6.967)]) == [], "16.02 of 16: clocks are not that exact"
