"""Regions of Triton's that the engine's process has mapped: each once, however many connections name it."""

from __future__ import annotations

import os
from collections.abc import Callable

from pinstream.shared.memory import SharedMemory

# A file and its size: one that has grown is mapped anew, and its old mapping stays as long as somebody uses it.
_Key = tuple[int, int, int]


class MappedRegions:
    """Maps regions and counts who uses them.

    Args:
        pin: Told of a new mapping.
        unpin: Told when nobody uses it any more.
    """

    def __init__(self, pin: Callable[[SharedMemory], None], unpin: Callable[[SharedMemory], None]) -> None:
        self._pin = pin
        self._unpin = unpin
        self._regions: dict[_Key, SharedMemory] = {}
        self._users: dict[_Key, int] = {}

    def use(self, fd: int, nbytes: int) -> SharedMemory:
        """The first `nbytes` of a file whose descriptor came with a message; it is closed."""
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino, nbytes)
        region = self._regions.get(key)
        if region is None:
            region = self._regions[key] = SharedMemory.adopted(fd, nbytes)
            self._pin(region)
        else:
            os.close(fd)
        self._users[key] = self._users.get(key, 0) + 1
        return region

    def leave(self, region: SharedMemory) -> None:
        """One of its users has gone."""
        key = next(key for key, other in self._regions.items() if other is region)
        self._users[key] -= 1
        if not self._users[key]:
            del self._regions[key], self._users[key]
            self._unpin(region)
