"""Surgery on ONNX graphs of any kind: dead nodes, constants, and a batch size that is baked in."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def make_batch_dynamic(model: Any, source: str, batch: int) -> None:
    """Takes the batch size of a static export out of the nodes that have it baked in. Works on `model` itself.

    Args:
        model: The onnx.ModelProto, its constants as initializers.
        source: The image input, whose first dimension is the batch.
        batch: The batch size that was exported.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    images = _made_from(graph, source)
    shapes: dict[str, list[int]] | None = None
    for node in graph.node:
        # Grids and the like are made from constants alone; their leading 1 is not the batch.
        if not node.input or node.input[0] not in images:
            continue
        if node.op_type == "Reshape" and node.input[1] in constants:
            target = numpy_helper.to_array(constants[node.input[1]]).copy()
            if target.size > 1 and target[0] == batch:
                target[0] = 0  # the same as the input's
                _replace_input(graph, node, 1, target)
                _drop_attribute(node, "allowzero")
        elif node.op_type == "Resize" and len(node.input) > 3 and node.input[3] in constants:
            sizes = numpy_helper.to_array(constants[node.input[3]])
            if shapes is None:
                shapes = _inferred_shapes(model, source, batch)
            known = shapes.get(node.input[0], [])
            # With the attribute `axes` there are fewer sizes than dimensions, and none for the batch.
            if len(known) == sizes.size and all(size > 0 for size in known):
                scales = sizes.astype(np.float32) / np.array(known, np.float32)
                node.input[3] = ""
                _replace_input(graph, node, 2, scales)
                del node.input[3:]


def drop_dead_nodes(graph: Any, result: str) -> None:
    """Removes what `result` is not made from: decoding nodes past the head, and constants nobody reads."""
    needed = {result}
    alive = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            alive.append(node)
            needed.update(node.input)
            for attribute in node.attribute:  # names that If and Loop bodies take from outside
                if attribute.type == onnx.AttributeProto.GRAPH:
                    needed.update(name for inner in attribute.g.node for name in inner.input)
    nodes = [copy.deepcopy(node) for node in reversed(alive)]
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in [*graph.initializer]:
        if tensor.name not in needed:
            graph.initializer.remove(tensor)


def lift_constants(graph: Any) -> None:
    """Turns Constant nodes into initializers, so that a constant is looked up in one place only."""
    for node in [*graph.node]:
        if node.op_type == "Constant" and node.attribute[0].name in ("value", "value_ints", "value_int"):
            value = helper.get_attribute_value(node.attribute[0])
            array = numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.array(value, np.int64)
            graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
            graph.node.remove(node)


def _made_from(graph: Any, source: str) -> set[str]:
    """The tensors whose values come from the image. Shape and what follows from it alone are none of them."""
    found = {source}
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and found.intersection(node.input):
            found.update(node.output)
    return found


def _inferred_shapes(model: Any, source: str, batch: int) -> dict[str, list[int]]:
    """The shape of every tensor at the exported batch size; -1 for dimensions that stay unknown."""
    model = copy.deepcopy(model)
    image = next(value for value in model.graph.input if value.name == source)
    image.type.tensor_type.shape.dim[0].dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
        for value in [*inferred.graph.value_info, *inferred.graph.input]
    }


def _replace_input(graph: Any, node: Any, position: int, value: NDArray[Any]) -> None:
    # A new constant each time: exporters let several nodes share one.
    name = f"{node.output[0]}/{position}"
    graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[position] = name


def _drop_attribute(node: Any, name: str) -> None:
    for attribute in [*node.attribute]:
        if attribute.name == name:
            node.attribute.remove(attribute)


def name_nodes(graph: Any) -> None:
    """Names the nodes that have no name: converters to half precision and readers of profiles need one."""
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
