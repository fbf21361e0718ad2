"""One run of Triton's perf_analyzer: its arguments, its CSV and what it says of its windows, its failures."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from pinstream_cli.benchmark.install import Tool
from pinstream_cli.benchmark.sample import Sample
from pinstream_cli.errors import CommandError

SHARED_MEMORY = Path("/dev/shm")
# It measures windows until three in a row agree. We take any three: agreement is judged over our own repetitions.
WINDOWS = 3
# What it says of each with -v. It counts from the moment at which it begins to send, so that the first window has the
# time until the first answers come: with batches of four that take 0.2 s an item, a fifth of three seconds.
OF_A_WINDOW = re.compile(r"Pass \[\d+\] throughput: ([\d.]+) infer/sec")
ANY_DEVIATION = 999
MICROSECONDS_PER_MS = 1000.0
# Threads that send at random times, each waiting for its answer before it sends again. By default there are four, and
# no more requests are sent than four can (seen: 821 a second where 1865 were asked for).
RATE_THREADS = 256
# What it says where no request came back within a window; then the window is lengthened so many times, twice.
TOO_SHORT = ("No valid requests recorded", "Failed to obtain stable measurement")
LONGER = 3
THROUGHPUT, P50, P99 = "Inferences/Second", "p50 latency", "p99 latency"
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
            return [*pace, "--max-threads", str(RATE_THREADS)]
        return ["--concurrency-range", str(self.concurrency)]


def run(tool: Tool, load: Load, seconds: float, keep: Path | None = None) -> Sample:
    """Send `load` for about `seconds`.

    Args:
        tool: The perf_analyzer.
        load: What to send.
        seconds: Of load, the first third of which does not count as throughput; starting and stopping come on top.
        keep: File to write the CSV to; perf_analyzer's output goes beside it.

    Returns:
        What came of it, with the CSV's row as details.

    Raises:
        CommandError: It failed, or it measured nothing. A failed run is never left out silently.
    """
    if load.shared_memory:
        _refuse_second_run(load)
    for factor in (1, LONGER, LONGER**2):
        code, output, report = _run_once(tool, load, seconds * factor)
        if not _is_too_short(output):
            break
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        keep.with_suffix(".log").write_text(output)
        keep.write_text(report)
    if code or not report:
        raise CommandError(_failure(code, output, load))
    rate = steady_rate(output)
    if not rate:
        raise CommandError(f"perf_analyzer ({_what(load)}): no answer came after its first window; lengthen --window")
    return sample(parse(report), rate)


def _is_too_short(output: str) -> bool:
    """Whether no answer came within some window, or none after the first."""
    rates = OF_A_WINDOW.findall(output)
    return any(text in output for text in TOO_SHORT) or (len(rates) == WINDOWS and not any(map(float, rates[1:])))


def _run_once(tool: Tool, load: Load, seconds: float) -> tuple[int, str, str]:
    """Exit code, output, and CSV; that is empty where it wrote none."""
    with tempfile.TemporaryDirectory(prefix="pinstream-bench-") as scratch:
        report = Path(scratch) / "report.csv"
        window_ms = max(100, round(seconds * 1000 / WINDOWS))
        windows = ["-v", "-p", str(window_ms), "-r", str(WINDOWS), "-s", str(ANY_DEVIATION)]
        command = [*tool.command, *load.arguments(), *windows, "-f", str(report)]
        code, output = _call(command, timeout_s=60 + 20 * seconds, load=load)
        return code, output, report.read_text() if report.is_file() else ""


def parse(text: str) -> dict[str, str]:
    """The one row of a CSV that perf_analyzer wrote for one concurrency, by column.

    Raises:
        CommandError: It is something else.
    """
    rows = list(csv.DictReader(text.splitlines()))
    if len(rows) != 1 or not {THROUGHPUT, P50, P99} <= rows[0].keys():
        columns = ", ".join(text.splitlines()[:1]) or "nothing"
        raise CommandError(
            f"perf_analyzer's CSV has {len(rows)} rows of {columns}; expected one row with {THROUGHPUT}, {P50}, {P99}"
        )
    return rows[0]


def steady_rate(output: str) -> float:
    """Items a second in the windows but the first, by what it says with -v.

    Raises:
        CommandError: It says something else.
    """
    rates = [float(rate) for rate in OF_A_WINDOW.findall(output)]
    if len(rates) != WINDOWS:
        raise CommandError(
            f"perf_analyzer told the throughput of {len(rates)} windows; expected {WINDOWS} lines "
            "'Pass [n] throughput: ... infer/sec' with -v, as of perf_analyzer 2.51"
        )
    return mean(rates[1:])


def sample(row: Mapping[str, str], rate: float) -> Sample:
    """A row of its CSV as a sample, with the rate of the windows that count: latencies there are in microseconds."""
    p50, p99 = (float(row[column]) / MICROSECONDS_PER_MS for column in (P50, P99))
    stages = {name: float(row[column]) / MICROSECONDS_PER_MS for column, name in STAGES.items() if row.get(column)}
    return Sample(rate, p50, p99, details=row, stages_ms=stages)


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
    pace = f"{load.rate:.0f} requests a second" if load.rate else f"concurrency {load.concurrency}"
    return f"model {load.model}, batch {load.batch}, {pace} over {load.protocol}"
