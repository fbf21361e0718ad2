"""Suite `sweep`: how throughput and latency grow with concurrency, with larger requests and with larger images."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.bare import bare_engine
from pinstream_cli.benchmark.batches import left_out
from pinstream_cli.benchmark.growth import BATCH, CONCURRENCY, Axis, growth
from pinstream_cli.benchmark.inputs import random_item
from pinstream_cli.benchmark.install import find_perf_analyzer
from pinstream_cli.benchmark.interleave import Interleaver, Measured
from pinstream_cli.benchmark.perf_analyzer import Load
from pinstream_cli.benchmark.report import Result, Row, row
from pinstream_cli.benchmark.sample import Subject
from pinstream_cli.benchmark.served import TRANSPORTS, Client, Served
from pinstream_cli.benchmark.suites.serve import describe
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.benchmark.target import ServedModel, Source, target
from pinstream_cli.errors import CommandError

# Images under way where requests or images grow: enough to keep the engine busy, whatever their size.
IMAGES_UNDER_WAY = 128


@dataclass(frozen=True)
class _Part:
    """A model's windows next to those of its own bare loop."""

    model: ServedModel
    bare: Measured
    measured: list[Measured]


def run(setup: Setup) -> Result:
    """Measure.

    Raises:
        CommandError: A model, the server or perf_analyzer is not fit, or a run failed.
    """
    tool = find_perf_analyzer(setup.notice)
    interleaver = Interleaver(setup.plan)
    versions: dict[str, str] = {}
    parts: list[_Part] = []
    for source in (setup.source, *(Source(path) for path in setup.also)):
        if interleaver.late:
            interleaver.notes.append(f"Time was up (--limit) before {source.model}. It is left out.")
            continue
        setup.closing.close()  # one server at a time
        batches = () if parts else setup.batches[:1]
        try:
            scratch = Path(setup.closing.enter_context(tempfile.TemporaryDirectory(prefix="pinstream-bench-")))
            server, model = setup.closing.enter_context(target(source, setup.console, batches=batches))
            versions = environment.versions(tritonserver=server.version(), perf_analyzer=tool.version)
            client = Client(tool, server, setup.keep, setup.plan.ends)
            first = parts[0].model if parts else model
            stretch = max(1.0, _item_bytes(model) / max(1, _item_bytes(first)))
            parts.append(_measure(setup, interleaver, client, model, scratch, whole=not parts, stretch=stretch))
            if stretch > 1:
                interleaver.notes.append(f"Windows of {source.model} are {stretch:.3g} times as long.")
        except CommandError as error:
            if not parts:
                raise
            interleaver.notes.append(f"{source.model} is left out: {error}")
    return _result(setup, parts, versions, interleaver.notes)


def _measure(
    setup: Setup,
    interleaver: Interleaver,
    client: Client,
    model: ServedModel,
    scratch: Path,
    *,
    whole: bool,
    stretch: float,
) -> _Part:
    item = random_item(model.spec, setup.shapes)
    load = Load.of(model.name, model.spec, item, scratch / "input.json")
    largest = model.spec.batch.largest if model.spec.batch else 1
    loops = bare_engine(model.file, model.options, model.spec, item, [1, largest], model.instances)
    loads = [replace(load, concurrency=concurrency) for concurrency in setup.concurrencies] if whole else []
    batches = [batch for batch in setup.batches if batch <= largest] if whole else [1]
    loads += [replace(load, batch=batch, concurrency=_under_way(setup, batch)) for batch in batches]
    transport = TRANSPORTS[setup.transports[0]]
    subjects: list[Subject] = [Served(client, transport, load) for load in dict.fromkeys(loads)]
    reference = interleaver.fastest(loops)
    bare, measured = interleaver.measure(reference, subjects, to_warm=subjects[-1:], stretch=stretch)
    return _Part(model, bare, measured)


def _under_way(setup: Setup, batch: int) -> int:
    """Requests under way where requests or images grow."""
    return max(2, min(IMAGES_UNDER_WAY, max(setup.concurrencies)) // batch)


def _result(setup: Setup, parts: Sequence[_Part], versions: dict[str, str], notes: Sequence[str]) -> Result:
    rows: list[Row] = []
    samples: list[Measured] = []
    first, names = parts[0], [_named(part.model) for part in parts]
    sides: list[tuple[int, int]] = []
    for part, name in zip(parts, names, strict=True):
        rows.append(replace(row(part.bare), name=f"{part.bare.subject.name}{name}"))
        samples.append(part.bare)
        for one in part.measured:
            if one.subject.batch == 1 and (side := _side(part.model)):
                sides.append((side, len(rows)))
            rows.append(replace(row(one), name=f"{one.subject.name}{name}"))
            samples.append(one)
    of_first = range(1, 1 + len(first.measured))
    by_concurrency = sorted((i for i in of_first if rows[i].batch == 1), key=lambda i: rows[i].concurrency)
    # Where both were asked for with the same load, a row belongs to both.
    loads = {(batch, _under_way(setup, batch)) for batch in setup.batches}
    by_batch = [i for i in of_first if (rows[i].batch, rows[i].concurrency) in loads]
    at_most = {side: max((i for s, i in sides if s == side), key=lambda i: rows[i].images_per_s) for side, _ in sides}
    concurrencies, batches = [rows[i].concurrency for i in by_concurrency], [rows[i].batch for i in by_batch]
    axes = [
        Axis("Concurrency", tuple(concurrencies), tuple(by_concurrency)),
        Axis("Images a request", tuple(batches), tuple(by_batch)),
        Axis("Image side", tuple(sorted(at_most)), tuple(at_most[side] for side in sorted(at_most))),
    ]
    requests = growth([rows[i] for i in by_concurrency], concurrencies)
    larger = growth([rows[i] for i in by_batch], batches)
    largest = first.model.spec.batch.largest if first.model.spec.batch else 0
    return Result(
        suite="sweep",
        reference="each model's bare loop at its best batch",
        rows=rows,
        samples=samples,
        versions=versions,
        notes=[
            *(describe(part.model) for part in parts),
            *setup.source.notes,
            *requests.sentences(CONCURRENCY),
            *larger.sentences(BATCH),
            *left_out(setup.batches, largest, first.model.name),
            *notes,
        ],
        extra={
            "axes": [axis.as_json() for axis in axes if axis.rows],
            "growth": {"concurrency": requests.as_json(), "images_a_request": larger.as_json()},
        },
    )


def _item_bytes(model: ServedModel) -> int:
    return sum(tensor.item_bytes for tensor in model.spec.inputs)


def _side(model: ServedModel) -> int:
    shape = model.spec.inputs[0].shape
    return shape[0] if len(shape) == 3 and shape[-1] == 3 else 0


def _named(model: ServedModel) -> str:
    side = _side(model)
    return f", {side} x {model.spec.inputs[0].shape[1]}" if side else ""
