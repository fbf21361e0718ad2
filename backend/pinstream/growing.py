"""A file of shared memory that grows, mapped once: what is known of it stays where it is as more of it comes.

Whoever page-locks it need only page-lock what has come. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import weakref

import numpy as np

from pinstream.tensors import Array

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value
# Of Linux 5.14; an older one says no, and the pages come when they are needed.
_MADV_POPULATE_READ = 22
# Bytes of addresses, not of memory: more than one model instance's requests will ever take, or what can be had.
RESERVED = (1 << 36, 1 << 33, 1 << 30)
# Where files that grow are mapped in this process.
ADDRESSES: set[int] = set()
_ENDINGS = itertools.count(1)
_ending: set[int] = set()
_ended = 0


def mapped(fd: int, nbytes: int) -> Array:
    """A file as uint8 [nbytes], mapped until nobody has a view of it any more; its descriptor is not kept.

    Raises:
        OSError: It cannot be mapped.
    """
    address = _LIBC.mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), f"{nbytes:,} bytes of addresses cannot be had for shared memory")
    memory = (ctypes.c_ubyte * nbytes).from_address(address)
    # An array refers to `memory`, so that the mapping stays as long as any.
    weakref.finalize(memory, _unmap, address, nbytes).atexit = False
    return np.ctypeslib.as_array(memory)


def _unmap(address: int, nbytes: int) -> None:
    global _ended
    number = next(_ENDINGS)
    _ending.add(number)
    ADDRESSES.discard(address)
    # Takes its time, in which other threads go on.
    _LIBC.munmap(address, nbytes)
    _ended = number
    _ending.discard(number)


def ended() -> int | None:
    """The last mapping that has ended: other memory may lie at its address since. None while one is about to end."""
    return None if _ending else _ended


class GrowingFile:
    """A file mapped with room behind its end, until nobody has a view of it any more.

    Args:
        fd: Its file descriptor, which is closed with it.

    Attributes:
        address: Of its beginning.
        data: As much of it as is known, uint8 [bytes].
        pieces: The same, piece by piece as it came.

    Raises:
        OSError: It cannot be mapped.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd).atexit = False
        self._whole = _with_room(fd)
        self.address = int(self._whole.__array_interface__["data"][0])
        ADDRESSES.add(self.address)
        self.pieces: list[Array] = []
        self.data = self._whole[:0]

    def grow(self) -> Array | None:
        """Take in what has come since; None where nothing has."""
        known = self.data.nbytes
        # The last page is there as a whole, and no page may be page-locked in two pieces.
        size = min(-(-os.fstat(self._fd).st_size // mmap.PAGESIZE) * mmap.PAGESIZE, self._whole.nbytes)
        if size <= known:
            return None
        # Page-locking finds its pages there and takes half of the time.
        _LIBC.madvise(self.address + known, size - known, _MADV_POPULATE_READ)
        self.data = self._whole[:size]
        self.pieces.append(self._whole[known:size])
        return self.pieces[-1]


def _with_room(fd: int) -> Array:
    for room in RESERVED[:-1]:
        with contextlib.suppress(OSError):
            return mapped(fd, room)
    return mapped(fd, RESERVED[-1])
