"""The memory of one I/O tensor, pinned on the host and on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pinstream import cuda
from pinstream.errors import EngineError
from pinstream.tensors import NUMPY_DTYPES, Array


@dataclass(frozen=True)
class BufferSpec:
    """An I/O tensor's buffers.

    Attributes:
        name: The tensor.
        dtype: Triton's data type.
        nbytes: The most it ever holds.
        host: A shape tensor, which TensorRT reads and writes in host memory.
    """

    name: str
    dtype: str
    nbytes: int
    host: bool


class Staging:
    """One I/O tensor's memory, pinned on the host and on the device.

    Args:
        spec: What it holds.
    """

    def __init__(self, spec: BufferSpec) -> None:
        self.name = spec.name
        self.dtype = NUMPY_DTYPES[spec.dtype]
        self._host = spec.host
        self._allocate(spec.nbytes)

    def _allocate(self, nbytes: int) -> None:
        self.nbytes = 0
        self.pinned = cuda.PinnedAllocation(max(nbytes, 1))
        try:
            self.device = None if self._host else cuda.DeviceAllocation(nbytes)
        except cuda.CudaError:
            self.pinned.free()
            raise
        self.nbytes = nbytes

    @property
    def address(self) -> int:
        """What TensorRT is told."""
        return self.pinned.pointer if self.device is None else self.device.pointer

    def nbytes_of(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of `shape`.

        Raises:
            EngineError: There is no room for so many.
        """
        nbytes = math.prod(shape) * self.dtype.itemsize
        if nbytes > self.nbytes:
            raise EngineError(
                f"tensor '{self.name}' of shape {list(shape)} takes {nbytes:,} bytes, and the plan's largest is "
                f"{self.nbytes:,}; send a smaller one or build a plan with a larger profile"
            )
        return nbytes

    def host_view(self, shape: tuple[int, ...]) -> Array:
        """The pinned memory's first bytes as an array of `shape`."""
        return self.pinned.data[: self.nbytes_of(shape)].view(self.dtype).reshape(shape)

    def grow(self, nbytes: int) -> int:
        """Make the buffers hold at least `nbytes`; for outputs whose size only the data tells.

        Returns:
            The address.
        """
        if nbytes > self.nbytes:
            self.free()
            self._allocate(nbytes)
        return self.address

    def free(self) -> None:
        """Give both memories back."""
        self.pinned.free()
        if self.device is not None:
            self.device.free()
