"""The process that owns the engine: takes parts from instances, runs them in common batches, gives results back.

One thread: it takes messages, starts batches and looks for finished ones in turn, so that there is nothing to lock.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pinstream.dlpack import DeviceArray
from pinstream.engines.base import Engine
from pinstream.errors import EngineError, as_engine_error
from pinstream.growing import GrowingFile
from pinstream.loop import check_batch_dimension, not_joined
from pinstream.metrics import BatchTimes
from pinstream.pace import Looking, Pace
from pinstream.shared import wire
from pinstream.shared.forming import Batch, Former, Submission
from pinstream.shared.mapped import MappedRegions
from pinstream.shared.memory import Layout, SharedMemory
from pinstream.shared.retired import RetiredMemory
from pinstream.tensors import Array

LOGGER = logging.getLogger("pinstream.shared")
EXIT_LOST = 70
# Seconds between two looks for a batch of which nobody knows how long it takes.
POLL_S = 50e-6
IDLE_S = 1.0
# Seconds in which a process that looks all the time does so after the last message, before it goes to sleep.
LOOK_S = 5e-3


@dataclass(eq=False)
class Instance:
    """A connection of a model instance, which has one for each of its executions.

    Attributes:
        channel: The socket to it.
        memories: Its slots' shared memory.
        layouts: Where tensors lie in them.
        regions: Triton's shared memory that it has mapped, by number.
        running: Runs not yet answered.
        gone: Whether it has left; its memory stays while anything runs.
    """

    channel: socket.socket
    memories: dict[int, SharedMemory] = field(default_factory=dict)
    layouts: dict[int, Layout] = field(default_factory=dict)
    regions: dict[int, GrowingFile] = field(default_factory=dict)
    running: int = 0
    gone: bool = False

    def send(self, message: wire.Message) -> None:
        """Send to it; one that has gone needs nothing any more."""
        try:
            wire.send(self.channel, message)
        except OSError:
            LOGGER.debug("an instance has gone before its answer")


class _Run(Submission):
    """One run of one slot of an instance."""

    def __init__(self, server: EngineServer, instance: Instance, message: wire.Message) -> None:
        self._server = server
        self._instance = instance
        self._slot = int(message["run"])
        self._shapes: dict[str, list[int]] = {}
        self._room: dict[str, int] = {}
        inputs = {
            name: [self._view(name, tuple(shape), *place) for place in message["places"][name]]
            for name, shape in message["shapes"].items()
        }
        super().__init__(inputs, int(message["items"]), frozenset(message["wanted"]))

    def _view(self, name: str, shape: tuple[int, ...], region: int, offset: int, items: int) -> Array:
        """Items of an input where they lie; in Triton's memory they may be unaligned, which copying does not mind."""
        instance = self._instance
        memory = instance.memories[self._slot] if region == wire.SLOT else instance.regions[region]
        whole = shape if self._server.engine.spec.batch is None else (items, *shape[1:])
        return np.ndarray(whole, self._server.dtypes[name], memory.data.data, offset)

    def _place(self, name: str, shape: tuple[int, ...]) -> Array | None:
        layout, memory = self._instance.layouts[self._slot], self._instance.memories[self._slot]
        return layout.view(memory.data, name, self._server.dtypes[name], shape)

    def deliver(self, outputs: Mapping[str, Array | DeviceArray], offset: int | None, start: int, count: int) -> None:
        """Copy into the slot's memory; see Submission."""
        if self.left == self.items:  # the first of it; of an earlier run nothing counts any more
            self._shapes, self._room = {}, {}
        for name in self.wanted:
            whole = outputs[name]
            rows = whole if offset is None else whole[offset : offset + count]
            shape = tuple(rows.shape) if offset is None else (self.items, *rows.shape[1:])
            place = self._place(name, shape)
            if place is None:
                self._room[name] = math.prod(shape) * self._server.dtypes[name].itemsize
                continue
            other = self._shapes.setdefault(name, list(shape))
            if other != list(shape):
                self.error = not_joined(name, shape[1:], other[1:])
                return
            (place if offset is None else place[start : start + count])[...] = _on_host(rows)

    def reply(self) -> None:
        """See Submission."""
        done: wire.Message = {"done": self._slot, "ran": [vars(batch) for batch in self.ran]}
        done["alone"] = self._server.alone
        if self.error is not None:
            done |= {"error": str(self.error), "lost": bool(self._server.engine.failure)}
        elif self._room:
            done |= {"room": self._room}
        else:
            times = self.times
            done |= {"shapes": self._shapes, "stages": dict(times.stages) if times else {}}
            done |= {"graph": bool(times and times.graph)}
        try:
            self._instance.send(done)
        except EngineError as error:  # the names and shapes of a great many outputs
            self._instance.send({"done": self._slot, "error": str(error), "lost": False})
        self._server.replied(self._instance)


def _on_host(rows: Array | DeviceArray) -> Array:
    return rows.copy() if isinstance(rows, DeviceArray) else rows


class EngineServer:
    """Serves one engine until the last instance has left.

    Args:
        engine: Loaded; closed by whoever made it.
        listener: A listening Unix socket of packets.
        looking: When to look for finished batches without a pause, which answers soonest and keeps a core busy.
            Otherwise sleep for most of what a batch should take.
        observe: Told about every finished batch.

    Attributes:
        alone: When the newest run came, no other instance had anything under way.

    Raises:
        EngineError: The model has more tensors than an instance can be told of.
    """

    def __init__(
        self,
        engine: Engine,
        listener: socket.socket,
        *,
        looking: Looking = Looking.NEVER,
        observe: Callable[[BatchTimes], None] | None = None,
    ) -> None:
        self.engine = engine
        self.dtypes = {t.name: t.numpy_dtype for t in (*engine.spec.inputs, *engine.spec.outputs)}
        self._listener = listener
        self._looking = looking
        self.alone = False
        self._pace = Pace()
        self._running: Batch | None = None
        self._running_since = 0.0
        self._slept = False
        self._observe = observe
        self._hello: wire.Message = {"spec": wire.spec_to_json(engine.spec)}
        wire.packed(self._hello)
        self._former = Former(engine)
        self._instances: dict[socket.socket, Instance] = {}
        self._selector = selectors.SelectSelector()  # of all selectors, the one whose pauses may be shorter than 1 ms
        self._retired = RetiredMemory(engine.unpin)
        self._regions = MappedRegions(self._pin, self._retired.add)
        self._last: Instance | None = None
        self._look_until = 0.0

    def serve(self, patience: float) -> None:
        """Work until the last instance has left.

        Args:
            patience: Seconds in which the first one has to come.
        """
        give_up = time.monotonic() + patience
        with self._selector:
            self._selector.register(self._listener, selectors.EVENT_READ)
            while self._instances or (self._last is None and time.monotonic() < give_up):
                self._work()
        # Nobody may find this process any more while it frees what it has. Its end closes the last channel, which tells
        # that instance that everything is freed.
        self._listener.close()
        self._drain()

    def _work(self) -> None:
        """Take what has come and what is computed; rest while there is neither."""
        for key, _ in self._selector.select(self._pause()):
            self._look_until = time.monotonic() + LOOK_S
            if key.fileobj is self._listener:
                self._welcome()
            else:
                self._hear(self._instances[key.fileobj])  # type: ignore[index]
        while self._former.started and self.engine.finished(self._former.started[0].slot):
            self._land(self._former.started.popleft())
        if self._is_due():
            self._former.due()
        self._retired.give_back(idle=not self._former.started)

    def _is_due(self) -> bool:
        """Whether the running batch is about to end, by what batches of its size usually take."""
        if self._running is None or not self._former.started or self._former.started[0] is not self._running:
            return False
        elapsed = time.perf_counter() - self._running_since
        return self._pace.pause(self._running.size, elapsed) == 0.0

    def _pause(self) -> float:
        """Seconds to listen before looking for finished batches again."""
        running = self._former.started[0] if self._former.started else None
        if running is not self._running:
            self._running, self._running_since = running, time.perf_counter()
        self._slept = False
        if self._looking.now(self.alone) and (running or time.monotonic() < self._look_until):
            return 0.0
        if running is None:
            return IDLE_S
        pause = self._pace.pause(running.size, time.perf_counter() - self._running_since)
        self._slept = bool(pause)
        return POLL_S if pause is None else pause

    def _drain(self) -> None:
        """Wait for what an instance that has gone had under way."""
        while self._former.started:
            self._land(self._former.started.popleft())

    # Instances

    def _welcome(self) -> None:
        channel, _ = self._listener.accept()
        if not wire.same_user(channel):
            channel.close()
            return
        instance = self._instances[channel] = Instance(channel)
        self._selector.register(channel, selectors.EVENT_READ)
        instance.send(self._hello)

    def _hear(self, instance: Instance) -> None:
        message, fd = wire.receive(instance.channel)
        if message is None:
            self._forget(instance)
        elif "memory" in message:
            self._map(instance, message, fd)
        elif "region" in message:
            self._map_region(instance, message, fd)
        elif "leave" in message:
            self._regions.leave(instance.regions.pop(int(message["leave"])))
        else:
            self._run(instance, message)
            self._answer()
            self._end_if_lost()

    def _run(self, instance: Instance, message: wire.Message) -> None:
        try:
            run = _Run(self, instance, message)
        except (LookupError, TypeError, ValueError) as error:
            # Whatever one instance has got wrong, the others' engine goes on.
            LOGGER.error("a part whose inputs are not where they are said to be: %r", error)
            instance.send({"done": message["run"], "error": f"its inputs cannot be found ({error!r})", "lost": False})
            return
        instance.running += 1
        self.alone = not any(other.running for other in self._instances.values() if other is not instance)
        self._former.submit(run)

    def _map(self, instance: Instance, message: wire.Message, fd: int | None) -> None:
        slot = int(message["memory"])
        assert fd is not None, "memory comes with its file descriptor"
        memory = SharedMemory.adopted(fd, int(message["bytes"]))
        self._unmap(instance, slot)
        instance.memories[slot] = memory
        instance.layouts[slot] = Layout({n: (o, b) for n, (o, b) in message["places"].items()}, int(message["bytes"]))
        self._pin(memory.data)

    def _map_region(self, instance: Instance, message: wire.Message, fd: int | None) -> None:
        number = int(message["region"])
        if fd is None:  # it has grown
            self._regions.grow(instance.regions[number])
        else:
            instance.regions[number] = self._regions.use(fd)

    def _pin(self, memory: Array) -> None:
        try:
            self.engine.pin(memory)
        except EngineError as error:
            # Unpinned memory is copied from as any other is.
            LOGGER.warning("shared memory is read the slow way: %s", error)

    def _unmap(self, instance: Instance, slot: int) -> None:
        memory = instance.memories.pop(slot, None)
        if memory is not None:
            self._retired.add(memory.data)

    def _forget(self, instance: Instance) -> None:
        self._selector.unregister(instance.channel)
        del self._instances[instance.channel]
        self._last = instance
        instance.gone = True
        if self._instances:
            instance.send({"stays": True})
            instance.channel.close()
        self._release(instance)

    def _release(self, instance: Instance) -> None:
        """Give the memory of an instance that has gone back, once nothing under way reads it."""
        if instance.gone and not instance.running:
            for slot in list(instance.memories):
                self._unmap(instance, slot)
            for region in instance.regions.values():
                self._regions.leave(region)
            instance.regions.clear()

    def replied(self, instance: Instance) -> None:
        """One of the instance's runs has been answered."""
        instance.running -= 1
        self._release(instance)

    # Batches

    def _land(self, batch: Batch) -> None:
        error: EngineError | None = None
        try:
            outputs = self.engine.wait(batch.slot)
            if self.engine.spec.batch:
                check_batch_dimension(outputs, batch.size)
        except Exception as failure:
            error = as_engine_error(failure)
        # The next batch starts before this one is handed out.
        self._former.computed()
        if batch is self._running:
            self._pace.took(batch.size, time.perf_counter() - self._running_since, overslept=self._slept)
        if error is None:
            try:
                self._hand_out(batch, outputs)
            except Exception as failure:  # the next batch may already have lost the GPU's context
                error = as_engine_error(failure)
        self._former.done(batch, error)
        self._answer()
        self._end_if_lost()

    def _end_if_lost(self) -> None:
        if self.engine.failure:
            LOGGER.error("this process ends, since its engine is lost: %s", self.engine.failure)
            # With the GPU's context lost nothing can be freed; the next batch of any instance starts a new process.
            os._exit(EXIT_LOST)

    def _hand_out(self, batch: Batch, outputs: Mapping[str, Array | DeviceArray]) -> None:
        waited = time.perf_counter()
        for part in batch.parts:
            offset = part.offset if self.engine.spec.batch else None
            part.submission.deliver(outputs, offset, part.start, part.count)
        ended = time.perf_counter()
        stages = self.engine.times(batch.slot)
        graph = self.engine.used_graph(batch.slot)
        size = batch.size or batch.count  # a model without a batch dimension has no sizes
        for part in batch.parts:
            part.submission.times = BatchTimes(batch.count, size, stages, graph)
        own = {"gather": batch.gather, "scatter": ended - waited}
        times = BatchTimes(batch.count, size, {**own, **stages}, graph, began=batch.began, ended=ended)
        batch.parts[0].submission.ran.append(times)
        if self._observe:
            self._observe(times)

    def _answer(self) -> None:
        while self._former.finished:
            self._former.finished.popleft().reply()
