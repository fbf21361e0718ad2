"""One run of Triton's perf_analyzer: its arguments, how long it takes, its CSV, its failures."""

from __future__ import annotations

import csv
import math
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pinstream.tensors import Array, ModelSpec
from pinstream_cli.benchmark.inputs import write_json
from pinstream_cli.benchmark.install import Tool
from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.errors import CommandError

SHARED_MEMORY = Path("/dev/shm")
# It measures windows until three in a row agree. We take any three: agreement is judged over our own repetitions.
WINDOWS = 3
ANY_DEVIATION = 999
MICROSECONDS_PER_MS = 1000.0
# Threads that send at random times, each waiting for its answer before it sends again: as many as there are requests in
# so many seconds. By default there are four, and no more requests are sent than four can (seen: 821 a second where 1865
# were asked for). It ends when the last of them has had its turn: at 10 requests a second 256 of them took 28 s more.
ANSWERED_WITHIN_S, FEWEST_THREADS, MOST_THREADS = 0.5, 16, 256
# What it says where no request came back within a window; then the run is made longer so many times, twice at most.
TOO_SHORT = ("No valid requests recorded", "Failed to obtain stable measurement")
ATTEMPTS, LONGER = 3, 3.0
# The first requests find nothing before them, and the answers to all of these come within one latency of a full load.
# Half of a run is for that: a run of less than so many latencies is done again, and is then so long.
LATENCIES, LATENCIES_AGAIN = 3.0, 3.3
# What a run takes of the time at most, for each second of load: it makes each window a fifth longer, and ends slowly.
OVERHEAD = 1.5
CONCURRENCY, THROUGHPUT, P50, P99 = "Concurrency", "Inferences/Second", "p50 latency", "p99 latency"
# Columns with the mean microseconds of a request's way, in its order, and what they are called here.
STAGES = {
    "Client Send": "send",
    "Network+Server Send/Recv": "network",
    "Server Queue": "queue",
    "Server Compute Input": "compute_input",
    "Server Compute Infer": "compute_infer",
    "Server Compute Output": "compute_output",
    "Client Recv": "receive",
}


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send.

    Attributes:
        model: Name of the model on the server.
        batch: Items of a request.
        concurrency: Requests under way at the same time.
        rate: Requests a second at random times (a Poisson process), answered or not; 0 to keep `concurrency` of them
            under way instead.
        input_data: JSON file with the inputs.
        protocol: grpc or http.
        url: host:port for that protocol.
        shared_memory: Whether inputs and outputs go through system shared memory.
        inputs: Names of the inputs; perf_analyzer names its shared memory after them.
        outputs: Names of the outputs, likewise.
        output_bytes: Largest output of one item in bytes, for shared memory.
    """

    model: str
    batch: int
    concurrency: int
    input_data: Path
    rate: float = 0.0
    protocol: str = "grpc"
    url: str = ""
    shared_memory: bool = False
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    output_bytes: int = 0

    @classmethod
    def of(cls, model: str, spec: ModelSpec, item: Mapping[str, Array], file: Path) -> Load:
        """Requests of copies of one item: of a single one, and one request at a time.

        Args:
            model: Name of the model on the server.
            spec: What it takes and gives.
            item: One item of every input.
            file: Where it is written as perf_analyzer takes it.
        """
        return cls(
            model=model,
            batch=1,
            concurrency=1,
            input_data=write_json(file, [item]),
            inputs=tuple(item),
            outputs=tuple(tensor.name for tensor in spec.outputs),
            output_bytes=max(tensor.item_bytes for tensor in spec.outputs),
        )

    def arguments(self) -> list[str]:
        """As perf_analyzer's command line has it."""
        arguments = ["-m", self.model, "-i", self.protocol, "-u", self.url]
        arguments += ["-b", str(self.batch), *self._pace()]
        arguments += ["--input-data", str(self.input_data)]
        if self.shared_memory:
            arguments += ["--shared-memory", "system", "--output-shared-memory-size", str(max(1024, self.output_bytes))]
        return arguments

    def _pace(self) -> list[str]:
        if self.rate:
            pace = ["--request-rate-range", f"{self.rate:.1f}", "--request-distribution", "poisson"]
            threads = min(max(FEWEST_THREADS, round(ANSWERED_WITHIN_S * self.rate)), MOST_THREADS)
            return [*pace, "--max-threads", str(threads)]
        if self.concurrency == 1:
            return ["--concurrency-range", "1"]
        # One less at first: when it goes on to all of them, those that are under way stay so, and what it says of all
        # has nothing of the time in which the load built up.
        return ["--concurrency-range", f"{self.concurrency - 1}:{self.concurrency}:1"]

    @property
    def levels(self) -> int:
        """Concurrencies or rates that it measures one after the other; the last is what was asked for."""
        return 1 if self.rate or self.concurrency == 1 else 2


def run(tool: Tool, load: Load, seconds: float, keep: Path | None = None, ends: float = math.inf) -> Sample:
    """Send `load` for about `seconds`.

    Args:
        tool: The perf_analyzer.
        load: What to send.
        seconds: Of load, in the first half of which it builds up and does not count, unless there is one request at a
            time, or they are sent at random times; starting and stopping come on top. Where that is too short for an
            answer to come, or for the load to build up, it is run again for longer.
        keep: File to write the CSV to; perf_analyzer's output goes beside it, and those of runs that were too short.
        ends: When time is up, by time.monotonic: it is not run again then.

    Returns:
        What came of it, with the CSV's row as details: throughput and latencies are of the same requests.

    Raises:
        CommandError: It failed, or it measured nothing. A failed run is never left out silently.
    """
    if load.shared_memory:
        _refuse_second_run(load)
    for attempt in range(1, ATTEMPTS + 1):
        done = _run_once(tool, load, seconds)
        needed = _seconds_needed(done, load, seconds)
        if needed <= seconds or attempt == ATTEMPTS or time.monotonic() + OVERHEAD * needed > ends:
            break
        _keep(done, keep and keep.with_name(f"{keep.stem}-too-short-{attempt}.csv"))
        seconds = needed
    _keep(done, keep)
    if done.code or not done.report:
        raise CommandError(_failure(done.code, done.output, load))
    found = sample(parse(done.report, load), seconds)
    if not found.images_per_s:
        raise CommandError(f"perf_analyzer ({_what(load)}): no answer came in its last windows; lengthen --window")
    return found


@dataclass(frozen=True)
class _Done:
    """One run's exit code, output, and CSV; that is empty where it wrote none."""

    code: int
    output: str
    report: str


def _run_once(tool: Tool, load: Load, seconds: float) -> _Done:
    with tempfile.TemporaryDirectory(prefix="pinstream-bench-") as scratch:
        report = Path(scratch) / "report.csv"
        window_ms = max(100, round(seconds * 1000 / (WINDOWS * load.levels)))
        windows = ["-v", "-p", str(window_ms), "-r", str(WINDOWS), "-s", str(ANY_DEVIATION)]
        command = [*tool.command, *load.arguments(), *windows, "-f", str(report)]
        code, output = _call(command, timeout_s=60 + 20 * seconds, load=load)
        return _Done(code, output, report.read_text() if report.is_file() else "")


def _seconds_needed(done: _Done, load: Load, seconds: float) -> float:
    """How long a run should have been."""
    if any(text in done.output for text in TOO_SHORT):
        return LONGER * seconds
    if done.code or not done.report:
        return seconds
    rate = sample(parse(done.report, load), seconds).images_per_s
    if not rate:
        return LONGER * seconds
    # What so many requests under way take where so many are answered (Little's law).
    latency = load.concurrency * load.batch / rate if load.levels > 1 else 0.0
    return seconds if LATENCIES * latency <= seconds else LATENCIES_AGAIN * latency


def _keep(done: _Done, file: Path | None) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".log").write_text(done.output)
        file.write_text(done.report)


def parse(text: str, load: Load) -> dict[str, str]:
    """The row for a load out of the CSV that perf_analyzer wrote, by column.

    Raises:
        CommandError: It is something else.
    """
    rows = list(csv.DictReader(text.splitlines()))
    asked = [row for row in rows if load.rate or row.get(CONCURRENCY) == str(load.concurrency)]
    if len(asked) != 1 or not {THROUGHPUT, P50, P99} <= asked[0].keys():
        columns = ", ".join(text.splitlines()[:1]) or "nothing"
        raise CommandError(
            f"perf_analyzer's CSV has {len(asked)} rows for {_pace(load)} of {columns}; expected one row with "
            f"{THROUGHPUT}, {P50}, {P99}"
        )
    return asked[0]


def sample(row: Mapping[str, str], seconds: float) -> Sample:
    """A row of its CSV, whose latencies are in microseconds, as a sample of a run of so many seconds."""
    p50, p99 = (float(row[column]) / MICROSECONDS_PER_MS for column in (P50, P99))
    stages = {name: float(row[column]) / MICROSECONDS_PER_MS for column, name in STAGES.items() if row.get(column)}
    return Sample(float(row[THROUGHPUT]), p50, p99, details=row, stages_ms=stages, seconds=seconds)


def _call(command: Sequence[str], timeout_s: float, load: Load) -> tuple[int, str]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        output, _ = process.communicate(timeout=timeout_s)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return 124, f"no end within {timeout_s:.0f} s"
    finally:
        if process.poll() is None:
            _stop(process)
        # It tidies up itself, unless it was killed.
        for region in regions(load):
            region.unlink(missing_ok=True)


def _stop(process: subprocess.Popen[str]) -> None:
    """End a run that will not end by itself."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def regions(load: Load) -> list[Path]:
    """Shared memory that perf_analyzer makes for such a load: `<input>_<stream>_<step>`, and an output's bare name."""
    if not load.shared_memory:
        return []
    found = [path for name in load.inputs for path in SHARED_MEMORY.glob(f"{name}_[0-9]*_[0-9]*")]
    return found + [SHARED_MEMORY / name for name in load.outputs if (SHARED_MEMORY / name).exists()]


def _refuse_second_run(load: Load) -> None:
    # The names are the same for every perf_analyzer; two at a time would write into each other's tensors.
    there = regions(load)
    if there:
        raise CommandError(
            f"{there[0]} exists: another perf_analyzer with shared memory is running, or one was killed; wait for it, "
            "or remove the file"
        )


def _failure(code: int, output: str, load: Load) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if "rror" in line or line.startswith(("Failed", "No valid"))] or lines[-2:]
    text = " / ".join(told[-3:]) or "it said nothing"
    hint = "; a longer --window may help" if any(words in text for words in TOO_SHORT) else ""
    return f"perf_analyzer failed with code {code} ({_what(load)}): {text}{hint}"


def _what(load: Load) -> str:
    return f"model {load.model}, batch {load.batch}, {_pace(load)} over {load.protocol}"


def _pace(load: Load) -> str:
    return f"{load.rate:.0f} requests a second" if load.rate else f"concurrency {load.concurrency}"
