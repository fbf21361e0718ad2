"""The steps of the YOLOX ensemble around the detector as bare loops, in processes of their own as Triton runs them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from pinstream.tensors import Array
from pinstream_cli.benchmark.sample import Sample, Subject, sample_of_loop
from pinstream_cli.triton.assemble import import_steps

Step = Callable[[Sequence[Any], tuple[int, int]], Callable[[int], object]]


def preprocess(files: Sequence[bytes], size: tuple[int, int]) -> Callable[[int], Array]:
    """A call that decodes and letterboxes file number `index` to UINT8 [H, W, 3], as yolox_preprocess does."""
    import_steps()
    from yolox_steps.decode import DEFAULT_MAX_PIXELS, decode, prepare_process
    from yolox_steps.letterbox import letterbox

    prepare_process()

    def call(index: int) -> Array:
        out = np.empty((*size, 3), np.uint8)
        letterbox(decode(files[index % len(files)], DEFAULT_MAX_PIXELS), out=out)
        return out

    return call


def postprocess(candidates: Sequence[Array], size: tuple[int, int]) -> Callable[[int], Array]:
    """A call that makes detections of candidates [K, 6] number `index`, as yolox_postprocess does."""
    import_steps()
    from yolox_steps.nms import Y2, select, to_original_pixels
    from yolox_steps.parameters import Thresholds

    letterbox = np.array([1.0, size[1], size[0]], np.float32)

    def call(index: int) -> Array:
        detections = select(candidates[index % len(candidates)], Thresholds())
        return to_original_pixels(detections[:, : Y2 + 1], letterbox)

    return call


class StepLoop:
    """A step called over and over in as many processes as there are cores.

    Args:
        name: For the table.
        step: `preprocess` or `postprocess`.
        items: What it works on.
        size: Height and width of the detector's input.
        pool: Processes that run it.
        processes: How many of them at a time.
    """

    batch = 1

    def __init__(
        self,
        name: str,
        step: Step,
        items: Sequence[Any],
        size: tuple[int, int],
        pool: ProcessPoolExecutor,
        processes: int,
    ) -> None:
        self.name = name
        self.concurrency = processes
        self._arguments = (step, items, size)
        self._pool = pool

    def measure(self, seconds: float) -> Sample:
        """See sample.Subject."""
        each = [self._pool.submit(_loop, *self._arguments, seconds) for _ in range(self.concurrency)]
        done = [future.result() for future in each]
        latencies = [latency for of_one, _, _ in done for latency in of_one]
        cpu_ms = sum(cpu for _, _, cpu in done) * 1e3 / len(latencies)
        # Each worker has a clock of its own: the rates are summed, not the counts divided by one time.
        rate = sum(len(of_one) / took for of_one, took, _ in done)
        return sample_of_loop(latencies, 1, len(latencies) / rate, {"bench workers": cpu_ms})


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """Fresh processes: a fork would inherit the locks of ONNX Runtime's and gRPC's threads."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))


def _loop(step: Step, items: Sequence[Any], size: tuple[int, int], seconds: float) -> tuple[list[float], float, float]:
    """In a worker: latencies, wall time and CPU time of calling a step for `seconds`."""
    call = step(items, size)
    call(0)
    latencies: list[float] = []
    cpu, first = time.process_time(), time.perf_counter()
    began = first
    while not latencies or began - first < seconds:
        call(len(latencies))
        now = time.perf_counter()
        latencies.append(now - began)
        began = now
    return latencies, began - first, time.process_time() - cpu


class SumOfSteps:
    """What a pipeline of steps can give at best where all of them share the same cores.

    An image costs the sum of what it costs each step, so the rate is the inverse of the summed inverses. Where the
    detector has a device of its own, the slowest step is the limit instead.

    Args:
        steps: The steps' loops; each gets an equal part of a window.
        shared: Whether the steps share the cores.
    """

    batch = 1

    def __init__(self, steps: Sequence[Subject], shared: bool) -> None:
        self._steps = steps
        self._shared = shared
        self.concurrency = max(step.concurrency for step in steps)
        self.name = "sum of the bare steps" if shared else "slowest of the bare steps"

    @property
    def steps(self) -> Sequence[Subject]:
        """The steps' loops; their samples are the parts of this one's."""
        return self._steps

    def measure(self, seconds: float) -> Sample:
        """See sample.Subject."""
        parts = {step.name: step.measure(seconds / len(self._steps)) for step in self._steps}
        rates = [part.images_per_s for part in parts.values()]
        rate = 1 / sum(1 / r for r in rates) if self._shared else min(rates)
        p50, p99 = (sum(latency) for latency in zip(*((p.p50_ms, p.p99_ms) for p in parts.values()), strict=True))
        cpu_ms = {name: sum(part.cpu_ms.values()) for name, part in parts.items()}
        return Sample(rate, p50, p99, cpu_ms, parts=parts)
