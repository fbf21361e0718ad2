"""ONNX files as plans are built from them: reading, the batch dimension, what precision they state, their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from pinstream.engines.functions import why_refused
from pinstream.errors import ModelFileError, first_line
from pinstream.sidecar import file_sha256

# Metadata of a graph that names the nodes to be kept in FP32 when it is converted to FP16: a JSON list of patterns.
FP32_NODES_KEY = "pinstream.fp32_nodes"

# Operators that make as many rows as the data have it.
_ROWS_BY_DATA = frozenset({"Compress", "Loop", "NonMaxSuppression", "NonZero", "Unique"})
# A batch of this size is told from every other size: it is prime. Other sizes are such as networks can halve.
_TELLING_BATCH, _OTHER_SIZE = 8191, 256


@dataclass(frozen=True)
class GraphTensor:
    """An input or output: `dims` has a number where the size is fixed, else its name ("?" where it has none)."""

    name: str
    dims: tuple[int | str, ...]

    @property
    def is_static(self) -> bool:
        """Whether every size is fixed."""
        return all(isinstance(dim, int) for dim in self.dims)

    def __str__(self) -> str:
        return f"'{self.name}' [{', '.join(map(str, self.dims))}]"


def read_graph(path: Path, weights: bool = False) -> Any:
    """Read an ONNX file.

    Args:
        path: The file.
        weights: Load weights that lie in files of their own as well.

    Returns:
        The onnx.ModelProto.

    Raises:
        ModelFileError: The file is missing, empty or not ONNX, or its functions make too much of it.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; expected an ONNX model")
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path} is empty; copy or export it again")
    try:
        model = onnx.load(str(path), load_external_data=weights)
    except Exception as error:  # protobuf's error, and what onnx raises for external data, share no base class
        raise ModelFileError(f"{path} is not an ONNX model, or a damaged one: {first_line(error)}") from error
    # Protobuf reads many a short text as a message of unknown fields.
    if not model.graph.output or not model.opset_import:
        raise ModelFileError(f"{path} is not an ONNX model: there is no graph in it; export it again")
    if found := why_refused(model):
        raise ModelFileError(f"{path} {found}")
    return model


def inputs_of(model: Any) -> tuple[GraphTensor, ...]:
    """The inputs that have to be fed."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return tuple(_tensor(value) for value in model.graph.input if value.name not in constants)


def outputs_of(model: Any) -> tuple[GraphTensor, ...]:
    """The outputs. Where the first size of one is the inputs' batch under another name, it bears the batch's name here.

    Exporters that are told no names make up one for each tensor (torch: `Addy_dim_0`, tf2onnx: `unk__7`), also for
    sizes that are no batch: how many things were found, or the rows of all items together. Hence the graph is asked.
    """
    outputs = tuple(_tensor(value) for value in model.graph.output)
    batches = {tensor.dims[0] if tensor.dims else 0 for tensor in inputs_of(model)}
    first = {tensor.name: tensor.dims[0] for tensor in outputs if tensor.dims and isinstance(tensor.dims[0], str)}
    if len(batches) != 1 or not isinstance(batch := batches.pop(), str) or set(first.values()) <= {batch}:
        return outputs
    sizes = _first_sizes(model)
    by_data = any(node.op_type in _ROWS_BY_DATA for node in model.graph.node)
    return tuple(
        replace(tensor, dims=(batch, *tensor.dims[1:]))
        if tensor.name in first and (sizes[tensor.name] == _TELLING_BATCH if sizes.get(tensor.name) else not by_data)
        else tensor
        for tensor in outputs
    )


def _first_sizes(model: Any) -> dict[str, int]:
    """The first size of every output for a telling batch, 0 where ONNX's inference cannot tell."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for value in probe.graph.input:
        for index, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_value = _OTHER_SIZE if index else _TELLING_BATCH
    for value in probe.graph.output:
        value.type.tensor_type.ClearField("shape")
    del probe.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(probe, data_prop=True)
    except Exception:  # operators of others, 2 GB: its errors have no base class
        return {}
    dims = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.output}
    return {name: int(of[0].dim_value) if of else 0 for name, of in dims.items()}


def has_dynamic_batch(inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor]) -> bool:
    """Whether the first dimension of every tensor is one dynamic batch dimension.

    Tensors with differently named first dimensions are not batched together: nothing says they are one length.
    """
    if not inputs or not all(tensor.dims for tensor in (*inputs, *outputs)):
        return False
    first = {tensor.dims[0] for tensor in (*inputs, *outputs)}
    return len(first) == 1 and all(isinstance(name, str) for name in first)


def with_batch(model: Any, batch: int) -> Any:
    """A copy of a graph with a dynamic batch, for one batch size."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    constants = {tensor.name for tensor in fixed.graph.initializer}
    for value in (*fixed.graph.input, *fixed.graph.output):
        if value.name not in constants:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    # Stale shapes; TensorRT works out its own.
    del fixed.graph.value_info[:]
    return fixed


def stated_precision(model: Any) -> str:
    """What the graph itself computes in: "int8" or "fp8" where it is quantized, else "fp16", "bf16" or "fp32"."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    quantized = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if quantized:
        eight_bit_floats = {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2}
        zero_points = {types.get(name) for node in quantized for name in node.input}
        return "fp8" if zero_points & eight_bit_floats else "int8"
    weights = [(t.data_type, _elements(t)) for t in model.graph.initializer]
    sizes = {
        name: sum(count for data_type, count in weights if data_type == wanted)
        for name, wanted in (("fp32", TensorProto.FLOAT), ("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16))
    }
    return max(sizes, key=lambda name: sizes[name])


def digest(path: Path) -> str:
    """SHA-256 of a model: the file's own or, where it keeps weights in other files, one over all of them.

    Raises:
        ModelFileError: The file, or one that it names, cannot be read.
    """
    model = read_graph(path)
    try:
        own = file_sha256(path)
        others = [f"{name} {file_sha256(path.parent / name)}" for name in external_files(model)]
    except OSError as error:
        raise ModelFileError(
            f"{path} keeps weights in {error.filename}, which cannot be read: {error.strerror}"
        ) from error
    return hashlib.sha256("\n".join([own, *others]).encode()).hexdigest() if others else own


def external_files(model: Any) -> list[str]:
    """Names of the files that its weights lie in, wherever in the model: as they stand there, from its directory."""
    return sorted(
        {
            entry.value
            for tensor in _tensors_in(model)
            if tensor.data_location == TensorProto.EXTERNAL
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )


def _tensors_in(message: Any) -> Iterator[Any]:
    """Every tensor of a model: initializers, sparse ones, attributes, and those of subgraphs and functions."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Sequence) else (value,):
                yield from _tensors_in(part)


def metadata(model: Any, key: str) -> str | None:
    """An entry of the model's metadata."""
    return next((str(entry.value) for entry in model.metadata_props if entry.key == key), None)


def _tensor(value: Any) -> GraphTensor:
    dims = value.type.tensor_type.shape.dim
    return GraphTensor(
        value.name, tuple(int(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
    )


def _elements(tensor: Any) -> int:
    count = 1
    for size in tensor.dims:
        count *= int(size)
    return count
