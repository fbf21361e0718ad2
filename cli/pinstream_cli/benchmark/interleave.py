"""The run: every subject in turn, next to the reference it is compared with, several times over.

A shared machine changes its speed from one minute to the next. So each window of a subject lies between two windows of
the reference, its ratio is taken to those two, and a window in which other processes took much of the CPU is measured
again. Medians over the repetitions do the rest.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median

from pinstream_cli.benchmark.cpu import cpu_times
from pinstream_cli.benchmark.sample import Sample, Subject


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        repetitions: Windows of each subject.
        window_s: Length of a window.
        foreign_limit: A window in which others took a larger share of the CPU is measured again.
        attempts: How often at most; then the least disturbed attempt counts.
        patience_s: How long to wait for quiet before measuring again.
        progress: Told about every window.
    """

    repetitions: int = 5
    window_s: float = 3.0
    foreign_limit: float = 0.05
    attempts: int = 4
    patience_s: float = 60.0
    progress: Callable[[str], None] = lambda text: None


@dataclass
class Measured:
    """A subject's windows, and the ratio of each to the reference windows before and after it."""

    subject: Subject
    samples: list[Sample] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)


def interleave(reference: Subject, subjects: Sequence[Subject], plan: Plan) -> tuple[Measured, list[Measured]]:
    """Measure `subjects` next to `reference`.

    Returns:
        The reference with all its windows (ratio 1), and the subjects in their order.
    """
    bare = Measured(reference)
    measured = [Measured(subject) for subject in subjects]
    for subject in (reference, *subjects):
        plan.progress(f"warming up: {_title(subject)}")
        subject.measure(plan.window_s)
    for repetition in range(plan.repetitions):
        # Another order each time, the same in every run of the bench: nobody is always behind the same neighbour.
        order = random.Random(repetition).sample(measured, len(measured))
        bare.samples.append(_quiet_window(reference, plan, repetition))
        for one in order:
            one.samples.append(_quiet_window(one.subject, plan, repetition))
            bare.samples.append(_quiet_window(reference, plan, repetition))
            neighbours = mean(sample.images_per_s for sample in bare.samples[-2:])
            one.ratios.append(one.samples[-1].images_per_s / neighbours)
    bare.ratios = [1.0] * len(bare.samples)
    return bare, measured


def fastest(subjects: Sequence[Subject], plan: Plan) -> Subject:
    """The subject with the highest throughput, by short interleaved windows: the reference for the others."""
    if len(subjects) == 1:
        return subjects[0]
    rates: dict[int, list[float]] = {i: [] for i in range(len(subjects))}
    quick = replace(plan, window_s=plan.window_s / 2)
    for _ in range(min(3, plan.repetitions)):
        for i, subject in enumerate(subjects):
            rates[i].append(_quiet_window(subject, quick, None).images_per_s)
    return subjects[max(rates, key=lambda i: median(rates[i]))]


def _quiet_window(subject: Subject, plan: Plan, repetition: int | None) -> Sample:
    """One window, measured again while other processes disturb it; the least disturbed attempt."""
    stage = "looking for the reference" if repetition is None else f"repetition {repetition + 1} of {plan.repetitions}"
    attempts: list[Sample] = []
    while len(attempts) < plan.attempts:
        if attempts:
            plan.progress(f"{stage}: waiting for other processes, which took {attempts[-1].foreign:.0%} of the CPU")
            _wait_for_quiet(plan)
        plan.progress(f"{stage}: {_title(subject)}")
        before = cpu_times()
        sample = subject.measure(plan.window_s)
        attempts.append(replace(sample, foreign=cpu_times().since(before).foreign))
        if attempts[-1].foreign <= plan.foreign_limit:
            break
    return min(attempts, key=lambda sample: sample.foreign)


def _wait_for_quiet(plan: Plan) -> None:
    until = time.monotonic() + plan.patience_s
    while time.monotonic() < until:
        before = cpu_times()
        time.sleep(1.0)
        if cpu_times().since(before).foreign <= plan.foreign_limit:
            return


def _title(subject: Subject) -> str:
    return f"{subject.name}, batch {subject.batch}, concurrency {subject.concurrency}"
