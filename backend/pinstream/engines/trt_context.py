"""One optimisation profile of one plan: its execution context, and enqueueing a slot's batch on it."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pinstream import cuda
from pinstream.engines.cuda_slot import CudaSlot, Staging
from pinstream.engines.flavour import Flavour, why
from pinstream.engines.profiles import PlanInfo, Range
from pinstream.errors import EngineError
from pinstream.tensors import NUMPY_DTYPES, Array, Shape

LOGGER = logging.getLogger("pinstream.tensorrt")
# Combinations of input shapes whose output shapes are remembered: clients may send any there are.
MOST_SHAPES = 1024


class ProfileContext:
    """An execution context set to one optimisation profile.

    Contexts of an instance run one after the other on its compute stream, so they share their scratch memory.

    Args:
        flavour: TensorRT.
        engine: Its ICudaEngine.
        info: What the plan holds.
        profile: Number of the optimisation profile.
        runtime_config: IRuntimeConfig where this TensorRT has one, or None.
        stream: Where the profile is chosen.
    """

    def __init__(
        self, flavour: Flavour, engine: Any, info: PlanInfo, profile: int, runtime_config: Any, stream: cuda.Stream
    ) -> None:
        self._flavour = flavour
        self._info = info
        self._profile = profile
        self._ranges: dict[str, Range] = {t.name: t.ranges[profile] for t in info.inputs if not t.host}
        # Shape tensors: what is bounded is their values, which TensorRT reads on the host at every enqueue.
        self._value_ranges: dict[str, Range] = {t.name: t.ranges[profile] for t in info.inputs if t.host}
        self.scratch_bytes = int(engine.get_device_memory_size_for_profile_v2(profile))
        strategy = flavour.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if runtime_config is None:
            self._context = engine.create_execution_context(strategy)
        else:
            runtime_config.set_execution_context_allocation_strategy(strategy)
            self._context = engine.create_execution_context(runtime_config)
        if self._context is None:
            raise EngineError(self._said(f"no execution context for profile {profile} of {info.file} could be made"))
        self._runtime_config = runtime_config  # outlives the context that was made with it
        if profile:
            self._choose(profile, stream)
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._output_shapes: dict[tuple[Shape, ...], dict[str, Shape]] = {}
        # Of each slot's outputs whose shapes only the data tells: several batches are under way, each with its own.
        self._allocators: dict[Staging, Any] = {}
        self._largest_values: list[Array] = []  # TensorRT has their addresses until the first batch

    def _choose(self, profile: int, stream: cuda.Stream) -> None:
        chosen, refused = False, f"profile {profile} of {self._info.file} was refused"
        with self._refusals(refused):
            chosen = self._context.set_optimization_profile_async(profile, stream.handle)
        if not chosen:
            raise EngineError(self._said(refused))
        stream.synchronize()

    @contextlib.contextmanager
    def _refusals(self, refused: str) -> Iterator[None]:
        """Some of the bindings' methods raise RuntimeError where others return False."""
        try:
            yield
        except RuntimeError as error:
            raise EngineError(self._said(f"{refused} ({error})")) from error

    def use_scratch(self, scratch: cuda.DeviceAllocation) -> None:
        """Give the context the memory it computes in; at least `scratch_bytes`."""
        self._context.set_device_memory(scratch.pointer, scratch.nbytes)

    def fits(self, shapes: Mapping[str, Shape], values: Mapping[str, Shape]) -> bool:
        """Whether the profile takes these input shapes and these values of shape tensors."""
        return all(r.fits(shapes[name]) for name, r in self._ranges.items()) and all(
            r.fits(values[name]) for name, r in self._value_ranges.items()
        )

    def distance(self, shapes: Mapping[str, Shape]) -> int:
        """How far the shapes are from what the profile is tuned for; the nearest of those that fit is the fastest."""
        return sum(r.distance(shapes[name]) for name, r in self._ranges.items())

    def usual(self, batch: int | None) -> tuple[dict[str, Shape], dict[str, Shape]]:
        """Input shapes and values of shape tensors that the profile is tuned for, with another batch size if given."""
        shapes = {t.name: t.shape for t in self._info.inputs if t.host}
        shapes |= {name: r.opt if batch is None else (batch, *r.opt[1:]) for name, r in self._ranges.items()}
        return shapes, {name: r.opt for name, r in self._value_ranges.items()}

    def largest_output_shapes(self) -> dict[str, Shape]:
        """Shapes of the outputs for the largest inputs the profile takes; -1 where only the data will tell.

        The largest values of shape tensors may make no sense together, as the dimensions of a Reshape; then nothing is
        known.
        """
        hosts = [t for t in self._info.inputs if t.host]
        self._largest_values = [np.array(self._value_ranges[t.name].max, NUMPY_DTYPES[t.dtype]) for t in hosts]
        for tensor, values in zip(hosts, self._largest_values, strict=True):
            self._set_address(tensor.name, values.ctypes.data)
        largest = {name: r.max for name, r in self._ranges.items()}
        try:
            return self.output_shapes(largest | {t.name: t.shape for t in hosts})
        except EngineError:
            if not hosts:
                raise
            return {t.name: (-1,) * len(t.shape) or (-1,) for t in self._info.outputs}

    def output_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of the outputs for inputs of `shapes`; -1 where only the data will tell."""
        key = tuple(shapes[t.name] for t in self._info.inputs)
        known = self._output_shapes.get(key)
        if known is None or self._value_ranges:
            self._set_shapes(shapes)
            if self._value_ranges:
                self._infer_shapes()
            known = {t.name: tuple(self._context.get_tensor_shape(t.name)) for t in self._info.outputs}
            if len(self._output_shapes) >= MOST_SHAPES:
                self._output_shapes.clear()
            self._output_shapes[key] = known
        return known

    def _infer_shapes(self) -> None:
        missing: list[str] = []
        with self._refusals("these inputs, with the values of the shape tensors, make no output shapes"):
            missing = list(self._context.infer_shapes() or ())
        if missing:
            raise EngineError(self._said(f"the output shapes cannot be told without {', '.join(missing)}"))

    def depends_on_data(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether the shape of an output is only known after a run."""
        return any(-1 in shape for shape in self.output_shapes(shapes).values())

    def output_bytes_bound(self, name: str) -> int:
        """The most bytes output `name` can take with the shapes set last; 0 where TensorRT knows no bound."""
        return max(0, int(self._context.get_max_output_size(name)))

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                if not self._context.set_input_shape(name, shape):
                    raise EngineError(
                        self._said(f"input '{name}' of shape {list(shape)} was refused by profile {self._profile}")
                    )
                self._shapes[name] = shape

    def bind(self, slot: CudaSlot) -> None:
        """Set the slot's shapes and addresses; a graph captured afterwards keeps them."""
        for name, staging in slot.inputs.items():
            self._set_address(name, staging.address)
        # Shape tensors are read while shapes are worked out, so addresses come first.
        slot.output_shapes = self.output_shapes(slot.shapes)
        self._set_shapes(slot.shapes)
        for name, staging in slot.outputs.items():
            if -1 in slot.output_shapes[name]:
                self._use_allocator(name, staging)
            else:
                # Room was made for the largest inputs, and nothing says that outputs grow with these.
                nbytes = math.prod(slot.output_shapes[name]) * staging.dtype.itemsize
                self._set_address(name, staging.grow(nbytes))

    def _set_address(self, name: str, address: int) -> None:
        # A shape tensor's values may have changed where the address has not.
        if self._addresses.get(name) != address or name in self._value_ranges:
            if not self._context.set_tensor_address(name, address):
                raise EngineError(self._said(f"TensorRT refused the address of '{name}'"))
            self._addresses[name] = address

    def _use_allocator(self, name: str, staging: Staging) -> None:
        if staging not in self._allocators:
            self._allocators[staging] = make_output_allocator(self._flavour, staging)
        if not self._context.set_output_allocator(name, self._allocators[staging]):
            raise EngineError(self._said(f"TensorRT refused an allocator for output '{name}'"))

    def enqueue(self, slot: CudaSlot, stream: cuda.Stream) -> None:
        """Start the slot's batch on `stream`."""
        self.bind(slot)
        if not self._context.execute_async_v3(stream.handle):
            raise EngineError(self._said("the batch could not be enqueued"))

    def capturable(self, stream: cuda.Stream) -> bool:
        """Whether the work can become a CUDA graph, as far as this TensorRT says."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(stream.handle))

    def found_output_shapes(self, slot: CudaSlot) -> dict[str, Shape]:
        """Output shapes of the slot's batch after its run, the data-dependent ones included."""
        return {
            name: self._allocators[slot.outputs[name]].shape if -1 in shape else shape
            for name, shape in slot.output_shapes.items()
        }

    def _said(self, text: str) -> str:
        reason = why(self._flavour)
        return f"{text}: {reason}{cuda.memory_advice_for(reason)}"


def make_output_allocator(flavour: Flavour, staging: Staging) -> Any:
    """An allocator that lets one output of one slot grow its buffer, and remembers the shape it got.

    The class is made here because its base class comes with the TensorRT that is found at run time.
    """

    class OutputAllocator(flavour.module.IOutputAllocator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            # TensorRT's base classes crash later where their own __init__ was not called.
            super().__init__()
            self.shape: Shape = ()

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            try:
                return staging.grow(size)
            except EngineError as error:
                # TensorRT swallows exceptions of callbacks; a null address makes it fail the batch.
                LOGGER.error("output '%s': %s", name, error)
                return 0

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return OutputAllocator()
