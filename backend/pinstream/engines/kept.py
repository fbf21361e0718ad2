"""Outputs that outlast the slot that they were computed in, without leaving the GPU."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import replace

from pinstream import cuda
from pinstream.dlpack import DeviceArray
from pinstream.tensors import Array


class _Holder:
    """Stands for whoever has a kept output: memory is free again when it is gone."""


class KeptOutputs:
    """Room for outputs of a slot that is to run another batch before they are read.

    What was let go of is used again: to allocate and to free memory makes the whole GPU wait.

    Args:
        stream: That outputs are copied on.
        resources: Takes over the memory, which has to be freed.
    """

    def __init__(self, stream: cuda.Stream, resources: ExitStack) -> None:
        self._stream = stream
        self._made: list[cuda.DeviceAllocation] = []
        self._idle: list[cuda.DeviceAllocation] = []
        resources.callback(self._free)

    def keep(self, array: DeviceArray) -> DeviceArray | Array:
        """A copy that lasts until nobody refers to it: on the GPU, or on the host where the GPU has no room for it."""
        try:
            memory = self._room(array.nbytes)
        except cuda.CudaError as error:
            if error.sticky:
                raise
            return array.copy()
        holder = _Holder()
        weakref.finalize(holder, self._idle.append, memory).atexit = False
        cuda.copy_async("keeping an output", memory.pointer, array.pointer, array.nbytes, self._stream)
        self._stream.synchronize()
        return replace(array, pointer=memory.pointer, owner=holder)

    def _room(self, nbytes: int) -> cuda.DeviceAllocation:
        fitting = [memory for memory in self._idle if memory.nbytes >= nbytes]
        if fitting:
            memory = min(fitting, key=lambda memory: memory.nbytes)
            self._idle.remove(memory)
            return memory
        if self._idle:  # too small: its place is taken, so that there is never more than was kept at once
            small = self._idle.pop()
            self._made.remove(small)
            small.free()
        memory = cuda.DeviceAllocation(nbytes)
        self._made.append(memory)
        return memory

    def _free(self) -> None:
        for memory in self._made:
            memory.free()
