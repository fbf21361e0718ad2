"""The run: every subject in turn, next to the reference it is compared with, several times over.

A shared machine changes its speed from one minute to the next. So each window of a subject lies between two windows of
the reference, its ratio is taken to those two, and a window in which other processes took much of the CPU is measured
again. Medians over the repetitions do the rest. A subject whose window fails is left out, and the others go on. Where
time is limited, no window begins that would not end in time, and the result says what it is short of.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, median

from pinstream_cli.benchmark.cpu import cpu_times
from pinstream_cli.benchmark.doubts import doubts
from pinstream_cli.benchmark.sample import Measured, Sample, Subject, title
from pinstream_cli.errors import CommandError

# The share of the time that waiting for quiet may take, where time is limited.
SHARE_FOR_QUIET = 0.25


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        repetitions: Windows of each subject.
        window_s: Length of a window.
        reference_s: Length of a window of the reference and of the warm-up; 0 for window_s. A loop on a GPU of its own
            needs no longer one than half a second.
        ends: When time is up, by time.monotonic: no window begins that would not end before, and what is there counts.
        foreign_limit: A window in which others took a larger share of the CPU is measured again.
        attempts: How often at most; then the least disturbed attempt counts.
        patience_s: How long to wait for quiet in all, a quarter of the time at most; after that, windows are taken as
            they come.
        progress: Told about every window.
    """

    repetitions: int = 5
    window_s: float = 3.0
    foreign_limit: float = 0.05
    attempts: int = 5
    patience_s: float = 600.0
    reference_s: float = 0.0
    ends: float = math.inf
    progress: Callable[[str], None] = lambda text: None

    def sooner(self, share: float) -> Plan:
        """The plan less a share of the time that it has left."""
        now = time.monotonic()
        return replace(self, ends=now + (self.ends - now) * (1 - share))


class Interleaver:
    """Measures subjects by a plan.

    Args:
        plan: The plan.

    Attributes:
        interrupted: Whether somebody put an end to it, and what there was by then has to do.
        notes: Which subjects were left out or have fewer windows than planned, and why, and what figures are doubtful.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._patience_s = min(plan.patience_s, (plan.ends - time.monotonic()) * SHARE_FOR_QUIET)
        self._reference_s = plan.reference_s or plan.window_s
        self.interrupted = False
        self.notes: list[str] = []
        # Wall-clock seconds, starting and stopping perf_analyzer included: of the last window, and of the longest turn,
        # which is a window and one of the reference.
        self._window_s = 0.0
        self._turn_s = plan.window_s + self._reference_s

    @property
    def late(self) -> bool:
        """Whether another turn would not end in the plan's time, if it took as long as the longest one so far."""
        return self.interrupted or time.monotonic() + self._turn_s >= self._plan.ends

    def fastest(self, subjects: Sequence[Subject]) -> Subject:
        """The subject with the highest throughput, by a few windows in turn: the reference for the others."""
        if len(subjects) == 1:
            return subjects[0]
        rates: dict[int, list[float]] = {i: [] for i in range(len(subjects))}
        for _ in range(min(3, self._plan.repetitions)):
            if rates[0] and self.late:
                break
            for i, subject in enumerate(subjects):
                window = self.quiet_window(subject, "looking for the reference", self._reference_s)
                rates[i].append(window.images_per_s)
        return subjects[max(rates, key=lambda i: median(rates[i]))]

    def measure(
        self,
        reference: Subject,
        subjects: Sequence[Subject],
        to_warm: Sequence[Subject] | None = None,
        stretch: float = 1.0,
    ) -> tuple[Measured, list[Measured]]:
        """Measure `subjects` next to `reference`.

        Args:
            reference: What ratios are taken to.
            subjects: What is measured.
            to_warm: Those of them that are run once before; all by default.
            stretch: How many times longer the windows are than the plan's. Where requests are larger, it takes longer
                until as many are under way as there are to be.

        Returns:
            The reference with all its windows (ratio 1), and the subjects in their order, less those for which there
            was no time and those of which a window failed.

        Raises:
            CommandError: A window of the reference failed, or one of every subject, or there was no time for any.
        """
        bare = Measured(reference)
        measured = [Measured(subject) for subject in subjects]
        self._warm_up(reference, stretch)
        for one in measured:
            if (to_warm is None or one.subject in to_warm) and not self.late:
                self._attempt(one, partial(self._warm_up, one.subject, stretch))
        try:
            self._take_turns(bare, measured, stretch)
        except KeyboardInterrupt:
            # What has been measured by then is worth keeping; a second interrupt ends all.
            if not any(one.ratios for one in measured):
                raise
            self.interrupted = True
        bare.ratios = [1.0] * len(bare.samples)
        found = _whole(measured)
        self._tell_what_is_short(measured)
        self.notes += doubts(bare, found)
        return bare, found

    @property
    def why_late(self) -> str:
        """Why no more is measured, as the beginning of a note."""
        return "It was interrupted" if self.interrupted else "Time was up (--limit)"

    def _tell_what_is_short(self, measured: Sequence[Measured]) -> None:
        why = self.why_late
        whole = [one for one in measured if not one.problem]
        if missing := [title(one.subject) for one in whole if not one.samples]:
            self.notes.append(f"{why} before a window of: {'; '.join(missing)}. They are left out.")
        if short := sum(0 < len(one.samples) < self._plan.repetitions for one in whole):
            self.notes.append(f"{why} before {short} of the rows had their {self._plan.repetitions} windows.")

    def _warm_up(self, subject: Subject, stretch: float) -> Sample:
        self._plan.progress(f"warming up: {title(subject)}")
        return subject.measure(self._reference_s * stretch)

    def _attempt(self, one: Measured, measure: Callable[[], Sample]) -> Sample | None:
        """What `measure` gives; None where that fails, and then the subject is left out."""
        try:
            return measure()
        except CommandError as error:
            one.problem = str(error)
            self.notes.append(f"{title(one.subject)}, is left out: {error}")
            return None

    def _take_turns(self, bare: Measured, measured: Sequence[Measured], stretch: float) -> None:
        window_s, reference_s = self._plan.window_s * stretch, self._reference_s * stretch
        for repetition in range(self._plan.repetitions):
            if self.late and bare.samples:
                return
            stage = f"repetition {repetition + 1} of {self._plan.repetitions}"
            bare.samples.append(self.quiet_window(bare.subject, stage, reference_s))
            # Another order each time, the same in every run of the bench: nobody is always behind the same neighbour.
            for one in random.Random(repetition).sample(measured, len(measured)):
                if self.late:
                    return
                if one.problem:
                    continue
                window = self._attempt(one, partial(self.quiet_window, one.subject, stage, window_s))
                if window is None:
                    continue
                turn_s = self._window_s
                bare.samples.append(self.quiet_window(bare.subject, stage, reference_s))
                neighbours = mean(sample.images_per_s for sample in bare.samples[-2:])
                one.samples.append(window)
                one.ratios.append(window.images_per_s / neighbours)
                self._turn_s = max(self._turn_s, turn_s + self._window_s)

    def quiet_window(self, subject: Subject, stage: str, seconds: float = 0.0) -> Sample:
        """One window, measured again while other processes disturb it; the least disturbed attempt.

        Args:
            subject: What is measured.
            stage: For the progress.
            seconds: Its length; 0 for the plan's.
        """
        attempts: list[Sample] = []
        while not attempts or (len(attempts) < self._plan.attempts and not self.late):
            if attempts:
                self._wait_for_quiet(f"{stage}: waiting; other processes took {attempts[-1].foreign:.0%} of the CPU")
            self._plan.progress(f"{stage}: {title(subject)}")
            before, began = cpu_times(), time.monotonic()
            sample = subject.measure(seconds or self._plan.window_s)
            self._window_s = time.monotonic() - began
            attempts.append(replace(sample, foreign=cpu_times().since(before).foreign))
            if attempts[-1].foreign <= self._plan.foreign_limit:
                break
        return min(attempts, key=lambda sample: sample.foreign)

    def _wait_for_quiet(self, text: str) -> None:
        self._plan.progress(text)
        began = time.monotonic()
        while time.monotonic() - began < self._patience_s and not self.late:
            before = cpu_times()
            time.sleep(0.5)
            if cpu_times().since(before).foreign <= self._plan.foreign_limit:
                break
        self._patience_s -= time.monotonic() - began


def _whole(measured: Sequence[Measured]) -> list[Measured]:
    """Those that have windows of which none failed.

    Raises:
        CommandError: There are none.
    """
    found = [one for one in measured if one.ratios and not one.problem]
    problems = [one.problem for one in measured if one.problem]
    if problems and not found:
        raise CommandError(problems[0])
    if measured and not found:
        raise CommandError(
            "time was up (--limit) before anything but the reference was measured; set a larger --limit, ask for "
            "fewer rows, or for shorter windows"
        )
    return found
