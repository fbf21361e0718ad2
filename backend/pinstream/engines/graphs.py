"""An engine's CUDA graphs, one a slot and combination of input shapes. Knows contexts and slots, nothing of batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from pinstream import cuda
from pinstream.engines.cuda_slot import CudaSlot
from pinstream.engines.trt_context import ProfileContext
from pinstream.errors import EngineError
from pinstream.tensors import Shape

LOGGER = logging.getLogger("pinstream.tensorrt")


@dataclass(frozen=True)
class Captured:
    """A batch as a graph.

    Attributes:
        graph: What launches it.
        output_shapes: Of the batch: told once, since working them out anew would make the GPU wait.
    """

    graph: cuda.Graph
    output_shapes: Mapping[str, Shape]


class Graphs:
    """The graphs that an engine's batches are launched as.

    Those of a profile are all captured from its one context. NVIDIA's guide to TensorRT for RTX advises a context each.
    They give the same in whatever order they are launched (tests/gpu/test_accuracy.py), and contexts are most of what a
    start takes.

    Args:
        stream: What they are captured on.
        resources: Takes over the graphs, which have to be destroyed.
    """

    def __init__(self, stream: cuda.Stream, resources: ExitStack) -> None:
        self._stream = stream
        self._resources = resources
        self._graphs: dict[tuple[int, tuple[Shape, ...]], Captured] = {}
        # Why nothing can be captured, once that is known; nobody asks a second time.
        self._refused = ""

    def __len__(self) -> int:
        return len(self._graphs)

    def find(self, slot: CudaSlot) -> Captured | None:
        """The graph of the slot's batch, if there is one."""
        return self._graphs.get(_key(slot))

    def capture(self, slot: CudaSlot, context: ProfileContext) -> None:
        """Make a graph of the slot's batch on a context that has run these shapes; where that cannot be, say so."""
        if self._refused or self.find(slot):
            return
        try:
            graph = self._captured(slot, context)
        except EngineError as error:
            self._refused = str(error)
            LOGGER.warning("no CUDA graphs: %s", error)
            return
        self._graphs[_key(slot)] = Captured(graph, context.output_shapes(slot.shapes))

    def _captured(self, slot: CudaSlot, context: ProfileContext) -> cuda.Graph:
        # After a run the slot has the shapes that the data gave; the context still says which those are.
        if context.depends_on_data(slot.shapes):
            raise EngineError("the plan has outputs whose shapes depend on the data")
        context.bind(slot)
        if not context.capturable(self._stream):
            raise EngineError("TensorRT says that this plan's work cannot be captured")
        graph = cuda.capture(self._stream, lambda: context.enqueue(slot, self._stream))
        self._resources.callback(graph.destroy)
        graph.upload(self._stream)
        return graph

    def forget(self, slot: CudaSlot) -> None:
        """Launch no graph for this slot any more: a buffer of it has moved, and graphs write where it was."""
        self._graphs = {key: graph for key, graph in self._graphs.items() if key[0] != id(slot)}


def _key(slot: CudaSlot) -> tuple[int, tuple[Shape, ...]]:
    # In the engine's order: requests name their inputs in any.
    return id(slot), tuple(slot.shapes[name] for name in slot.inputs)
