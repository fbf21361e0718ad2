"""Suite `serve`: a model through Triton, over each transport, against its bare loop."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.bare import bare_engine
from pinstream_cli.benchmark.inputs import random_item
from pinstream_cli.benchmark.install import find_perf_analyzer
from pinstream_cli.benchmark.interleave import Interleaver
from pinstream_cli.benchmark.perf_analyzer import Load
from pinstream_cli.benchmark.report import Result, row
from pinstream_cli.benchmark.sample import Subject
from pinstream_cli.benchmark.served import TRANSPORTS, Client, Served
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.benchmark.target import ServedModel, target


def run(setup: Setup) -> Result:
    """Measure.

    Raises:
        CommandError: The model, the server or perf_analyzer is not fit, or a run failed.
    """
    tool = find_perf_analyzer(setup.notice)
    scratch = setup.closing.enter_context(tempfile.TemporaryDirectory(prefix="pinstream-bench-"))
    server, model = setup.closing.enter_context(
        target(setup.source, setup.console, batches=setup.batches, ends=setup.plan.ends)
    )
    item = random_item(model.spec, setup.shapes)
    client = Client(tool, server, setup.keep, setup.plan.ends)
    versions = environment.versions(tritonserver=server.version(), perf_analyzer=tool.version)
    interleaver = Interleaver(setup.plan)
    loops = bare_engine(model.file, model.options, model.spec, item, list(setup.batches), model.instances)
    reference = interleaver.fastest(loops)
    load = Load.of(model.name, model.spec, item, Path(scratch) / "input.json")
    served: list[Subject] = [
        Served(client, TRANSPORTS[transport], replace(load, batch=batch, concurrency=concurrency))
        for transport in setup.transports
        for batch in _batches(setup, model)
        for concurrency in setup.concurrencies
    ]
    others = [loop for loop in loops if loop is not reference]
    bare, measured = interleaver.measure(reference, [*others, *served])
    return Result(
        suite="serve",
        reference=f"the {reference.name} at batch {reference.batch}, its best",
        rows=[row(one) for one in (bare, *measured)],
        samples=[bare, *measured],
        versions=versions,
        notes=[describe(model), *setup.source.notes, *interleaver.notes],
        interrupted=interleaver.interrupted,
    )


def _batches(setup: Setup, model: ServedModel) -> list[int]:
    return [1] if model.spec.batch is None else list(setup.batches)


def describe(model: ServedModel) -> str:
    """The model and the settings it was served with."""
    options = model.options
    settings = f"LANES {options.lanes}, THREADS {options.threads}" if model.file.suffix == ".onnx" else ""
    settings = f"EXECUTIONS {options.executions}" if options.executions > 1 else settings
    settings += f"{', ' * bool(settings)}BY_REFERENCE {';'.join(options.by_reference)}" if options.by_reference else ""
    inputs, outputs = (", ".join(map(str, tensors)) for tensors in (model.spec.inputs, model.spec.outputs))
    return f"{model.name}: {inputs} -> {outputs}; instances {model.instances}{', ' * bool(settings)}{settings}."
