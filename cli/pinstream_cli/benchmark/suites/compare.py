"""Suite `compare`: pinstream, its peers and the bare engine, all in one run and in one tritonserver."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from pinstream import sidecar
from pinstream_cli.benchmark import environment, peers
from pinstream_cli.benchmark.bare import BareLoop, bare_engine
from pinstream_cli.benchmark.batches import left_out
from pinstream_cli.benchmark.inputs import random_item
from pinstream_cli.benchmark.install import find_perf_analyzer
from pinstream_cli.benchmark.interleave import Interleaver, Plan
from pinstream_cli.benchmark.perf_analyzer import Load
from pinstream_cli.benchmark.report import Result, row
from pinstream_cli.benchmark.sample import Measured, Subject
from pinstream_cli.benchmark.served import TRANSPORTS, Client, Served
from pinstream_cli.benchmark.suites.engine import model_by_default
from pinstream_cli.benchmark.suites.serve import describe
from pinstream_cli.benchmark.suites.setup import Setup
from pinstream_cli.benchmark.target import ServedModel, Target, locate, target
from pinstream_cli.errors import CommandError

OURS = "pinstream"
# PyTorch's compiler takes its time.
STARTUP_TIMEOUT_S = 400.0
# A peer that cannot be loaded here does not keep the others from being measured.
GO_ON = ("--exit-on-error=false",)
# Which share of what a model can do at most is sent to it at random times, and what does nothing is not asked.
POISSON_LOAD = 0.7
NO_WORK = "empty"
# The share of the time that this gets where time is limited.
POISSON_TIME = 0.35
# Its windows are longer: in short ones perf_analyzer sends fewer requests than it was asked for, and too few for a p99.
POISSON_WINDOW_S, POISSON_STRETCH = 5.0, 8.0
# Fewer than this share of the requests asked for are worth a word.
KEPT_UP = 0.97


@dataclass(frozen=True)
class _Contender:
    """A model on the server, its name in the table, and what is sent to it."""

    name: str
    load: Load
    largest_batch: int

    def subjects(self, client: Client, setup: Setup, batches: Sequence[int]) -> list[Served]:
        return [
            self.served(client, setup, replace(self.load, batch=batch, concurrency=concurrency))
            for batch in batches
            if batch <= max(1, self.largest_batch)
            for concurrency in setup.concurrencies
        ]

    def served(self, client: Client, setup: Setup, load: Load) -> Served:
        return Served(client, TRANSPORTS[setup.transports[0]], load, self.name)


@dataclass(frozen=True)
class _Started:
    """The server with everything that is compared.

    Attributes:
        server: The server.
        model: Ours, which the bare loops run, too.
        contenders: Ours first.
        missing: Why a peer did not load, by name.
    """

    server: Target
    model: ServedModel
    contenders: list[_Contender]
    missing: dict[str, str]


def run(setup: Setup) -> Result:
    """Measure.

    Raises:
        CommandError: The model, a peer, the server or perf_analyzer is not fit, or a run failed.
    """
    tool = find_perf_analyzer(setup.notice)
    started = _start(setup)
    client = Client(tool, started.server, setup.keep, setup.plan.ends)
    versions = environment.versions(tritonserver=started.server.version(), perf_analyzer=tool.version)
    interleaver = Interleaver(setup.plan.sooner(POISSON_TIME * setup.poisson))
    loops = _bare_loops(started.model, setup)
    reference = interleaver.fastest(loops)
    rest: list[Subject] = [loop for loop in loops if loop is not reference]
    if 1 in setup.concurrencies:
        rest.append(loops[0].one_at_a_time())
    subjects = _subjects(started.contenders, client, setup)
    warm = [s for s in subjects if s.concurrency == max(setup.concurrencies)]
    bare, measured = interleaver.measure(reference, [*rest, *subjects], to_warm=[*rest, *warm])
    if setup.poisson and not interleaver.interrupted:
        poisson = _poisson_subjects(measured, started.contenders, client, setup)
        at_random = Interleaver(_longer(setup.plan))
        more_bare, more = measure_poisson(at_random, reference, poisson)
        bare = Measured(reference, bare.samples + more_bare.samples, bare.ratios + more_bare.ratios)
        measured += more
        interleaver.notes += [*_lengths(more), *at_random.notes]
        interleaver.interrupted = at_random.interrupted
    return Result(
        suite="compare",
        reference=f"the {reference.name} at batch {reference.batch}, its best",
        rows=[row(one) for one in (bare, *measured)],
        samples=[bare, *measured],
        versions=versions,
        notes=[*_notes(started, measured, setup), *interleaver.notes],
        interrupted=interleaver.interrupted,
    )


def _start(setup: Setup) -> _Started:
    """Start the server with the model and the peers in it; it ends with setup.closing."""
    scratch = Path(setup.closing.enter_context(tempfile.TemporaryDirectory(prefix="pinstream-bench-")))
    source = setup.source
    model_dir, name = locate(source, scratch)
    if (model_dir / sidecar.FILE_NAME).is_file() and source.repository is None:
        source = replace(source, model=model_dir)  # a YOLOX export is built once
    known = model_by_default(model_dir, name, max(setup.batches))
    names = list(setup.peers or peers.ALWAYS[known.file.suffix])
    placed = peers.place(names, scratch / "peers", known.file, known.spec)
    server, model = setup.closing.enter_context(
        target(source, setup.console, [scratch / "peers"], STARTUP_TIMEOUT_S, GO_ON, setup.batches[:1], setup.plan.ends)
    )
    missing = {peer: why for peer in placed if (why := server.failure(peer))}
    on_server = [(model.name, OURS), *((peer, peer) for peer in placed if peer not in missing)]
    contenders = [_contender(server, name, label, setup, scratch) for name, label in on_server]
    return _Started(server, model, contenders, missing)


def _bare_loops(model: ServedModel, setup: Setup) -> Sequence[BareLoop]:
    """One for each batch size of a plan; of an ONNX file, for the smallest and the largest."""
    item = random_item(model.spec, setup.shapes)
    batch = model.spec.batch
    sizes = [1] if batch is None else [1, batch.largest] if batch.exact else list(batch.buckets)
    return bare_engine(model.file, model.options, model.spec, item, sizes, model.instances)


def _subjects(contenders: Sequence[_Contender], client: Client, setup: Setup) -> list[Served]:
    """Ours gets requests of every size asked for, the peers those of the smallest."""
    ours, *others = contenders
    of_others = [other.subjects(client, setup, [min(setup.batches)]) for other in others]
    return [*ours.subjects(client, setup, setup.batches), *chain.from_iterable(of_others)]


def _notes(started: _Started, measured: Sequence[Measured], setup: Setup) -> list[str]:
    return [
        describe(started.model),
        *setup.source.notes,
        *_compare(measured, min(setup.batches)),
        *left_out(setup.batches, started.contenders[0].largest_batch, started.model.name),
        *(f"{peer} did not load and is left out: {why}" for peer, why in started.missing.items()),
    ]


def _contender(server: Target, model: str, label: str, setup: Setup, scratch: Path) -> _Contender:
    config = server.config(model)
    spec = peers.spec_of(config)
    item = random_item(spec, setup.shapes)
    load = Load.of(model, spec, item, scratch / f"{model}.json")
    return _Contender(label, load, int(config.get("max_batch_size", 0)))


def _longer(plan: Plan) -> Plan:
    """The plan for requests at random times."""
    window_s = max(plan.window_s, min(POISSON_WINDOW_S, POISSON_STRETCH * plan.window_s))
    return replace(plan, window_s=window_s, reference_s=plan.reference_s or plan.window_s)


def _lengths(poisson: Sequence[Measured]) -> list[str]:
    """What is said of windows that are longer than the plan's, and longer still where too little came in them."""
    lengths = sorted({round(sample.seconds, 1) for one in poisson for sample in one.samples})
    said = " to ".join(f"{length:g}" for length in dict.fromkeys((lengths[0], lengths[-1]))) if lengths else ""
    return [f"Windows of requests at random times are of {said} s."] if said else []


def measure_poisson(
    interleaver: Interleaver, reference: Subject, subjects: Sequence[Subject]
) -> tuple[Measured, list[Measured]]:
    """Windows of requests at random times; only a note where there is none, since there are others."""
    try:
        return interleaver.measure(reference, subjects, to_warm=())
    except CommandError as error:
        interleaver.notes = [f"Nothing was measured at random times: {error}"]
    except KeyboardInterrupt:
        interleaver.interrupted = True
        interleaver.notes = [f"{interleaver.why_late} before anything was measured at random times."]
    return Measured(reference), []


def _poisson_subjects(
    measured: Sequence[Measured], contenders: Sequence[_Contender], client: Client, setup: Setup
) -> list[Served]:
    """Each at its share of what it can do, and ours also at what each of the others gets."""
    best = _best(measured, min(setup.batches))
    ours = contenders[0]
    subjects = []
    for contender in contenders:
        if contender.name == NO_WORK or contender.name not in best:
            continue
        load = replace(contender.load, batch=min(setup.batches), rate=POISSON_LOAD * best[contender.name])
        subjects.append(contender.served(client, setup, load))
        if contender is not ours and best[contender.name] < best.get(OURS, 0.0):
            subjects.append(ours.served(client, setup, replace(ours.load, batch=load.batch, rate=load.rate)))
    return subjects


def _best(measured: Sequence[Measured], batch: int) -> dict[str, float]:
    """Requests a second of each subject's best concurrency, at one batch size."""
    best: dict[str, float] = {}
    for one in measured:
        subject = one.subject
        if subject.batch == batch and isinstance(subject, Served) and not subject.rate:
            rate = row(one).images_per_s / batch
            best[subject.name] = max(best.get(subject.name, 0.0), rate)
    return best


def _compare(measured: Sequence[Measured], batch: int) -> list[str]:
    """What the rows say, in sentences."""
    best = _best(measured, batch)
    said = [
        f"Best throughput of {OURS}: {best[OURS] / rate:.2f} times that of {name}."
        for name, rate in best.items()
        if OURS in best and name not in (OURS, NO_WORK)
    ]
    rows = {(m.subject.name, getattr(m.subject, "rate", 0.0)): row(m) for m in measured}
    for (name, rate), one in rows.items():
        if rate and one.images_per_s / batch < KEPT_UP * rate:
            said.append(
                f"Of {rate:.0f} requests/s at random times {name} got {one.images_per_s / batch:.0f} answered: "
                "it fell behind, or the windows were too short."
            )
        if rate and name != OURS and (OURS, rate) in rows:
            share = rows[OURS, rate].p99_ms / one.p99_ms
            said.append(f"At {rate:.0f} requests/s at random times, p99 of {OURS} is {share:.2f} times that of {name}.")
    return said
