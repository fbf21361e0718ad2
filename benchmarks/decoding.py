"""What decodes JPEG fastest: OpenCV, simplejpeg, or nvImageCodec on the GPU; alone and beside the detector.

    python -m benchmarks.decoding --pictures DIR --out benchmarks/results/decoding-cpu.json
    pip install nvidia-nvimgcodec-cu13 nvidia-nvjpeg      (the number is CUDA's)
    python -m benchmarks.decoding --pictures DIR --plans DIR --out benchmarks/results/gpu/decoding.json

As the service does, processes of their own decode, and pictures end up on the host, where they are letterboxed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from benchmarks.outcome import about, write
from pinstream.engines import find_model_file, open_engine
from pinstream.options import Options
from pinstream_cli.benchmark.bare import EngineLoop
from pinstream_cli.triton.install import MALLOC

BATCH = 32
SECONDS, ROUNDS = 1.0, 5
# A GPU's contexts take turns, so few processes may be better than many.
GPU_PROCESSES = (1, 2, 4)
START_S = 60.0


def with_opencv(files: Sequence[bytes]) -> Callable[[], int]:
    """Decodes one picture after the other, on one core."""
    cv2.setNumThreads(1)
    encoded = [np.frombuffer(file, np.uint8) for file in files]
    return lambda: sum(cv2.imdecode(file, cv2.IMREAD_COLOR) is not None for file in encoded)


def with_simplejpeg(files: Sequence[bytes]) -> Callable[[], int]:
    """Decodes one picture after the other, on one core."""
    return lambda: sum(simplejpeg.decode_jpeg(file, "BGR") is not None for file in files)


def with_nvimgcodec(files: Sequence[bytes]) -> Callable[[], int]:
    """Decodes a batch of pictures and copies them to the host."""
    from nvidia import nvimgcodec  # type: ignore[import-not-found,unused-ignore]

    decoder = nvimgcodec.Decoder(device_id=0, max_num_cpu_threads=1)
    bgr = nvimgcodec.DecodeParams(sample_format=nvimgcodec.SampleFormat.I_BGR)
    batch = [files[i % len(files)] for i in range(BATCH)]

    def some() -> int:
        images = decoder.decode([nvimgcodec.CodeStream(file) for file in batch], params=bgr)
        return sum(np.asarray(image.cpu()).shape[2] == 3 for image in images)

    return some


DECODERS = {"OpenCV": with_opencv, "simplejpeg": with_simplejpeg, "nvImageCodec": with_nvimgcodec}


def work(decoder: str, files: Sequence[bytes], orders: Any) -> None:
    """A process that decodes from one order to the next, and tells how much it did in what time."""
    some = DECODERS[decoder](files)
    some()
    orders.send("ready")
    while orders.recv() == "go":
        began, cpu, done = time.perf_counter(), time.process_time(), 0
        while not orders.poll():
            done += some()
        orders.recv()
        orders.send((done, time.perf_counter() - began, time.process_time() - cpu))


class Workers:
    """Processes that decode.

    Args:
        decoder: Of DECODERS.
        count: Of processes.
        files: JPEG files.
    """

    def __init__(self, decoder: str, count: int, files: Sequence[bytes]) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = f"{decoder}, {count} process{'es' * (count > 1)}"
        self._orders, self._processes = [], []
        for _ in range(count):
            ours, theirs = context.Pipe()
            self._orders.append(ours)
            self._processes.append(context.Process(target=work, args=(decoder, files, theirs), daemon=True))
            self._processes[-1].start()
            theirs.close()

    def wait_ready(self) -> None:
        """Until each has decoded once.

        Raises:
            RuntimeError: One cannot.
        """
        for orders in self._orders:
            if not orders.poll(START_S) or orders.recv() != "ready":
                raise RuntimeError(f"{self.name}: a process does not decode; what it printed says why")

    def start(self) -> None:
        """Let all of them decode."""
        for orders in self._orders:
            orders.send("go")

    def stop(self) -> tuple[float, float]:
        """Pictures a second of all, and CPU milliseconds a picture."""
        for orders in self._orders:
            orders.send("stop")
        told = [orders.recv() for orders in self._orders]
        done = sum(count for count, _, _ in told)
        return sum(count / seconds for count, seconds, _ in told), 1000 * sum(cpu for _, _, cpu in told) / max(1, done)

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.join()


@contextmanager
def workers(decoder: str, count: int, files: Sequence[bytes]) -> Iterator[Workers]:
    """Processes that are ready to decode."""
    found = Workers(decoder, count, files)
    try:
        found.wait_ready()
        yield found
    finally:
        found.close()


@dataclass
class Rounds:
    """What the rounds of one kind of decoding gave: pictures a second, CPU milliseconds a picture."""

    alone: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    detected: list[float] = field(default_factory=list)

    def run(self, loop: EngineLoop | None, decoding: Workers) -> None:
        """One round: alone, and beside the detector where there is one."""
        decoding.start()
        time.sleep(SECONDS)
        rate, cpu_ms = decoding.stop()
        self.alone.append(rate)
        self.cpu_ms.append(cpu_ms)
        if loop:
            decoding.start()
            self.detected.append(loop.measure(SECONDS).images_per_s)
            self.beside.append(decoding.stop()[0])

    def rows(self, name: str) -> list[dict[str, Any]]:
        """As they are kept."""
        alone = row(name, self.alone, False, "decoded") | {"cpu_ms_per_image": round(float(np.median(self.cpu_ms)), 2)}
        if not self.beside:
            return [alone]
        return [alone, row(name, self.beside, True, "decoded"), row(name, self.detected, True, "detected")]


def row(name: str, values: Sequence[float], beside_detector: bool, what: str) -> dict[str, Any]:
    """One figure: the median of its rounds, and their spread."""
    median = float(np.median(values))
    line = {
        "name": name,
        "what": what,
        "beside_the_detector": beside_detector,
        "images_per_s": round(median),
        "spread": round((max(values) - min(values)) / median, 3),
    }
    print(json.dumps(line), flush=True)
    return line


def measure(files: Sequence[bytes], plans: Path | None) -> list[dict[str, Any]]:
    """Everything, in rounds in which the decoders take turns."""
    rows: list[dict[str, Any]] = []
    cores = len(os.sched_getaffinity(0))
    wanted = [("OpenCV", cores), ("simplejpeg", cores)]
    with ExitStack() as stack:
        loop = stack.enter_context(detector(plans)) if plans else None
        if loop:
            rows.append(row("detector", [loop.measure(SECONDS).images_per_s for _ in range(ROUNDS)], False, "detected"))
            wanted += [("nvImageCodec", count) for count in GPU_PROCESSES]
        ready = list(started(wanted, files, stack))
        rounds = [Rounds() for _ in ready]
        for _ in range(ROUNDS):
            for each, decoding in zip(rounds, ready, strict=True):
                each.run(loop, decoding)
        return rows + [line for each, at in zip(rounds, ready, strict=True) for line in each.rows(at.name)]


def started(wanted: Sequence[tuple[str, int]], files: Sequence[bytes], stack: ExitStack) -> Iterator[Workers]:
    """Those that can decode here."""
    for decoder, count in wanted:
        try:
            yield stack.enter_context(workers(decoder, count, files))
        except (RuntimeError, EOFError, OSError) as error:
            print(f"{decoder}, {count} processes: left out, they do not decode ({error!r})", file=sys.stderr)


@contextmanager
def detector(plans: Path) -> Iterator[EngineLoop]:
    """The bare engine at its largest batch, warm."""
    options = Options(buckets=(BATCH,))
    engine = open_engine(find_model_file(plans, options), options)
    try:
        (tensor,) = engine.spec.inputs
        images = np.random.default_rng(0).integers(0, 256, (BATCH, *tensor.shape), np.uint8)
        loop = EngineLoop(engine, {tensor.name: images}, BATCH)
        loop.measure(SECONDS)
        yield loop
    finally:
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="of benchmarks/pictures.py")
    parser.add_argument("--plans", type=Path, help="of pinstream build --plan; without, only what the CPU does")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    # As the server's processes have it: without, pages are faulted anew for every picture, more of them with OpenCV.
    os.environ.update(MALLOC)
    files = [file.read_bytes() for file in sorted(options.pictures.glob("*.jpg"))]
    result = {
        **about(),
        "rows": measure(files, options.plans),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write(result, options.out)


if __name__ == "__main__":
    main()
