"""A timeline of a saturated server: what each instance and the engine did, drawn and kept."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pinstream.trace import VARIABLE
from pinstream_cli.benchmark import perf_analyzer, trace
from pinstream_cli.benchmark.inputs import random_item, write_json
from pinstream_cli.benchmark.install import find_perf_analyzer
from pinstream_cli.benchmark.perf_analyzer import Load
from pinstream_cli.benchmark.plots.timeline import timeline
from pinstream_cli.benchmark.served import TRANSPORTS
from pinstream_cli.benchmark.suites.serve import largest_output
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.benchmark.target import target


@dataclass(frozen=True)
class Recorded:
    """What a recording gave.

    Attributes:
        images_per_s: Throughput meanwhile.
        computing: Share of the time in which the engine computed, 0 to 1.
        files: The pictures, and the data in Chrome's trace event format.
    """

    images_per_s: float
    computing: float
    files: list[Path]


def record(setup: Setup, seconds: float, milliseconds: float, directory: Path) -> Recorded:
    """Load a server for some seconds, and draw some milliseconds of it.

    Args:
        setup: What to serve; its first batch size, concurrency and transport count.
        seconds: Of load.
        milliseconds: Of the picture.
        directory: Where the picture and its data go.

    Raises:
        CommandError: The model, the server or perf_analyzer is not fit, or the run failed.
    """
    tool = find_perf_analyzer(setup.notice)
    with tempfile.TemporaryDirectory(prefix="pinstream-bench-") as scratch:
        with _tracing(Path(scratch) / "trace"), target(setup.source, setup.console) as (server, model):
            item = random_item(model.spec, setup.shapes)
            transport = TRANSPORTS[setup.transports[0]]
            load = Load(
                model=model.name,
                batch=setup.batches[0],
                concurrency=setup.concurrencies[0],
                input_data=write_json(Path(scratch) / "input.json", [item]),
                protocol=transport.protocol,
                url=server.url(transport.protocol),
                shared_memory=transport.shared_memory,
                inputs=tuple(item),
                outputs=tuple(tensor.name for tensor in model.spec.outputs),
                output_bytes=largest_output(model),
            )
            sample = perf_analyzer.run(tool, load, seconds)
        # The models write their files when they are unloaded.
        events = trace.window(trace.read(Path(scratch) / "trace"), milliseconds)
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / "timeline.json"
    data.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
    found = trace.spans(events)
    title = f"{model.name} at concurrency {load.concurrency}: {sample.images_per_s:,.0f} images a second"
    pictures = timeline(found, milliseconds, title, directory)
    return Recorded(
        sample.images_per_s, trace.busy(trace.without_echoes(found), "compute", milliseconds), [data, *pictures]
    )


@contextmanager
def _tracing(directory: Path) -> Iterator[None]:
    """Servers that start meanwhile record what they do."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
