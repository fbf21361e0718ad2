"""The interleaved run: order, ratios to the neighbours, and windows that were disturbed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

from pinstream_cli.benchmark import interleave as module
from pinstream_cli.benchmark.cpu import CpuTimes
from pinstream_cli.benchmark.interleave import Interleaver, Plan
from pinstream_cli.benchmark.report import row
from pinstream_cli.benchmark.sample import Measured, Sample
from pinstream_cli.benchmark.suites.compare import measure_poisson
from pinstream_cli.errors import CommandError

PLAN = Plan(repetitions=3, window_s=0.5, patience_s=0)


class Counting:
    """A subject whose rates are given, and which notes when it was measured."""

    batch = 1
    concurrency = 1

    def __init__(self, name: str, log: list[str], rates: Iterator[float]) -> None:
        self.name = name
        self._log = log
        self._rates = rates

    def measure(self, seconds: float) -> Sample:
        self._log.append(self.name)
        rate = next(self._rates)
        latency_ms = 1e3 / rate if rate else 0.0
        return Sample(rate, latency_ms, 2 * latency_ms)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(module, "cpu_times", lambda: CpuTimes(float(next(ticks)), 0.0, {}))


def constant(rate: float) -> Iterator[float]:
    return (rate for _ in count())


def test_every_window_lies_between_two_of_the_reference() -> None:
    log: list[str] = []
    subjects = [Counting(name, log, constant(50.0)) for name in "abc"]
    bare, measured = Interleaver(PLAN).measure(Counting("ref", log, constant(100.0)), subjects)
    windows = log[4:]  # behind the warm-up
    assert len(windows) == 3 * 7
    for start in range(0, 21, 7):
        assert windows[start : start + 7 : 2] == ["ref"] * 4
        assert sorted(windows[start + 1 : start + 7 : 2]) == ["a", "b", "c"]
    assert len({tuple(windows[start + 1 : start + 7 : 2]) for start in (0, 7, 14)}) > 1
    assert [m.subject.name for m in measured] == ["a", "b", "c"]
    assert bare.ratios == [1.0] * 12


def test_ratios_follow_a_machine_that_slows_down() -> None:
    log: list[str] = []
    # Each window the machine is slower by one; the subject is always half as fast as the reference would be.
    reference = Counting("ref", log, iter([0.0, 100.0, 98.0, 96.0, 94.0, 92.0, 90.0]))
    subject = Counting("a", log, iter([0.0, 99.0 / 2, 95.0 / 2, 91.0 / 2]))
    _, (measured,) = Interleaver(PLAN).measure(reference, [subject])
    assert measured.ratios == pytest.approx([0.5, 0.5, 0.5])


def test_a_disturbed_window_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Busy seconds of the machine before and after each window, in windows of one second.
    cores = 4
    monkeypatch.setattr("pinstream_cli.benchmark.cpu.os.cpu_count", lambda: cores)
    shares = iter([0.5, 0.0, 0.3, 0.2, 0.4, 0.3])
    busy = [0.0]

    def read() -> CpuTimes:
        if len(busy) % 2 == 0:
            busy.append(busy[-1] + cores * next(shares))
        else:
            busy.append(busy[-1])
        return CpuTimes(float(len(busy)), busy[-1], {})

    monkeypatch.setattr(module, "cpu_times", read)
    interleaver = Interleaver(replace(PLAN, attempts=4))
    subject = Counting("a", [], iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    first = interleaver.quiet_window(subject, "")
    assert (first.images_per_s, first.foreign) == (2.0, 0.0)
    least_disturbed = interleaver.quiet_window(subject, "")
    assert least_disturbed.images_per_s == 4.0
    assert least_disturbed.foreign == pytest.approx(0.2)


def test_the_fastest_by_median() -> None:
    slow = Counting("slow", [], iter([10.0, 10.0, 500.0]))
    quick = Counting("quick", [], iter([20.0, 20.0, 20.0]))
    assert Interleaver(PLAN).fastest([slow, quick]) is quick
    assert Interleaver(PLAN).fastest([slow]) is slow


class Clock:
    """Seconds that pass in windows only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Taking(Counting):
    """A subject whose windows take some seconds, whatever was asked for: perf_analyzer is started and stopped."""

    def __init__(self, name: str, clock: Clock, seconds: float) -> None:
        super().__init__(name, [], constant(50.0))
        self._clock = clock
        self._seconds = seconds

    def measure(self, seconds: float) -> Sample:
        self._clock.now += self._seconds
        return super().measure(seconds)


def timed(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> tuple[Clock, Interleaver, list[Measured]]:
    clock = Clock(monkeypatch)
    interleaver = Interleaver(plan)
    subjects = [Taking(name, clock, 5.0) for name in "abcd"]
    _, measured = interleaver.measure(Taking("ref", clock, 1.0), subjects, to_warm=())
    return clock, interleaver, measured


def test_when_time_is_up_what_is_there_counts_and_what_is_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two of the reference, then turns of six seconds each, of which the first is not known to take so long.
    clock, interleaver, measured = timed(monkeypatch, replace(PLAN, ends=19.0))
    assert clock.now == 14.0, "and none begins that would not end in time"
    assert len(measured) == 2
    missing = sorted(set("abcd") - {one.subject.name for one in measured})
    left_out, short = interleaver.notes
    for name in missing:
        assert f"{name}, batch 1, concurrency 1" in left_out
    assert left_out.startswith("Time was up (--limit) before a window of: ")
    assert short == "Time was up (--limit) before 2 of the rows had their 3 windows."


def test_rows_say_how_many_windows_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, interleaver, measured = timed(monkeypatch, replace(PLAN, ends=40.0))
    assert clock.now <= 40.0
    assert sorted(row(one).windows for one in measured) == [1, 1, 2, 2]
    assert {row(one).windows: row(one).spread for one in measured} == {1: None, 2: 0.0}
    assert interleaver.notes == ["Time was up (--limit) before 4 of the rows had their 3 windows."]


def test_without_time_for_anything_what_to_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match=r"\(--limit\) before anything .*larger --limit.*fewer rows"):
        timed(monkeypatch, replace(PLAN, ends=2.0))


def test_a_disturbed_window_is_not_repeated_past_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(module, "cpu_times", lambda: CpuTimes(float(n := next(ticks)), 64.0 * n, {}))
    clock, _, measured = timed(monkeypatch, replace(PLAN, ends=100.0, patience_s=600.0))
    assert measured, "waiting takes a quarter of the time at most"
    assert clock.now <= 100.0


def test_the_reference_is_looked_for_no_longer_than_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    Interleaver(replace(PLAN, ends=2.5)).fastest([Taking("a", clock, 1.0), Taking("b", clock, 1.0)])
    assert clock.now == 2.0


def test_a_part_of_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.now = 20.0
    assert replace(PLAN, ends=120.0).sooner(0.35).ends == 85.0
    assert PLAN.sooner(0.35).ends == math.inf


def test_the_reference_may_have_shorter_windows() -> None:
    lengths: dict[str, set[float]] = {"ref": set(), "a": set()}

    class Timed(Counting):
        def measure(self, seconds: float) -> Sample:
            lengths[self.name].add(seconds)
            return super().measure(seconds)

    reference, subject = (Timed(name, [], constant(1.0)) for name in ("ref", "a"))
    Interleaver(replace(PLAN, reference_s=0.1)).measure(reference, [subject], to_warm=())
    assert lengths == {"ref": {0.1}, "a": {0.5}}


class Raising(Counting):
    """A subject whose n-th window ends with `error`: KeyboardInterrupt, for instance, where somebody presses Ctrl-C."""

    def __init__(self, name: str, log: list[str], nth: int, error: BaseException) -> None:
        super().__init__(name, log, constant(50.0))
        self._nth = nth
        self._error = error

    def measure(self, seconds: float) -> Sample:
        sample = super().measure(seconds)
        if self._log.count(self.name) == self._nth:
            raise self._error
        return sample


def test_an_interrupt_keeps_what_was_measured_by_then() -> None:
    log: list[str] = []
    subjects = [Counting("a", log, constant(25.0)), Raising("b", log, 3, KeyboardInterrupt())]  # one is the warm-up
    interleaver = Interleaver(PLAN)
    bare, measured = interleaver.measure(Counting("ref", log, constant(100.0)), subjects)
    assert interleaver.interrupted
    assert interleaver.late
    assert {m.subject.name: len(m.samples) for m in measured}["b"] == 1
    assert all(len(m.samples) == len(m.ratios) for m in measured)
    assert len(bare.ratios) == len(bare.samples)


def test_an_interrupt_before_anything_was_measured_ends_all() -> None:
    log: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        Interleaver(PLAN).measure(Counting("ref", log, constant(100.0)), [Raising("b", log, 2, KeyboardInterrupt())])


@pytest.mark.parametrize("nth", [1, 2, 4], ids=["warm-up", "first", "last"])
def test_a_subject_whose_window_fails_is_left_out_and_the_others_go_on(nth: int) -> None:
    log: list[str] = []
    subjects = [
        Counting("a", log, constant(25.0)),
        Raising("b", log, nth, CommandError("perf_analyzer failed")),
        Counting("c", log, constant(5.0)),
    ]
    interleaver = Interleaver(PLAN)
    bare, measured = interleaver.measure(Counting("ref", log, constant(100.0)), subjects)
    assert {m.subject.name: m.ratios for m in measured} == {"a": [0.25] * 3, "c": [0.05] * 3}
    assert log.count("b") == nth, "it is not asked again"
    assert interleaver.notes == ["b, batch 1, concurrency 1, is left out: perf_analyzer failed"]
    assert len(bare.ratios) == len(bare.samples)


def test_without_the_reference_or_any_subject_there_is_no_result() -> None:
    log: list[str] = []
    with pytest.raises(CommandError, match="perf_analyzer failed"):
        Interleaver(PLAN).measure(
            Raising("ref", log, 4, CommandError("perf_analyzer failed")), [Counting("a", log, constant(1.0))]
        )
    with pytest.raises(CommandError, match="perf_analyzer failed"):
        Interleaver(PLAN).measure(
            Counting("ref", log, constant(1.0)), [Raising("b", log, 2, CommandError("perf_analyzer failed"))]
        )


def test_what_fails_at_random_times_costs_nothing_of_what_was_measured_before() -> None:
    log: list[str] = []
    reference = Counting("ref", log, constant(1.0))
    interleaver = Interleaver(PLAN)
    failing = Raising("b", log, 1, CommandError("perf_analyzer failed"))
    bare, measured = measure_poisson(interleaver, reference, [failing])
    assert (bare.samples, measured) == ([], [])
    assert interleaver.notes == ["Nothing was measured at random times: perf_analyzer failed"]
    interleaver = Interleaver(PLAN)
    failing = Raising("c", log, 1, CommandError("perf_analyzer failed"))
    bare, measured = measure_poisson(interleaver, reference, [failing, Counting("a", log, constant(1.0))])
    assert [one.subject.name for one in measured] == ["a"]
    assert len(bare.samples) == 6
    assert interleaver.notes == ["c, batch 1, concurrency 1, is left out: perf_analyzer failed"]


def test_an_interrupt_at_random_times_costs_nothing_of_what_was_measured_before() -> None:
    interleaver = Interleaver(PLAN)
    stopped = Raising("b", [], 1, KeyboardInterrupt())
    bare, measured = measure_poisson(interleaver, Counting("ref", [], constant(1.0)), [stopped])
    assert (bare.samples, measured, interleaver.interrupted) == ([], [], True)
    assert interleaver.notes == ["It was interrupted before anything was measured at random times."]


def test_windows_may_be_longer_than_planned() -> None:
    lengths: list[float] = []

    class Timed(Counting):
        def measure(self, seconds: float) -> Sample:
            lengths.append(seconds)
            return super().measure(seconds)

    plan = replace(PLAN, reference_s=0.25, repetitions=1)
    reference, subject = Timed("ref", [], constant(1.0)), Timed("a", [], constant(1.0))
    Interleaver(plan).measure(reference, [subject], stretch=4.0)
    assert lengths == [1.0, 1.0, 1.0, 2.0, 1.0], "two warm-ups, and a window between two"


def test_a_median_that_does_not_go_with_the_rate_is_told() -> None:
    class Uneven(Counting):
        def measure(self, seconds: float) -> Sample:
            details = {"Concurrency": "1"} if self.name == "uneven" else {}
            return replace(super().measure(seconds), p50_ms=1.0, details=details)

    interleaver = Interleaver(PLAN)
    subjects = [Uneven("bare", [], constant(100.0)), Uneven("uneven", [], constant(100.0))]
    interleaver.measure(Counting("ref", [], constant(1000.0)), subjects)
    (note,) = interleaver.notes
    # One request at a time, a hundred a second.
    assert "images/s of uneven, batch 1, concurrency 1: 1 instead of 10 ms. Answers" in note
