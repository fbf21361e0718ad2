"""What batches took, as histograms and counters of the server. Knows no Triton: model.py says how a metric is made.

Recording is off the hot path. Every call of a Triton metric is a message to the server, so a thread makes them; the
loop only puts a record into a queue. Where batches come faster than the server takes messages, histograms leave records
out (counters never do, they are summed up first).

| metric | kind | what |
|---|---|---|
| pinstream_gather_duration_us | histogram | copying requests into host buffers and starting the batch |
| pinstream_h2d_duration_us | histogram | host to device, from the first part's copy to the last's, by CUDA events |
| pinstream_compute_duration_us | histogram | the engine, by CUDA events; on the CPU the wait for it |
| pinstream_d2h_duration_us | histogram | device to host, by CUDA events |
| pinstream_scatter_duration_us | histogram | handing results to requests |
| pinstream_batch_size | histogram | items of a batch, without padding |
| pinstream_batches | counter | batches run, by label `bucket` |
| pinstream_padding_items | counter | items that were padding |
| pinstream_graph_launches | counter | batches launched as a CUDA graph |
| pinstream_errors | counter | batches that failed in the engine |

Labels of all: `model`, `version`, `device`. Where instances share an engine, batches are the engine's, each counted
once, and `h2d` includes waiting for parts of other instances.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

LOGGER = logging.getLogger("pinstream.metrics")
STAGES = ("gather", "h2d", "compute", "d2h", "scatter")
# Upper bounds in microseconds: steps of about 1.8 from what an event can resolve to a second.
DURATION_BUCKETS = (10, 20, 40, 70, 130, 240, 420, 750, 1300, 2400, 4200, 7500, 13000, 24000, 42000, 75000, 130000, 1e6)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
# Records handed over at once as samples of histograms: each takes several messages.
MOST_SAMPLES = 256
# What comes in this time is handed over together: a thread that wakes up for every batch takes the interpreter from it.
COLLECT_S = 0.05


@dataclass(frozen=True)
class BatchTimes:
    """What became of one batch.

    Attributes:
        items: Items in the batch.
        size: The bucket it ran in; the difference is padding.
        stages: Seconds by stage; an engine leaves out what it does not have.
        graph: Whether it was launched as a CUDA graph.
        failed: Whether the engine failed it.
        began: When gathering began, by time.perf_counter.
        ended: When its last request had its results.
    """

    items: int
    size: int
    stages: Mapping[str, float]
    graph: bool = False
    failed: bool = False
    began: float = 0.0
    ended: float = 0.0


class Metric(Protocol):
    """One series of the server."""

    def increment(self, value: float) -> None:
        """Add to a counter."""

    def observe(self, value: float) -> None:
        """Put a value into a histogram."""


# Makes a series: name, kind ("counter" or "histogram"), description, labels, buckets of a histogram. None where the
# server has no histograms.
MakeMetric = Callable[[str, str, str, Mapping[str, str], Sequence[float]], Any]


class Recorder:
    """Takes the loop's records and keeps the server's metrics up to date from a thread of its own.

    Args:
        make: Makes a series.
        labels: Labels of all series.
    """

    def __init__(self, make: MakeMetric, labels: Mapping[str, str]) -> None:
        self._make = make
        self._labels = labels
        histograms = {
            f"{stage}_duration_us": self._histogram(f"{stage}_duration_us", f"{stage} of a batch, us", DURATION_BUCKETS)
            for stage in STAGES
        }
        histograms["batch_size"] = self._histogram("batch_size", "items of a batch", BATCH_BUCKETS)
        self._histograms: dict[str, Metric] = {name: made for name, made in histograms.items() if made is not None}
        if not self._histograms:
            LOGGER.info(
                "no histograms among the metrics: a Triton from before August 2024 has none for models in Python"
            )
        self._counters: dict[str, Metric] = {
            name: self._counter(name, text)
            for name, text in {
                "padding_items": "items that were padding",
                "graph_launches": "batches launched as a CUDA graph",
                "errors": "batches that failed in the engine",
            }.items()
        }
        self._records: deque[BatchTimes] = deque()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pinstream-metrics", daemon=True)
        self._thread.start()

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Any:
        return self._make(f"pinstream_{name}", "histogram", text, self._labels, buckets)

    def _counter(self, name: str, text: str, **labels: str) -> Any:
        return self._make(f"pinstream_{name}", "counter", text, {**self._labels, **labels}, ())

    def record(self, times: BatchTimes) -> None:
        """Take one batch's record; costs a microsecond, since the batch's requests wait for it."""
        self._records.append(times)
        if not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._wake.wait()
                self._closed.wait(COLLECT_S)
                self._wake.clear()
                self._hand_over()
            # What came while the thread was handing over, and was told to stop.
            self._hand_over()
        except Exception as error:  # a server that stops taking metrics must not stop the model
            LOGGER.warning("metrics end here: %s", error)
            self._records = deque(maxlen=0)

    def _hand_over(self) -> None:
        records = [self._records.popleft() for _ in range(len(self._records))]
        for name, count in _counts(records).items():
            if count:
                self._counter_of(name).increment(count)
        for times in records[-MOST_SAMPLES:]:
            if self._histograms and not times.failed:
                for stage, seconds in times.stages.items():
                    self._histograms[f"{stage}_duration_us"].observe(seconds * 1e6)
                self._histograms["batch_size"].observe(times.items)

    def _counter_of(self, name: str) -> Metric:
        if name not in self._counters:
            self._counters[name] = self._counter("batches", "batches run", bucket=name.removeprefix("bucket "))
        return self._counters[name]

    def close(self) -> None:
        """Hand over what is left and stop the thread."""
        self._closed.set()
        self._wake.set()
        self._thread.join(timeout=2)


def _counts(records: Sequence[BatchTimes]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for times in records:
        counts[f"bucket {times.size}"] += 1
        counts["padding_items"] += times.size - times.items
        counts["graph_launches"] += times.graph
        counts["errors"] += times.failed
    return counts
