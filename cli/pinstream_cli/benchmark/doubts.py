"""What lets a reader doubt figures: a reference that was none, or varied, and a load that was still building up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import median

from pinstream_cli.benchmark.sample import Measured, spread, title

# A reference whose windows lie further apart is worth a word.
UNSTEADY = 0.25
# A median latency that is farther from what the requests under way make of the rate, likewise.
UNEVEN = 1.5
# And so much more CPU than the machine has: the counters of processes are not that exact.
MORE_THAN_ALL = 1.02


def doubts(bare: Measured, found: Sequence[Measured]) -> list[str]:
    """Notes on what was measured.

    Args:
        bare: The reference.
        found: What was measured next to it.
    """
    # Of perf_analyzer's requests: in a bare loop no load builds up.
    served = [one for one in found if one.samples[0].details]
    return [*_of_the_reference(bare, found), *_uneven(served), *_more_than_all_cores(served)]


def _of_the_reference(bare: Measured, found: Sequence[Measured]) -> list[str]:
    """Whether it varied, and whether another loop of its kind turned out to be faster."""
    notes = []
    varied = _spread(bare)
    if varied > UNSTEADY:
        notes.append(
            f"The windows of the reference, {title(bare.subject)}, lie {varied:.0%} apart: ratios to it mean little."
        )
    alike = [one for one in found if type(one.subject) is type(bare.subject)]
    if faster := [one for one in alike if median(one.ratios) - 1 > max(varied, _spread(one))]:
        best = max(faster, key=lambda one: median(one.ratios))
        notes.append(
            f"{title(best.subject)}, has {median(best.ratios):.2f} times the throughput of the reference, which was "
            "the fastest when it was chosen: ratios are that much too high."
        )
    return notes


def _uneven(served: Sequence[Measured]) -> list[str]:
    """Where p50 is not about the mean latency, which the rate and the requests under way tell (Little's law)."""
    uneven = []
    for one in served:
        p50_ms = median(sample.p50_ms for sample in one.samples)
        mean_ms = 1e3 * one.subject.concurrency * one.subject.batch / median(s.images_per_s for s in one.samples)
        if one.subject.concurrency and not 1 / UNEVEN < p50_ms / mean_ms < UNEVEN:
            uneven.append(f"{title(one.subject)}: {p50_ms:.3g} instead of {mean_ms:.3g} ms")
    if not uneven:
        return []
    return [
        f"p50 is far from concurrency x batch / images/s of {'; '.join(uneven)}. Answers came unevenly, or the "
        "load was still building up."
    ]


def _more_than_all_cores(served: Sequence[Measured]) -> list[str]:
    """Where the rate and the CPU of an image make more cores than there are.

    Throughput is of the part of a window that counts, CPU of all of it: the load was still rising.
    """
    cores, more = len(os.sched_getaffinity(0)), []
    for one in served:
        used = median(sample.images_per_s * sum(sample.cpu_ms.values()) / 1e3 for sample in one.samples)
        if used > MORE_THAN_ALL * cores:
            more.append(f"{title(one.subject)}: {used:.1f}")
    if not more:
        return []
    return [
        f"images/s x CPU of an image is more than the {cores} cores there are of {'; '.join(more)}. The load was still "
        "building up: set a larger --window."
    ]


def _spread(measured: Measured) -> float:
    return spread([sample.images_per_s for sample in measured.samples])
