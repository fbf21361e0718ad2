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
from pinstream_cli.benchmark.interleave import Interleaver
from pinstream_cli.benchmark.perf_analyzer import Load
from pinstream_cli.benchmark.report import Result, Row, row
from pinstream_cli.benchmark.sample import Measured, Subject
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
        name = environment.without_directories(str(source.model))
        # Before the first, `target` and the interleaver say that there is no time.
        if parts and interleaver.late:
            interleaver.notes.append(f"{interleaver.why_late} before {name}. It is left out.")
            continue
        batches = () if parts else setup.batches[:1]
        try:
            setup.closing.close()  # one server at a time
            scratch = Path(setup.closing.enter_context(tempfile.TemporaryDirectory(prefix="pinstream-bench-")))
            server, model = setup.closing.enter_context(
                target(source, setup.console, batches=batches, ends=setup.plan.ends)
            )
            versions = environment.versions(tritonserver=server.version(), perf_analyzer=tool.version)
            client = Client(tool, server, setup.keep, setup.plan.ends)
            first = parts[0].model if parts else model
            stretch = max(1.0, _item_bytes(model) / max(1, _item_bytes(first)))
            parts.append(_measure(setup, interleaver, client, model, scratch, whole=not parts, stretch=stretch))
            if stretch > 1:
                interleaver.notes.append(f"Windows of {name} are {stretch:.3g} times as long.")
        except CommandError as error:
            if not parts:
                raise
            interleaver.notes.append(f"{name} is left out: {str(error).replace(str(source.model), name)}")
        except KeyboardInterrupt:
            if not parts:
                raise
            interleaver.interrupted = True
            interleaver.notes.append(f"{interleaver.why_late} before {name} was measured. It is left out.")
    return replace(_result(setup, parts, versions, interleaver.notes), interrupted=interleaver.interrupted)


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
    loads = [replace(load, concurrency=concurrency) for concurrency in setup.concurrencies]
    batches = [batch for batch in setup.batches if batch <= largest] if whole else []
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
    first = parts[0].model
    samples = [one for part in parts for one in (part.bare, *part.measured)]
    rows = [
        replace(row(one), name=f"{one.subject.name}{_named(part.model)}")
        for part in parts
        for one in (part.bare, *part.measured)
    ]
    by_concurrency, *of_other_sizes = [_by_concurrency(own, rows) for own in _rows_of(parts)]
    by_batch = _by_batch(setup, len(parts[0].measured), rows)
    requests, larger, *others = (
        growth([rows[i] for i in axis.rows], axis.values) for axis in (by_concurrency, by_batch, *of_other_sizes)
    )
    of_others = [
        (f"{part.model.name}{_named(part.model)}", grown) for part, grown in zip(parts[1:], others, strict=True)
    ]
    axes = [by_concurrency, by_batch, _side_axis(parts, rows)]
    largest = first.spec.batch.largest if first.spec.batch else 0
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
            *(f"{name}: {said}" for name, grown in of_others for said in grown.sentences(CONCURRENCY)),
            *left_out(setup.batches, largest, first.name),
            *notes,
        ],
        extra={
            "axes": [axis.as_json() for axis in axes if axis.rows],
            "growth": {
                "concurrency": requests.as_json(),
                "images_a_request": larger.as_json(),
                "concurrency_of_other_sizes": {name: grown.as_json() for name, grown in of_others},
            },
        },
    )


def _rows_of(parts: Sequence[_Part]) -> list[range]:
    """The numbers of each model's rows in the result, of which the first is its bare loop's."""
    found, number = [], 0
    for part in parts:
        found.append(range(number + 1, number + 1 + len(part.measured)))
        number += 1 + len(part.measured)
    return found


def _by_concurrency(own: range, rows: Sequence[Row]) -> Axis:
    """A model's rows of single images by requests under way."""
    singles = sorted((i for i in own if rows[i].batch == 1), key=lambda i: rows[i].concurrency)
    return Axis("Concurrency", tuple(rows[i].concurrency for i in singles), tuple(singles))


def _by_batch(setup: Setup, measured: int, rows: Sequence[Row]) -> Axis:
    """The first model's rows by images of a request."""
    # Where both were asked for with the same load, a row belongs to both axes.
    loads = {(batch, _under_way(setup, batch)) for batch in setup.batches}
    larger = [i for i in range(1, 1 + measured) if (rows[i].batch, rows[i].concurrency) in loads]
    return Axis("Images a request", tuple(rows[i].batch for i in larger), tuple(larger))


def _side_axis(parts: Sequence[_Part], rows: Sequence[Row]) -> Axis:
    """The best row of single images of each image size."""
    of_sides: dict[int, list[int]] = {}
    for part, own in zip(parts, _rows_of(parts), strict=True):
        if side := _side(part.model):
            of_sides.setdefault(side, []).extend(i for i in own if rows[i].batch == 1)
    best = {
        side: max(of_side, key=lambda i: rows[i].images_per_s) for side, of_side in sorted(of_sides.items()) if of_side
    }
    return Axis("Image side", tuple(best), tuple(best.values()))


def _item_bytes(model: ServedModel) -> int:
    return sum(tensor.item_bytes for tensor in model.spec.inputs)


def _side(model: ServedModel) -> int:
    shape = model.spec.inputs[0].shape
    return shape[0] if len(shape) == 3 and shape[-1] == 3 else 0


def _named(model: ServedModel) -> str:
    side = _side(model)
    return f", {side} x {model.spec.inputs[0].shape[1]}" if side else ""
