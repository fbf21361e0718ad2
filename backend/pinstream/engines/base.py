"""What the loop asks of an engine. Implemented by onnxruntime.py, tensorrt.py and, elsewhere, shared/client.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

from pinstream.dlpack import DeviceArray
from pinstream.metrics import BatchTimes
from pinstream.tensors import Array, ModelSpec


class Slot(Protocol):
    """The buffers of one batch on its way through the engine. Owned by the engine, borrowed by the loop."""

    def begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for a batch.

        Args:
            shapes: Shape of every input of the whole batch, padding and all.

        Raises:
            EngineError: The engine cannot take such shapes.
        """

    def put(self, name: str, source: Array | DeviceArray, offset: int | None) -> None:
        """Copy a part of the batch in.

        Args:
            name: The input.
            source: The part; may be overwritten as soon as this returns, unless it is on the GPU or pinned.
            offset: Where it starts along the batch dimension; None where `source` is the whole input.

        Raises:
            EngineError: It cannot be; what was put before may be read until the slot is abandoned.
        """

    def cut(self, size: int) -> None:
        """Let the batch begun be of `size` items, no more than it was begun with; what was put stays."""


class Engine(ABC):
    """Runs batches, several at a time: enqueue returns at once, wait blocks until the outputs are there."""

    spec: ModelSpec
    slots: Sequence[Slot]
    # Of an engine that is shared: when the newest batch came, nobody else had anything under way.
    alone: bool = False

    @abstractmethod
    def enqueue(self, slot: Slot, wanted: frozenset[str]) -> None:
        """Start the batch gathered into `slot`.

        Args:
            slot: One of `slots`, not in flight; every input has been gathered since it last was.
            wanted: Names of the outputs that wait will be asked for; only these are copied back.

        Raises:
            EngineError: It could not be started; the slot may be used again once it is abandoned.
        """

    def abandon(self, slot: Slot) -> None:
        """Let nothing read any more what was put into `slot`, of a batch that will not run. Raises nothing."""
        return

    @abstractmethod
    def wait(self, slot: Slot) -> Mapping[str, Array | DeviceArray]:
        """Wait for the batch in `slot`.

        Returns:
            The wanted outputs, whole batch; valid until the slot is used again.

        Raises:
            EngineError: It failed; the slot may be used again.
        """

    @abstractmethod
    def finished(self, slot: Slot) -> bool:
        """Whether wait would return, or raise, at once."""

    def times(self, slot: Slot) -> Mapping[str, float]:
        """Seconds of the stages (h2d, compute, d2h) of the batch just waited for, where the engine times itself."""
        return {}

    def used_graph(self, slot: Slot) -> bool:
        """Whether the batch just waited for was launched as a CUDA graph."""
        return False

    def ran(self, slot: Slot) -> Sequence[BatchTimes] | None:
        """The engine's own batches to be counted with the one just waited for, failed ones too.

        Returns:
            None where a slot's batch is one of the engine's. Where it shares them with those of others, each of the
            engine's batches is told exactly once, and so possibly none here.
        """
        return None

    def pin(self, memory: Array) -> None:
        """Let parts that lie in `memory` be read from it until their batch is done, instead of being copied in put.

        Args:
            memory: uint8 [nbytes]; it stays where it is until unpin.
        """
        return

    def unpin(self, memory: Array) -> None:
        """Take pin back; nothing in flight may use the memory."""
        return

    @property
    def recovers(self) -> bool:
        """Whether the next batch after a failure starts the engine again; else only the end of this process helps."""
        return False

    @property
    def failure(self) -> str:
        """Why this engine cannot run now, and unless it `recovers` never again; nothing while it can."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """Free everything. Nothing may be in flight."""
