"""The backend's own trace files, and a window of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from pinstream.trace import MAX_EVENTS
from pinstream_cli.errors import CommandError

US_PER_MS, MS_PER_S, US_PER_S = 1e3, 1e3, 1e6
# The process that instances share an engine in, and the lanes of what an engine does: batches follow each other on the
# first, while the next ones are copied in on the second.
ENGINE_PROCESS, ENGINE_LANE, COPY_LANE = "engine", "gpu", "h2d"


@dataclass(frozen=True)
class Span:
    """Something that went on.

    Attributes:
        process: Whose it is: a model instance's, or the engine's.
        lane: What of the process.
        name: What went on.
        began: Milliseconds since the window's beginning; below 0 where it had begun before.
        ended: Likewise.
        items: Images, or requests of an execute.
    """

    process: str
    lane: str
    name: str
    began: float
    ended: float
    items: int


def read(directory: Path) -> list[dict[str, Any]]:
    """All events of the files in a directory, by time.

    Raises:
        CommandError: There are none.
    """
    events = [event for file in sorted(directory.glob("*.json")) for event in json.loads(file.read_text())]
    if not events:
        raise CommandError("the server's models left no trace; is the backend in the model repository pinstream?")
    return sorted(events, key=lambda event: float(event["ts"]))


def window(events: Sequence[Mapping[str, Any]], since: float, seconds: float) -> list[dict[str, Any]]:
    """The events of that many seconds in the middle of the load.

    Args:
        events: By time.
        since: When the load began, by time.perf_counter: before that models are warmed up.
        seconds: How long.

    Raises:
        CommandError: Less than that was recorded.
    """
    times = [float(event["ts"]) for event in events if float(event["ts"]) >= since * US_PER_S]
    first, last = (times[0], times[-1]) if times else (0.0, 0.0)
    begin = first + (last - first - seconds * US_PER_S) / 2
    if begin < first:
        raise CommandError(f"{(last - first) / US_PER_S:.2f} s of load were recorded; {seconds:g} s were asked for")
    _check_complete(events, begin)
    end = begin + seconds * US_PER_S
    inside = [dict(e) for e in events if float(e["ts"]) < end and float(e["ts"]) + float(e["dur"]) > begin]
    return [{**event, "ts": round(float(event["ts"]) - begin, 1)} for event in inside]


def _check_complete(events: Sequence[Mapping[str, Any]], begin: float) -> None:
    """See that no process has dropped what it did from `begin` on, in microseconds, for what it did later."""
    by_process: dict[Any, list[float]] = {}
    for event in events:
        by_process.setdefault(event["pid"], []).append(float(event["ts"]))
    if any(len(times) >= MAX_EVENTS and times[0] > begin for times in by_process.values()):
        raise CommandError(f"more than the {MAX_EVENTS:,} events that a process keeps; record fewer --seconds")


def spans(events: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Events of a window."""
    return [
        Span(
            str(event["args"].get("process", event["pid"])),
            str(event["tid"]),
            str(event["name"]),
            float(event["ts"]) / US_PER_MS,
            (float(event["ts"]) + float(event["dur"])) / US_PER_MS,
            int(event["args"].get("items", 0)),
        )
        for event in events
    ]


def without_echoes(found: Sequence[Span]) -> list[Span]:
    """Spans less what instances that share an engine repeat of what it told them."""
    shared = any(span.process == ENGINE_PROCESS for span in found)
    of_engines = (ENGINE_LANE, COPY_LANE)
    return [s for s in found if not (shared and s.lane in of_engines and s.process != ENGINE_PROCESS)]


def gaps(found: Sequence[Span], milliseconds: float) -> list[tuple[float, float]]:
    """Beginning and end of every stretch of a window in which none of the spans went on."""
    idle, reached = [], 0.0
    for span in sorted(found, key=lambda s: s.began):
        if reached < min(span.began, milliseconds):
            idle.append((reached, min(span.began, milliseconds)))
        reached = max(reached, span.ended)
    return [*idle, (reached, milliseconds)] if reached < milliseconds else idle


def busy(found: Sequence[Span], name: str, milliseconds: float) -> float:
    """Share of a window in which at least one span of a name went on, 0 to 1."""
    total, reached = 0.0, 0.0
    for span in sorted((s for s in found if s.name == name), key=lambda s: s.began):
        begin, end = max(span.began, reached), min(span.ended, milliseconds)
        total += max(0.0, end - begin)
        reached = max(reached, end)
    return total / milliseconds


def computing(found: Sequence[Span], milliseconds: float) -> list[float]:
    """Share of a window in which each engine computed, 0 to 1: one that instances share, or that of each instance."""
    by_engine: dict[str, list[Span]] = {}
    for span in without_echoes(found):
        if span.lane == ENGINE_LANE:
            by_engine.setdefault(span.process, []).append(span)
    return [busy(of_one, "compute", milliseconds) for of_one in by_engine.values()]


def say_computing(shares: Sequence[float]) -> str:
    """The same in words."""
    if len(shares) < 2:
        return f"the engine computes {sum(shares):.1%}"
    return f"on average each of the {len(shares)} engines computes {mean(shares):.1%}"
