"""Triton's own shared memory, found under the tensors a request brought, so that they need not be copied.

Triton hands a Python model its inputs in a region of /dev/shm. Where the same file is mapped and page-locked, the GPU
reads an array where it lies: for the engine in this process, or for the one in another that is told the file once, and
then the place. Linux only: read from /proc/self/maps.
"""

from __future__ import annotations

import bisect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pinstream.growing import ADDRESSES, ended
from pinstream.tensors import Array

T = TypeVar("T")

MAPS = Path("/proc/self/maps")
DIRECTORY = "/dev/shm/"
# Arrays that lie elsewhere must not cost a look at all mappings each: seconds until the next one after one in vain.
PAUSE_S = 0.05


@dataclass(frozen=True)
class Place:
    """Where an array lies.

    Attributes:
        path: File of the region.
        inode: Of that file: another one may get its name.
        offset: Bytes from its beginning.
    """

    path: str
    inode: int
    offset: int


@dataclass(frozen=True)
class _Mapping:
    start: int
    end: int
    offset: int
    path: str
    inode: int


class SharedRegions:
    """The regions of /dev/shm that this process has mapped."""

    def __init__(self) -> None:
        self._mappings: list[_Mapping] = []
        self._starts: list[int] = []
        self._read_again = 0.0
        self._ended = ended()

    def place(self, address: int, nbytes: int) -> Place | None:
        """Where so many bytes lie, or None where that is no shared region."""
        now = ended()
        if now is None:
            return None
        if self._ended != now:
            self._read()
        mapping = self._find(address, nbytes)
        if mapping is None and time.monotonic() > self._read_again:
            self._read()
            mapping = self._find(address, nbytes)
            if mapping is None:
                self._read_again = time.monotonic() + PAUSE_S
        if mapping is None:
            return None
        return Place(mapping.path, mapping.inode, address - mapping.start + mapping.offset)

    def _find(self, address: int, nbytes: int) -> _Mapping | None:
        i = bisect.bisect_right(self._starts, address) - 1
        mapping = self._mappings[i] if i >= 0 else None
        return mapping if mapping is not None and address + nbytes <= mapping.end else None

    def _read(self) -> None:
        self._ended = ended()
        found = []
        for line in MAPS.read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) < 6 or not fields[5].startswith(DIRECTORY) or fields[5].endswith(" (deleted)"):
                continue
            start, end = (int(part, 16) for part in fields[0].split("-"))
            if start in ADDRESSES:  # of ours, and not what Triton made
                continue
            found.append(_Mapping(start, end, int(fields[2], 16), fields[5], int(fields[4])))
        # /proc lists mappings by address.
        self._mappings = found
        self._starts = [mapping.start for mapping in found]


class KnownRegions(Generic[T]):
    """Regions of Triton's that somebody has been told of, and where in them an array lies.

    Args:
        share: Told of a region's file, and again each time that more of it is needed, with what it returned before,
            which stands for the region.
        unshare: Told of a region whose file has gone: nothing that comes will lie there.
    """

    def __init__(self, share: Callable[[str, T | None], T], unshare: Callable[[T], None] = lambda region: None) -> None:
        self._share = share
        self._unshare = unshare
        self._regions = SharedRegions()
        self._known: dict[int, tuple[T, int]] = {}
        self._paths: dict[int, str] = {}

    def find(self, address: int, nbytes: int) -> tuple[T, int] | None:
        """The region that so many bytes lie in, and their offset there; None where they lie elsewhere."""
        place = self._regions.place(address, nbytes)
        if place is None:
            return None
        known = self._known.get(place.inode)
        if known is None or place.offset + nbytes > known[1]:
            known = self._share_more(place, place.offset + nbytes)
            if known is None:
                return None
        return known[0], place.offset

    def _share_more(self, place: Place, needed: int) -> tuple[T, int] | None:
        """Share a region as large as it is now; None where its file has gone since it was looked for."""
        try:
            status = os.stat(place.path)
            if status.st_ino != place.inode or status.st_size < needed:
                return None
            before = self._known.get(place.inode)
            if before is None:
                self._leave_gone()
            shared = self._share(place.path, before[0] if before else None)
        except FileNotFoundError:
            return None
        self._known[place.inode] = shared, status.st_size
        self._paths[place.inode] = place.path
        return self._known[place.inode]

    def _leave_gone(self) -> None:
        for inode in [inode for inode, path in self._paths.items() if not _is(path, inode)]:
            del self._paths[inode]
            self._unshare(self._known.pop(inode)[0])

    def forget(self) -> None:
        """Start over: whoever was told is no longer there."""
        self._known.clear()
        self._paths.clear()


def _is(path: str, inode: int) -> bool:
    try:
        return os.stat(path).st_ino == inode
    except FileNotFoundError:
        return False


def address_of(array: Array) -> int:
    """Address of an array's first element."""
    return int(array.__array_interface__["data"][0])
