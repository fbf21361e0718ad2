"""FP32 ONNX graphs in half precision: the network in FP16, its inputs and outputs as they were.

TensorRT is strongly typed: it computes in the types that the graph states, so that FP16 has to come from the graph.
A node is converted where it works on data and its operator takes FP16. What stays in FP32, and why:

- nodes that the caller names: arithmetic on pixel coordinates, say, of which FP16 has one for every half pixel at 600;
- what is made from constants and shapes alone: FP16 cannot count beyond 2048;
- operators without FP16 in ONNX's own definition, those of other domains, and a few that gain nothing by it;
- nodes that read numbers which FP16 has not, as the epsilon of a division: half_range.py.

A cast stands only where a tensor passes from one side to the other, once for all its readers.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pinstream.errors import ModelFileError, first_line
from pinstream.plans.half_range import delicate_tensors

# They sort, sum up or index: rounding changes what they select, and they are no work to speak of.
KEPT_OPERATORS = frozenset({"CumSum", "NonMaxSuppression", "Range", "RoiAlign", "TopK"})

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def to_half(model: Any, kept: Sequence[str] = ()) -> Any:
    """Convert a graph to FP16, inputs and outputs kept.

    Args:
        model: The onnx.ModelProto, its weights loaded. It is left as it is.
        kept: Patterns of node names (`*`, `?`, `[abc]`) that stay in FP32.

    Returns:
        A new onnx.ModelProto, which passes ONNX's checker.

    Raises:
        ModelFileError: The graph has subgraphs, is quantized already, or ONNX's checker refuses it.
    """
    try:
        if model.functions:
            from onnx import inliner

            model = inliner.inline_local_functions(model)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False)
        _constants_to_initializers(inferred.graph)
        converted = _Converter(inferred, kept).convert()
        onnx.checker.check_model(converted, full_check=True)
    except ModelFileError:
        raise
    except Exception as error:  # ONNX's checker and inference raise classes without a common base
        raise ModelFileError(
            f"the graph cannot be converted to FP16: {first_line(error)}; build it with precision fp32"
        ) from error
    return converted


class _Converter:
    """Writes the new graph node by node, in the old one's order."""

    def __init__(self, model: Any, kept: Sequence[str]) -> None:
        self._model = model
        self._kept = kept
        self._opsets = {entry.domain: int(entry.version) for entry in model.opset_import}
        graph = model.graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        # Element type of every tensor, as it is now; conversion updates it.
        self._types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
        self._types |= {name: tensor.data_type for name, tensor in self._constants.items()}
        self._outputs = {value.name for value in graph.output}
        self._delicate: frozenset[str] = frozenset()
        self._converted: set[str] = set()
        self._nodes: list[Any] = []
        self._halves: dict[str, Any] = {}
        self._casts: dict[tuple[str, int], str] = {}

    def convert(self) -> Any:
        graph = self._model.graph
        data = _data(graph)
        self._delicate = delicate_tensors(graph, self._constants, data, self._types)
        for node in graph.node:
            _refuse(node)
            new = onnx.NodeProto()
            new.CopyFrom(node)
            if data.intersection(node.input) and self._takes_half(node):
                self._put_half(new)
            else:
                self._put_single(new)
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        _replace(model.graph.node, self._nodes)
        used = {name for node in self._nodes for name in node.input} | self._outputs
        constants = [*self._constants.values(), *self._halves.values()]
        _replace(model.graph.initializer, [tensor for tensor in constants if tensor.name in used])
        # Stale types; whoever needs them infers them.
        del model.graph.value_info[:]
        # Old IR versions list initializers among the inputs.
        model.ir_version = max(model.ir_version, 4)
        _replace(model.graph.input, [v for v in graph.input if v.name not in self._constants])
        return model

    def _takes_half(self, node: Any) -> bool:
        if node.op_type in KEPT_OPERATORS or any(fnmatch.fnmatchcase(node.name, pattern) for pattern in self._kept):
            return False
        if any(attribute.name == "dtype" for attribute in node.attribute):
            return False  # it states the type of what it makes up, as random numbers
        # A type that inference could not tell may or may not be a float.
        if any(self._types.get(name, 0) == 0 for name in (*node.input, *node.output) if name):
            return False
        floats = [name for name in node.output if self._types.get(name) == _FLOAT]
        # A cast makes an integer exact or not, and whoever reads it inherits that.
        if self._delicate.intersection((*node.input, *(node.output if node.op_type == "Cast" else ()))):
            return False
        return all(self._allows_half(node, i, "outputs") for i, name in enumerate(node.output) if name in floats)

    def _allows_half(self, node: Any, index: int, side: str) -> bool:
        """Whether ONNX's definition of the operator lets this input or output be FP16."""
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opsets[node.domain], node.domain)
        except (KeyError, onnx.defs.SchemaError):
            return False
        parameters = getattr(schema, side)
        parameter = parameters[min(index, len(parameters) - 1)]  # the last may stand for any number
        return "tensor(float16)" in parameter.types

    def _put_half(self, node: Any) -> None:
        for i, name in enumerate(node.input):
            if self._types.get(name) in (_FLOAT, _HALF):
                # Resize, for one, wants its scales in FP32 whatever it resizes.
                node.input[i] = self._as_type(name, _HALF if self._allows_half(node, i, "inputs") else _FLOAT)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
                attribute.i = _HALF
        after = []
        for i, name in enumerate(node.output):
            if self._types.get(name) == _FLOAT and name in self._outputs:
                node.output[i] = f"{name}/half"
                self._casts[name, _HALF] = node.output[i]
                after.append(helper.make_node("Cast", [node.output[i]], [name], f"{name}/cast", to=_FLOAT))
            elif self._types.get(name) == _FLOAT:
                self._types[name] = _HALF
                self._converted.add(name)
        self._nodes += [node, *after]

    def _put_single(self, node: Any) -> None:
        for i, name in enumerate(node.input):
            if name in self._converted:
                node.input[i] = self._as_type(name, _FLOAT)
        self._nodes.append(node)

    def _as_type(self, name: str, wanted: int) -> str:
        """The name under which a tensor is there in type `wanted`; makes it where it is not."""
        if self._types[name] == wanted:
            return name
        if name in self._constants and wanted == _HALF:
            half = f"{name}/half"
            if half not in self._halves:
                values = numpy_helper.to_array(self._constants[name]).astype(np.float16)
                self._halves[half] = numpy_helper.from_array(values, half)
            return half
        if (name, wanted) not in self._casts:
            cast = f"{name}/{'half' if wanted == _HALF else 'single'}"
            self._nodes.append(helper.make_node("Cast", [name], [cast], f"{cast}/cast", to=wanted))
            self._casts[name, wanted] = cast
        return self._casts[name, wanted]


def _data(graph: Any) -> set[str]:
    """The tensors whose values come from the inputs; those from constants and shapes alone are none of them."""
    found = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and found.intersection(node.input):
            found.update(node.output)
    return found


def _constants_to_initializers(graph: Any) -> None:
    """Constants are the same thing as nodes and as initializers; exporters write both."""
    outputs = {value.name for value in graph.output}
    nodes = []
    for node in graph.node:
        made = node.op_type == "Constant" and node.output[0] not in outputs and _constant(node.attribute[0])
        if made:
            made.name = node.output[0]
            graph.initializer.append(made)
        else:
            nodes.append(node)
    _replace(graph.node, nodes)


def _constant(attribute: Any) -> Any:
    """The value of a Constant node as an onnx.TensorProto; None for strings and sparse ones."""
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name == "value":
        return onnx.TensorProto.FromString(attribute.t.SerializeToString())
    if attribute.name not in dtypes:
        return None
    return numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), dtypes[attribute.name]))


def _refuse(node: Any) -> None:
    name = node.name or node.op_type
    if any(attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute):
        raise ModelFileError(
            f"node {name} ({node.op_type}) holds a subgraph, which cannot be converted to FP16 here; "
            "export the model in FP16, or build it with precision fp32"
        )
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
        raise ModelFileError(
            f"node {name} ({node.op_type}): the graph is quantized and states its precision itself; "
            "build it with precision fp32, which keeps the graph's own types"
        )


def _replace(field: Any, items: Iterable[Any]) -> None:
    kept = list(items)
    del field[:]
    field.extend(kept)
