"""The thin, checked layer over cuda.bindings.runtime: device, memory, copies, streams, events, graphs.

The one file that imports CUDA. Every return code is looked at; a failure says what was being done.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart

from pinstream.errors import EngineError
from pinstream.tensors import Array

SUCCESS = cudart.cudaError_t.cudaSuccess
# What this process has loaded, and the driver's library among it, which has its release in its name.
MAPS = Path("/proc/self/maps")
_LIBCUDA = re.compile(r"/libcuda\.so\.(\d{3,}(?:\.\d+)+)")
# TensorRT's words for it.
_NO_MEMORY = re.compile(r"out of memory|OutOfMemory|memory allocation|could not be allocated", re.IGNORECASE)


class CudaError(EngineError):
    """A CUDA call failed.

    Attributes:
        sticky: The context is lost: every later call in this process fails too.
    """

    def __init__(self, text: str, sticky: bool) -> None:
        super().__init__(text)
        self.sticky = sticky


def call(doing: str, function: Callable[..., tuple[Any, ...]], *args: Any) -> Any:
    """Call a runtime function and look at its return code.

    Args:
        doing: What is being done, for the message: "copying input 'images' to the GPU".
        function: One of cuda.bindings.runtime.
        args: Its arguments.

    Returns:
        The one result, a tuple of several, or None.

    Raises:
        CudaError: The call failed, or an earlier asynchronous one did.
    """
    result = function(*args)
    if result[0] != SUCCESS:
        raise _failure(doing, result[0])
    return result[1] if len(result) == 2 else result[1:] or None


def _failure(doing: str, error: Any) -> CudaError:
    name = _text(cudart.cudaGetErrorName(error))
    text = _text(cudart.cudaGetErrorString(error))
    cudart.cudaGetLastError()
    no_memory = error == cudart.cudaError_t.cudaErrorMemoryAllocation
    # What is still there after it was taken off is a lost context; but for one that could not even be made.
    sticky = not no_memory and error not in _NO_CONTEXT and cudart.cudaDeviceSynchronize()[0] not in _USABLE
    cudart.cudaGetLastError()
    advice = _RESTART if sticky else memory_advice() if no_memory else _NO_CONTEXT.get(error, "")
    failure = CudaError(f"CUDA failed while {doing}: {name} ({text}){advice}", sticky)
    if sticky:
        _lost.append(failure)
    return failure


_NEEDS_GPU = (
    "; a plan needs a GPU and a driver that is as new as its CUDA: look at nvidia-smi and `pinstream doctor`, start a "
    "container with --gpus all, or serve the .onnx file, which runs on the CPU"
)
# There is no GPU, or no driver, to be used, so that no context can be lost; and what to do then.
_NO_CONTEXT = {
    cudart.cudaError_t.cudaErrorNoDevice: _NEEDS_GPU,
    cudart.cudaError_t.cudaErrorInsufficientDriver: _NEEDS_GPU,
    cudart.cudaError_t.cudaErrorInvalidDevice: _NEEDS_GPU,
    cudart.cudaError_t.cudaErrorDevicesUnavailable: _NEEDS_GPU,
    cudart.cudaError_t.cudaErrorInitializationError: (
        "; the driver could not be started: look at nvidia-smi and at what the kernel says of it (dmesg)"
    ),
    cudart.cudaError_t.cudaErrorStubLibrary: (
        "; the libcuda found is the one to link with, and no driver: take its directory (stubs) out of LD_LIBRARY_PATH"
    ),
    cudart.cudaError_t.cudaErrorSystemNotReady: (
        "; the driver is not set up yet: look at nvidia-smi, and start nvidia-fabricmanager where GPUs have an NVSwitch"
    ),
    cudart.cudaError_t.cudaErrorSystemDriverMismatch: (
        "; the driver in the kernel is of another release than its libcuda: look at nvidia-smi, and restart the "
        "machine after an update of the driver"
    ),
    cudart.cudaError_t.cudaErrorCompatNotSupportedOnDevice: (
        "; CUDA's compatibility package is for other GPUs than this one: look at nvidia-smi, and install a newer "
        "driver in place of the package"
    ),
}
# What a device with its context may answer to being waited for: while this thread captures, nothing is waited for.
_USABLE = {SUCCESS, *(error for error in cudart.cudaError_t if error.name.startswith("cudaErrorStreamCapture"))}
_RESTART = "; this process has lost its GPU context and must be restarted: load the model again, or restart the server"


def memory_advice() -> str:
    """What to do where the GPU's memory is used up, to be put behind the message that says so."""
    error, *memory = cudart.cudaMemGetInfo()
    cudart.cudaGetLastError()
    found = f"the GPU has {memory[0] >> 20:,} of {memory[1] >> 20:,} MiB free; " if error == SUCCESS else ""
    return f"; {found}stop what else uses the GPU, or lower max_batch_size, SLOTS or the count in instance_group"


def memory_advice_for(reason: str) -> str:
    """memory_advice where TensorRT's reason is a lack of memory, else nothing."""
    return memory_advice() if _NO_MEMORY.search(reason) else ""


# The failures since this process lost its GPU context; the first says what happened.
_lost: list[CudaError] = []


def is_lost() -> bool:
    """Ask the GPU whether this process still has its context."""
    with contextlib.suppress(CudaError):
        synchronize()
    return bool(_lost)


def lost_context() -> str:
    """How this process lost its GPU context, or nothing while it has it."""
    return str(_lost[0]) if _lost else ""


def _text(result: tuple[Any, ...]) -> str:
    value = result[1]
    return value.decode() if isinstance(value, bytes) else str(value)


def device_count() -> int:
    """Number of GPUs that can be used; 0 without a driver."""
    error, count = cudart.cudaGetDeviceCount()
    cudart.cudaGetLastError()
    return int(count) if error == SUCCESS else 0


def set_device(index: int) -> None:
    """Make GPU `index` this thread's device; its primary context is created with the first use."""
    call(f"choosing GPU {index} of {device_count()}", cudart.cudaSetDevice, index)


def compute_capability(index: int) -> str:
    """The GPU's compute capability, as in "9.0"."""
    attributes = cudart.cudaDeviceAttr
    major, minor = (
        call("reading the compute capability", cudart.cudaDeviceGetAttribute, attribute, index)
        for attribute in (attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor)
    )
    return f"{major}.{minor}"


def device_name(index: int) -> str:
    """The GPU's name, as in "NVIDIA H200"."""
    properties = call("reading the GPU's properties", cudart.cudaGetDeviceProperties, index)
    return str(properties.name.decode().rstrip("\0"))


def runtime_version() -> str:
    """Version of the CUDA runtime, as in "13.0"."""
    version = call("reading the CUDA version", cudart.cudaRuntimeGetVersion)
    return f"{version // 1000}.{version % 1000 // 10}"


def driver_version() -> str:
    """The driver's release by its library's name, as in "580.65.06"; else the newest CUDA it knows, as in "13.0"."""
    if found := _LIBCUDA.search(MAPS.read_text()):
        return found[1]
    version = call("reading the driver's version", cudart.cudaDriverGetVersion)
    return f"{version // 1000}.{version % 1000 // 10}"


def memory_used() -> int:
    """Bytes of the current GPU's memory in use, by anyone."""
    free, total = call("reading the GPU's memory", cudart.cudaMemGetInfo)
    return int(total - free)


def synchronize() -> None:
    """Wait for everything on the current device."""
    call("waiting for the GPU", cudart.cudaDeviceSynchronize)


class PinnedAllocation:
    """Page-locked host memory, which the GPU's copy engines read and write by themselves. A memory.Allocation."""

    def __init__(self, nbytes: int) -> None:
        doing = f"allocating {nbytes:,} bytes of pinned host memory"
        self.pointer: int = int(call(doing, cudart.cudaHostAlloc, nbytes, cudart.cudaHostAllocDefault))
        self.data: Array = np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(self.pointer))
        self.data[:] = 0

    def free(self) -> None:
        """Give the memory back; views of it must not be used any more."""
        if self.pointer:
            call("freeing pinned memory", cudart.cudaFreeHost, self.pointer)
            self.pointer = 0


def register_host(pointer: int, nbytes: int) -> None:
    """Page-lock memory that was allocated otherwise, so that the GPU's copy engines reach it by themselves."""
    call(f"pinning {nbytes:,} bytes of shared memory", cudart.cudaHostRegister, pointer, nbytes, 0)


def unregister_host(pointer: int) -> None:
    """Take register_host back."""
    call("unpinning shared memory", cudart.cudaHostUnregister, pointer)


class DeviceAllocation:
    """Memory on the GPU, 256-byte aligned."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        doing = f"allocating {nbytes:,} bytes on the GPU"
        self.pointer: int = int(call(doing, cudart.cudaMalloc, max(nbytes, 1)))

    def free(self) -> None:
        """Give the memory back."""
        if self.pointer:
            call("freeing GPU memory", cudart.cudaFree, self.pointer)
            self.pointer = 0


class Stream:
    """A non-blocking stream: work on it waits for no other stream, and never for the default one.

    Args:
        priority: "high", "low" or "normal".
    """

    def __init__(self, priority: str = "normal") -> None:
        least, greatest = call("reading stream priorities", cudart.cudaDeviceGetStreamPriorityRange)
        level = {"high": greatest, "low": least}.get(priority, 0)
        flags = cudart.cudaStreamNonBlocking
        self._stream = call("creating a stream", cudart.cudaStreamCreateWithPriority, flags, level)
        self.handle = int(self._stream)

    def wait(self, event: Event) -> None:
        """Let work that follows on this stream start after `event`."""
        call("chaining streams", cudart.cudaStreamWaitEvent, self._stream, event.handle, 0)

    def synchronize(self) -> None:
        """Block until everything on this stream is done."""
        call("waiting for a stream", cudart.cudaStreamSynchronize, self._stream)

    def destroy(self) -> None:
        """Destroy the stream; work on it is finished first."""
        call("destroying a stream", cudart.cudaStreamDestroy, self._stream)


class Event:
    """A point in a stream.

    Args:
        spin: Wait for it by polling, which wakes up soonest and keeps a core busy, instead of sleeping.
    """

    def __init__(self, spin: bool = False) -> None:
        flags = cudart.cudaEventDefault if spin else cudart.cudaEventBlockingSync
        self.handle = call("creating an event", cudart.cudaEventCreateWithFlags, flags)

    def record(self, stream: Stream) -> None:
        """Put the point behind everything enqueued on `stream` so far."""
        call("recording an event", cudart.cudaEventRecord, self.handle, stream.handle)

    def synchronize(self, doing: str) -> None:
        """Block until the point is reached; errors of the work before it surface here, named by `doing`."""
        call(doing, cudart.cudaEventSynchronize, self.handle)

    def reached(self) -> bool:
        """Whether synchronize would not block; true also where the work before it failed."""
        return bool(cudart.cudaEventQuery(self.handle)[0] != cudart.cudaError_t.cudaErrorNotReady)

    def seconds_since(self, earlier: Event) -> float:
        """GPU time between two reached points."""
        return float(call("reading event times", cudart.cudaEventElapsedTime, earlier.handle, self.handle)) / 1000

    def destroy(self) -> None:
        """Destroy the event."""
        call("destroying an event", cudart.cudaEventDestroy, self.handle)


def copy_async(doing: str, target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Copy between any two addresses, host or device, in the stream's order; host memory must be pinned."""
    call(doing, cudart.cudaMemcpyAsync, target, source, nbytes, cudart.cudaMemcpyKind.cudaMemcpyDefault, stream.handle)


def copy(doing: str, target: int, source: int, nbytes: int) -> None:
    """Copy between any two addresses and wait for it; host memory may be pageable."""
    call(doing, cudart.cudaMemcpy, target, source, nbytes, cudart.cudaMemcpyKind.cudaMemcpyDefault)


def fill_async(pointer: int, value: int, nbytes: int, stream: Stream) -> None:
    """Set every byte of GPU memory to `value`."""
    call("filling GPU memory", cudart.cudaMemsetAsync, pointer, value, nbytes, stream.handle)


class Graph:
    """Work captured once and launched by one call."""

    def __init__(self, executable: Any) -> None:
        self._executable = executable

    def upload(self, stream: Stream) -> None:
        """Bring it to the GPU now, which its first launch would do otherwise."""
        call("uploading a CUDA graph", cudart.cudaGraphUpload, self._executable, stream.handle)

    def launch(self, stream: Stream) -> None:
        """Run the captured work on `stream`."""
        call("launching a CUDA graph", cudart.cudaGraphLaunch, self._executable, stream.handle)

    def destroy(self) -> None:
        """Destroy the graph; it may not be running."""
        call("destroying a CUDA graph", cudart.cudaGraphExecDestroy, self._executable)


def capture(stream: Stream, work: Callable[[], None]) -> Graph:
    """Record what `work` enqueues on `stream` instead of running it.

    Capture is thread-local: other threads of the process may allocate memory meanwhile.

    Raises:
        CudaError: Something in `work` cannot be captured; nothing stays pending.
        EngineError: `work` raised it.
    """
    mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    call("beginning graph capture", cudart.cudaStreamBeginCapture, stream.handle, mode)
    try:
        work()
    except BaseException:
        # Capture has to be ended even where it is of no use any more, or the stream stays lost.
        _, graph = cudart.cudaStreamEndCapture(stream.handle)
        if graph is not None and int(graph):
            cudart.cudaGraphDestroy(graph)
        cudart.cudaGetLastError()
        raise
    graph = call("ending graph capture", cudart.cudaStreamEndCapture, stream.handle)
    try:
        return Graph(call("instantiating a CUDA graph", cudart.cudaGraphInstantiate, graph, 0))
    finally:
        call("destroying a graph template", cudart.cudaGraphDestroy, graph)
