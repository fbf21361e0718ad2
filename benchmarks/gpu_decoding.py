"""Whether JPEG had better be decoded on the GPU: nvJPEG against OpenCV on all cores, alone and beside the detector.

    python benchmarks/gpu_decoding.py --pictures DIR --plans DIR --out benchmarks/results/gpu/gpu-decoding.json

NVIDIA's nvJPEG is called through torchvision, which hands it whole batches; pictures stay on the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pinstream.engines import find_model_file, open_engine
from pinstream.options import Options
from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.bare import EngineLoop

BATCH = 32
SECONDS, ROUNDS = 1.0, 3


def rate(decode_some: Callable[[], int], until: Callable[[float], bool]) -> float:
    """Pictures a second of a call that decodes some and says how many."""
    began = time.perf_counter()
    done = 0
    while not until(time.perf_counter() - began):
        done += decode_some()
    return done / (time.perf_counter() - began)


def on_the_cpu(files: Sequence[bytes]) -> Callable[[], int]:
    """OpenCV on all cores, which it lets go on side by side."""
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    encoded = [np.frombuffer(file, np.uint8) for file in files]

    def some() -> int:
        return sum(image is not None for image in pool.map(lambda f: cv2.imdecode(f, cv2.IMREAD_COLOR), encoded * 8))

    return some


def on_the_gpu(files: Sequence[bytes]) -> Callable[[], int]:
    """NvJPEG, a batch at a time."""
    import torch
    from torchvision.io import decode_jpeg  # type: ignore[import-untyped,unused-ignore]

    batch = [torch.frombuffer(bytearray(files[i % len(files)]), dtype=torch.uint8) for i in range(BATCH)]

    def some() -> int:
        decoded = decode_jpeg(batch, device="cuda")
        torch.cuda.synchronize()
        return len(decoded)

    return some


def beside(loop: EngineLoop, decode_some: Callable[[], int]) -> tuple[float, float]:
    """Pictures a second decoded and detected while both go on."""
    decoded: list[float] = []
    stop = threading.Event()
    worker = threading.Thread(target=lambda: decoded.append(rate(decode_some, lambda _: stop.is_set())))
    worker.start()
    detected = loop.measure(SECONDS).images_per_s
    stop.set()
    worker.join()
    return decoded[0], detected


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


def measure(files: Sequence[bytes], plans: Path) -> list[dict[str, Any]]:
    """Everything, in rounds that take turns."""
    options = Options(buckets=(BATCH,))
    engine = open_engine(find_model_file(plans, options), options)
    (tensor,) = engine.spec.inputs
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *tensor.shape), np.uint8)
    loop = EngineLoop(engine, {tensor.name: images}, BATCH)
    decoders = {"OpenCV, all cores": on_the_cpu(files), "nvJPEG": on_the_gpu(files)}
    alone: dict[str, list[float]] = {name: [] for name in decoders}
    decoded: dict[str, list[float]] = {name: [] for name in decoders}
    detected: dict[str, list[float]] = {name: [] for name in decoders}
    detector_alone: list[float] = []
    for decoder in decoders.values():
        decoder()
    loop.measure(SECONDS)
    for _ in range(ROUNDS):
        detector_alone.append(loop.measure(SECONDS).images_per_s)
        for name, decoder in decoders.items():
            alone[name].append(rate(decoder, lambda seconds: seconds > SECONDS))
            both = beside(loop, decoder)
            decoded[name].append(both[0])
            detected[name].append(both[1])
    engine.close()
    rows = [row("detector", detector_alone, False, "detected")]
    for name in decoders:
        rows.append(row(name, alone[name], False, "decoded"))
        rows.append(row(name, decoded[name], True, "decoded"))
        rows.append(row(name, detected[name], True, "detected"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="of benchmarks/pictures.py")
    parser.add_argument("--plans", type=Path, required=True, help="of pinstream build --plan")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    files = [file.read_bytes() for file in sorted(options.pictures.glob("*.jpg"))]
    result = {
        "suite": "gpu-decoding",
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": environment.commit(),
        "machine": environment.machine(),
        "rows": measure(files, options.plans),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
