"""What the client costs over bare tritonclient, and what its stream gains over a loop; all in one run.

Run from the repository's root: ``python -m benchmarks.client_overhead [--out benchmarks/results/client-cpu.json]``.
It serves a network so small that the client's share shows. A pair is one call of each kind, one right after the other
in random order, so that whatever the machine does hits both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from benchmarks.outcome import about, write
from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.cpu import cpu_times
from pinstream_cli.benchmark.sample import spread
from pinstream_cli.console import Console
from pinstream_cli.serve import serving
from pinstream_cli.triton import Endpoints
from pinstream_cli.yolox_service import build_service
from pinstream_client import Detector
from pinstream_client.images import encode_bmp
from tests.yolox_exports import Export

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "models" / "demo.jpg"
OUTPUTS = ("num_dets", "det_boxes", "det_scores", "det_classes")
THREADS = 8

Call = Callable[[], object]
Row = dict[str, Any]


def bare(protocol: str, url: str, image: bytes) -> Call:
    """A call as tritonclient's own examples write it, down to the arrays."""
    triton: Any = triton_grpc if protocol == "grpc" else triton_http
    # Its HTTP client belongs to one thread.
    of_thread = threading.local()
    shared = triton.InferenceServerClient(url) if protocol == "grpc" else None

    def call() -> object:
        client = shared or getattr(of_thread, "client", None)
        if client is None:
            client = of_thread.client = triton.InferenceServerClient(url)
        tensor = triton.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], np.object_))
        wanted = [triton.InferRequestedOutput(name) for name in OUTPUTS]
        result = client.infer("yolox", [tensor], outputs=wanted)
        return [result.as_numpy(name) for name in OUTPUTS]

    return call


def seconds(call: Call) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def paired(ours: Call, theirs: Call, pairs: int) -> tuple[list[float], list[float], float]:
    """Latencies of both, pair by pair, and the share of the CPU that other processes took meanwhile."""
    mine, bares = [], []
    before = cpu_times()
    for _ in range(pairs):
        if random.random() < 0.5:
            mine.append(seconds(ours))
            bares.append(seconds(theirs))
        else:
            bares.append(seconds(theirs))
            mine.append(seconds(ours))
    return mine, bares, cpu_times().since(before).foreign


def cpu_us(call: Call, calls: int) -> float:
    """CPU time of this process for one call, all its threads, in microseconds: neither network nor server blur it."""
    started = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - started) / calls * 1e6


def latency_row(protocol: str, ours: Call, theirs: Call, repetitions: int, pairs: int) -> Row:
    """What a call costs more, on the clock and on the CPU."""
    clock, cpu, bare_cpu, ratios, bare_ms, foreign = [], [], [], [], [], []
    for repetition in range(repetitions):
        mine, bares, others = paired(ours, theirs, pairs)
        clock.append(median(a - b for a, b in zip(mine, bares, strict=True)) * 1e6)
        ratios.append(median(bares) / median(mine))
        bare_ms.append(median(bares) * 1e3)
        foreign.append(others)
        order = [ours, theirs] if repetition % 2 else [theirs, ours]
        costs = {call: cpu_us(call, pairs) for call in order}
        cpu.append(costs[ours] - costs[theirs])
        bare_cpu.append(costs[theirs])
    return {
        "name": f"detect over bare tritonclient, {protocol}, one caller",
        "overhead_us": round(median(clock), 1),
        "overhead_us_all": [round(value, 1) for value in clock],
        "cpu_overhead_us": round(median(cpu), 1),
        "cpu_overhead_us_all": [round(value, 1) for value in cpu],
        "bare_cpu_us": round(median(bare_cpu), 1),
        "bare_p50_ms": round(median(bare_ms), 3),
        "ratio": round(median(ratios), 4),
        "spread": round(spread(ratios), 3),
        "foreign_cpu": round(median(foreign), 3),
    }


def window(run: Callable[[float], int], length: float) -> tuple[float, float]:
    """Images per second of a window, and this process's CPU time for each in microseconds."""
    started, cpu = time.perf_counter(), time.process_time()
    images = run(length)
    return images / (time.perf_counter() - started), (time.process_time() - cpu) / images * 1e6


def threads(call: Call) -> Callable[[float], int]:
    """Keeps several threads calling."""

    def run(length: float) -> int:
        counts = [0] * THREADS
        end = time.perf_counter() + length

        def work(index: int) -> None:
            while time.perf_counter() < end:
                call()
                counts[index] += 1

        workers = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(counts)

    return run


def loop(call: Call) -> Callable[[float], int]:
    """One call after the other."""

    def run(length: float) -> int:
        count, end = 0, time.perf_counter() + length
        while time.perf_counter() < end:
            call()
            count += 1
        return count

    return run


def stream(detector: Detector, image: bytes) -> Callable[[float], int]:
    """The client's stream."""

    def run(length: float) -> int:
        end = time.perf_counter() + length

        def images() -> Iterator[bytes]:
            while time.perf_counter() < end:
                yield image

        return sum(1 for _ in detector.stream(images(), in_flight=THREADS))

    return run


def throughput_row(
    name: str, ours: Callable[[float], int], theirs: Callable[[float], int], repetitions: int, length: float
) -> Row:
    """The ratio of windows to those just before and after them."""
    before = cpu_times()
    references = [window(theirs, length)]
    windows, ratios = [], []
    for _ in range(repetitions):
        windows.append(window(ours, length))
        references.append(window(theirs, length))
        ratios.append(windows[-1][0] / (sum(rate for rate, _ in references[-2:]) / 2))
    return {
        "name": name,
        "ratio": round(median(ratios), 4),
        "ratio_all": [round(value, 4) for value in ratios],
        "spread": round(spread(ratios), 3),
        "images_per_s": round(median(rate for rate, _ in windows), 1),
        "reference_images_per_s": round(median(rate for rate, _ in references), 1),
        "cpu_us": round(median(cpu for _, cpu in windows), 1),
        "reference_cpu_us": round(median(cpu for _, cpu in references), 1),
        "foreign_cpu": round(cpu_times().since(before).foreign, 3),
    }


def measure(endpoints: Endpoints, repetitions: int, pairs: int, length: float) -> list[Row]:
    """All rows, gRPC first."""
    image = encode_bmp(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    rows: list[Row] = []
    for protocol, url in (("grpc", endpoints.grpc_url), ("http", endpoints.http_url)):
        with Detector(f"{protocol}://{url}", in_flight=THREADS) as detector:

            def ours(detector: Detector = detector) -> object:
                return detector.detect(image)

            theirs = bare(protocol, url, image)
            for call in (ours, theirs):
                loop(call)(1.0)
            rows.append(latency_row(protocol, ours, theirs, repetitions, pairs))
            rows.append(
                throughput_row(
                    f"detect over bare tritonclient, {protocol}, {THREADS} threads",
                    threads(ours),
                    threads(theirs),
                    repetitions,
                    length,
                )
            )
            name = f"stream over a loop of detect, {protocol}, {THREADS} in flight"
            rows.append(throughput_row(name, stream(detector, image), loop(ours), repetitions, length))
    return rows


def main() -> None:
    """Serves, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--pairs", type=int, default=100, help="Calls of each kind in a repetition.")
    parser.add_argument("--window", type=float, default=0.5, help="Seconds of a throughput window.")
    arguments = parser.parse_args()
    endpoints = Endpoints.free()
    console = Console(file=io.StringIO())
    with contextlib.ExitStack() as stack:
        built = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "service"
        network = Export(batch=None).save(built.with_name("tiny.onnx"))
        build_service(network, built, images=[PICTURE])
        stack.enter_context(serving(built, endpoints=endpoints, console=console))
        rows = measure(endpoints, arguments.repetitions, arguments.pairs, arguments.window)
    for row in rows:
        print(f"{row['ratio']:.3f}  {row['name']}  {row.get('overhead_us', '')} us", file=sys.stderr)
    result = {
        **about(),
        "versions": environment.versions(),
        "method": {
            "reference": "tritonclient's own client with the same request, and for stream a loop of Detector.detect",
            "repetitions": arguments.repetitions,
            "pairs": arguments.pairs,
            "window_s": arguments.window,
        },
        "notes": [
            "Client and server share the machine's cores; ratios and differences count, not images/s.",
            "overhead_us is the median over the repetitions of each one's median of paired differences; "
            "cpu_overhead_us the difference of this process's CPU time for one call, which other processes blur less.",
            "What is below 0, and a ratio above 1, is less than bare tritonclient costs: the client writes and reads "
            "Triton's messages itself.",
        ],
        "rows": rows,
    }
    write(result, arguments.out)


if __name__ == "__main__":
    main()
