"""ONNX models on the CPU, by ONNX Runtime. One session, its runs spread over LANES threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from pinstream.dlpack import DeviceArray
from pinstream.engines.base import Engine, Slot
from pinstream.engines.functions import why_file_refused
from pinstream.errors import ConfigError, EngineError, ModelFileError, first_line
from pinstream.memory import InputBuffer, copy_bytes
from pinstream.options import DEFAULT_MAX_BATCH_SIZE, Options
from pinstream.tensors import Array, BatchSizes, ModelSpec, TensorSpec

# ONNX element types, as ONNX Runtime prints them, in Triton's terms.
DTYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

Dims = Sequence[int | str | None]
# Runs of a batch size at load, of which the fastest counts.
TRIAL_RUNS = 3


@dataclass(frozen=True)
class Described:
    """An input or output as ONNX Runtime has it: its type one of DTYPES, in its shape names or None for any size."""

    name: str
    type: str
    shape: Dims


Signature = tuple[Sequence[Described], Sequence[Described]]


class HostSlot:
    """Input buffers in host memory, and the run that reads them."""

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._buffers = {tensor.name: InputBuffer(tensor) for tensor in inputs}
        self.feeds: dict[str, Array] = {}
        self.run: Future[dict[str, Array]] | None = None

    def begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for a batch; see base.Slot."""
        self.feeds = {name: self._buffers[name].view(shape) for name, shape in shapes.items()}

    def put(self, name: str, source: Array | DeviceArray, offset: int | None) -> None:
        """Copy a part of the batch in; see base.Slot."""
        if isinstance(source, DeviceArray):
            raise EngineError(f"input '{name}' is on the GPU, and this engine runs on the CPU; send it in host memory")
        whole = self.feeds[name]
        copy_bytes(whole if offset is None else whole[offset : offset + len(source)], source)

    def cut(self, size: int) -> None:
        """Let the batch be of `size` items; see base.Slot."""
        self.feeds = {name: whole[:size] for name, whole in self.feeds.items()}


class OnnxRuntimeEngine(Engine):
    """An ONNX Runtime session behind the engine interface.

    Args:
        model_file: The ONNX file.
        options: Lanes, threads, slots and batch sizes.

    Raises:
        ModelFileError: The file is not an ONNX model that this ONNX Runtime can load.
        ConfigError: BUCKETS asks for what the model cannot do.
    """

    def __init__(self, model_file: Path, options: Options) -> None:
        self._session = _open_session(model_file, options.threads)
        self.spec = model_spec(*_signature(self._session, model_file), options)
        self._pool = ThreadPoolExecutor(options.lanes, "pinstream-lane")
        self._hosts = [HostSlot(self.spec.inputs) for _ in range(options.slots or options.lanes + 1)]
        self.slots = self._hosts
        self._warm_up()

    def _warm_up(self) -> None:
        """Run the smallest batch in every slot, and find out whether larger ones are worth their while."""
        if not all(tensor.is_static for tensor in self.spec.inputs):
            return
        sizes = self.spec.batch
        smallest = 0 if sizes is None else 1 if sizes.exact else sizes.buckets[0]
        for slot in self._hosts:
            self._start_zeros(slot, smallest)
        for slot in self._hosts:
            self.wait(slot)
        if sizes is not None and sizes.exact:
            self.spec = replace(self.spec, batch=replace(sizes, best=best_batch(self._seconds, sizes.largest)))

    def _start_zeros(self, slot: HostSlot, size: int) -> None:
        """Start a batch of zeros; `size` 0 for a model without a batch dimension."""
        slot.begin({t.name: (size, *t.shape) if size else t.shape for t in self.spec.inputs})
        self.enqueue(slot, frozenset(tensor.name for tensor in self.spec.outputs))

    def _seconds(self, size: int) -> float:
        """The least that a batch of zeros takes, of a few."""
        times = []
        for _ in range(TRIAL_RUNS):
            began = time.perf_counter()
            self._start_zeros(self._hosts[0], size)
            self.wait(self._hosts[0])
            times.append(time.perf_counter() - began)
        return min(times)

    def enqueue(self, slot: Slot, wanted: frozenset[str]) -> None:
        """Hand the slot's batch to a free lane; see base.Engine."""
        assert isinstance(slot, HostSlot)
        slot.run = self._pool.submit(self._run, slot.feeds, [t.name for t in self.spec.outputs if t.name in wanted])

    def _run(self, feeds: dict[str, Array], names: list[str]) -> dict[str, Array]:
        texts = {name: _decoded(array) for name, array in feeds.items() if array.dtype.hasobject}
        return dict(zip(names, self._session.run(names, {**feeds, **texts}), strict=True)) if names else {}

    def wait(self, slot: Slot) -> Mapping[str, Array]:
        """Wait for the slot's lane; see base.Engine."""
        assert isinstance(slot, HostSlot)
        assert slot.run is not None
        try:
            return slot.run.result()
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise EngineError(f"ONNX Runtime: {first_line(error)}") from error

    def finished(self, slot: Slot) -> bool:
        """See base.Engine."""
        assert isinstance(slot, HostSlot)
        return slot.run is not None and slot.run.done()

    def close(self) -> None:
        """Stop the lanes and drop the session."""
        self._pool.shutdown()
        del self._session


def read_spec(model_file: Path, options: Options) -> ModelSpec:
    """What an ONNX file takes and gives, without making it ready to run.

    Raises:
        ModelFileError: The file is not an ONNX model that this ONNX Runtime can load.
        ConfigError: BUCKETS asks for what the model cannot do.
    """
    return model_spec(*read_signature(model_file), options)


def read_signature(model_file: Path) -> Signature:
    """Inputs and outputs of an ONNX file, without making it ready to run.

    Raises:
        ModelFileError: The file is not an ONNX model that this ONNX Runtime can load.
    """
    return _signature(_open_session(model_file, 1, optimise=False), model_file)


def _signature(session: Any, model_file: Path) -> Signature:
    try:
        inputs, outputs = (
            [Described(tensor.name, tensor.type, tensor.shape) for tensor in tensors]
            for tensors in (session.get_inputs(), session.get_outputs())
        )
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"{model_file} is damaged: it has a name that is no text ({error.object!r}); export it again"
        ) from None
    return inputs, outputs


def _open_session(model_file: Path, threads: int, *, optimise: bool = True) -> Any:
    if found := why_file_refused(model_file):
        raise ModelFileError(f"{model_file} {found}")
    settings = ort.SessionOptions()
    if not optimise:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # What ONNX Runtime complains about comes back as an exception, and a client's errors are not to fill the log.
    settings.log_severity_level = 4
    # Spinning threads of one lane would take the cores from the others.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(model_file), settings, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        size = model_file.stat().st_size
        raise ModelFileError(
            f"{model_file} ({size:,} bytes) is not an ONNX model that ONNX Runtime {ort.__version__} can load: "
            f"{first_line(error)}; check the file with onnx.checker or export it again"
        ) from error


def _decoded(array: Array) -> Array:
    """ONNX Runtime takes str and would write bytes out as their repr."""
    texts = np.empty(array.size, np.object_)
    texts[:] = [element.decode() for element in array.reshape(-1)]
    return texts.reshape(array.shape)


def model_spec(inputs: Sequence[Any], outputs: Sequence[Any], options: Options) -> ModelSpec:
    """What a session takes and gives, in Triton's terms.

    Args:
        inputs: The session's inputs (name, type, shape).
        outputs: The session's outputs.
        options: max_batch_size bounds a dynamic batch; BUCKETS narrows the sizes that run.
    """
    unbatched = {(i.name, len(i.shape)) for i in inputs} & set(options.unbatched_inputs)
    batch = None if unbatched else batch_sizes([i.shape for i in inputs], [o.shape for o in outputs], options)
    drop = 1 if batch else 0
    return ModelSpec(
        tuple(_tensor(i, drop) for i in inputs),
        tuple(_tensor(o, drop) for o in outputs),
        batch,
    )


def _tensor(node: Any, drop: int) -> TensorSpec:
    if node.type not in DTYPES:
        raise ModelFileError(
            f"tensor '{node.name}' has type {node.type}, which Triton has no data type for; "
            f"supported are {', '.join(DTYPES)}"
        )
    return TensorSpec(node.name, DTYPES[node.type], tuple(_fixed(d) for d in node.shape[drop:]))


def _fixed(dim: int | str | None) -> int:
    return dim if isinstance(dim, int) else -1


def batch_sizes(inputs: Sequence[Dims], outputs: Sequence[Dims], options: Options) -> BatchSizes | None:
    """Find the batch dimension: the first of every input and output, all of one size or all dynamic.

    Inputs with differently named dynamic first dimensions are not batched together: nothing says they are one length.

    Returns:
        The sizes that run, or None where there is no batch dimension.
    """
    tensors = [*inputs, *outputs]
    if not inputs or not all(tensors):
        return None
    first = inputs[0][0]
    if any(dims[0] != first for dims in inputs) or any(_fixed(dims[0]) != _fixed(first) for dims in outputs):
        return None
    if isinstance(first, int):
        if options.buckets not in ((), (first,)):
            raise ConfigError(
                f"BUCKETS is {','.join(map(str, options.buckets))}, but the model's batch dimension is fixed at "
                f"{first}; remove the parameter or export the model with a dynamic batch dimension"
            )
        return BatchSizes((first,), lanes=options.lanes)
    if options.buckets:
        return BatchSizes(options.buckets, lanes=options.lanes)
    return BatchSizes((options.max_batch_size or DEFAULT_MAX_BATCH_SIZE,), exact=True, lanes=options.lanes)


def best_batch(seconds: Callable[[int], float], largest: int) -> int:
    """The batch size worth running: a power of two up to 8 with the least time an item; ties go to the smaller.

    Args:
        seconds: What a batch of so many items takes.
        largest: The most that there may be, and what comes out where the largest tried is the best: still larger ones
            may be better then.
    """
    per_item: dict[int, float] = {}
    for size in (size for size in (1, 2, 4, 8) if size <= largest):
        per_item[size] = seconds(size) / size
        best = min(per_item, key=lambda tried: per_item[tried])
        # Two in a row were no better: not the next one either, most likely, which takes as long as all before it.
        if size >= 4 * best:
            break
    # Of the sizes that are as good as the best within the noise of a measurement, the smallest wastes least.
    good = [size for size in per_item if per_item[size] <= 1.03 * per_item[best]]
    return largest if best == max(per_item) and good == [best] else min(good)
