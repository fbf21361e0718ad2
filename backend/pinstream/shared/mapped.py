"""Regions of Triton's that the engine's process has mapped: each once, however many connections name it."""

from __future__ import annotations

import os
from collections.abc import Callable

from pinstream.growing import GrowingFile
from pinstream.tensors import Array


class MappedRegions:
    """Maps regions, pins what they grow by, and counts who uses them.

    Args:
        pin: Told of each piece that has come.
        unpin: Told of each piece when nobody uses the region any more.
    """

    def __init__(self, pin: Callable[[Array], None], unpin: Callable[[Array], None]) -> None:
        self._pin = pin
        self._unpin = unpin
        self._regions: dict[tuple[int, int], GrowingFile] = {}
        self._users: dict[GrowingFile, int] = {}

    def use(self, fd: int) -> GrowingFile:
        """The region behind a file descriptor that came with a message, as large as it is now; it takes that over."""
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino)
        region = self._regions.get(key)
        if region is None:
            region = self._regions[key] = GrowingFile(fd)
        else:
            os.close(fd)
        self._users[region] = self._users.get(region, 0) + 1
        self.grow(region)
        return region

    def grow(self, region: GrowingFile) -> None:
        """Take in what has come of a region that is in use."""
        piece = region.grow()
        if piece is not None:
            self._pin(piece)

    def leave(self, region: GrowingFile) -> None:
        """One of its users has gone."""
        self._users[region] -= 1
        if self._users[region]:
            return
        del self._users[region]
        self._regions = {key: other for key, other in self._regions.items() if other is not region}
        for piece in region.pieces:
            self._unpin(piece)
