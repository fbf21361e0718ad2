"""The process that owns the engine: takes parts from instances, runs them in common batches, gives results back.

Two threads. The receiver takes messages and starts batches, the lander waits for batches and answers; both hold the
lock while they form and start, and neither while it waits.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pinstream.dlpack import DeviceArray
from pinstream.engines.base import Engine
from pinstream.errors import EngineError
from pinstream.loop import check_batch_dimension
from pinstream.metrics import BatchTimes
from pinstream.shared import wire
from pinstream.shared.forming import Batch, Former, Submission
from pinstream.shared.memory import Layout, SharedMemory
from pinstream.tensors import Array

LOGGER = logging.getLogger("pinstream.shared")
EXIT_LOST = 70


@dataclass(eq=False)
class Instance:
    """A connected model instance.

    Attributes:
        channel: The socket to it.
        memories: Its slots' shared memory.
        layouts: Where tensors lie in them.
        running: Runs not yet answered.
        gone: Whether it has left; its memory stays while anything runs.
    """

    channel: socket.socket
    memories: dict[int, SharedMemory] = field(default_factory=dict)
    layouts: dict[int, Layout] = field(default_factory=dict)
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
        inputs = {name: self._place(name, tuple(shape)) for name, shape in message["shapes"].items()}
        missing = [name for name, array in inputs.items() if array is None]
        if missing:
            raise ValueError(f"inputs {', '.join(missing)} do not fit their shared memory")
        super().__init__(inputs, int(message["items"]), frozenset(message["wanted"]))  # type: ignore[arg-type]

    def _place(self, name: str, shape: tuple[int, ...]) -> Array | None:
        layout, memory = self._instance.layouts[self._slot], self._instance.memories[self._slot]
        return layout.view(memory.data, name, self._server.dtypes[name], shape)

    def deliver(self, outputs: Mapping[str, Array | DeviceArray], offset: int | None, start: int, count: int) -> None:
        """Copy into the slot's memory; see Submission."""
        for name in self.wanted:
            whole = outputs[name]
            rows = whole if offset is None else whole[offset : offset + count]
            shape = tuple(rows.shape) if offset is None else (self.items, *rows.shape[1:])
            place = self._place(name, shape)
            if place is None:
                self._room[name] = int(np.prod(shape, dtype=np.int64)) * self._server.dtypes[name].itemsize
                continue
            self._shapes[name] = list(shape)
            (place if offset is None else place[start : start + count])[...] = _on_host(rows)

    def reply(self) -> None:
        """See Submission."""
        done: wire.Message = {"done": self._slot}
        if self.error is not None:
            done |= {"error": str(self.error), "lost": bool(self._server.engine.failure)}
        elif self._room:
            done |= {"room": self._room}
        else:
            times = self.times
            done |= {"shapes": self._shapes, "stages": dict(times.stages) if times else {}}
            done |= {"graph": bool(times and times.graph)}
        self._instance.send(done)
        self._server.replied(self._instance)


def _on_host(rows: Array | DeviceArray) -> Array:
    return rows.copy() if isinstance(rows, DeviceArray) else rows


class EngineServer:
    """Serves one engine until the last instance has left.

    Args:
        engine: Loaded; closed by whoever made it.
        listener: A listening Unix socket of packets.
    """

    def __init__(self, engine: Engine, listener: socket.socket) -> None:
        self.engine = engine
        self.dtypes = {t.name: t.numpy_dtype for t in (*engine.spec.inputs, *engine.spec.outputs)}
        self._listener = listener
        self._hello = {"spec": wire.spec_to_json(engine.spec)}
        self._former = Former(engine)
        self._changed = threading.Condition()
        self._instances: dict[socket.socket, Instance] = {}
        self._closing = False

    def serve(self, patience: float) -> None:
        """Work until the last instance has left.

        Args:
            patience: Seconds in which the first one has to come.
        """
        give_up = time.monotonic() + patience
        lander = threading.Thread(target=self._land_all, name="pinstream-lander")
        lander.start()
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._closing:
                if not self._instances and time.monotonic() > give_up:
                    break
                for key, _ in selector.select(timeout=1.0):
                    if key.fileobj is self._listener:
                        self._welcome(selector)
                    else:
                        self._hear(selector, self._instances[key.fileobj])  # type: ignore[index]
        with self._changed:
            self._closing = True
            self._changed.notify()
        lander.join()

    def _welcome(self, selector: selectors.BaseSelector) -> None:
        channel, _ = self._listener.accept()
        if not wire.same_user(channel):
            channel.close()
            return
        instance = self._instances[channel] = Instance(channel)
        selector.register(channel, selectors.EVENT_READ)
        instance.send(self._hello)

    def _hear(self, selector: selectors.BaseSelector, instance: Instance) -> None:
        message, fd = wire.receive(instance.channel)
        if message is None:
            self._forget(selector, instance)
        elif "memory" in message:
            self._map(instance, message, fd)
        else:
            self._submit(instance, message)

    def _submit(self, instance: Instance, message: wire.Message) -> None:
        run = _Run(self, instance, message)
        with self._changed:
            instance.running += 1
            self._former.submit(run)
            self._changed.notify()
        self._answer()

    def _map(self, instance: Instance, message: wire.Message, fd: int | None) -> None:
        slot = int(message["memory"])
        assert fd is not None, "memory comes with its file descriptor"
        memory = SharedMemory.adopted(fd, int(message["bytes"]))
        self._unmap(instance, slot)
        instance.memories[slot] = memory
        instance.layouts[slot] = Layout({n: (o, b) for n, (o, b) in message["places"].items()}, int(message["bytes"]))
        self.engine.pin(memory.data)

    def _unmap(self, instance: Instance, slot: int) -> None:
        memory = instance.memories.pop(slot, None)
        if memory is not None:
            self.engine.unpin(memory.data)

    def _forget(self, selector: selectors.BaseSelector, instance: Instance) -> None:
        selector.unregister(instance.channel)
        del self._instances[instance.channel]
        with self._changed:
            instance.gone = True
            idle = not instance.running
        if idle:
            self._release(instance)
        if not self._instances:
            # Nobody may find this process any more while it frees what it has. Its end closes the last channel, which
            # tells the instance that everything is freed.
            self._listener.close()
            self._closing = True
            self._last = instance

    def replied(self, instance: Instance) -> None:
        """One of the instance's runs has been answered."""
        with self._changed:
            instance.running -= 1
            idle = instance.gone and not instance.running
        if idle:
            self._release(instance)

    def _release(self, instance: Instance) -> None:
        for slot in list(instance.memories):
            self._unmap(instance, slot)
        if self._instances:
            instance.send({"stays": True})
            instance.channel.close()

    # The lander

    def _land_all(self) -> None:
        self.engine.enter_thread()
        while True:
            with self._changed:
                while not self._former.started:
                    if self._closing:
                        return
                    self._changed.wait()
                batch = self._former.started.popleft()
            self._land(batch)
            if self.engine.failure:
                LOGGER.error("this process ends, since its engine is lost: %s", self.engine.failure)
                # With the GPU's context lost nothing can be freed; the next batch of any instance starts a new process.
                os._exit(EXIT_LOST)

    def _land(self, batch: Batch) -> None:
        error: EngineError | None = None
        outputs: Mapping[str, Array | DeviceArray] = {}
        try:
            outputs = self.engine.wait(batch.slot)
            if self.engine.spec.batch:
                check_batch_dimension(outputs, batch.size)
        except EngineError as failure:
            error = failure
        with self._changed:
            self._former.computed()
        if error is None:
            times = BatchTimes(
                batch.count, batch.size, self.engine.times(batch.slot), self.engine.used_graph(batch.slot)
            )
            for part in batch.parts:
                part.submission.times = times
                part.submission.deliver(
                    outputs, part.offset if self.engine.spec.batch else None, part.start, part.count
                )
        with self._changed:
            self._former.done(batch, error)
        self._answer()

    def _answer(self) -> None:
        finished = self._former.finished
        while finished:
            try:
                submission = finished.popleft()
            except IndexError:  # the other thread took it
                return
            submission.reply()
