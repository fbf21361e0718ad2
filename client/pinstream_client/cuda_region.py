"""A region of GPU memory that a server on this host reads, through tritonclient's own CUDA functions."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from .errors import MissingExtra, PinstreamError
from .forking import renew_after_fork
from .regions import DIRECTORY, ON_GPU, locked_file

# CUDA shares whole blocks of this size: what lay in the rest of one would be shared as well.
_BLOCK = 2 << 20


class _OneAtATime:
    """Tritonclient makes its stream of a GPU at the first copy: of two that two threads made, one would be lost."""

    def __init__(self) -> None:
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A thread of the parent may have held the lock, and is not in the child."""
        self.lock = threading.Lock()


_making = _OneAtATime()


class CudaRegion:
    """Memory on a GPU, opened by the server through a CUDA IPC handle.

    The memory ends with the process, the server's view of it does not: an empty file in /dev/shm, locked as long as
    the process lives, tells the next client what to have forgotten.

    Args:
        nbytes: Size.
        device: The GPU's number.

    Raises:
        MissingExtra: cuda-python is not installed.
        PinstreamError: The GPU gives no memory.
        OSError: /dev/shm is not there or not ours to write.
    """

    def __init__(self, nbytes: int, device: int = 0) -> None:
        self._cuda = _cuda_functions()
        self.host = np.zeros(nbytes, np.uint8)
        self.known_to: set[int] = set()
        self._device = device
        self._descriptor, self.name = locked_file(ON_GPU)
        # Without a GPU, tritonclient cleans up after its own exception and raises a plain one over it.
        try:
            with _making.lock:
                size = -(-nbytes // _BLOCK) * _BLOCK
                self._handle = self._cuda.create_shared_memory_region(self.name, size, device)
                self._cuda.set_shared_memory_region(self._handle, [self.host])
        except Exception as error:
            self._remove_file()
            raise PinstreamError(f"no CUDA shared memory on GPU {device}: {_reason(error)}") from None

    def publish(self, nbytes: int) -> None:
        """Copies to the GPU."""
        try:
            self._cuda.set_shared_memory_region(self._handle, [self.host[:nbytes]])
        except Exception as error:
            raise PinstreamError(f"cannot copy an image to GPU {self._device}: {_reason(error)}") from None

    def register(self, transport: Any, timeout: float) -> Any:
        """See `Region`."""
        handle = self._cuda.get_raw_handle(self._handle)
        return transport.register_cuda_region(self.name, handle, self._device, len(self.host), timeout)

    def unregister(self, transport: Any, timeout: float) -> Any:
        """See `Region`."""
        return transport.unregister_cuda_region(self.name, timeout)

    def remove(self, forgotten: bool = True) -> None:
        """See `Region`."""
        self._cuda.destroy_shared_memory_region(self._handle)
        self._handle = None  # with the last reference tritonclient frees the memory
        if forgotten:
            self._remove_file()
        else:
            os.close(self._descriptor)  # unlocked, the file is a leftover

    def abandon(self) -> None:
        """A forked child has no CUDA: all that it can let go of is the lock."""
        os.close(self._descriptor)

    def _remove_file(self) -> None:
        (DIRECTORY / self.name).unlink(missing_ok=True)
        os.close(self._descriptor)


def _cuda_functions() -> Any:
    try:
        import tritonclient.utils.cuda_shared_memory as cuda_shared_memory
    except (ImportError, RuntimeError) as error:  # the second is tritonclient's own, for the first
        raise MissingExtra(f"CUDA shared memory needs cuda-python ({error}): pip install cuda-python") from None
    return cuda_shared_memory


def _reason(error: Exception) -> str:
    """What CUDA itself said, where tritonclient kept it."""
    said = error.__cause__ or error
    text = said.args[0] if said.args else said
    return text.decode() if isinstance(text, bytes) else str(text)
