"""Suite `ensemble`: encoded images in, boxes out, against its steps alone in bare loops."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pinstream.tensors import Array
from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.bare import EngineLoop, bare_engine, open_session
from pinstream_cli.benchmark.inputs import encoded_image, write_json
from pinstream_cli.benchmark.install import find_perf_analyzer
from pinstream_cli.benchmark.interleave import Interleaver
from pinstream_cli.benchmark.perf_analyzer import Load
from pinstream_cli.benchmark.report import Result, row
from pinstream_cli.benchmark.sample import Measured, Subject
from pinstream_cli.benchmark.served import TRANSPORTS, Client, Served
from pinstream_cli.benchmark.steps import StepLoop, SumOfSteps, postprocess, preprocess, worker_pool
from pinstream_cli.benchmark.suites.serve import describe
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.benchmark.target import ServedModel, target
from pinstream_cli.errors import CommandError
from pinstream_cli.triton.assemble import service_repository

ENSEMBLE = "yolox"
CANDIDATES = "candidates"
# perf_analyzer asks for every output of a model. This one is there for clients that start up, and costs a step more.
NOT_MEASURED = "class_names"
BOXES_ONLY = "yolox_boxes"
OUTPUTS = ("num_dets", "det_boxes", "det_scores", "det_classes")
# det_boxes of the most detections there can be, FP32 [3840, 4].
OUTPUT_BYTES = 3840 * 16


def run(setup: Setup) -> Result:
    """Measure.

    Raises:
        CommandError: The model, an image, the server or perf_analyzer is not fit, or a run failed.
    """
    files = _read(setup.images)
    tool = find_perf_analyzer(setup.notice)
    ours = setup.source.url is None
    scratch = Path(setup.closing.enter_context(tempfile.TemporaryDirectory(prefix="pinstream-bench-")))
    extra = [_boxes_only(scratch / "models")] if ours else []
    server, model = setup.closing.enter_context(
        target(setup.source, setup.console, extra, batches=setup.batches, ends=setup.plan.ends, tensors=False)
    )
    client = Client(tool, server, setup.keep, setup.plan.ends)
    versions = environment.versions(tritonserver=server.version(), perf_analyzer=tool.version)
    interleaver = Interleaver(setup.plan)
    steps = _bare_steps(setup, model, files, interleaver)
    reference = SumOfSteps(steps, shared=model.file.suffix == ".onnx")
    load = _load(BOXES_ONLY if ours else ENSEMBLE, files, scratch / "input.json")
    bare, measured = interleaver.measure(reference, _served(setup, client, load))
    everything = [bare, *(_part(bare, step) for step in steps), *measured]
    notes = [describe(model), _describe_images(setup.images, files), _describe_ensemble(ours), *setup.source.notes]
    return Result(
        suite="ensemble",
        reference=f"the {reference.name} on {_cores()} cores",
        rows=[row(one) for one in everything],
        samples=everything,
        versions=versions,
        notes=[*notes, *interleaver.notes],
        interrupted=interleaver.interrupted,
    )


def _bare_steps(setup: Setup, model: ServedModel, files: Sequence[bytes], interleaver: Interleaver) -> list[Subject]:
    """The three steps, each as a loop of its own with all cores."""
    cores, size = _cores(), _input_size(model)
    pool = setup.closing.enter_context(worker_pool(cores))
    letterboxed = [preprocess(files, size)(index) for index in range(len(files))]
    detectors = _detectors(setup, model, letterboxed[0])
    return [
        StepLoop("preprocess alone", preprocess, files, size, pool, cores),
        _Renamed(interleaver.fastest(detectors), "detector alone"),
        StepLoop("postprocess alone", postprocess, _candidates(model, letterboxed, detectors[0]), size, pool, cores),
    ]


def _load(name: str, files: Sequence[bytes], file: Path) -> Load:
    """Encoded images, written to `file`, in turn: of a single one, and one request at a time."""
    return Load(
        model=name,
        batch=1,
        concurrency=1,
        input_data=write_json(file, [encoded_image(image) for image in files]),
        inputs=("image",),
        outputs=OUTPUTS,
        output_bytes=OUTPUT_BYTES,
    )


def _served(setup: Setup, client: Client, load: Load) -> list[Subject]:
    return [
        Served(client, TRANSPORTS[transport], replace(load, batch=batch, concurrency=concurrency))
        for transport in setup.transports
        for batch in setup.batches
        for concurrency in setup.concurrencies
    ]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class _Renamed:
    """A loop under the name of its step."""

    def __init__(self, loop: Subject, name: str) -> None:
        self.name = name
        self.batch = loop.batch
        self.concurrency = loop.concurrency
        self.measure = loop.measure


def _part(whole: Measured, step: Subject) -> Measured:
    """A step's own windows, out of those of the sum of steps."""
    samples = [sample.parts[step.name] for sample in whole.samples]
    ratios = [part.images_per_s / sample.images_per_s for part, sample in zip(samples, whole.samples, strict=True)]
    return Measured(step, samples, ratios)


def _read(images: Sequence[Path]) -> list[bytes]:
    if not images:
        raise CommandError("the ensemble takes encoded images; name one with --image, several times for several")
    try:
        return [image.read_bytes() for image in images]
    except OSError as error:
        raise CommandError(f"--image {error.filename}: {error.strerror}") from None


def _input_size(model: ServedModel) -> tuple[int, int]:
    shape = model.spec.inputs[0].shape
    if [tensor.name for tensor in model.spec.inputs] != ["images"] or len(shape) != 3:
        raise CommandError(f"{model.name} is no YOLOX detector made by `pinstream build`: it takes {model.spec.inputs}")
    return shape[0], shape[1]


def _detectors(setup: Setup, model: ServedModel, image: Array) -> Sequence[Subject]:
    """The detector's bare loops, smallest batch first: those asked for, and for plans all there are."""
    sizes = model.spec.batch.buckets if model.spec.batch and not model.spec.batch.exact else setup.batches
    return bare_engine(model.file, model.options, model.spec, {"images": image}, list(sizes), model.instances)


def _candidates(model: ServedModel, letterboxed: Sequence[Array], detector: Subject) -> list[Array]:
    """What the detector says to each image, [K, 6]: the input of the postprocessing loop."""
    if isinstance(detector, EngineLoop):
        batches = [np.stack([image] * detector.batch) for image in letterboxed]
        return [detector.answer({"images": images})[CANDIDATES][0] for images in batches]
    session = open_session(model.file, model.options.threads)
    return [session.run(None, {"images": image[None]})[0][0] for image in letterboxed]


def _boxes_only(repository: Path) -> Path:
    """A repository with the service's ensemble less the output that perf_analyzer should not ask for."""
    text = (service_repository() / ENSEMBLE / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig(name=BOXES_ONLY))
    outputs = [output for output in config.output if output.name != NOT_MEASURED]
    del config.output[:]
    config.output.extend(outputs)
    steps = [step for step in config.ensemble_scheduling.step if NOT_MEASURED not in step.output_map.values()]
    used = {name for step in steps for name in step.input_map.values()} | {output.name for output in outputs}
    for step in steps:
        for key in [key for key, name in step.output_map.items() if name not in used]:
            del step.output_map[key]
    del config.ensemble_scheduling.step[:]
    config.ensemble_scheduling.step.extend(steps)
    (repository / BOXES_ONLY / "1").mkdir(parents=True)
    (repository / BOXES_ONLY / "config.pbtxt").write_text(text_format.MessageToString(config))
    return repository


def _describe_images(paths: Sequence[Path], files: Sequence[bytes]) -> str:
    return "Images: " + ", ".join(f"{p.name} ({len(f) / 1000:.0f} kB)" for p, f in zip(paths, files, strict=True)) + "."


def _describe_ensemble(ours: bool) -> str:
    if ours:
        return f"The ensemble is served without its output {NOT_MEASURED}: perf_analyzer would ask for it every time."
    return f"perf_analyzer asks for every output of {ENSEMBLE}, {NOT_MEASURED} too, which costs a step more."
