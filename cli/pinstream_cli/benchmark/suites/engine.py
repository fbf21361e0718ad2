"""Suite `engine`: pinstream's engine in a loop, without Triton, against the runtime's own session in a loop."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pinstream.engines import find_model_file, inspect, open_engine
from pinstream.errors import PinstreamError
from pinstream.options import Options
from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.bare import EngineLoop, bare_engine, runnable
from pinstream_cli.benchmark.inputs import batch_of, random_item
from pinstream_cli.benchmark.interleave import Interleaver
from pinstream_cli.benchmark.report import Result, row
from pinstream_cli.benchmark.sample import Subject
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.benchmark.target import ServedModel, locate
from pinstream_cli.errors import CommandError

from .serve import describe


def run(setup: Setup) -> Result:
    """Measure.

    Raises:
        CommandError: The model is not one that an engine here can run.
    """
    with tempfile.TemporaryDirectory(prefix="pinstream-bench-") as scratch:
        model_dir, name = locate(setup.source, Path(scratch))
        model = model_by_default(model_dir, name, max(setup.batches))
        item = random_item(model.spec, setup.shapes)
        interleaver = Interleaver(setup.plan)
        loops = bare_engine(model.file, model.options, model.spec, item, list(setup.batches), 1)
        reference = interleaver.fastest(loops)
        subjects: list[Subject] = [loop for loop in loops if loop is not reference]
        lone: Subject = loops[0].one_at_a_time()
        if model.file.suffix == ".onnx":
            engine = open_engine(model.file, model.options)
            sizes = sorted({runnable(batch, model.spec) for batch in setup.batches})
            ours = [EngineLoop(engine, batch_of(item, batch, model.spec), batch) for batch in sizes]
            subjects += [*ours, ours[0].one_at_a_time()]
        bare, measured = interleaver.measure(reference, [*subjects, lone])
        return Result(
            suite="engine",
            reference=f"the {reference.name} at batch {reference.batch}, its best",
            rows=[row(one) for one in (bare, *measured)],
            samples=[bare, *measured],
            versions=environment.versions(),
            notes=[describe(model), *interleaver.notes],
            interrupted=interleaver.interrupted,
        )


def model_by_default(model_dir: Path, name: str, largest: int) -> ServedModel:
    """A model with the settings that the backend takes by default.

    Raises:
        CommandError: It is not one that an engine here can run.
    """
    try:
        options = Options.from_model_config({"max_batch_size": largest})
        file = find_model_file(model_dir, options)
        return ServedModel(file, name, options, 1, inspect(file, options))
    except PinstreamError as error:
        raise CommandError(str(error)) from error
