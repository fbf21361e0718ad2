"""Uses up the GPU's memory on purpose."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

SMALLEST = 2 << 20  # what cudaMalloc takes from the driver at once


def free_memory() -> int:
    """Bytes of the GPU's memory that nobody has."""
    from cuda.bindings import runtime

    _, free, _ = runtime.cudaMemGetInfo()
    return int(free)


@contextlib.contextmanager
def filled(leave: int) -> Iterator[None]:
    """Take all of the GPU's memory but about `leave` bytes, and give it back at the end."""
    from pinstream import cuda

    cuda.set_device(0)
    taken: list[cuda.DeviceAllocation] = []
    piece = 1 << 36
    try:
        while piece >= SMALLEST:
            if free_memory() - piece < leave:
                piece //= 2
                continue
            try:
                taken.append(cuda.DeviceAllocation(piece))
            except cuda.CudaError:
                piece //= 2
        yield
    finally:
        for allocation in taken:
            allocation.free()
