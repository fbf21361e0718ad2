"""Which tensors of an FP32 graph hold numbers that FP16 has not: too large, too small, or integers beyond 2048.

Told from the graph alone: from its constants, and from integers that become floats. The usual ones are masks
(`(1 - mask) * -3.4e38`), the epsilon of a division (`x / (norm + 1e-12)`), and positions that are indices later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

LARGEST = float(np.finfo(np.float16).max)

# What they give out is as large, as small or as exact as what they take in, or nearly.
# fmt: off
_HANDING_ON = frozenset({
    "Abs", "Add", "Ceil", "Clip", "Concat", "Expand", "Flatten", "Floor", "Gather", "Identity", "Max", "Min", "Neg",
    "Reciprocal", "Reshape", "Round", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose",
    "Unsqueeze", "Where",
})
# fmt: on
# They do so where they scale by a constant. Two tensors multiplied may be anything, and x / (norm + 1e-12) is about 1.
_SCALING = frozenset({"Div", "Mul"})
_EXACT = (TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64)


def delicate_tensors(
    graph: Any, constants: Mapping[str, Any], data: set[str], types: Mapping[str, int]
) -> frozenset[str]:
    """Names of the tensors that lose their meaning in FP16; whatever reads one has to stay in FP32.

    Args:
        graph: The onnx.GraphProto.
        constants: Its constants by name.
        data: The tensors whose values come from its inputs.
        types: The element type of every tensor.
    """
    found = {name for name, tensor in constants.items() if _does_not_fit(tensor)}
    for node in graph.node:
        from_data = data.intersection(node.input)
        if node.op_type == "Div" and node.input[1] in constants and _loses_any(constants[node.input[1]]):
            found.add(node.input[1])
        delicate = bool(found.intersection(node.input))
        if not from_data:
            # Sizes that become floats are small numbers that scale: they are none of them.
            made = node.op_type == "ConstantOfShape" and any(_does_not_fit(a.t) for a in node.attribute)
            handed_on = delicate or made
        elif node.op_type == "Cast":
            handed_on = delicate or types.get(node.input[0]) in _EXACT
        elif node.op_type in _SCALING:
            handed_on = delicate and len(from_data) == 1
        else:
            handed_on = delicate and node.op_type in _HANDING_ON
        if handed_on:
            found.update(name for name in node.output if types.get(name) == TensorProto.FLOAT)
    return frozenset(found)


def _does_not_fit(tensor: Any) -> bool:
    """Whether a constant has values beyond FP16's, or nothing is left of it. Weights of which some vanish are fine."""
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = numpy_helper.to_array(tensor)
    # Infinities are meant, as in masks, and FP16 has them.
    if np.any(np.abs(values[np.isfinite(values)]) > LARGEST):
        return True
    return bool(np.any(values)) and not np.any(_rounded(values))


def _loses_any(tensor: Any) -> bool:
    """Whether a divisor becomes zero somewhere."""
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = numpy_helper.to_array(tensor)
    return bool(np.any((_rounded(values) == 0) & (values != 0)))


def _rounded(values: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)
