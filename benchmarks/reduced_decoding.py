"""What REDUCED_DECODING saves in time and costs in average precision.

    python -m benchmarks.reduced_decoding --out benchmarks/results/reduced-decoding.json

Held-out pictures of the generator are enlarged, so that they are 2 to 8 times as large as the built-in model's input,
and encoded; then decoded and letterboxed both ways in turn, and looked at by ONNX Runtime. Times are of the CPU, on one
thread: others may be at work beside it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort

from benchmarks.outcome import about, write
from pinstream_cli.yolox_service import build_service
from tests.held_out import HeldOut, precision
from training.precision import Truth
from training.shapes import HELD_OUT_SEED, render_many
from yolox_steps.decode import DEFAULT_MAX_PIXELS, decode, decode_to_fit, prepare_process
from yolox_steps.letterbox import letterbox

MODEL = Path(__file__).parents[1] / "models" / "shapes_nano.onnx"
SIDE = 416
QUALITY = 90
REPETITIONS = 5


def exact(data: bytes, out: Any) -> float:
    """As YOLOX does it."""
    return letterbox(decode(data, DEFAULT_MAX_PIXELS), out)


def reduced(data: bytes, out: Any) -> float:
    """Decoded no larger than needed."""
    image, full = decode_to_fit(data, DEFAULT_MAX_PIXELS, SIDE, SIDE)
    return letterbox(image, out, full)


def enlarged(count: int, times: int) -> tuple[list[bytes], list[Truth]]:
    """JPEG files `times` as large as the model's input, and what is in them in pixels of that input."""
    files, truth = [], []
    for picture in render_many(range(HELD_OUT_SEED, HELD_OUT_SEED + count), 2):
        ratio = SIDE / max(picture.image.shape[:2])
        image = cv2.resize(picture.image, None, fx=times * ratio, fy=times * ratio, interpolation=cv2.INTER_CUBIC)
        files.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
        truth.append(Truth(picture.boxes * np.float32(ratio), picture.labels))
    return files, truth


def measure(session: Any, times: int, count: int) -> list[dict[str, Any]]:
    """Both ways on pictures of one size."""
    files, truth = enlarged(count, times)
    seconds: dict[str, list[float]] = {"exact": [], "reduced": []}
    images = {way: np.empty((count, SIDE, SIDE, 3), np.uint8) for way in seconds}
    for _ in range(1 + REPETITIONS):
        for way, function in (("exact", exact), ("reduced", reduced)):
            began = time.process_time()
            for data, out in zip(files, images[way], strict=True):
                function(data, out)
            seconds[way].append(time.process_time() - began)
    rows = []
    for way, (_, *taken) in seconds.items():  # the first round finds all memory cold
        candidates = [session.run(None, {"images": image[None]})[0][0] for image in images[way]]
        rows.append(
            {
                "name": f"{way}, {times} times as large",
                "ap": round(precision(candidates, HeldOut(images[way], truth)), 4),
                "time_ratio_to_exact": round(median(taken) / median(seconds["exact"][1:]), 3),
                "spread": round((max(taken) - min(taken)) / median(taken), 3),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200, help="pictures of each size (default: %(default)s)")
    given = parser.parse_args(arguments)
    prepare_process()
    with TemporaryDirectory() as folder:
        build_service(MODEL, Path(folder))
        session = ort.InferenceSession(str(Path(folder) / "model.onnx"), providers=["CPUExecutionProvider"])
        rows = [row for times in (2, 4, 8) for row in measure(session, times, given.count)]
    content = {
        **about(),
        "rows": rows,
    }
    write(content, given.out)
    for row in rows:
        sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()
