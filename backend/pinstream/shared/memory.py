"""Memory that an instance and the engine's process both see. Without a name, so nothing is left where one dies."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pinstream.growing import mapped
from pinstream.tensors import Array

# Where tensors start: what CUDA's own allocations are aligned to.
ALIGNMENT = 256


class SharedMemory:
    """A piece of shared memory, mapped until nobody has a view of it any more.

    Args:
        fd: File descriptor of a memfd, which may be closed afterwards.
        nbytes: Its size.

    Attributes:
        data: The memory as uint8 [nbytes].
    """

    def __init__(self, fd: int, nbytes: int) -> None:
        self.data = mapped(fd, nbytes)

    @classmethod
    def adopted(cls, fd: int, nbytes: int) -> SharedMemory:
        """Memory whose file descriptor came with a message; it is closed."""
        try:
            return cls(fd, nbytes)
        finally:
            os.close(fd)


@contextlib.contextmanager
def created(nbytes: int) -> Iterator[int]:
    """The file descriptor of new memory, zeroed; closed afterwards, when both sides have mapped it or were told."""
    fd = os.memfd_create("pinstream", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, nbytes)
        yield fd
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Layout:
    """Where the tensors of one slot lie in its memory.

    Attributes:
        places: Offset and bytes by tensor name; a name may be an input's or an output's.
        nbytes: Of all.
    """

    places: Mapping[str, tuple[int, int]]
    nbytes: int

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> Layout:
        """One tensor behind the other."""
        places = {}
        offset = 0
        for name, nbytes in sizes.items():
            places[name] = (offset, nbytes)
            offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return cls(places, max(offset, ALIGNMENT))

    def view(self, data: Array, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array | None:
        """The tensor as an array, or None where `shape` does not fit its place."""
        offset, room = self.places[name]
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > room:
            return None
        return data[offset : offset + nbytes].view(dtype).reshape(shape)
