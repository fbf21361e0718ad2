"""The engine as an instance sees it: slots in memory shared with the engine's process, which runs them."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from pinstream.dlpack import DeviceArray
from pinstream.engines.base import Engine, Slot
from pinstream.errors import EngineError, PinstreamError
from pinstream.metrics import BatchTimes
from pinstream.pace import Looking
from pinstream.regions import KnownRegions, address_of
from pinstream.shared import memory, wire
from pinstream.shared.files import ModelFiles
from pinstream.shared.memory import Layout, SharedMemory
from pinstream.shared.slot import SharedSlot
from pinstream.tensors import Array, ModelSpec

LOGGER = logging.getLogger("pinstream.shared")
# Items handed over at once: the first are on their way to the GPU while the next are gathered.
CHUNK = 8
MAX_SLOTS = 16
# A process that does not free its engine in this time is left to itself.
CLOSE_TIMEOUT_S = 20.0
# Seconds to look for an answer before going to sleep: longer than a small batch takes, shorter than a large one.
SPIN_S = 3e-3
GONE = "the process that runs this model's engine has ended"


class SharedEngine(Engine):
    """An engine in another process.

    Args:
        connect: Gives a socket to the engine's process and its first message, starting the process where need be.
        slots: Parts on their way at once.
        files: What the engine was loaded from, since before it was.
        looking: When to look for answers without a pause, for as long as a small batch takes.
    """

    def __init__(
        self,
        connect: Callable[[], tuple[socket.socket, wire.Message]],
        slots: int = 0,
        *,
        files: ModelFiles,
        looking: Looking = Looking.NEVER,
    ) -> None:
        self._looking = looking
        self._connect = connect
        self._files = files
        self._failure = ""
        self._no_more = ""  # why it cannot be started again
        self._channel, hello = connect()
        self.spec: ModelSpec = wire.spec_from_json(hello["spec"], CHUNK)
        self.dtypes = {t.name: t.numpy_dtype for t in (*self.spec.inputs, *self.spec.outputs)}
        parts = -(-self.spec.batch.largest // CHUNK) + 1 if self.spec.batch else 2
        self._shared_slots = [SharedSlot(i, self) for i in range(slots or min(parts, MAX_SLOTS))]
        self.slots: Sequence[Slot] = self._shared_slots
        self._regions = KnownRegions(self._share_region, lambda number: self._gone.append(number))
        self._next_region = 0
        self._gone: list[int] = []  # regions that it can forget once no part lies in them

    def check(self) -> None:
        """Start over with a new process where the last one has ended.

        Raises:
            EngineError: It cannot be started, or would be another model's.
        """
        if not self.failure:
            return
        self._channel.close()
        self._no_more = self._files.changed() or self._start_again()
        if self._no_more:
            raise self._ended()
        LOGGER.warning("the engine's process was started again")
        self._regions.forget()
        self._gone.clear()
        for slot in self._shared_slots:
            slot.forget(self._failure)
        self._failure = ""

    def _start_again(self) -> str:
        """Get a process that runs the same model; why there is none, or empty."""
        try:
            self._channel, hello = self._connect()
        except (PinstreamError, OSError) as error:
            return str(error)
        # The files may have been replaced while it read them.
        why = self._files.changed()
        if not why and wire.spec_from_json(hello["spec"], CHUNK) != self.spec:
            why = "its files now make a model of other inputs, outputs or batches; start the server again to load them"
        if why:
            self._channel.close()
        return why

    def share(self, slot: int, layout: Layout) -> SharedMemory:
        """New memory for a slot, known to both sides."""
        try:
            with memory.created(layout.nbytes) as fd:
                shared = SharedMemory(fd, layout.nbytes)
                self._send({"memory": slot, "places": dict(layout.places), "bytes": layout.nbytes}, fd)
        except OSError as error:
            raise EngineError(
                f"there is no memory to share with the engine's process ({error.strerror}); raise this process's limit"
            ) from error
        return shared

    def place(self, array: Array) -> tuple[int, int] | None:
        """Region and offset of an array that lies in Triton's shared memory, which the engine's process reads itself.

        Returns:
            None where it is to be copied.
        """
        return self._regions.find(address_of(array), array.nbytes)

    def _share_region(self, path: str, number: int | None) -> int:
        """Let the engine's process know a region as large as it is now; it has the file since the first time."""
        if number is not None:
            self._send({"region": number})
            return number
        number = self._next_region
        self._next_region += 1
        with open(path, "r+b") as file:
            self._send({"region": number}, file.fileno())
        return number

    def _leave_regions(self) -> None:
        # A part that finds no room for its outputs is sent a second time.
        used = {region for slot in self._shared_slots for places in slot.places.values() for region, _, _ in places}
        for number in set(self._gone) - used:
            self._gone.remove(number)
            self._send({"leave": number})

    def enqueue(self, slot: Slot, wanted: frozenset[str]) -> None:
        """Hand the slot's part over; see base.Engine."""
        assert isinstance(slot, SharedSlot)
        slot.wanted, slot.reply = wanted, None
        run = {"run": slot.index, "items": slot.items, "shapes": slot.shapes, "places": slot.places}
        self._send({**run, "wanted": sorted(wanted)})
        if self._gone:
            self._leave_regions()

    def wait(self, slot: Slot) -> Mapping[str, Array | DeviceArray]:
        """Wait for the slot's part; see base.Engine."""
        assert isinstance(slot, SharedSlot)
        reply = self._reply(slot)
        while "room" in reply:
            slot.grow(reply["room"])
            self.enqueue(slot, slot.wanted)
            reply = self._reply(slot)
        if "error" in reply:
            if reply["lost"]:
                self._failure = str(reply["error"])
                raise self._ended()
            raise EngineError(str(reply["error"]))
        return {name: slot.output(name) for name in reply["shapes"]}

    def finished(self, slot: Slot) -> bool:
        """See base.Engine."""
        assert isinstance(slot, SharedSlot)
        while slot.reply is None and wire.is_readable(self._channel):
            self._take_reply()
        return slot.reply is not None

    def _reply(self, slot: SharedSlot) -> wire.Message:
        while slot.reply is None:
            self._take_reply()
        return slot.reply

    def _take_reply(self) -> None:
        if self._looking.now(self.alone):
            until = time.perf_counter() + SPIN_S
            while not wire.is_readable(self._channel) and time.perf_counter() < until:
                pass
        message, _ = wire.receive(self._channel)
        if message is None:
            raise self._ended()
        self.alone = bool(message.get("alone"))
        slot = self._shared_slots[message["done"]]
        slot.reply = message
        slot.ran += [BatchTimes(**batch) for batch in message.get("ran", ())]

    def _send(self, message: wire.Message, fd: int | None = None) -> None:
        try:
            wire.send(self._channel, message, fd)
        except OSError as error:
            raise self._ended() from error

    def _ended(self) -> EngineError:
        self._failure = self._failure or GONE
        no_more = self._no_more or self._files.changed()
        return EngineError(f"{self._failure}, and it cannot be started again: {no_more}" if no_more else self._failure)

    def times(self, slot: Slot) -> Mapping[str, float]:
        """See base.Engine."""
        assert isinstance(slot, SharedSlot)
        return dict((slot.reply or {}).get("stages", {}))

    def used_graph(self, slot: Slot) -> bool:
        """See base.Engine."""
        assert isinstance(slot, SharedSlot)
        return bool((slot.reply or {}).get("graph", False))

    def ran(self, slot: Slot) -> Sequence[BatchTimes]:
        """See base.Engine. A part that nobody has answered counts as a batch that failed."""
        assert isinstance(slot, SharedSlot)
        if slot.reply is None or "ran" not in slot.reply:
            return [*slot.ran, BatchTimes(slot.items, slot.items, {}, failed=True)]
        return slot.ran

    @property
    def recovers(self) -> bool:
        """See base.Engine: not as another model, and not where it could not be started."""
        return not (self._no_more or self._files.changed())

    @property
    def failure(self) -> str:
        """Why the engine cannot run now; the next batch tries to start it again, whether or not it `recovers`."""
        if not self._failure and wire.has_gone(self._channel):
            self._failure = GONE
        return self._failure

    def close(self) -> None:
        """Leave. The process ends with the last instance; that one waits here until everything is freed."""
        with contextlib.suppress(OSError), self._channel:
            process = os.pidfd_open(wire.peer(self._channel)[0])
            try:
                self._channel.shutdown(socket.SHUT_WR)
                self._channel.settimeout(CLOSE_TIMEOUT_S)
                message: wire.Message | None = {}
                while message is not None and "stays" not in message:
                    message, _ = wire.receive(self._channel)
                if message is None:
                    select.select([process], [], [], CLOSE_TIMEOUT_S)
            finally:
                os.close(process)
