"""Triton's own shared memory, found under the tensors a request brought, so that it need not be copied.

Triton hands a Python model its inputs in a region of /dev/shm. An array that lies in one can be read by the engine's
process from the same region: it is told the file once, and then the place. Linux only: read from /proc/self/maps.
"""

from __future__ import annotations

import bisect
import os
import time
from dataclasses import dataclass
from pathlib import Path

from pinstream.tensors import Array

MAPS = Path("/proc/self/maps")
DIRECTORY = "/dev/shm/"
# A region grows by the megabyte, and pinning it anew takes milliseconds: it is shared again only when this much larger.
WORTH_SHARING_AGAIN = 1.5
# Arrays that lie elsewhere must not cost a look at all mappings each.
READ_EVERY_S = 0.05


@dataclass(frozen=True)
class Place:
    """Where an array lies.

    Attributes:
        path: File of the region.
        offset: Bytes from its beginning.
        size: Of the whole file, when it was looked at.
    """

    path: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Mapping:
    start: int
    end: int
    offset: int
    path: str
    size: int


class SharedRegions:
    """The regions of /dev/shm that this process has mapped."""

    def __init__(self) -> None:
        self._mappings: list[_Mapping] = []
        self._starts: list[int] = []
        self._read_again = 0.0

    def place(self, array: Array) -> Place | None:
        """Where a contiguous array lies, or None where that is no shared region."""
        address = int(array.__array_interface__["data"][0])
        mapping = self._find(address, array.nbytes)
        if mapping is None and time.monotonic() > self._read_again:
            self._read()
            mapping = self._find(address, array.nbytes)
        if mapping is None:
            return None
        return Place(mapping.path, address - mapping.start + mapping.offset, mapping.size)

    def _find(self, address: int, nbytes: int) -> _Mapping | None:
        i = bisect.bisect_right(self._starts, address) - 1
        mapping = self._mappings[i] if i >= 0 else None
        return mapping if mapping is not None and address + nbytes <= mapping.end else None

    def _read(self) -> None:
        found = []
        for line in MAPS.read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) < 6 or not fields[5].startswith(DIRECTORY) or fields[5].endswith(" (deleted)"):
                continue
            start, end = (int(part, 16) for part in fields[0].split("-"))
            size = os.stat(fields[5]).st_size
            found.append(_Mapping(start, end, int(fields[2], 16), fields[5], size))
        # /proc lists mappings by address.
        self._mappings = found
        self._starts = [mapping.start for mapping in found]
        self._read_again = time.monotonic() + READ_EVERY_S
