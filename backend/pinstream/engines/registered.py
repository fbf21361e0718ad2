"""Host memory that somebody else allocated and that the GPU reads by itself all the same."""

from __future__ import annotations

import bisect
import logging
import os

from pinstream import cuda
from pinstream.growing import GrowingFile
from pinstream.regions import KnownRegions, address_of
from pinstream.tensors import Array

LOGGER = logging.getLogger("pinstream.tensorrt")


class RegisteredMemory:
    """Memory that somebody else allocated and that is page-locked here, so that the GPU reads it by itself.

    That is what was added, and the regions of Triton's shared memory, which are mapped and page-locked as they show up.
    """

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}
        self._starts: list[int] = []
        self._regions = KnownRegions(self._share_region, self._leave_region)

    def add(self, memory: Array) -> bool:
        """Page-lock `memory`; where that cannot be (False), what lies in it is copied as from any other memory."""
        start = address_of(memory)
        try:
            cuda.register_host(start, memory.nbytes)
        except cuda.CudaError as error:
            LOGGER.warning("shared memory is read the slow way: %s", error)
            return False
        self._ends[start] = start + memory.nbytes
        self._starts = sorted(self._ends)
        return True

    def _share_region(self, path: str, region: GrowingFile | None) -> GrowingFile:
        """Page-lock what has come of a region, in a mapping of our own, which stays where Triton's may go."""
        region = region or GrowingFile(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        piece = region.grow()
        if piece is not None:
            self.add(piece)
        return region

    def _leave_region(self, region: GrowingFile) -> None:
        # What was read of it may still be on its way.
        cuda.synchronize()
        for piece in region.pieces:
            self.remove(piece)

    def remove(self, memory: Array) -> None:
        """Give it back; no copy from it may be under way."""
        start = address_of(memory)
        if self._ends.pop(start, None) is not None:
            self._starts = sorted(self._ends)
            cuda.unregister_host(start)

    def parts(self, array: Array) -> list[tuple[int, int]]:
        """Where the GPU reads a contiguous `array`: address and bytes of each part; none where it cannot.

        CUDA copies no bytes at once that were page-locked in two pieces (cudaErrorInvalidValue).
        """
        start = address_of(array)
        parts = self._split(start, array.nbytes)
        if not parts and (found := self._regions.find(start, array.nbytes)):
            region, offset = found
            parts = self._split(region.address + offset, array.nbytes)
        return parts

    def _split(self, start: int, nbytes: int) -> list[tuple[int, int]]:
        """Bytes by the pieces that they were page-locked in; none where some are not."""
        parts = []
        end = start + nbytes
        while start < end:
            piece = bisect.bisect_right(self._starts, start) - 1
            piece_end = self._ends[self._starts[piece]] if piece >= 0 else 0
            if piece_end <= start:
                return []
            parts.append((start, min(end, piece_end) - start))
            start = piece_end
        return parts

    def clear(self) -> None:
        """Give everything back."""
        for start in self._starts:
            cuda.unregister_host(start)
        self._ends, self._starts = {}, []
        self._regions.forget()
