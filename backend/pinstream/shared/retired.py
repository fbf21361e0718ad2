"""Pinned memory that nobody uses any more, until it is a good moment to give it back."""

from __future__ import annotations

from collections.abc import Callable

from pinstream.tensors import Array

# CUDA waits for all that runs before it gives memory back; once nothing does, the next pieces take no time. So many of
# them, or so many bytes, are worth that wait where the engine is never idle.
PIECES = 64
BYTES = 1 << 28


class RetiredMemory:
    """Gives memory back while nothing runs, or when it has become much.

    Args:
        unpin: Gives back.
    """

    def __init__(self, unpin: Callable[[Array], None]) -> None:
        self._unpin = unpin
        self._pieces: list[Array] = []
        self._nbytes = 0

    def add(self, memory: Array) -> None:
        """Memory that nobody will use any more."""
        self._pieces.append(memory)
        self._nbytes += memory.nbytes

    def give_back(self, *, idle: bool) -> None:
        """Unpin all of it where it is time.

        Args:
            idle: Whether nothing runs.
        """
        if idle or len(self._pieces) >= PIECES or self._nbytes >= BYTES:
            while self._pieces:
                self._unpin(self._pieces.pop())
            self._nbytes = 0
