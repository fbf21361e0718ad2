"""What a suite found: rows of medians, the result file, the raw samples, the table."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.table import Table

from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.interleave import Plan
from pinstream_cli.benchmark.sample import Measured, Sample, spread
from pinstream_cli.console import Console


@dataclass(frozen=True)
class Row:
    """One line of a result: medians over its windows.

    Attributes:
        name: What was measured.
        batch: Items of a request.
        concurrency: Requests under way at the same time.
        images_per_s: Items per second.
        p50_ms: Median latency of a request.
        p99_ms: 99th percentile of the same.
        ratio_to_bare: Of images_per_s to the reference measured just before and after; the reference has 1.
        spread: Of images_per_s over the windows: (largest - smallest) / median; None of a single one.
        cpu_ms_per_image: CPU milliseconds of one image, by process.
        foreign_cpu: Share of the machine's CPU that processes outside the measurement took.
        stages_ms: Mean milliseconds of a request's stages in the server, of its steps in an ensemble, and of a batch's
            stages in the backend.
        requests_per_s: Sent at random times, answered or not (a Poisson process); 0 where clients wait for answers.
        windows: Of which these are the medians: the repetitions, or fewer where time was up.
        window_s: Seconds of a window's load, the median; longer than planned where that was too short; 0 if not known.
        p99_spread: Of p99_ms, as `spread`: of requests at random times, whose rate is given, it says more.
    """

    name: str
    batch: int
    concurrency: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    ratio_to_bare: float
    spread: float | None
    cpu_ms_per_image: dict[str, float]
    foreign_cpu: float
    stages_ms: dict[str, float] = field(default_factory=dict)
    requests_per_s: float = 0.0
    windows: int = 1
    window_s: float = 0.0
    p99_spread: float | None = None


@dataclass(frozen=True)
class Result:
    """What a suite found.

    Attributes:
        suite: Its name, such as serve.
        reference: What ratio_to_bare is relative to, in words.
        rows: The reference first.
        samples: Every window, by subject.
        versions: Of what took part.
        notes: What a reader has to know about this run.
        extra: More entries for the result file, by key.
        interrupted: Whether somebody put an end to it, so that this is only what there was by then.
    """

    suite: str
    reference: str
    rows: list[Row]
    samples: list[Measured]
    versions: dict[str, str]
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False


def row(measured: Measured) -> Row:
    """The medians of a subject's windows."""
    samples = measured.samples
    rates, slowest = ([getattr(sample, of) for sample in samples] for of in ("images_per_s", "p99_ms"))
    return Row(
        name=measured.subject.name,
        batch=measured.subject.batch,
        concurrency=measured.subject.concurrency,
        images_per_s=_rounded(median(rates)),
        p50_ms=_rounded(median(sample.p50_ms for sample in samples)),
        p99_ms=_rounded(median(sample.p99_ms for sample in samples)),
        ratio_to_bare=round(median(measured.ratios), 3),
        spread=_spread(rates),
        cpu_ms_per_image=_median_cpu(samples),
        foreign_cpu=round(median(sample.foreign for sample in samples), 3),
        stages_ms=_medians([sample.stages_ms for sample in samples]),
        requests_per_s=_rounded(getattr(measured.subject, "rate", 0.0)),
        windows=len(samples),
        window_s=_rounded(median(sample.seconds for sample in samples)),
        p99_spread=_spread(slowest),
    )


def _spread(values: Sequence[float]) -> float | None:
    return round(spread(values), 3) if len(values) > 1 and median(values) else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _median_cpu(samples: Sequence[Sample]) -> dict[str, float]:
    medians = _medians([sample.cpu_ms for sample in samples])
    return {name: ms for name, ms in sorted(medians.items(), key=lambda item: -item[1]) if ms >= 0.001}


def _medians(of_each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in of_each for name in one)
    return {name: round(median(one.get(name, 0.0) for one in of_each), 3) for name in names}


def _rounded(value: float) -> float:
    """To four significant digits: more would claim a precision that no run has."""
    return float(f"{value:.4g}")


def as_json(result: Result, command: str, plan: Plan) -> dict[str, Any]:
    """The result file's content."""
    return {
        "suite": result.suite,
        **environment.origin(command),
        "versions": result.versions,
        "method": {
            "reference": result.reference,
            "repetitions": plan.repetitions,
            "window_s": plan.window_s,
            "reference_window_s": plan.reference_s or plan.window_s,
            "foreign_cpu_limit": plan.foreign_limit,
            "disturbed_windows": sum(s.foreign > plan.foreign_limit for m in result.samples for s in m.samples),
            "windows": sum(len(m.samples) for m in result.samples),
        },
        "notes": result.notes,
        "rows": [asdict(row) for row in result.rows],
        **result.extra,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_samples(path: Path, measured: Sequence[Measured]) -> None:
    """Write every window as a line of CSV, perf_analyzer's own columns behind ours."""
    own = ["name", "batch", "concurrency", "repetition", "images_per_s", "p50_ms", "p99_ms", "ratio_to_bare", "foreign"]
    own.append("seconds")
    theirs = list(dict.fromkeys(key for m in measured for sample in m.samples for key in sample.details))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(own + theirs)
        for m in measured:
            for number, (sample, ratio) in enumerate(zip(m.samples, m.ratios, strict=True)):
                figures = (sample.images_per_s, sample.p50_ms, sample.p99_ms, ratio, sample.foreign, sample.seconds)
                line = [m.subject.name, m.subject.batch, m.subject.concurrency, number]
                line += [f"{value:.4g}" for value in figures]
                writer.writerow(line + [sample.details.get(key, "") for key in theirs])


def print_table(result: Result, plan: Plan, console: Console) -> None:
    """The rows, ratios first, and what a reader needs to know to read them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("ratio", justify="right", no_wrap=True, style="bold")
    table.add_column("what", no_wrap=True)
    for heading in ("batch", "conc.", "images/s", "p50 ms", "p99 ms", "spread", "windows"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("CPU ms per image")
    for r in result.rows:
        table.add_row(
            f"{r.ratio_to_bare:.3f}",
            r.name,
            str(r.batch),
            f"{r.requests_per_s:.0f}/s" if r.requests_per_s else str(r.concurrency),
            *(f"{value:.1f}" for value in (r.images_per_s, r.p50_ms, r.p99_ms)),
            _percent(r.p99_spread if r.requests_per_s else r.spread),
            f"{r.windows} of {round(r.window_s, 1):g} s" if r.window_s else str(r.windows),
            ", ".join(f"{name} {ms:.2f}" for name, ms in r.cpu_ms_per_image.items()),
        )
    console.print(table)
    console.print(f"ratio: images/s relative to {result.reference}, in windows just before and after.")
    lengths = f"{plan.window_s:g} s, those of the reference {plan.reference_s or plan.window_s:g} s"
    console.print(f"Medians of so many windows of {lengths}, longer where that was too short.")
    console.print("Spread of images/s, at random times of p99, is (max - min) / median.")
    if not environment.machine()["gpus"]:
        console.print("On a CPU the ratios are the result; images/s are this machine's, which client and server share.")
    for note in result.notes:
        console.print(note)
