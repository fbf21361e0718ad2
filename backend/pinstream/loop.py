"""The asynchronous execution loop over a ring of slots, written once for any engine.

The order of one batch is the classic one: gather into host memory, copy in, execute, copy out, wait, scatter. The loop
keeps several batches in that order at once: while the engine computes batch k, batch k+1 is gathered and batch k-1
handed out. Called by model.py from one thread; touches engines only through engines.base.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pinstream.batching import Batch, Piece, Request, plan_batches, without
from pinstream.dlpack import DeviceArray
from pinstream.engines.base import Engine, Slot
from pinstream.errors import EngineError
from pinstream.metrics import BatchTimes
from pinstream.tensors import Array

# Told what a batch took, and which of the engine's batches are to be counted with it.
Observe = Callable[[BatchTimes, Sequence[BatchTimes]], None]
# Triton drops cancelled requests while they queue there. Only those that then wait here are asked again.
CANCEL_CHECK_AFTER_S = 0.005


@dataclass
class Answer:
    """What becomes of one request: outputs by name, or an error, or neither where it was cancelled.

    Attributes:
        outputs: Whole outputs of the request; views are valid until the loop's next run.
        error: Why there are none.
        cancelled: Its sender has given up; nothing was computed that could be left out.
        times: What its last batch took.
    """

    outputs: dict[str, Array | DeviceArray] = field(default_factory=dict)
    error: EngineError | None = None
    cancelled: bool = False
    times: BatchTimes | None = None


@dataclass
class _Flight:
    """A batch under way."""

    batch: Batch
    slot: Slot
    began: float
    gather: float
    last_use: bool


class Run:
    """Requests between start and finish.

    Attributes:
        requests: That are to be answered.
        answers: One for each.
        batches: Not yet on their way.
        free: Slots that no batch is in.
        flying: Batches under way, the oldest first.
        started: When, by time.perf_counter; where they are run again, when they first were.
    """

    def __init__(self, requests: Sequence[Request], engine: Engine, started: float | None = None) -> None:
        self.requests = requests
        self.answers = [Answer() for _ in requests]
        self.batches = deque(plan_batches(requests, engine.spec.batch))
        self.free = deque(engine.slots)
        self.flying: deque[_Flight] = deque()
        self.started = started or time.perf_counter()


class Loop:
    """Runs requests through an engine.

    Args:
        engine: What runs the batches; the loop never closes it.
        observe: Told about every finished batch: what it took, and the engine's batches to be counted with it.
    """

    def __init__(self, engine: Engine, observe: Observe | None = None) -> None:
        self.engine = engine
        self._observe = observe

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer `requests`, in their order: start and finish at once."""
        return self.finish(self.start(requests))

    def start(self, requests: Sequence[Request]) -> Run:
        """Send as much of `requests` to the engine as it has slots for; to be finished before the next start."""
        return self._start(Run(requests, self.engine))

    def _start(self, run: Run) -> Run:
        with self._landing_all(run):
            self._launch_more(run)
        return run

    def finish(self, run: Run) -> list[Answer]:
        """Answer the requests that were started, in their order.

        Where a batch of several requests fails in the engine, each is run again by itself, so that only the one at
        fault is answered with the error.
        """
        answers = self._finish_together(run)
        if len(run.requests) > 1 and any(answer.error for answer in answers):
            # The runs that follow use the slots these are views of.
            for answer in answers:
                _keep(answer)
            for i in [i for i, answer in enumerate(answers) if answer.error is not None]:
                again = self._start(Run([run.requests[i]], self.engine, run.started))
                answers[i] = self._finish_together(again)[0]
                _keep(answers[i])
        return answers

    def _finish_together(self, run: Run) -> list[Answer]:
        with self._landing_all(run):
            while run.flying:
                flight = run.flying.popleft()
                self._land(flight, run.requests, run.answers)
                run.free.append(flight.slot)
                self._launch_more(run)
        return run.answers

    def _launch_more(self, run: Run) -> None:
        while run.batches and run.free:
            batch = self._without_cancelled(run.batches.popleft(), run)
            if not batch.pieces:
                continue
            slot = run.free.popleft()
            # Outputs are handed out as views where nothing will overwrite them during this run.
            last_use = len(run.batches) < len(self.engine.slots)
            flight = self._launch(batch, slot, run.requests, run.answers, last_use=last_use)
            if flight:
                run.flying.append(flight)
            else:
                run.free.append(slot)

    @contextlib.contextmanager
    def _landing_all(self, run: Run) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # Nobody foresaw this; what is in flight must all the same not be written into by the next run.
            for flight in run.flying:
                with contextlib.suppress(Exception):
                    self.engine.wait(flight.slot)
            raise

    def _without_cancelled(self, batch: Batch, run: Run) -> Batch:
        """What is left of a batch that is not begun yet without the requests whose senders have given up by now."""
        if time.perf_counter() - run.started < CANCEL_CHECK_AFTER_S:
            return batch
        gone = set()
        for piece in batch.pieces:
            answer = run.answers[piece.request]
            answer.cancelled = answer.cancelled or run.requests[piece.request].cancelled()
            if answer.cancelled:
                gone.add(piece.request)
        if not gone:
            return batch
        shapes = {name: array.shape[1:] for name, array in run.requests[batch.pieces[0].request].inputs.items()}
        return without(batch, gone, self.engine.spec.batch and self.engine.spec.batch.of_shapes(shapes))

    def _launch(
        self, batch: Batch, slot: Slot, requests: Sequence[Request], answers: list[Answer], *, last_use: bool
    ) -> _Flight | None:
        began = time.perf_counter()
        try:
            self._gather(batch, slot, requests)
            wanted = frozenset[str]().union(*(requests[p.request].wanted for p in batch.pieces))
            self.engine.enqueue(slot, wanted)
        except BaseException as error:
            # Triton gets the sources back, also where nobody foresaw this.
            self.engine.abandon(slot)
            if not isinstance(error, EngineError):
                raise
            self._fail(batch, slot, error, answers)
            return None
        return _Flight(batch, slot, began, time.perf_counter() - began, last_use)

    def _gather(self, batch: Batch, slot: Slot, requests: Sequence[Request]) -> None:
        first = requests[batch.pieces[0].request].inputs
        if self.engine.spec.batch is None:
            slot.begin({name: array.shape for name, array in first.items()})
            for name, array in first.items():
                slot.put(name, array, None)
            return
        slot.begin({name: (batch.size, *array.shape[1:]) for name, array in first.items()})
        for p in batch.pieces:
            for name, array in requests[p.request].inputs.items():
                slot.put(name, array[p.start : p.start + p.count], p.offset)

    def _land(self, flight: _Flight, requests: Sequence[Request], answers: list[Answer]) -> None:
        batch = flight.batch
        began = time.perf_counter()
        try:
            outputs = self.engine.wait(flight.slot)
            waited = time.perf_counter()
            if self.engine.spec.batch:
                check_batch_dimension(outputs, batch.size)
            for piece in batch.pieces:
                if not answers[piece.request].cancelled:
                    self._scatter(piece, outputs, requests[piece.request], answers[piece.request], flight.last_use)
            ended = time.perf_counter()
            engine_stages = self.engine.times(flight.slot)
        except EngineError as error:
            # Also one of a later batch: outputs on the GPU, and its events, are lost with its context.
            self._fail(batch, flight.slot, error, answers)
            return
        own = {"gather": flight.gather, "compute": waited - began, "scatter": ended - waited}
        # Where the engine times itself, that counts; the wait here is what overlap has left of it.
        stages = {**own, **engine_stages}
        graph = self.engine.used_graph(flight.slot)
        times = BatchTimes(batch.count, batch.size, stages, graph, began=flight.began, ended=ended)
        for piece in batch.pieces:
            answers[piece.request].times = times
        self._tell(flight.slot, times)

    def _tell(self, slot: Slot, times: BatchTimes) -> None:
        if self._observe:
            ran = self.engine.ran(slot)
            self._observe(times, (times,) if ran is None else ran)

    def _fail(self, batch: Batch, slot: Slot, error: EngineError, answers: list[Answer]) -> None:
        # Without the traceback: its calls hold the answers, in a circle, and with them what the requests lie in.
        told = EngineError(str(error))
        for piece in batch.pieces:
            answers[piece.request].error = told
        self._tell(slot, BatchTimes(batch.count, batch.size, {}, failed=True))

    def _scatter(
        self, piece: Piece, outputs: Mapping[str, Array | DeviceArray], request: Request, answer: Answer, last_use: bool
    ) -> None:
        for name in request.wanted:
            whole = outputs[name]
            if self.engine.spec.batch is None:
                answer.outputs[name] = whole if last_use else _lasting(whole)
                continue
            part = whole[piece.offset : piece.offset + piece.count]
            if piece.count == request.items:
                answer.outputs[name] = part if last_use else _lasting(part)
                continue
            joined = answer.outputs.get(name)
            if joined is None:
                joined = answer.outputs[name] = np.empty((request.items, *part.shape[1:]), part.dtype)
            assert isinstance(joined, np.ndarray), "a request in several parts is joined on the host"
            if joined.shape[1:] != part.shape[1:]:
                answer.error = not_joined(name, part.shape[1:], joined.shape[1:])
                return
            joined[piece.start : piece.start + piece.count] = part.copy() if isinstance(part, DeviceArray) else part


def _keep(answer: Answer) -> None:
    """Copy an answer's outputs, so that they last beyond the slots; where that fails, it is the answer's error."""
    if answer.error is None:
        try:
            answer.outputs = {name: _lasting(array) for name, array in answer.outputs.items()}
        except EngineError as error:
            answer.error = EngineError(str(error))


def _lasting(array: Array | DeviceArray) -> Array | DeviceArray:
    return array.lasting() if isinstance(array, DeviceArray) else array.copy()


def check_batch_dimension(outputs: Mapping[str, Array | DeviceArray], size: int) -> None:
    """Hold a batch's outputs against its size: a model that does not keep it would give one request another's results.

    Raises:
        EngineError: An output has another first dimension.
    """
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != size:
            raise EngineError(
                f"output '{name}' has shape {list(array.shape)} for a batch of {size}: the model does not keep "
                "the batch dimension; configure max_batch_size: 0 with the inputs' full dims"
            )


def not_joined(name: str, part: Sequence[int], other: Sequence[int]) -> EngineError:
    """The error of a request in several batches whose outputs have other shapes than each other's."""
    return EngineError(
        f"output '{name}' has shape {list(part)} in one part of the request and {list(other)} in another, so the parts "
        "cannot be joined; send fewer items a request"
    )
