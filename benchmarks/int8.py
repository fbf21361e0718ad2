"""What INT8 gains in time and costs in average precision, by ONNX Runtime on the CPU.

    python -m benchmarks.int8 --out benchmarks/results/int8-speed-cpu.json
    python -m benchmarks.int8 --also yolox_s.onnx --out ...     # and how fast another export is; its precision not

Both serving graphs of a model are run in turn on one thread, each window of INT8 between two windows of FP32. What
counts is the CPU time of an image, which other processes of a shared machine disturb far less than the clock on the
wall. They are calibrated on pictures of the training split, and looked at with held-out ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.outcome import about, write
from pinstream_cli.benchmark import environment
from pinstream_cli.benchmark.bare import OnnxRuntimeLoop, open_session
from pinstream_cli.benchmark.interleave import Interleaver, Plan
from pinstream_cli.benchmark.sample import Measured
from pinstream_cli.yolox_service import build_service
from tests.held_out import HeldOut, held_out, precision, write_training_pictures

MODEL = Path(__file__).parents[1] / "models" / "shapes_nano.onnx"
CALIBRATED_ON = 64
# Of the built-in model; others take seconds for a batch, and are run one image at a time.
BATCHES = (1, 8)
THREADS = 1
# Instructions that INT8 is fast with.
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")


def both(model: Path, pictures: Path, folder: Path) -> dict[str, Path]:
    """The serving graphs of an export in FP32 and INT8, by their names."""
    graphs = {"FP32": folder / "fp32", "INT8": folder / "int8"}
    build_service(model, graphs["FP32"])
    build_service(model, graphs["INT8"], int8=pictures)
    return {name: out / "model.onnx" for name, out in graphs.items()}


def measure(model: Path, graphs: dict[str, Path], plan: Plan, batches: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each number format and batch size."""
    sessions = {name: open_session(path, THREADS) for name, path in graphs.items()}
    height, width = sessions["FP32"].get_inputs()[0].shape[1:3]
    for batch in batches:
        images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
        loops = {name: OnnxRuntimeLoop(session, {"images": images}, batch, 1) for name, session in sessions.items()}
        fp32, (int8,) = Interleaver(plan).measure(loops["FP32"], [loops["INT8"]])
        yield from (
            {
                "model": model.stem,
                "format": name,
                "batch": batch,
                "bytes": graphs[name].stat().st_size,
                **rates(each, fp32),
            }
            for name, each in (("FP32", fp32), ("INT8", int8))
        )


def rates(measured: Measured, fp32: Measured) -> dict[str, Any]:
    """Medians over the windows; the spread is (largest - smallest) / median, the speed FP32's CPU time over its own."""
    cost, reference = ([sample.cpu_ms["bench"] for sample in each.samples] for each in (measured, fp32))
    row: dict[str, Any] = {
        "cpu_ms_per_image": round(median(cost), 2),
        "spread": round((max(cost) - min(cost)) / median(cost), 3),
        "foreign_cpu": round(median(sample.foreign for sample in measured.samples), 3),
    }
    if measured is not fp32:
        # A window of INT8 lies between FP32's windows of its own number and of the next.
        ratios = [mean(reference[i : i + 2]) / own for i, own in enumerate(cost)]
        row |= {"speed_to_fp32": round(median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}
    return row


def precisions(graphs: dict[str, Path], pictures: HeldOut) -> dict[str, float]:
    """AP (IoU 0.50 to 0.95) of both graphs, 0 to 1."""
    found = {}
    for name, path in graphs.items():
        session = open_session(path, THREADS)
        found[name] = round(
            precision([session.run(None, {"images": image[None]})[0][0] for image in pictures.images], pictures), 4
        )
    return found


def instructions() -> list[str]:
    """Those of INSTRUCTIONS that this CPU has."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return [name for name in INSTRUCTIONS if name in flags]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="more YOLOX exports, whose speed is measured")
    parser.add_argument("--count", type=int, default=200, help="held-out pictures (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=15, help="windows of each (default: %(default)s)")
    given = parser.parse_args(arguments)
    plan = Plan(given.repetitions, window_s=1.0, attempts=1, progress=lambda text: print(text, file=sys.stderr))
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pictures = write_training_pictures(folder / "pictures", CALIBRATED_ON)
        for number, model in enumerate([MODEL, *given.also]):
            graphs = both(model, pictures, folder / str(number))
            found = precisions(graphs, held_out(given.count)) if model == MODEL else {}
            rows += [
                {**row, **({"ap": found[row["format"]]} if found else {})}
                for row in measure(model, graphs, plan, BATCHES if model == MODEL else (1,))
            ]
    content = {
        **about(),
        "instructions": instructions(),
        "versions": environment.versions(),
        "method": {
            "pictures": given.count,
            "calibrated_on": CALIBRATED_ON,
            "threads": THREADS,
            "window_s": plan.window_s,
            "repetitions": plan.repetitions,
        },
        "rows": rows,
    }
    write(content, given.out)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
