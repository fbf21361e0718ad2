"""What can be measured, what one window of it gives, and all of its windows together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One window.

    Attributes:
        images_per_s: Items per second; a request of batch 8 is 8 items.
        p50_ms: Median latency of a request (of a run, for a bare loop).
        p99_ms: 99th percentile of the same.
        cpu_ms: CPU time of one image in milliseconds, by process; empty where it cannot be known.
        foreign: Share of the machine's CPU time that processes outside the measurement took, 0 to 1.
        details: What else the window's source told, by its own names.
        parts: Samples of what this one was put together from, by name.
        stages_ms: Mean milliseconds of what a request goes through in the server, and a batch in the backend, by stage.
        seconds: Of load, the part in which it built up included; 0 where nobody knows.
    """

    images_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: Mapping[str, float] = field(default_factory=dict)
    foreign: float = 0.0
    details: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Sample] = field(default_factory=dict)
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Subject(Protocol):
    """Something that can be measured again and again."""

    @property
    def name(self) -> str:
        """What it is, as the table shows it."""

    @property
    def batch(self) -> int:
        """Items of a request."""

    @property
    def concurrency(self) -> int:
        """Requests under way at the same time."""

    def measure(self, seconds: float) -> Sample:
        """Keep it busy for about `seconds`."""


@dataclass
class Measured:
    """A subject's windows, the ratio of each to the reference windows before and after it, and what failed of them."""

    subject: Subject
    samples: list[Sample] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    problem: str = ""


def title(subject: Subject) -> str:
    """A subject in words."""
    rate = getattr(subject, "rate", 0.0)
    load = f"{rate:.0f} requests/s at random times" if rate else f"concurrency {subject.concurrency}"
    return f"{subject.name}, batch {subject.batch}, {load}"


def spread(values: Sequence[float]) -> float:
    """How far repetitions lie apart: (largest - smallest) / median."""
    return (max(values) - min(values)) / median(values)


def sample_of_loop(latencies_s: Sequence[float], batch: int, seconds: float, cpu_ms: Mapping[str, float]) -> Sample:
    """The sample of a loop that took `seconds` for runs of `batch` items, each of which took one of `latencies_s`."""
    p50, p99 = (float(np.percentile(latencies_s, q)) * 1e3 for q in (50, 99))
    return Sample(len(latencies_s) * batch / seconds, p50, p99, cpu_ms, seconds=seconds)
