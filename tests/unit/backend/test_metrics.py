"""Records reach the series once, off the caller's thread, and a server that refuses them stops nothing."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pinstream import metrics
from pinstream.metrics import BatchTimes, Recorder


class Series:
    """Keeps what it is told, as a Prometheus client library would."""

    def __init__(self) -> None:
        self.total = 0.0
        self.values: list[float] = []

    def increment(self, value: float) -> None:
        self.total += value

    def observe(self, value: float) -> None:
        self.values.append(value)


class Registry:
    """All series by name and labels."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], Series] = defaultdict(Series)

    def make(self, name: str, kind: str, text: str, labels: Mapping[str, str], buckets: Sequence[float]) -> Any:
        return self.series[name, labels.get("bucket", "")]


def test_every_batch_is_counted_and_timed() -> None:
    registry = Registry()
    recorder = Recorder(registry.make, {"model": "m"})
    for items, size in [(3, 4), (4, 4), (8, 8)]:
        recorder.record(BatchTimes(items, size, {"gather": 0.001, "compute": 0.002}, graph=size == 8))
    recorder.record(BatchTimes(1, 1, {}, failed=True))
    recorder.close()
    series = registry.series
    assert series["pinstream_batches", "4"].total == 2
    assert series["pinstream_batches", "8"].total == 1
    assert series["pinstream_padding_items", ""].total == 1
    assert series["pinstream_graph_launches", ""].total == 1
    assert series["pinstream_errors", ""].total == 1
    assert series["pinstream_compute_duration_us", ""].values == [2000.0] * 3
    assert series["pinstream_batch_size", ""].values == [3, 4, 8]


def test_a_slow_server_costs_samples_and_no_counts() -> None:
    registry, gate = Registry(), threading.Event()

    class Slow(Series):
        def observe(self, value: float) -> None:
            gate.wait(10)
            super().observe(value)

    slow = Slow()
    registry.series["pinstream_batch_size", ""] = slow
    recorder = Recorder(registry.make, {})
    for _ in range(3 * metrics.MOST_SAMPLES):
        recorder.record(BatchTimes(1, 1, {}))
    gate.set()
    recorder.close()
    assert registry.series["pinstream_batches", "1"].total == 3 * metrics.MOST_SAMPLES
    # What had come when the thread looked first, and the newest of what came while it was held up.
    assert 0 < len(slow.values) <= 2 * metrics.MOST_SAMPLES


def test_a_server_that_refuses_metrics_stops_nothing() -> None:
    class Refusing(Series):
        def increment(self, value: float) -> None:
            raise RuntimeError("no more")

    registry = Registry()
    registry.series["pinstream_errors", ""] = Refusing()
    recorder = Recorder(registry.make, {})
    for _ in range(5):
        recorder.record(BatchTimes(1, 1, {}, failed=True))
    recorder._thread.join(10)
    recorder.record(BatchTimes(1, 1, {}))
    assert not recorder._records, "nobody takes them any more, and they pile up"
    recorder.close()


def test_a_server_without_histograms_has_the_counters(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()

    def make(name: str, kind: str, text: str, labels: Mapping[str, str], buckets: Sequence[float]) -> Any:
        return None if kind == "histogram" else registry.make(name, kind, text, labels, buckets)

    recorder = Recorder(make, {})
    recorder.record(BatchTimes(3, 4, {"gather": 0.001}))
    recorder.close()
    assert registry.series["pinstream_batches", "4"].total == 1
    assert registry.series["pinstream_padding_items", ""].total == 1
    assert "metrics end here" not in caplog.text


def test_every_metric_is_documented() -> None:
    registry = Registry()
    Recorder(registry.make, {}).close()
    made = {name for name, _ in registry.series} | {"pinstream_batches"}
    documented = {line.split("|")[1].strip() for line in (metrics.__doc__ or "").splitlines() if "pinstream_" in line}
    assert made == documented


def test_the_page_on_metrics_has_the_same_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    rows = [line.replace("`", "") for line in (metrics.__doc__ or "").splitlines() if line.startswith("| pinstream_")]
    shown = [_without_unit(line.replace("`", "")) for line in page.splitlines() if line.startswith("| `pinstream_")]
    assert shown == rows


def _without_unit(row: str) -> str:
    name, kind, _unit, what = (cell.strip() for cell in row.strip("|").split("|"))
    return f"| {name} | {kind} | {what} |"
