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
from typing import Any

from pinstream.trace import VARIABLE
from pinstream_cli.benchmark import environment, trace
from pinstream_cli.benchmark.inputs import random_item
from pinstream_cli.benchmark.install import find_perf_analyzer
from pinstream_cli.benchmark.perf_analyzer import Load
from pinstream_cli.benchmark.plots.rows import names_of
from pinstream_cli.benchmark.plots.timeline import timeline
from pinstream_cli.benchmark.served import TRANSPORTS, Client, Served
from pinstream_cli.benchmark.suites.serve import describe
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.benchmark.target import ServedModel, target
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
    loaded = _load(setup, rate, seconds, settle_s)
    found = trace.spans(loaded.events)
    computing = trace.computing(found, seconds * trace.MS_PER_S)
    origin = environment.origin(command)
    about = {
        **origin,
        "versions": loaded.versions,
        "model": describe(loaded.model),
        "images_per_s": loaded.images_per_s,
        "seconds": seconds,
        "computing": [round(share, 4) for share in computing],
    }
    sent = f"{rate:,.0f} requests a second at random times" if rate else f"concurrency {setup.concurrencies[0]}"
    title = f"{loaded.model.name} at {sent}: {loaded.images_per_s:,.0f} images a second"
    data = directory / "timeline.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps({"otherData": about, "displayTimeUnit": "ms", "traceEvents": loaded.events}))
        pictures = timeline(found, seconds * trace.MS_PER_S, zoom_ms, title, names_of(origin), directory)
    except OSError as error:
        raise CommandError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
    return Recorded(loaded.images_per_s, computing, [data, *pictures])


@dataclass(frozen=True)
class _Loaded:
    """What a server did under load: events of the seconds asked for, and which model and versions it was."""

    events: list[dict[str, Any]]
    images_per_s: float
    model: ServedModel
    versions: dict[str, str]


def _load(setup: Setup, rate: float, seconds: float, settle_s: float) -> _Loaded:
    tool = find_perf_analyzer(setup.notice)
    with tempfile.TemporaryDirectory(prefix="pinstream-bench-") as scratch:
        served_by = target(setup.source, setup.console, batches=setup.batches)
        with _tracing(Path(scratch) / "trace"), served_by as (server, model):
            item = random_item(model.spec, setup.shapes)
            load = Load.of(model.name, model.spec, item, Path(scratch) / "input.json")
            load = replace(load, batch=setup.batches[0], concurrency=setup.concurrencies[0], rate=rate)
            # Once: of two runs there would be a pause in the middle.
            client = Client(tool, server, ends=time.monotonic())
            versions = environment.versions(tritonserver=server.version(), perf_analyzer=tool.version)
            began = time.perf_counter()
            sample = Served(client, TRANSPORTS[setup.transports[0]], load).measure(seconds + 2 * settle_s)
        # The models write their files when they are unloaded.
        events = trace.window(trace.read(Path(scratch) / "trace"), began, seconds)
    return _Loaded(events, sample.images_per_s, model, versions)


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
