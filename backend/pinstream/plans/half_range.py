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
    "Abs", "Add", "Ceil", "Concat", "Expand", "Flatten", "Floor", "Gather", "Identity", "Neg", "Pow", "Reciprocal",
    "ReduceMax", "ReduceMin", "ReduceSum", "Reshape", "Round", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum",
    "Tile", "Transpose", "Unsqueeze", "Where",
})
# fmt: on
# They do so where they scale by a constant. Two tensors multiplied may be anything, and x / (norm + 1e-12) is about 1.
_SCALING = frozenset({"Div", "Mul"})
# A large bound makes nothing large: exporters bound by 3.4e38 what has none.
_BOUNDING = frozenset({"Clip", "Max", "Min"})
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
    large = {name for name, tensor in constants.items() if _is_too_large(tensor)}
    found = large | {name for name, tensor in constants.items() if _vanishes(tensor)}
    for node in graph.node:
        from_data = data.intersection(node.input)
        if node.op_type == "Div" and node.input[1] in constants and _loses_any(constants[node.input[1]]):
            found.add(node.input[1])
        delicate = bool(found.intersection(node.input))
        if not from_data:
            # Sizes that become floats are small numbers that scale: they are none of them.
            made = node.op_type == "ConstantOfShape" and any(
                _is_too_large(a.t) or _vanishes(a.t) for a in node.attribute
            )
            handed_on = delicate or made
        elif node.op_type == "Cast":
            handed_on = delicate or types.get(node.input[0]) in _EXACT
        elif node.op_type in _SCALING:
            handed_on = delicate and len(from_data) == 1
        elif node.op_type in _BOUNDING:
            handed_on = bool((found - large).intersection(node.input))
        else:
            handed_on = delicate and node.op_type in _HANDING_ON
        if handed_on:
            found.update(name for name in node.output if types.get(name) == TensorProto.FLOAT)
    return frozenset(found)


def _is_too_large(constant: Any) -> bool:
    """Whether it has values beyond FP16's. Infinities are meant, as in masks, and FP16 has them."""
    values = _floats(constant)
    return bool(np.any(np.abs(values[np.isfinite(values)]) > LARGEST))


def _vanishes(constant: Any) -> bool:
    """Whether nothing is left of it in FP16. Weights of which some vanish are fine."""
    values = _floats(constant)
    return bool(np.any(values)) and not np.any(_rounded(values))


def _loses_any(divisor: Any) -> bool:
    """Whether a divisor becomes zero somewhere."""
    values = _floats(divisor)
    return bool(np.any((_rounded(values) == 0) & (values != 0)))


def _floats(constant: Any) -> NDArray[Any]:
    """Its values; none where it is not FP32."""
    return numpy_helper.to_array(constant) if constant.data_type == TensorProto.FLOAT else np.empty(0)


def _rounded(values: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)
