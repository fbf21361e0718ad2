"""Host memory that somebody else allocated and that the GPU reads by itself all the same."""

from __future__ import annotations

import bisect
import logging

from pinstream import cuda
from pinstream.regions import KnownRegions, address_of, mapped
from pinstream.tensors import Array

LOGGER = logging.getLogger("pinstream.tensorrt")


class RegisteredMemory:
    """Memory that somebody else allocated and that is page-locked here, so that the GPU reads it by itself.

    That is what was added, and the regions of Triton's shared memory, which are mapped and page-locked as they show up.
    """

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}
        self._starts: list[int] = []
        self._regions = KnownRegions(self._add_region)
        self._mapped: list[Array] = []

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

    def _add_region(self, path: str, nbytes: int) -> int:
        """Address of a mapping of our own, which stays where Triton's may go; 0 where it cannot be page-locked."""
        memory = mapped(path, nbytes)
        if not self.add(memory):
            return 0
        self._mapped.append(memory)
        return address_of(memory)

    def remove(self, memory: Array) -> None:
        """Give it back; no copy from it may be under way."""
        start = address_of(memory)
        if self._ends.pop(start, None) is not None:
            self._starts = sorted(self._ends)
            cuda.unregister_host(start)

    def address(self, array: Array) -> int:
        """Where the GPU can read a contiguous `array`; 0 where it cannot."""
        start = address_of(array)
        place = bisect.bisect_right(self._starts, start) - 1
        if place >= 0 and start + array.nbytes <= self._ends[self._starts[place]]:
            return start
        found = self._regions.find(start, array.nbytes)
        return found[0] + found[1] if found and found[0] else 0

    def clear(self) -> None:
        """Give everything back."""
        for start in self._starts:
            cuda.unregister_host(start)
        self._ends, self._starts = {}, []
        self._regions.forget()
        self._mapped.clear()
