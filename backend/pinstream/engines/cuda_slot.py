"""The pinned and device buffers of one batch on the GPU, its events, and its copies in and out."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from pinstream import cuda
from pinstream.dlpack import DeviceArray
from pinstream.engines.kept import KeptOutputs
from pinstream.engines.registered import RegisteredMemory
from pinstream.errors import EngineError
from pinstream.memory import copy_bytes
from pinstream.pace import Pace
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


@dataclass(frozen=True)
class Streams:
    """An instance's three streams; a batch crosses them in this order."""

    h2d: cuda.Stream
    compute: cuda.Stream
    d2h: cuda.Stream


class Waiting:
    """How an engine's batches are waited for: they end one after the other, each about when it should.

    Args:
        spin: Poll all the time, which wakes up soonest and keeps a core busy.
    """

    def __init__(self, spin: bool) -> None:
        self.spin = spin
        self._pace = Pace()
        self._last_done = 0.0

    def until(self, event: cuda.Event, size: int, enqueued: float, doing: str) -> None:
        """Wait for the end of a batch; one that does not come when it should is left to CUDA's own wait.

        Args:
            event: The end.
            size: Of the batch.
            enqueued: When it was, by time.perf_counter.
            doing: For the message where it failed.
        """
        if self.spin or event.reached():
            event.synchronize(doing)
            return
        began = max(enqueued, self._last_done)
        pause: float | None = 0.0
        slept = False
        while not event.reached() and (pause := self._pace.pause(size, time.perf_counter() - began)) is not None:
            slept = pause > 0
            time.sleep(pause)
        event.synchronize(doing)
        self._last_done = time.perf_counter()
        self._pace.took(size, self._last_done - began, overslept=slept and pause is not None)


class CudaSlot:
    """One batch's way through the GPU. A base.Slot.

    Args:
        inputs: The inputs' buffers.
        outputs: The outputs' buffers.
        streams: The instance's streams.
        waiting: How to wait for the GPU; one for all slots.
        device: GPU index.
        registered: Memory of others that the GPU may read.
        resources: Takes over everything that has to be freed.
    """

    def __init__(
        self,
        inputs: Iterable[BufferSpec],
        outputs: Iterable[BufferSpec],
        streams: Streams,
        waiting: Waiting,
        device: int,
        registered: RegisteredMemory,
        resources: ExitStack,
    ) -> None:
        self._streams = streams
        self._waiting = waiting
        self._registered = registered
        self._device = device
        self._kept = KeptOutputs(streams.d2h, resources)
        self.inputs = {spec.name: _owned(Staging(spec), resources) for spec in inputs}
        self.outputs = {spec.name: _owned(Staging(spec), resources) for spec in outputs}
        self._h2d_begin, self._h2d_end, self._compute_begin, self._compute_end, self._d2h_begin, self._d2h_end = (
            _owned_event(waiting.spin, resources) for _ in range(6)
        )
        self._views: dict[str, Array] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.output_shapes: Mapping[str, tuple[int, ...]] = {}
        self.wanted: frozenset[str] = frozenset()
        self._copied = False
        # Items put in so far, of a batch that has a dimension for them: what follows is padding.
        self._items: int | None = None
        self._enqueued = 0.0

    def begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for a batch; see base.Slot."""
        if lost := cuda.lost_context():
            raise EngineError(lost)
        for name, shape in shapes.items():
            self.inputs[name].nbytes_of(shape)
        self._views = {}
        self.shapes = dict(shapes)
        self._copied = False
        self._items = None
        self._h2d_begin.record(self._streams.h2d)

    def put(self, name: str, source: Array | DeviceArray, offset: int | None) -> None:
        """Copy a part of the batch in and start it on its way to the device at once; see base.Slot.

        What is on the GPU already, or in registered memory, goes there directly. It may then be overwritten only when
        the batch is done.
        """
        staging = self.inputs[name]
        row = math.prod(self.shapes[name][1:]) * staging.dtype.itemsize
        start = 0 if offset is None else offset * row
        if offset is not None:
            self._items = max(self._items or 0, offset + source.shape[0])
        doing = f"copying input '{name}' to the GPU"
        if isinstance(source, DeviceArray) and staging.device is None:
            cuda.copy(f"copying shape tensor '{name}' from the GPU", staging.address, source.pointer, source.nbytes)
            return
        if isinstance(source, DeviceArray):
            cuda.copy_async(doing, staging.address + start, source.pointer, source.nbytes, self._streams.h2d)
            return
        if staging.device is not None and source.flags.c_contiguous and (parts := self._registered.parts(source)):
            target = staging.device.pointer + start
            for address, nbytes in parts:
                cuda.copy_async(doing, target, address, nbytes, self._streams.h2d)
                target += nbytes
            return
        view = self._view(name)
        copy_bytes(view if offset is None else view[offset : offset + len(source)], source)
        if staging.device is not None and source.nbytes:
            pinned = staging.pinned.pointer + start
            cuda.copy_async(doing, staging.device.pointer + start, pinned, source.nbytes, self._streams.h2d)

    def _view(self, name: str) -> Array:
        """Where an input is gathered on the host, for the whole batch begun; most lie elsewhere already."""
        if name not in self._views:
            self._views[name] = self.inputs[name].host_view(self.shapes[name])
        return self._views[name]

    def cut(self, size: int) -> None:
        """Let the batch be of `size` items; see base.Slot."""
        self.shapes = {name: (size, *shape[1:]) for name, shape in self.shapes.items()}

    def shape_values(self) -> dict[str, tuple[int, ...]]:
        """What the shape tensors of the batch hold."""
        return {
            name: tuple(map(int, self._view(name).reshape(-1)))
            for name, staging in self.inputs.items()
            if staging.device is None
        }

    def begin_compute(self) -> cuda.Stream:
        """Let the compute stream wait for the inputs; gives that stream."""
        self._enqueued = time.perf_counter()
        self._h2d_end.record(self._streams.h2d)
        self._streams.compute.wait(self._h2d_end)
        self._compute_begin.record(self._streams.compute)
        return self._streams.compute

    def end_compute(self) -> None:
        """Behind what was enqueued for this batch on the compute stream."""
        self._compute_end.record(self._streams.compute)

    def copy_out(self, names: Iterable[str]) -> None:
        """Let outputs follow the computation to the host; only the batch's own bytes, and none of padding."""
        self._streams.d2h.wait(self._compute_end)
        self._d2h_begin.record(self._streams.d2h)
        for name in names:
            staging = self.outputs[name]
            nbytes = math.prod(self._without_padding(self.output_shapes[name])) * staging.dtype.itemsize
            if staging.device is not None and nbytes:
                doing = f"copying output '{name}' from the GPU"
                cuda.copy_async(doing, staging.pinned.pointer, staging.device.pointer, nbytes, self._streams.d2h)
        self._d2h_end.record(self._streams.d2h)
        self._copied = True

    def _without_padding(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The part of an output that belongs to the items put in; a batch's outputs have its dimension first."""
        return shape if self._items is None or not shape else (min(self._items, shape[0]), *shape[1:])

    def abandon(self) -> None:
        """Wait for the copies of a batch that will not run: their sources are given back with its error."""
        # Of a lost context none goes on.
        if not cuda.lost_context():
            with contextlib.suppress(cuda.CudaError):
                self._streams.h2d.synchronize()

    def finished(self) -> bool:
        """Whether everything of the batch that was put on streams is done, or has failed."""
        return (self._d2h_end if self._copied else self._compute_end).reached()

    def wait_compute(self) -> None:
        """Block until the computation is done."""
        self._wait(self._compute_end, "waiting for a batch to be computed")

    def wait_copied(self) -> None:
        """Block until the outputs are on the host."""
        self._wait(self._d2h_end, "waiting for a batch")

    def _wait(self, event: cuda.Event, doing: str) -> None:
        size = next((shape[0] for shape in self.shapes.values() if shape), 1)
        self._waiting.until(event, size, self._enqueued, doing)

    def host_output(self, name: str) -> Array:
        """An output on the host; valid until the slot is used again."""
        return self.outputs[name].host_view(tuple(self.output_shapes[name]))

    @property
    def output_addresses(self) -> list[int]:
        """Where the outputs are written now; a buffer that grows moves."""
        return [staging.address for staging in self.outputs.values()]

    def output(self, name: str) -> Array | DeviceArray:
        """An output where it was written: on the GPU but for a shape tensor; valid until the slot is used again."""
        staging = self.outputs[name]
        if staging.device is None:
            return self.host_output(name)
        shape, keep = tuple(self.output_shapes[name]), self._kept.keep
        return DeviceArray(staging.address, shape, staging.dtype, self._device, self, to_host=_to_host, keep=keep)

    def times(self) -> dict[str, float]:
        """Seconds of each stage of the finished batch."""
        stages = {
            "h2d": self._h2d_end.seconds_since(self._h2d_begin),
            "compute": self._compute_end.seconds_since(self._compute_begin),
        }
        if self._copied:
            stages["d2h"] = self._d2h_end.seconds_since(self._d2h_begin)
        return stages


def _owned_event(spin: bool, resources: ExitStack) -> cuda.Event:
    event = cuda.Event(spin)
    resources.callback(event.destroy)
    return event


def _owned(staging: Staging, resources: ExitStack) -> Staging:
    resources.callback(staging.free)
    return staging


def _to_host(array: DeviceArray) -> Array:
    host = np.empty(array.shape, array.dtype)
    cuda.copy("copying an output from the GPU", host.ctypes.data, array.pointer, array.nbytes)
    return host
