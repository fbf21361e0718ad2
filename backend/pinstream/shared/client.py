"""The engine as an instance sees it: slots in memory shared with the engine's process, which runs them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from pinstream.dlpack import DeviceArray
from pinstream.engines.base import Engine, Slot
from pinstream.errors import EngineError, PinstreamError
from pinstream.memory import copy_bytes
from pinstream.shared import memory, wire
from pinstream.shared.memory import Layout, SharedMemory
from pinstream.shared.regions import WORTH_SHARING_AGAIN, SharedRegions
from pinstream.tensors import Array, ModelSpec

LOGGER = logging.getLogger("pinstream.shared")
# Items handed over at once: the first are on their way to the GPU while the next are gathered.
CHUNK = 4
MAX_SLOTS = 16
# A process that does not free its engine in this time is left to itself.
CLOSE_TIMEOUT_S = 20.0
# Seconds to look for an answer before going to sleep: longer than a small batch takes, shorter than a large one.
SPIN_S = 3e-3
GONE = "the process that runs this model's engine has ended"


class SharedSlot:
    """One part of a batch on its way through the engine's process. A base.Slot.

    Args:
        index: Its number on this connection.
        engine: Whose it is.
    """

    def __init__(self, index: int, engine: SharedEngine) -> None:
        self.index = index
        self._engine = engine
        self._layout = Layout({}, 0)
        self._memory: SharedMemory | None = None
        self._views: dict[str, Array] = {}
        self._room: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.wanted: frozenset[str] = frozenset()
        self.reply: wire.Message | None = None
        self.places: dict[str, list[list[int]]] = {}

    def forget(self) -> None:
        """Drop the memory: the process that knew it has ended."""
        self._memory = None

    def begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for a batch; see base.Slot."""
        self._engine.check()
        self.shapes = dict(shapes)
        self._make_room()
        self.places = {tensor.name: [] for tensor in self._engine.spec.inputs}
        self._views = {tensor.name: self._view(tensor.name, shapes[tensor.name]) for tensor in self._engine.spec.inputs}

    def _make_room(self) -> None:
        """Memory for the inputs begun and for what is known of the outputs; kept while it is enough."""
        sizes = {t.name: math.prod(self.shapes[t.name]) * t.numpy_dtype.itemsize for t in self._engine.spec.inputs}
        if self._memory is not None and all(sizes[name] <= self._layout.places[name][1] for name in sizes):
            return
        items = self.items
        for tensor in self._engine.spec.outputs:
            sizes[tensor.name] = max(self._room.get(tensor.name, 0), tensor.item_bytes * items)
        self._layout = Layout.of(sizes)
        self._memory = self._engine.share(self.index, self._layout)

    def grow(self, room: Mapping[str, int]) -> None:
        """Get memory with more room for outputs, the inputs gathered so far kept."""
        self._room.update(room)
        views, places, old = self._views, self.places, self._layout
        self._memory = None
        self.begin(self.shapes)
        for name, view in views.items():
            self._views[name][...] = view
            moved = self._layout.places[name][0] - old.places[name][0]
            self.places[name] = [[r, o + moved * (r == wire.SLOT), n] for r, o, n in places[name]]

    def _view(self, name: str, shape: tuple[int, ...]) -> Array:
        assert self._memory is not None
        view = self._layout.view(self._memory.data, name, self._engine.dtypes[name], shape)
        if view is None:
            raise EngineError(f"tensor '{name}' of shape {list(shape)} does not fit into the memory shared for it")
        return view

    @property
    def items(self) -> int:
        """Items of the part begun; 1 where the model does not batch."""
        return next(iter(self.shapes.values()))[0] if self._engine.spec.batch else 1

    def put(self, name: str, source: Array | DeviceArray, offset: int | None) -> None:
        """Copy a part of the batch in; see base.Slot."""
        if isinstance(source, DeviceArray):
            raise EngineError(
                f"input '{name}' is on the GPU, and instances that share an engine take host memory only; "
                "set SHARE_ENGINE to off in config.pbtxt"
            )
        place = self._engine.place(source)
        if place is None:
            view = self._views[name]
            row = view.nbytes // len(view) if offset else 0
            place = (wire.SLOT, self._layout.places[name][0] + row * (offset or 0))
            copy_bytes(view if offset is None else view[offset : offset + len(source)], source)
        self._add(self.places[name], *place, len(source) if source.ndim else 1, source.nbytes)

    @staticmethod
    def _add(places: list[list[int]], region: int, offset: int, items: int, nbytes: int) -> None:
        """Note where items lie; with the ones before where they follow them in memory."""
        if places:
            last_region, last_offset, last_items = places[-1]
            if last_region == region and last_offset + last_items * (nbytes // items) == offset:
                places[-1][2] += items
                return
        places.append([region, offset, items])

    def cut(self, size: int) -> None:
        """See base.Slot."""
        self.shapes = {name: (size, *shape[1:]) for name, shape in self.shapes.items()}

    def output(self, name: str) -> Array:
        """An output of the finished batch; valid until the slot is used again."""
        assert self.reply is not None
        return self._view(name, tuple(self.reply["shapes"][name]))


class SharedEngine(Engine):
    """An engine in another process.

    Args:
        connect: Gives a socket to the engine's process and its first message, starting the process where need be.
        slots: Parts on their way at once.
        spin: Look for answers without a pause, for as long as a small batch takes.
    """

    def __init__(
        self, connect: Callable[[], tuple[socket.socket, wire.Message]], slots: int = 0, *, spin: bool = False
    ) -> None:
        self._spin = spin
        self._connect = connect
        self._failure = ""
        self._channel, hello = connect()
        self.spec: ModelSpec = wire.spec_from_json(hello["spec"], CHUNK)
        self.dtypes = {t.name: t.numpy_dtype for t in (*self.spec.inputs, *self.spec.outputs)}
        parts = -(-self.spec.batch.largest // CHUNK) + 1 if self.spec.batch else 2
        self._shared_slots = [SharedSlot(i, self) for i in range(slots or min(parts, MAX_SLOTS))]
        self.slots: Sequence[Slot] = self._shared_slots
        self._regions = SharedRegions()
        self._shared_regions: dict[str, tuple[int, int]] = {}
        self._next_region = 0

    def check(self) -> None:
        """Start over with a new process where the last one has ended.

        Raises:
            EngineError: It cannot be started.
        """
        if not self.failure:
            return
        self._channel.close()
        try:
            self._channel, _ = self._connect()
        except PinstreamError as error:
            raise EngineError(f"{self._failure}, and it cannot be started again: {error}") from error
        LOGGER.warning("the engine's process was started again")
        self._failure = ""
        self._shared_regions.clear()
        for slot in self._shared_slots:
            slot.forget()

    def share(self, slot: int, layout: Layout) -> SharedMemory:
        """New memory for a slot, known to both sides."""
        with memory.created(layout.nbytes) as fd:
            shared = SharedMemory(fd, layout.nbytes)
            self._send({"memory": slot, "places": dict(layout.places), "bytes": layout.nbytes}, fd)
        return shared

    def place(self, array: Array) -> tuple[int, int] | None:
        """Region and offset of an array that lies in Triton's shared memory, which the engine's process reads itself.

        Returns:
            None where it lies elsewhere, or where sharing the region anew is not worth its while.
        """
        found = self._regions.place(array)
        if found is None:
            return None
        number, size = self._shared_regions.get(found.path, (0, 0))
        if found.offset + array.nbytes > size:
            if found.size < WORTH_SHARING_AGAIN * size:
                return None
            number = self._share_region(found.path, found.size)
        return number, found.offset

    def _share_region(self, path: str, size: int) -> int:
        number = self._next_region
        self._next_region += 1
        with open(path, "r+b") as file:
            self._send({"region": number, "bytes": size}, file.fileno())
        self._shared_regions[path] = number, size
        return number

    def enqueue(self, slot: Slot, wanted: frozenset[str]) -> None:
        """Hand the slot's part over; see base.Engine."""
        assert isinstance(slot, SharedSlot)
        slot.wanted, slot.reply = wanted, None
        run = {"run": slot.index, "items": slot.items, "shapes": slot.shapes, "places": slot.places}
        self._send({**run, "wanted": sorted(wanted)})

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
        if self._spin:
            until = time.perf_counter() + SPIN_S
            while not wire.is_readable(self._channel) and time.perf_counter() < until:
                pass
        message, _ = wire.receive(self._channel)
        if message is None:
            raise self._ended()
        self._shared_slots[message["done"]].reply = message

    def _send(self, message: wire.Message, fd: int | None = None) -> None:
        try:
            wire.send(self._channel, message, fd)
        except OSError as error:
            raise self._ended() from error

    def _ended(self) -> EngineError:
        self._failure = self._failure or GONE
        return EngineError(self._failure)

    def times(self, slot: Slot) -> Mapping[str, float]:
        """See base.Engine."""
        assert isinstance(slot, SharedSlot)
        return dict((slot.reply or {}).get("stages", {}))

    def used_graph(self, slot: Slot) -> bool:
        """See base.Engine."""
        assert isinstance(slot, SharedSlot)
        return bool((slot.reply or {}).get("graph", False))

    @property
    def failure(self) -> str:
        """Why the engine cannot run now; the next batch tries to start it again."""
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
