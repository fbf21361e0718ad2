"""What the machine can do at most, against which serving is held: matrix products, copies over PCIe, copies in memory.

python -m benchmarks.limits --out benchmarks/results/limits-gpu.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.outcome import about, write
from pinstream_cli.benchmark import environment

IMAGE_BYTES = 640 * 640 * 3
# YOLOX-m at 640 x 640, two for each multiplication and addition (training.yolox.count_flops; the paper has the same).
GFLOP_AN_IMAGE = 73.8
SIDE = 8192
REPETITIONS = 7


def seconds_of(call: Callable[[], object], runs: int) -> list[float]:
    """Seconds of one call on the GPU, several times over, each the mean of some runs."""
    for _ in range(2 * runs):  # clocks rise under load
        call()
    found = []
    for _ in range(REPETITIONS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(runs):
            call()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3 / runs)
    return found


def row(name: str, amount: float, unit: str, seconds: list[float], images_per_s: float = 0.0) -> dict[str, Any]:
    """A figure: `amount` a second at the median, and how many images a second that would be."""
    median = float(np.median(seconds))
    line = {
        "name": name,
        "value": float(f"{amount / median:.4g}"),
        "unit": unit,
        "images_per_s": round(images_per_s / median),
        "spread": round((max(seconds) - min(seconds)) / median, 3),
    }
    print(json.dumps(line), flush=True)
    return line


def on_the_gpu() -> list[dict[str, Any]]:
    """Matrix products in FP16 and BF16, and copies from and to pinned memory."""
    rows = []
    flop = 2 * SIDE**3
    for name, dtype in (("FP16", torch.float16), ("BF16", torch.bfloat16)):
        a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=dtype) for _ in range(2))
        seconds = seconds_of(partial(torch.matmul, a, b), 50)
        rows.append(
            row(f"{name} matrix product, {SIDE} cubed", flop / 1e12, "TFLOP/s", seconds, flop / 1e9 / GFLOP_AN_IMAGE)
        )
    for images in (1, 32):
        nbytes = images * IMAGE_BYTES
        host = torch.empty(nbytes, dtype=torch.uint8).pin_memory()
        device = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
        to_device = seconds_of(partial(device.copy_, host, non_blocking=True), 100)
        to_host = seconds_of(partial(host.copy_, device, non_blocking=True), 100)
        rows.append(row(f"pinned memory to GPU, {images} image(s) a copy", nbytes / 1e9, "GB/s", to_device, images))
        rows.append(row(f"GPU to pinned memory, {images} image(s) a copy", nbytes / 1e9, "GB/s", to_host, images))
    return rows


def in_memory() -> list[dict[str, Any]]:
    """One thread that copies images from one place in memory to another, none of it in a cache."""
    source = np.ones((256, IMAGE_BYTES), np.uint8)
    target = np.ones_like(source)
    seconds = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append((time.perf_counter() - began) / len(source))
    return [row("memory to memory, one thread", IMAGE_BYTES / 1e9, "GB/s", seconds, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = in_memory() + (on_the_gpu() if torch.cuda.is_available() else [])
    result = {
        **about(),
        "versions": environment.versions(torch=torch.__version__),
        "notes": [
            f"images_per_s: YOLOX-m at 640 x 640, {GFLOP_AN_IMAGE} GFLOP and {IMAGE_BYTES} bytes an image.",
        ],
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write(result, options.out)


if __name__ == "__main__":
    main()
