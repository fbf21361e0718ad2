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
import time
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
from pinstream.engines.plan_source import read_sidecar, usable_plans
from pinstream.engines.profiles import PlanInfo, PlanTensor, model_spec
from pinstream.engines.registered import RegisteredMemory
from pinstream.engines.trt_context import ProfileContext
from pinstream.engines.trt_load import JitCache, load_plan
from pinstream.errors import ConfigError, EngineError
from pinstream.options import Options
from pinstream.preflight import this_gpu
from pinstream.tensors import NUMPY_DTYPES, Array, Shape

LOGGER = logging.getLogger("pinstream.tensorrt")
DEFAULT_SLOTS = 3
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
        try:
            self._load(model_file)
        except BaseException:
            self.close()
            raise

    def _load(self, model_file: Path) -> None:
        steps = _Steps()
        options = self._options
        cuda.set_device(options.device)
        flavour = load_flavour(options.engine)
        register_plugins(flavour, map(Path, options.plugins))
        self._streams = Streams(*(self._owned_stream() for _ in range(3)))
        self._registered = RegisteredMemory()
        self._resources.callback(self._registered.clear)
        steps.done("device")
        plans = usable_plans(model_file, options, flavour, this_gpu(options.device))
        steps.done("preflight")
        loaded = [load_plan(flavour, path, options) for path in plans]
        steps.done("deserialize")
        infos = [info for _, info in loaded]
        self.spec = model_spec(infos, options)
        jit_caches = [JitCache(flavour, path, options) for path in plans]
        self._contexts = self._make_contexts(flavour, plans[0].parent, loaded, jit_caches)
        self._share_scratch()
        steps.done("contexts")
        self._graphs: dict[tuple[int, tuple[Shape, ...]], cuda.Graph] = {}
        self.slots = self._make_slots(infos)
        steps.done("buffers")
        self._warm_up()
        for jit_cache in jit_caches:
            jit_cache.save()
        steps.done("warm-up")
        LOGGER.info("loaded in %s", steps)

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
        """Execution contexts of all plans; each may compile kernels for seconds, so all but the first side by side."""

        def make(engine: Any, info: PlanInfo, jit_cache: JitCache) -> list[ProfileContext]:
            cuda.set_device(self._options.device)  # of this thread
            return [
                ProfileContext(flavour, engine, info, i, jit_cache.runtime_config(engine), self._streams.compute)
                for i in self._chosen_profiles(engine, info)
            ]

        for engine, _ in loaded:
            # Whatever refers to the engine has to go before it.
            self._resources.callback(lambda kept: None, engine)
        (engine, info), *others = loaded
        allow_tf32(flavour, _built_with_tf32(directory))
        try:
            contexts = make(engine, info, jit_caches[0])
        except EngineError as error:
            if not allow_tf32_as_built(flavour, str(error)):
                raise
            contexts = make(engine, info, jit_caches[0])
        hold_to_tf32(flavour)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            made = threads.map(make, [e for e, _ in others], [info for _, info in others], jit_caches[1:])
            return [*contexts, *(context for of_one in made for context in of_one)]

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
            for _ in range(options.slots or DEFAULT_SLOTS)
        ]

    def _output_buffer(self, tensor: PlanTensor) -> BufferSpec:
        """Room for the output of the largest input; what only the data tells starts small and grows."""
        largest = 0
        for context in self._contexts:
            shape = context.largest_output_shapes()[tensor.name]
            nbytes = context.output_bytes_bound(tensor.name) if -1 in shape else _nbytes(shape, tensor.dtype)
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
        graph = self._graphs.get(self._graph_key(slot))
        if graph is not None:
            slot.output_shapes = self._context_for(slot).output_shapes(slot.shapes)
            graph.launch(stream)
        else:
            before = slot.output_addresses
            try:
                self._context_for(slot).enqueue(slot, stream)
            finally:
                if before != slot.output_addresses:
                    # A buffer has grown, or could not, and graphs write where it was.
                    self._graphs = {key: graph for key, graph in self._graphs.items() if key[0] != id(slot)}
        slot.end_compute()

    def _graph_key(self, slot: CudaSlot) -> tuple[int, tuple[Shape, ...]]:
        # In the engine's order: requests name their inputs in any.
        return id(slot), tuple(slot.shapes[name] for name in slot.inputs)

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
            return {name: slot.device_output(name) for name in slot.wanted}
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
        return self._graph_key(slot) in self._graphs

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
        """Run every bucket in every slot once, capture it where it can be, and measure what each bucket costs."""
        sizes = self.spec.batch
        buckets = sizes.buckets if sizes else (None,)
        for slot in self.slots:
            assert isinstance(slot, CudaSlot)
            for bucket in buckets:
                for context in self._contexts:
                    ran = self._run_usual(slot, context, bucket)
                    if ran and self._wants_graphs() and self._graph_key(slot) not in self._graphs:
                        self._capture(slot)
        if sizes and len(sizes.buckets) > 1:
            self.spec = replace(self.spec, batch=replace(sizes, costs=tuple(map(self._cost, sizes.buckets))))

    def _run_usual(self, slot: CudaSlot, context: ProfileContext, bucket: int | None) -> bool:
        """Run zeros of the shapes that a profile is tuned for, once; False where it does not take the bucket."""
        shapes, values = context.usual(bucket)
        if not context.fits(shapes, values):
            return False
        slot.begin(shapes)
        for tensor in self.spec.inputs:
            data = np.zeros(shapes[tensor.name], tensor.numpy_dtype)
            if tensor.name in values:
                data.flat[:] = values[tensor.name]
            slot.put(tensor.name, data, None)
        self.enqueue(slot, frozenset(tensor.name for tensor in self.spec.outputs))
        self.wait(slot)
        return True

    def _wants_graphs(self) -> bool:
        # A graph is of one shape: where others may come as well, it would seldom be of use.
        if any(not tensor.is_static for tensor in self.spec.inputs):
            return False
        sizes = self.spec.batch
        static = sizes is None or not sizes.exact
        return self._options.cuda_graphs == "on" or (self._options.cuda_graphs == "auto" and static)

    def _capture(self, slot: CudaSlot) -> None:
        context = self._context_for(slot)
        stream = self._streams.compute
        # After a run the slot has the shapes that the data gave.
        data_dependent = any(-1 in shape for shape in context.output_shapes(slot.shapes).values())
        if data_dependent or any(staging.device is None for staging in slot.inputs.values()):
            LOGGER.warning("no CUDA graphs: the plan has shape tensors or outputs whose shapes depend on the data")
            self._options = replace(self._options, cuda_graphs="off")
            return
        context.bind(slot)
        try:
            if not context.capturable(stream):
                raise EngineError("TensorRT says that this plan's work cannot be captured")
            graph = cuda.capture(stream, lambda: context.enqueue(slot, stream))
        except EngineError as error:
            LOGGER.warning("no CUDA graphs: %s", error)
            self._options = replace(self._options, cuda_graphs="off")
            return
        self._graphs[self._graph_key(slot)] = graph
        self._resources.callback(graph.destroy)

    def _cost(self, size: int) -> float:
        """Median seconds of GPU time of one bucket, over the profiles that take it."""
        slot = self.slots[0]
        assert isinstance(slot, CudaSlot)
        times = []
        for _ in range(COST_RUNS):
            for context in self._contexts:
                if self._run_usual(slot, context, size):
                    times.append(slot.times()["compute"])
        return statistics.median(times)

    def close(self) -> None:
        """Free everything in reverse order; see base.Engine."""
        if cuda.is_lost():
            # Every call would fail, and TensorRT's clearing up corrupts memory then: the process's end frees it all.
            _abandon(self._contexts, self._resources)
            return
        self._contexts = []
        self._resources.close()


def _abandon(*objects: object) -> None:
    """Keep objects from ever being cleared up, at the interpreter's end either."""
    for abandoned in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(abandoned))


def _built_with_tf32(directory: Path) -> bool:
    sidecar = read_sidecar(directory)
    section = sidecar.sections.get("tensorrt") if sidecar else None
    return not isinstance(section, Mapping) or section.get("tf32") is not False


def _input_buffer(tensors: Sequence[PlanTensor]) -> BufferSpec:
    first = tensors[0]
    shapes = [first.shape] if first.host else [r.max for tensor in tensors for r in tensor.ranges]
    return BufferSpec(first.name, first.dtype, max(_nbytes(shape, first.dtype) for shape in shapes), first.host)


def _nbytes(shape: Shape, dtype: str) -> int:
    total = NUMPY_DTYPES[dtype].itemsize
    for dim in shape:
        total *= dim
    return total


class _Steps:
    """Milliseconds of each step of the load, for the log."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._steps: list[tuple[str, float]] = []

    def done(self, name: str) -> None:
        now = time.perf_counter()
        self._steps.append((name, (now - self._began) * 1000))
        self._began = now

    def __str__(self) -> str:
        return ", ".join(f"{name} {ms:.0f} ms" for name, ms in self._steps)
