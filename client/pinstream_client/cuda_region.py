"""A region of GPU memory that a server on this host reads, through tritonclient's own CUDA functions."""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import Any

import numpy as np

from .errors import MissingExtra, PinstreamError
from .regions import PREFIX


class CudaRegion:
    """Memory on a GPU, opened by the server through a CUDA IPC handle. It ends with the process.

    Args:
        nbytes: Size.
        device: The GPU's number.

    Raises:
        MissingExtra: cuda-python is not installed.
        PinstreamError: The GPU gives no memory.
    """

    def __init__(self, nbytes: int, device: int = 0) -> None:
        self._cuda = _cuda_functions()
        self.name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        self.host = np.zeros(nbytes, np.uint8)
        self.known_to: set[int] = set()
        self._device = device
        try:
            self._handle = self._cuda.create_shared_memory_region(self.name, nbytes, device)
        except self._cuda.CudaSharedMemoryException as error:
            raise PinstreamError(f"no CUDA shared memory on GPU {device}: {error}") from None

    def publish(self, nbytes: int) -> None:
        """Copies to the GPU."""
        try:
            self._cuda.set_shared_memory_region(self._handle, [self.host[:nbytes]])
        except self._cuda.CudaSharedMemoryException as error:
            raise PinstreamError(f"cannot copy an image to GPU {self._device}: {error}") from None

    def register(self, transport: Any, timeout: float) -> Any:
        """See `Region`."""
        handle = self._cuda.get_raw_handle(self._handle)
        return transport.register_cuda_region(self.name, handle, self._device, len(self.host), timeout)

    def unregister(self, transport: Any, timeout: float) -> Any:
        """See `Region`."""
        return transport.unregister_cuda_region(self.name, timeout)

    def remove(self) -> None:
        """See `Region`."""
        with contextlib.suppress(self._cuda.CudaSharedMemoryException):  # a lost GPU context has lost it already
            self._cuda.destroy_shared_memory_region(self._handle)

    def abandon(self) -> None:
        """A forked child has no CUDA at all: there is nothing that it could let go of."""


def _cuda_functions() -> Any:
    try:
        import tritonclient.utils.cuda_shared_memory as cuda_shared_memory
    except ImportError as error:
        raise MissingExtra(f"CUDA shared memory needs cuda-python ({error}): pip install cuda-python") from None
    return cuda_shared_memory
