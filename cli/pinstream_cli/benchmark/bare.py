"""Bare loops: the model's engine in plain Python without Triton, which is what serving is held against."""

from __future__ import annotations

import mmap
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pinstream.engines import Engine, Slot, open_engine
from pinstream.options import Options
from pinstream.tensors import Array, ModelSpec
from pinstream_cli.benchmark.inputs import batch_of
from pinstream_cli.benchmark.sample import Sample, Subject, sample_of_loop


class BareLoop(Subject, Protocol):
    """As many runs under way as the engine takes at a time."""

    def one_at_a_time(self) -> Subject:
        """The same with a single run under way."""


class OnnxRuntimeLoop:
    """An ONNX Runtime session whose `run` is called over and over by as many threads as the server has lanes.

    Nothing of ours is in it: this is the program that somebody without a server would write.

    Args:
        session: The session, shared by the threads.
        feeds: Inputs of a run, batch dimension and all.
        batch: Items of a run.
        lanes: Threads.
        name: For the table.
    """

    def __init__(
        self, session: Any, feeds: Mapping[str, Array], batch: int, lanes: int, name: str = "bare ONNX Runtime loop"
    ) -> None:
        self._session = session
        self._feeds = dict(feeds)
        self.batch = batch
        self.concurrency = lanes
        self.name = name

    def one_at_a_time(self) -> Subject:
        """The session with a single thread: a run begins when the last has ended."""
        return OnnxRuntimeLoop(self._session, self._feeds, self.batch, 1, "ONNX Runtime, one at a time")

    def measure(self, seconds: float) -> Sample:
        """See sample.Subject."""
        return run_in_threads(lambda: self._session.run(None, self._feeds), self.batch, self.concurrency, seconds)


class EngineLoop:
    """One of pinstream's engines, all of its slots kept in flight: enqueue, wait, enqueue again.

    Inputs are gathered once, before the clock starts. For a TensorRT plan they stay on the GPU, so that this is the
    bare engine: computation and outputs.

    Args:
        engine: The engine; not used by anybody else meanwhile.
        feeds: Inputs of a run, batch dimension and all.
        batch: Items of a run.
    """

    name = "engine loop"

    def __init__(self, engine: Engine, feeds: Mapping[str, Array], batch: int) -> None:
        self._engine = engine
        self._feeds = feeds
        self.batch = batch
        self.concurrency = len(engine.slots)

    def one_at_a_time(self) -> Subject:
        """The engine with a single slot under way: a run begins when the last has ended."""
        return LoneLoop(self._engine, self._feeds, self.batch)

    def answer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once, with other inputs of the same shapes; copies of the outputs, which must be in host memory."""
        slot = self._engine.slots[0]
        _gather(self._engine, slot, feeds)
        self._engine.enqueue(slot, _outputs(self._engine))
        return {name: np.array(array) for name, array in self._engine.wait(slot).items()}

    def measure(self, seconds: float) -> Sample:
        """See sample.Subject."""
        wanted = _outputs(self._engine)
        for slot in self._engine.slots:
            _gather(self._engine, slot, self._feeds)
        latencies: list[float] = []
        cpu = time.process_time()
        began = time.perf_counter()
        flying: deque[tuple[Slot, float]] = deque()
        for slot in self._engine.slots:
            flying.append((slot, time.perf_counter()))
            self._engine.enqueue(slot, wanted)
        while flying:
            slot, started = flying.popleft()
            self._engine.wait(slot)
            now = time.perf_counter()
            latencies.append(now - started)
            if now - began < seconds:
                flying.append((slot, now))
                self._engine.enqueue(slot, wanted)
        ended = time.perf_counter()
        cpu_ms = (time.process_time() - cpu) * 1e3 / (len(latencies) * self.batch)
        return sample_of_loop(latencies, self.batch, ended - began, {"bench": cpu_ms})


class LoneLoop:
    """One of pinstream's engines, one run at a time, its input copied in for each: what a lone request is held against.

    The input lies where the GPU reads it by itself, as one does that comes in shared memory.

    Args:
        engine: The engine; not used by anybody else meanwhile.
        feeds: Inputs of a run, batch dimension and all.
        batch: Items of a run.
    """

    name = "engine, one at a time"
    concurrency = 1

    def __init__(self, engine: Engine, feeds: Mapping[str, Array], batch: int) -> None:
        self._engine = engine
        self._feeds = {name: _page_locked(engine, array) for name, array in feeds.items()}
        self.batch = batch

    def measure(self, seconds: float) -> Sample:
        """See sample.Subject."""
        wanted, slot = _outputs(self._engine), self._engine.slots[0]
        latencies: list[float] = []
        cpu, began = time.process_time(), time.perf_counter()
        ended = began
        while not latencies or ended - began < seconds:
            started = ended
            _gather(self._engine, slot, self._feeds)
            self._engine.enqueue(slot, wanted)
            self._engine.wait(slot)
            ended = time.perf_counter()
            latencies.append(ended - started)
        cpu_ms = (time.process_time() - cpu) * 1e3 / (len(latencies) * self.batch)
        return sample_of_loop(latencies, self.batch, ended - began, {"bench": cpu_ms})


def _gather(engine: Engine, slot: Slot, feeds: Mapping[str, Array]) -> None:
    slot.begin({name: array.shape for name, array in feeds.items()})
    for name, array in feeds.items():
        slot.put(name, array, None if engine.spec.batch is None else 0)


def _outputs(engine: Engine) -> frozenset[str]:
    return frozenset(tensor.name for tensor in engine.spec.outputs)


def _page_locked(engine: Engine, array: Array) -> Array:
    """A copy on pages of its own, page-locked where the engine is on a GPU; text, which is objects, as it is."""
    if array.dtype.hasobject or not array.nbytes:
        return array
    memory = np.frombuffer(mmap.mmap(-1, array.nbytes), np.uint8)
    engine.pin(memory)
    copy = memory.view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def run_in_threads(call: Callable[[], object], batch: int, threads: int, seconds: float) -> Sample:
    """Call `call`, which takes `batch` items, over and over in `threads` threads for `seconds`."""

    def loop(until: float) -> list[float]:
        latencies: list[float] = []
        began = time.perf_counter()
        while not latencies or began < until:
            call()
            now = time.perf_counter()
            latencies.append(now - began)
            began = now
        return latencies

    with ThreadPoolExecutor(threads) as pool:
        cpu = time.process_time()
        done = list(pool.map(loop, [time.perf_counter() + seconds] * threads))
    latencies = [latency for each in done for latency in each]
    # Each thread's own rate counts: one that has ended a run before another has nothing to do until the end.
    took = len(latencies) / sum(len(each) / sum(each) for each in done)
    cpu_ms = (time.process_time() - cpu) * 1e3 / (len(latencies) * batch)
    return sample_of_loop(latencies, batch, took, {"bench": cpu_ms})


def open_session(model_file: Path, threads: int) -> Any:
    """An ONNX Runtime session with the threads that a lane of the served engine has, and spinning off as there."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(model_file), settings, providers=["CPUExecutionProvider"])


def runnable(batch: int, spec: ModelSpec) -> int:
    """The batch size that the engine runs for a request of `batch` items."""
    if spec.batch is None:
        return 1
    if spec.batch.exact:
        return min(batch, spec.batch.largest)
    return next((size for size in spec.batch.buckets if size >= batch), spec.batch.largest)


def bare_engine(
    model_file: Path, options: Options, spec: ModelSpec, item: Mapping[str, Array], batches: list[int], instances: int
) -> Sequence[BareLoop]:
    """The bare loops of a model, one for each batch size that runs, the smallest first.

    Args:
        model_file: ONNX file or TensorRT plan.
        options: As served.
        spec: The model.
        item: One item of every input.
        batches: Items of a request; rounded to what the engine runs.
        instances: Model instances of the server; an ONNX Runtime loop gets the lanes of all of them.
    """
    sizes = sorted({runnable(batch, spec) for batch in batches})
    if model_file.suffix == ".onnx":
        session = open_session(model_file, options.threads)
        lanes = options.lanes * instances
        return [OnnxRuntimeLoop(session, _feeds(item, batch, spec), batch, lanes) for batch in sizes]
    engine = open_engine(model_file, options)
    return [EngineLoop(engine, batch_of(item, batch, spec), batch) for batch in sizes]


def _feeds(item: Mapping[str, Array], batch: int, spec: ModelSpec) -> dict[str, Array]:
    """ONNX Runtime takes text as str."""
    feeds = batch_of(item, batch, spec)
    return {name: array.astype(str).astype(object) if array.dtype.hasobject else array for name, array in feeds.items()}
