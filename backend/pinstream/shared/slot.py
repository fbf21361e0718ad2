"""One part of a batch on its way through the engine's process: its memory, and where its inputs lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pinstream.dlpack import DeviceArray
from pinstream.errors import EngineError
from pinstream.memory import copy_bytes
from pinstream.metrics import BatchTimes
from pinstream.shared import wire
from pinstream.shared.memory import Layout, SharedMemory
from pinstream.tensors import Array

if TYPE_CHECKING:
    from pinstream.shared.client import SharedEngine


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
        self._known = False  # to the engine's process
        self._copies = False  # whether inputs have ever had to be copied
        self._views: dict[str, Array] = {}
        self._room: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.wanted: frozenset[str] = frozenset()
        self.reply: wire.Message | None = None
        self.ran: list[BatchTimes] = []
        self.places: dict[str, list[list[int]]] = {}

    def forget(self, why: str) -> None:
        """Expect no answer any more, and share new memory for the next part: the process that had both has ended.

        Args:
            why: The error of a part that is under way. What one has answered is still there.
        """
        self._known = False
        if self.reply is None:
            self.reply = {"error": why, "lost": False}

    def begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for a batch; see base.Slot."""
        self.reply, self.ran, self.shapes = None, [], dict(shapes)
        self._engine.check()
        self._make_room()
        self.places = {tensor.name: [] for tensor in self._engine.spec.inputs}
        self._views = {}

    def _make_room(self) -> None:
        """Memory for what is known of the outputs, and for inputs that have to be copied; kept while it is enough.

        The engine's process page-locks it, so there is none for inputs that are read in Triton's own memory. What grows
        doubles at least, since what it replaces stays page-locked until the engine is idle.
        """
        spec, items = self._engine.spec, self.items
        needed = {t.name: max(self._room.get(t.name, 0), t.item_bytes * items) for t in spec.outputs}
        if self._copies:
            needed |= {t.name: math.prod(self.shapes[t.name]) * t.numpy_dtype.itemsize for t in spec.inputs}
        there = {name: nbytes for name, (_, nbytes) in self._layout.places.items()}
        more = {name: nbytes for name, nbytes in needed.items() if nbytes > there.get(name, -1)}
        if self._known and not more:
            return
        layout = Layout.of(there | {name: max(nbytes, 2 * there.get(name, 0)) for name, nbytes in more.items()})
        self._memory = self._engine.share(self.index, layout)
        self._layout = layout
        self._known = True

    def grow(self, room: Mapping[str, int]) -> None:
        """Get memory with more room for outputs, the inputs gathered so far kept.

        Raises:
            EngineError: The engine's process has ended meanwhile; another one does not know where the inputs lie.
        """
        self._room.update(room)
        views, places, old = self._views, self.places, self._layout
        self._known = False
        if failure := self._engine.failure:
            raise EngineError(failure)
        self._make_room()
        self._views = {}
        for name, view in views.items():
            self._views[name] = self._view(name, self.shapes[name])
            self._views[name][...] = view
        for name in views:  # what was copied; the others lie elsewhere
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
            if not self._copies:
                self._copies = True
                self._make_room()
            if name not in self._views:
                self._views[name] = self._view(name, self.shapes[name])
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
