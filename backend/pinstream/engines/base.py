"""What the loop asks of an engine. Implemented by onnxruntime.py (host memory) and tensorrt.py (CUDA)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

from pinstream.tensors import Array, ModelSpec


class Slot(Protocol):
    """The buffers of one batch on its way through the engine. Owned by the engine, borrowed by the loop."""

    def input(self, name: str, shape: tuple[int, ...]) -> Array:
        """Host memory to gather input `name` of the whole batch into, as an array of `shape`."""


class Engine(ABC):
    """Runs batches, several at a time: enqueue returns at once, wait blocks until the outputs are there."""

    spec: ModelSpec
    slots: Sequence[Slot]

    @abstractmethod
    def enqueue(self, slot: Slot, wanted: frozenset[str]) -> None:
        """Start the batch gathered into `slot`.

        Args:
            slot: One of `slots`, not in flight; every input has been gathered since it last was.
            wanted: Names of the outputs that wait will be asked for; only these are copied back.

        Raises:
            EngineError: It could not be started; the slot may be used again.
        """

    @abstractmethod
    def wait(self, slot: Slot) -> Mapping[str, Array]:
        """Wait for the batch in `slot`.

        Returns:
            The wanted outputs, whole batch, on the host; valid until the slot is used again.

        Raises:
            EngineError: It failed; the slot may be used again.
        """

    @abstractmethod
    def close(self) -> None:
        """Free everything. Nothing may be in flight."""
