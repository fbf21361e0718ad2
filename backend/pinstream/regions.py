"""Triton's own shared memory, found under the tensors a request brought, so that they need not be copied.

Triton hands a Python model its inputs in a region of /dev/shm. Where the same file is mapped and page-locked, the GPU
reads an array where it lies: for the engine in this process, or for the one in another that is told the file once, and
then the place. Linux only: read from /proc/self/maps.
"""

from __future__ import annotations

import bisect
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from pinstream.tensors import Array

T = TypeVar("T")

MAPS = Path("/proc/self/maps")
DIRECTORY = "/dev/shm/"
# A region grows by the megabyte, and page-locking it anew takes milliseconds: only when it is this much larger.
WORTH_SHARING_AGAIN = 1.5
# Arrays that lie elsewhere must not cost a look at all mappings each.
READ_EVERY_S = 0.05
# What each region's size was when it was last shared, so that all who share it in this process do so at the same size.
_SHARED_SIZES: dict[str, int] = {}


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

    def place(self, address: int, nbytes: int) -> Place | None:
        """Where so many bytes lie, or None where that is no shared region."""
        mapping = self._find(address, nbytes)
        if mapping is None and time.monotonic() > self._read_again:
            self._read()
            mapping = self._find(address, nbytes)
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
            try:
                size = os.stat(fields[5]).st_size
            except FileNotFoundError:  # unlinked since the line was written
                continue
            found.append(_Mapping(start, end, int(fields[2], 16), fields[5], size))
        # /proc lists mappings by address.
        self._mappings = found
        self._starts = [mapping.start for mapping in found]
        self._read_again = time.monotonic() + READ_EVERY_S


class KnownRegions(Generic[T]):
    """Regions of Triton's that somebody has been told of, and where in them an array lies.

    Args:
        share: Told of a region's file and its size in bytes: once, and again when it has grown enough. What it returns
            stands for the region.
    """

    def __init__(self, share: Callable[[str, int], T]) -> None:
        self._share = share
        self._regions = SharedRegions()
        self._known: dict[str, tuple[T, int]] = {}

    def find(self, address: int, nbytes: int) -> tuple[T, int] | None:
        """The region that so many bytes lie in, and their offset there.

        Returns:
            None where they lie elsewhere, or where sharing the region anew is not worth its while.
        """
        place = self._regions.place(address, nbytes)
        if place is None:
            return None
        known = self._known.get(place.path)
        if known is None or place.offset + nbytes > known[1]:
            size = _size_to_share(place, place.offset + nbytes)
            if size is None:
                return None
            try:
                shared = self._share(place.path, size)
            except FileNotFoundError:  # unlinked since it was looked for
                return None
            known = self._known[place.path] = shared, size
        return known[0], place.offset

    def forget(self) -> None:
        """Start over: whoever was told is no longer there."""
        self._known.clear()


def _size_to_share(place: Place, needed: int) -> int | None:
    """Bytes to share of a region of which so many are to be read; None where it has not grown enough."""
    shared = _SHARED_SIZES.get(place.path, 0)
    if shared > place.size and shared > _size_of(place.path):  # another file had that name
        shared = 0
    if needed <= shared:
        return shared
    if place.size < WORTH_SHARING_AGAIN * shared:
        return None
    _SHARED_SIZES[place.path] = place.size
    return place.size


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def mapped(path: str, nbytes: int) -> Array:
    """A region as uint8 [nbytes], mapped until nobody has a view of it any more."""
    with open(path, "r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), nbytes), np.uint8)


def address_of(array: Array) -> int:
    """Address of an array's first element."""
    return int(array.__array_interface__["data"][0])
