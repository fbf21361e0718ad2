"""Buffers that batches are gathered into. Host memory here is all the loop ever touches."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from pinstream.tensors import Array, TensorSpec


class Allocation(Protocol):
    """A piece of host memory."""

    @property
    def data(self) -> Array:
        """The memory as uint8 [nbytes]."""

    def free(self) -> None:
        """Give the memory back; views of it must not be used any more."""


class PageableAllocation:
    """Ordinary memory."""

    def __init__(self, nbytes: int) -> None:
        # Zeroed, so that padding is never something a previous owner left.
        self.data: Array = np.zeros(nbytes, np.uint8)

    def free(self) -> None:
        """Nothing to do: NumPy owns the memory."""


class InputBuffer:
    """The host memory of one input in one slot. It grows to the largest batch seen and stays until close.

    Args:
        tensor: The input it holds.
        allocate: Makes an Allocation of so many bytes.
    """

    def __init__(self, tensor: TensorSpec, allocate: type[PageableAllocation] | Any = PageableAllocation) -> None:
        self.tensor = tensor
        self._allocate = allocate
        self._allocation: Allocation | None = None

    def view(self, shape: tuple[int, ...]) -> Array:
        """The first bytes of the buffer as an array of `shape`; valid until the next call with a larger one."""
        dtype = self.tensor.numpy_dtype
        if dtype.hasobject:
            return np.full(shape, b"", dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        if self._allocation is None or self._allocation.data.nbytes < nbytes:
            self.close()
            self._allocation = self._allocate(max(nbytes, 1))
        return self._allocation.data[:nbytes].view(dtype).reshape(shape)

    def close(self) -> None:
        """Free the memory."""
        if self._allocation is not None:
            self._allocation.free()
            self._allocation = None


def copy_bytes(destination: Array, source: Array) -> None:
    """Copy `source` into `destination`, equal in shape and dtype.

    Views of Triton's shared memory are unaligned, which makes NumPy copy element by element; as bytes it is one memcpy,
    and the interpreter lock is released meanwhile.
    """
    if destination.dtype.hasobject or not source.flags.c_contiguous:
        destination[...] = source
    else:
        np.copyto(destination.reshape(-1).view(np.uint8), source.reshape(-1).view(np.uint8))
