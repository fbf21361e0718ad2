"""A timeline of a server under load: what each instance and the engine did, drawn and kept."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pinstream.trace import VARIABLE
from pinstream_cli.benchmark import environment, trace
from pinstream_cli.benchmark.inputs import random_item
from pinstream_cli.benchmark.install import find_perf_analyzer
from pinstream_cli.benchmark.perf_analyzer import Load
from pinstream_cli.benchmark.plots.timeline import timeline
from pinstream_cli.benchmark.served import TRANSPORTS, Client, Served
from pinstream_cli.benchmark.suites.serve import describe
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.benchmark.target import target
from pinstream_cli.errors import CommandError


@dataclass(frozen=True)
class Recorded:
    """What a recording gave.

    Attributes:
        images_per_s: Throughput meanwhile.
        computing: Share of the time in which each engine computed, 0 to 1.
        files: The pictures, and the data in Chrome's trace event format.
    """

    images_per_s: float
    computing: list[float]
    files: list[Path]


def record(
    setup: Setup, rate: float, seconds: float, settle_s: float, zoom_ms: float, directory: Path, command: str
) -> Recorded:
    """Load a server, keep and draw what it did for some seconds, and draw some milliseconds of that large.

    Args:
        setup: What to serve; its first batch size, concurrency and transport count.
        rate: Requests a second at random times, instead of that concurrency; 0 for none.
        seconds: That are kept and drawn.
        settle_s: Seconds of load before these, and after: it takes a while until all requests are under way, and until
            Triton's shared memory, which is page-locked anew as it grows, is as large as it gets.
        zoom_ms: Milliseconds that are drawn large.
        directory: Where the picture and its data go.
        command: That asked for it.

    Raises:
        CommandError: The model, the server or perf_analyzer is not fit, or the run failed.
    """
    tool = find_perf_analyzer(setup.notice)
    with tempfile.TemporaryDirectory(prefix="pinstream-bench-") as scratch:
        served_by = target(setup.source, setup.console, batches=setup.batches)
        with _tracing(Path(scratch) / "trace"), served_by as (server, model):
            item = random_item(model.spec, setup.shapes)
            load = replace(
                Load.of(model.name, model.spec, item, Path(scratch) / "input.json"),
                batch=setup.batches[0],
                concurrency=setup.concurrencies[0],
                rate=rate,
            )
            # Once: of two runs there would be a pause in the middle.
            client = Client(tool, server, ends=time.monotonic())
            versions = environment.versions(tritonserver=server.version(), perf_analyzer=tool.version)
            began = time.perf_counter()
            sample = Served(client, TRANSPORTS[setup.transports[0]], load).measure(seconds + 2 * settle_s)
        # The models write their files when they are unloaded.
        events = trace.window(trace.read(Path(scratch) / "trace"), began, seconds)
    found = trace.spans(events)
    computing = trace.computing(found, seconds * trace.MS_PER_S)
    origin = {**environment.origin(command), "versions": versions, "model": describe(model)}
    measured = {
        "images_per_s": sample.images_per_s,
        "seconds": seconds,
        "computing": [round(share, 4) for share in computing],
    }
    data = directory / "timeline.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        about = {**origin, **measured}
        data.write_text(json.dumps({"otherData": about, "displayTimeUnit": "ms", "traceEvents": events}))
        sent = f"{rate:,.0f} requests a second at random times" if rate else f"concurrency {load.concurrency}"
        title = f"{model.name} at {sent}: {sample.images_per_s:,.0f} images a second"
        pictures = timeline(found, seconds * trace.MS_PER_S, zoom_ms, title, directory)
    except OSError as error:
        raise CommandError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
    return Recorded(sample.images_per_s, computing, [data, *pictures])


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
