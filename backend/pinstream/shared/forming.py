"""Forms batches across all instances: what has come while the engine was busy runs next, together.

No queue delay is needed. While one batch is computed, the next one fills, each part copied towards the engine as it
comes; it queues behind the running batch as soon as it is full, or when that one is about to end, so that the engine
never waits for this process to see that it has ended. Used by server.py; touches the engine only through engines.base.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pinstream.batching import next_run
from pinstream.dlpack import DeviceArray
from pinstream.engines.base import Engine, Slot
from pinstream.errors import EngineError, as_engine_error
from pinstream.metrics import BatchTimes
from pinstream.tensors import Array, BatchSizes


class Submission(ABC):
    """What an instance handed over: a part of its batch, gathered into shared memory.

    Args:
        inputs: By input name, views of shared memory that follow each other along the batch dimension; a single one
            where the model does not batch.
        items: Length of the batch dimension; 1 where the model does not batch.
        wanted: Names of the outputs to give back.

    Attributes:
        left: Items not done yet.
        error: What a batch it was in failed with.
        blameless: Whether every batch of it that failed was shared with others.
        alone: Shares a batch with nobody, since one that it shared has failed.
        times: What its last batch took.
        ran: The batches that it is the first of: each batch is told by one submission.
    """

    def __init__(self, inputs: Mapping[str, Sequence[Array]], items: int, wanted: frozenset[str]) -> None:
        self.inputs = inputs
        self.items = items
        self.wanted = wanted
        self.item_shapes = {name: arrays[0].shape[1:] for name, arrays in inputs.items()}
        self.left = items
        self.error: EngineError | None = None
        self.blameless = True
        self.alone = False
        self.times: BatchTimes | None = None
        self.ran: list[BatchTimes] = []

    def rows(self, name: str, start: int, count: int) -> Iterator[Array]:
        """Items `start` to `start + count` of an input, in as many views as they lie in."""
        for array in self.inputs[name]:
            if start < len(array) and count > 0:
                taken = array[start : start + count]
                count -= len(taken)
                start = 0
                yield taken
            else:
                start -= len(array)

    @abstractmethod
    def deliver(self, outputs: Mapping[str, Array | DeviceArray], offset: int | None, start: int, count: int) -> None:
        """Take items `start` to `start + count` out of a batch's outputs, where they lie at `offset`.

        Args:
            outputs: Whole batch.
            offset: None where the model does not batch and the outputs are the submission's whole.
            start: First of the submission's items.
            count: How many.
        """

    @abstractmethod
    def reply(self) -> None:
        """All of it is done, or `error` says why not."""


@dataclass
class Part:
    """Items `start` to `start + count` of a submission, at `offset` of a batch."""

    submission: Submission
    start: int
    count: int
    offset: int = 0


@dataclass(eq=False)
class Batch:
    """A slot being filled, or on its way, in one of `sizes`; None where the model does not batch."""

    slot: Slot
    sizes: BatchSizes | None
    parts: list[Part] = field(default_factory=list)
    count: int = 0
    size: int = 0
    began: float = field(default_factory=time.perf_counter)
    gather: float = 0.0

    @property
    def room(self) -> int:
        """The most items that go in."""
        return (self.sizes.best or self.sizes.largest) if self.sizes else 1

    @property
    def full(self) -> bool:
        """Whether nothing more goes in."""
        return self.count >= self.room

    def takes(self, submission: Submission) -> bool:
        """Whether items of `submission` may join; a batch has at least one."""
        first = self.parts[0].submission
        alike = first.item_shapes == submission.item_shapes
        return first is submission or (alike and not (first.alone or submission.alone))


class Former:
    """Turns submissions into batches of one engine.

    Args:
        engine: Its slots and batch sizes.

    Attributes:
        started: Batches enqueued in the engine and not yet looked at by whoever waits for them.
        finished: Submissions to be replied to.
    """

    def __init__(self, engine: Engine) -> None:
        self.started: deque[Batch] = deque()
        self.finished: deque[Submission] = deque()
        self._engine = engine
        self._sizes = engine.spec.batch
        self._lanes = self._sizes.lanes if self._sizes else 1
        self._free = deque(engine.slots)
        self._waiting: deque[Part] = deque()
        self._filling: Batch | None = None
        self._full: deque[Batch] = deque()
        self._running = 0

    def submit(self, submission: Submission) -> None:
        """Take a submission in, and start what can start."""
        self._waiting.append(Part(submission, 0, submission.items))
        self._advance()

    def due(self) -> None:
        """The running batch is about to end: what there is of the next one queues behind it."""
        if self._running == self._lanes == 1 and self._filling:
            self._start(self._cut())
            self._fill()

    def computed(self) -> None:
        """The oldest running batch is computed: the next may start; its slot is still in use."""
        self._running -= 1
        self._advance()

    def done(self, batch: Batch, error: EngineError | None = None) -> None:
        """A batch's outputs have been taken, or it failed: its slot can be filled again."""
        self._release(batch, error)
        self._advance()

    def _advance(self) -> None:
        self._fill()
        while self._may_start():
            self._start(self._full.popleft() if self._full else self._cut())
            self._fill()

    # Filling

    def _fill(self) -> None:
        while self._waiting:
            part = self._waiting[0]
            if self._filling is not None and not self._filling.takes(part.submission):
                self._close_filling()
            if self._filling is None:
                if not self._free:
                    return
                sizes = self._sizes.of_shapes(part.submission.item_shapes) if self._sizes else None
                self._filling = Batch(self._free.popleft(), sizes)
            self._put(self._filling, part)

    def _close_filling(self) -> None:
        assert self._filling is not None
        self._full.append(self._filling)
        self._filling = None

    def _put(self, batch: Batch, part: Part) -> None:
        """Move as many items of the first waiting part into `batch` as it has room for."""
        count = min(part.count, batch.room - batch.count)
        began = time.perf_counter()
        try:
            self._gather(batch, part, count)
            batch.gather += time.perf_counter() - began
        except Exception as error:
            # Whoever is in the batch already runs again; the part at fault runs alone and gets the error.
            self._engine.abandon(batch.slot)
            self._waiting.popleft()
            batch.parts.append(Part(part.submission, part.start, part.count))
            self._filling = None
            self._release(batch, as_engine_error(error))
            return
        batch.parts.append(Part(part.submission, part.start, count, batch.count))
        batch.count += count
        part.start += count
        part.count -= count
        if not part.count:
            self._waiting.popleft()
        if batch.full:
            self._close_filling()

    def _gather(self, batch: Batch, part: Part, count: int) -> None:
        inputs = part.submission.inputs
        if self._sizes is None:
            batch.slot.begin({name: arrays[0].shape for name, arrays in inputs.items()})
            for name, arrays in inputs.items():
                batch.slot.put(name, arrays[0], None)
            return
        if not batch.parts:
            batch.slot.begin({name: (batch.room, *arrays[0].shape[1:]) for name, arrays in inputs.items()})
        for name in inputs:
            offset = batch.count
            for rows in part.submission.rows(name, part.start, count):
                batch.slot.put(name, rows, offset)
                offset += len(rows)

    # Starting

    def _may_start(self) -> bool:
        if self._running < self._lanes:
            return bool(self._full or self._filling)
        return bool(self._full) and self._running == self._lanes

    def _cut(self) -> Batch:
        """The batch being filled, as it is: as much as it is best to run now; what is left goes into the next."""
        assert self._filling is not None
        batch, self._filling = self._filling, None
        over = batch.count - next_run(batch.count, batch.sizes) if batch.sizes else 0
        for part in reversed(batch.parts):
            moved = min(over, part.count)
            if not moved:
                break
            self._waiting.appendleft(Part(part.submission, part.start + part.count - moved, moved))
            part.count -= moved
            batch.count -= moved
            over -= moved
        batch.parts = [part for part in batch.parts if part.count]
        return batch

    def _start(self, batch: Batch) -> None:
        wanted = frozenset[str]().union(*(part.submission.wanted for part in batch.parts))
        try:
            if batch.sizes:
                batch.size = batch.sizes.holding(batch.count)
                batch.slot.cut(batch.size)
            self._engine.enqueue(batch.slot, wanted)
        except Exception as error:
            self._engine.abandon(batch.slot)
            self._release(batch, as_engine_error(error))
            return
        self._running += 1
        self.started.append(batch)

    # Ending

    def _release(self, batch: Batch, error: EngineError | None) -> None:
        self._free.append(batch.slot)
        if error is not None:
            # What could not even be gathered is among the parts, and not in the batch's count.
            items = sum(part.count for part in batch.parts)
            failed = BatchTimes(items, max(batch.size, items), {}, failed=True)
            batch.parts[0].submission.ran.append(failed)
        shared = len({id(part.submission) for part in batch.parts}) > 1
        for part in batch.parts:
            submission = part.submission
            submission.left -= part.count
            if error is not None:
                submission.error = error
                # A failure of its own counts, and one that may be a neighbour's does not.
                submission.blameless = submission.blameless and shared
            if submission.left == 0:
                self._finish(submission)

    def _finish(self, submission: Submission) -> None:
        if submission.error is None or submission.alone or not submission.blameless:
            self.finished.append(submission)
            return
        submission.alone, submission.error, submission.left = True, None, submission.items
        self._waiting.append(Part(submission, 0, submission.items))
