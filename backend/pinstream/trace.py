"""A timeline of what a process did, for looking at: one file a process in the directory PINSTREAM_TRACE names.

In Chrome's trace event format (chrome://tracing and Perfetto open it): complete events, times in microseconds of the
machine's monotonic clock, which all processes share. Without the variable nothing is recorded.
"""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path

from pinstream.metrics import BatchTimes

VARIABLE = "PINSTREAM_TRACE"
# The newest events count; a busy second has some thousands.
MAX_EVENTS = 200_000


class Tracer:
    """Keeps a process's events and writes them at its end.

    Args:
        directory: Where to.
        process: Name of the process's lane.
    """

    def __init__(self, directory: Path, process: str) -> None:
        self._file = directory / f"{process}-{os.getpid()}.json"
        self._process = process
        self._events: deque[tuple[str, float, float, str, int]] = deque(maxlen=MAX_EVENTS)

    @classmethod
    def from_environment(cls, process: str) -> Tracer | None:
        """A tracer where PINSTREAM_TRACE asks for one."""
        directory = os.environ.get(VARIABLE)
        return cls(Path(directory), process) if directory else None

    def span(self, name: str, began: float, ended: float, lane: str = "", items: int = 0) -> None:
        """Something went on from `began` to `ended`, both of time.perf_counter."""
        self._events.append((name, began, ended, lane, items))

    def batch(self, times: BatchTimes) -> None:
        """A batch's stages.

        Gathering and copying in are counted from its beginning, since each part is copied on as soon as it is
        gathered; computing, copying out and scattering from its end.
        """
        stages = times.stages
        self.span("batch", times.began, times.ended, "batch", times.items)
        if "h2d" in stages:
            self.span("h2d", times.began, times.began + stages["h2d"], "h2d", times.items)
        self.span("gather", times.began, times.began + stages.get("gather", 0.0), "host", times.items)
        ended = times.ended - stages.get("scatter", 0.0)
        self.span("scatter", ended, times.ended, "host", times.items)
        for stage in ("d2h", "compute"):
            if stage in stages:
                self.span(stage, ended - stages[stage], ended, "gpu", times.items)
                ended -= stages[stage]

    def close(self) -> None:
        """Write the file."""
        pid = os.getpid()
        events = [
            {
                "name": name,
                "ph": "X",
                "ts": round(began * 1e6, 1),
                "dur": round((ended - began) * 1e6, 1),
                "pid": pid,
                "tid": lane or name,
                "args": {"process": self._process, "items": items},
            }
            for name, began, ended, lane, items in self._events
        ]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(events))
