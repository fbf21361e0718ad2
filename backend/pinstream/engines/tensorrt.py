"""TensorRT plans on the GPU, for `tensorrt` and `tensorrt_rtx` alike.

Loading goes step by step: device, streams, plans, contexts, shared scratch memory, slots, warm-up with graph capture
and measured bucket costs. Everything is handed to one ExitStack as it is made, so that a load that fails half-way, and
finalize, free it in reverse order.
"""

from __future__ import annotations

import ctypes
import logging
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pinstream import cuda
from pinstream.dlpack import DeviceArray
from pinstream.engines.base import Engine, Slot
from pinstream.engines.cuda_slot import BufferSpec, CudaSlot, Streams, Waiting
from pinstream.engines.flavour import (
    Flavour,
    allow_tf32,
    allow_tf32_as_built,
    hold_to_tf32,
    load_flavour,
    register_plugins,
)
from pinstream.engines.graphs import Graphs
from pinstream.engines.plan_source import built_with_tf32, usable_plans
from pinstream.engines.profiles import PlanInfo, PlanTensor, model_spec, why_no_graphs
from pinstream.engines.registered import RegisteredMemory
from pinstream.engines.trt_context import ProfileContext
from pinstream.engines.trt_load import JitCache, LoadSteps, load_plans
from pinstream.errors import ConfigError, EngineError, let_go
from pinstream.options import DEFAULT_GPU_SLOTS, Options
from pinstream.preflight import this_gpu
from pinstream.tensors import NUMPY_DTYPES, Array, Shape, steps

LOGGER = logging.getLogger("pinstream.tensorrt")
# The most that an output is given before anything of its size is known.
FIRST_BYTES = 1 << 20
# Runs of a bucket whose median is its cost.
COST_RUNS = 5


class TensorRTEngine(Engine):
    """One or several plans of one network on one GPU.

    Args:
        model_file: A plan: one with a dynamic batch, or the first of several, one a batch size, that its sidecar lists.
        options: Device, slots, buckets, graphs and the rest.

    Raises:
        ModelFileError: A plan does not fit this machine.
        ConfigError: The configuration asks for what the plans cannot do.
        CudaError: The GPU has too little memory, or is not there.
    """

    def __init__(self, model_file: Path, options: Options) -> None:
        self._options = options
        self._resources = ExitStack()
        self._contexts: list[ProfileContext] = []
        self._jit_caches: list[JitCache] = []
        try:
            self._load(model_file)
        except BaseException as error:
            if not cuda.is_lost():
                let_go(error)  # of engines and contexts, which are to go before what they were made with
            self.close()
            raise

    def _load(self, model_file: Path) -> None:
        took = LoadSteps()
        options = self._options
        cuda.set_device(options.device)
        flavour = load_flavour(options.engine)
        register_plugins(flavour, (model_file.parent / path for path in options.plugins))
        self._streams = Streams(*(self._owned_stream() for _ in range(3)))
        self._registered = RegisteredMemory()
        self._resources.callback(self._registered.clear)
        took.done("device")
        gpu = this_gpu(options.device)
        plans = usable_plans(model_file, options, flavour, gpu)
        took.done("preflight")
        flavour.logger.take_errors()  # of earlier loads
        plans, loaded = load_plans(plans, model_file, options, flavour, gpu)
        took.done("deserialize")
        infos = [info for _, info in loaded]
        self.spec = model_spec(infos, options)
        self._wants_graphs = self._may_capture(infos)
        jit_caches = [JitCache(flavour, path, options) for path in plans]
        self._contexts = self._make_contexts(flavour, plans[0].parent, loaded, jit_caches)
        self._share_scratch()
        took.done("contexts")
        self._graphs = Graphs(self._streams.compute, self._resources)
        self.slots = self._make_slots(infos)
        took.done("buffers")
        self._warm_up()
        self._jit_caches = jit_caches
        self._save_kernels()
        took.done("warm-up")
        LOGGER.info("loaded in %s", took)

    def _owned_stream(self) -> cuda.Stream:
        stream = cuda.Stream(self._options.priority)
        self._resources.callback(stream.destroy)
        return stream

    def _make_contexts(
        self,
        flavour: Flavour,
        directory: Path,
        loaded: Sequence[tuple[Any, PlanInfo]],
        jit_caches: Sequence[JitCache],
    ) -> list[ProfileContext]:
        """Execution contexts of all plans, made side by side: each may compile kernels for seconds."""
        for engine, _ in loaded:
            # Whatever refers to the engine has to go before it.
            self._resources.callback(lambda kept: None, engine)
        allow_tf32(flavour, built_with_tf32(directory))
        try:
            contexts = self._contexts_of(flavour, loaded, jit_caches)
        except EngineError as error:
            if not allow_tf32_as_built(flavour, str(error)):
                raise
            contexts = self._contexts_of(flavour, loaded, jit_caches)
        hold_to_tf32(flavour)
        return contexts

    def _contexts_of(
        self, flavour: Flavour, loaded: Sequence[tuple[Any, PlanInfo]], jit_caches: Sequence[JitCache]
    ) -> list[ProfileContext]:
        def make(of_plan: tuple[Any, PlanInfo], jit_cache: JitCache) -> list[ProfileContext]:
            cuda.set_device(self._options.device)  # of this thread
            engine, info = of_plan
            profiles = self._chosen_profiles(engine, info)
            configs = [jit_cache.runtime_config(engine, eager=self._runs_as_graphs) for _ in profiles]
            return [
                ProfileContext(flavour, engine, info, profile, config, self._streams.compute)
                for profile, config in zip(profiles, configs, strict=True)
            ]

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            made = [threads.submit(make, *each) for each in zip(loaded, jit_caches, strict=True)]
        failures = [error for future in made if (error := future.exception())]
        if failures:
            # Whichever thread came first has all that TensorRT's log says.
            raise max(failures, key=lambda error: (not isinstance(error, EngineError), len(str(error))))
        return [context for future in made for context in future.result()]

    @property
    def _runs_as_graphs(self) -> bool:
        """Whether there is a graph for every batch that comes, so that no other shape is ever run."""
        return self._wants_graphs and not (self.spec.batch and self.spec.batch.exact)

    def _chosen_profiles(self, engine: Any, info: PlanInfo) -> Sequence[int]:
        count = int(engine.num_optimization_profiles)
        chosen = self._options.profiles or tuple(range(count))
        if max(chosen) >= count:
            raise ConfigError(f"instance_group.profile is {max(chosen)}, and {info.file} has profiles 0 to {count - 1}")
        return chosen

    def _share_scratch(self) -> None:
        scratch = cuda.DeviceAllocation(max(context.scratch_bytes for context in self._contexts))
        self._resources.callback(scratch.free)
        for context in self._contexts:
            context.use_scratch(scratch)

    def _make_slots(self, infos: Sequence[PlanInfo]) -> list[CudaSlot]:
        inputs = [_input_buffer(tensors) for tensors in zip(*(info.inputs for info in infos), strict=True)]
        outputs = [self._output_buffer(tensor) for tensor in infos[0].outputs]
        options = self._options
        waiting = Waiting(options.busy_wait)
        return [
            CudaSlot(inputs, outputs, self._streams, waiting, options.device, self._registered, self._resources)
            for _ in range(options.slots or DEFAULT_GPU_SLOTS)
        ]

    def _output_buffer(self, tensor: PlanTensor) -> BufferSpec:
        """Room for the output of the largest input; what only the data tells starts small, and grows."""
        largest = 0
        for context in self._contexts:
            shape = context.largest_output_shapes()[tensor.name]
            bound = min(context.output_bytes_bound(tensor.name), FIRST_BYTES)
            nbytes = bound if -1 in shape else _nbytes(shape, tensor.dtype)
            largest = max(largest, nbytes)
        return BufferSpec(tensor.name, tensor.dtype, largest, tensor.host)

    # Running

    def enqueue(self, slot: Slot, wanted: frozenset[str]) -> None:
        """Start the slot's batch; see base.Engine."""
        assert isinstance(slot, CudaSlot)
        slot.wanted = wanted
        self._enqueue(slot)
        if self._options.output_memory == "cpu" and not self._data_dependent(slot):
            slot.copy_out(wanted)

    def _enqueue(self, slot: CudaSlot) -> None:
        stream = slot.begin_compute()
        captured = self._graphs.find(slot)
        if captured is not None:
            captured.graph.launch(stream)
            slot.output_shapes = captured.output_shapes
        else:
            before = slot.output_addresses
            try:
                self._context_for(slot).enqueue(slot, stream)
            finally:
                if before != slot.output_addresses:  # a buffer has grown, or could not
                    self._graphs.forget(slot)
        slot.end_compute()

    def abandon(self, slot: Slot) -> None:
        """See base.Engine."""
        assert isinstance(slot, CudaSlot)
        slot.abandon()

    def _context_for(self, slot: CudaSlot) -> ProfileContext:
        shapes, values = slot.shapes, slot.shape_values()
        fitting = [context for context in self._contexts if context.fits(shapes, values)]
        if not fitting:
            described = [f"{name} {list(shape)}" for name, shape in shapes.items() if name not in values]
            described += [f"{name} = {list(value)}" for name, value in values.items()]
            raise EngineError(
                f"no optimisation profile takes {', '.join(described)} together; build a plan with one that does"
            )
        return min(fitting, key=lambda context: context.distance(shapes))

    @staticmethod
    def _data_dependent(slot: CudaSlot) -> bool:
        return any(-1 in shape for shape in slot.output_shapes.values())

    def wait(self, slot: Slot) -> Mapping[str, Array | DeviceArray]:
        """Wait for the slot's batch; see base.Engine."""
        assert isinstance(slot, CudaSlot)
        if self._data_dependent(slot):
            slot.wait_compute()
            slot.output_shapes = self._context_for(slot).found_output_shapes(slot)
            if self._options.output_memory == "cpu":
                slot.copy_out(slot.wanted)
        if self._options.output_memory == "gpu":
            slot.wait_compute()
            return {name: slot.output(name) for name in slot.wanted}
        slot.wait_copied()
        return {name: slot.host_output(name) for name in slot.wanted}

    def finished(self, slot: Slot) -> bool:
        """See base.Engine."""
        assert isinstance(slot, CudaSlot)
        return slot.finished()

    def times(self, slot: Slot) -> Mapping[str, float]:
        """GPU time of each stage, by CUDA events; see base.Engine."""
        assert isinstance(slot, CudaSlot)
        return slot.times()

    def used_graph(self, slot: Slot) -> bool:
        """See base.Engine."""
        assert isinstance(slot, CudaSlot)
        return self._graphs.find(slot) is not None

    @property
    def captured(self) -> int:
        """Number of CUDA graphs: one a slot and bucket."""
        return len(self._graphs)

    @property
    def failure(self) -> str:
        """Why this engine can never run again; see base.Engine."""
        return cuda.lost_context()

    def pin(self, memory: Array) -> None:
        """Page-lock the memory; see base.Engine."""
        self._registered.add(memory)

    def unpin(self, memory: Array) -> None:
        """See base.Engine."""
        self._registered.remove(memory)

    # Warm-up

    def _warm_up(self) -> None:
        """Run every profile in every batch size once, capture it in every slot, and measure what each size costs.

        One slot runs: kernels are compiled and loaded for all of them, and a graph needs no run of its own slot.
        """
        slots = [slot for slot in self.slots if isinstance(slot, CudaSlot)]
        costs: dict[int | None, list[float]] = defaultdict(list)
        for context in self._contexts:
            for size in self._usual_sizes(context):
                shapes, values = context.usual(size)
                self._fill(slots[0], shapes, values)
                self._run(slots[0])
                if self._wants_graphs:
                    self._capture(slots, context, shapes)
                if self._chooses_sizes:
                    costs[size] += [self._run(slots[0]) for _ in range(COST_RUNS)]
        sizes = self.spec.batch
        if sizes and self._chooses_sizes:
            medians = tuple(statistics.median(costs[size]) for size in sizes.buckets)
            self.spec = replace(self.spec, batch=replace(sizes, costs=medians))

    @property
    def _chooses_sizes(self) -> bool:
        return self.spec.batch is not None and len(self.spec.batch.buckets) > 1

    def _usual_sizes(self, context: ProfileContext) -> list[int | None]:
        """The batch sizes that a profile is warmed up in; None for the one that it is tuned for.

        Where every size runs, some are enough: what runs in one has its kernels for the sizes around it.
        """
        sizes = self.spec.batch
        wished = () if sizes is None else sorted(steps(1, sizes.largest)) if sizes.exact else sizes.buckets
        return [size for size in wished if context.fits(*context.usual(size))] or [None]

    def _fill(self, slot: CudaSlot, shapes: Mapping[str, Shape], values: Mapping[str, Shape]) -> None:
        """Put zeros of these shapes into a slot, and into shape tensors their values."""
        slot.begin(shapes)
        for tensor in self.spec.inputs:
            data = np.zeros(shapes[tensor.name], tensor.numpy_dtype)
            if tensor.name in values:
                data.flat[:] = values[tensor.name]
            slot.put(tensor.name, data, None)

    def _run(self, slot: CudaSlot) -> float:
        """Run what is in a slot; gives seconds of GPU time."""
        self.enqueue(slot, frozenset(tensor.name for tensor in self.spec.outputs))
        self.wait(slot)
        return slot.times()["compute"]

    def _may_capture(self, infos: Sequence[PlanInfo]) -> bool:
        if reason := why_no_graphs(infos, self.spec):
            if self._options.cuda_graphs == "on":
                LOGGER.warning("CUDA_GRAPHS is on, and there are none: %s, or leave CUDA_GRAPHS out", reason)
            return False
        sizes = self.spec.batch
        static = sizes is None or not sizes.exact
        return self._options.cuda_graphs == "on" or (self._options.cuda_graphs == "auto" and static)

    def _capture(self, slots: Sequence[CudaSlot], context: ProfileContext, shapes: Mapping[str, Shape]) -> None:
        if self._context_for(slots[0]) is not context:
            return  # another profile takes these shapes, which is tuned for them
        for slot in slots:
            if slot is not slots[0]:
                slot.begin(shapes)
            self._graphs.capture(slot, context)

    def _save_kernels(self) -> None:
        for jit_cache in self._jit_caches:
            jit_cache.save()

    def close(self) -> None:
        """Free everything in reverse order; see base.Engine."""
        if cuda.is_lost():
            # Every call would fail, and TensorRT's clearing up corrupts memory then: the process's end frees it all.
            _abandon(self._contexts, self._jit_caches, self._resources)
            return
        try:
            # With what has been compiled since for the shapes that came.
            self._save_kernels()
        finally:
            # What a context was made with outlives it.
            self._contexts = []
            self._jit_caches = []
            self._resources.close()


def _abandon(*objects: object) -> None:
    """Keep objects from ever being cleared up, at the interpreter's end either."""
    for abandoned in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(abandoned))


def _input_buffer(tensors: Sequence[PlanTensor]) -> BufferSpec:
    first = tensors[0]
    shapes = [first.shape] if first.host else [r.max for tensor in tensors for r in tensor.ranges]
    return BufferSpec(first.name, first.dtype, max(_nbytes(shape, first.dtype) for shape in shapes), first.host)


def _nbytes(shape: Shape, dtype: str) -> int:
    total = NUMPY_DTYPES[dtype].itemsize
    for dim in shape:
        total *= dim
    return total
