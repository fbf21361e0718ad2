"""Small ONNX models, one for each way a model can be shaped."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Dim = int | str


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Sequence[Dim]]],
    outputs: Sequence[tuple[str, int, Sequence[Dim]]],
    weights: dict[str, NDArray[Any]] | None = None,
    *,
    opset: int = 17,
) -> Path:
    """Write a model of `nodes`; tensors are (name, element type, dims)."""
    graph = helper.make_graph(
        list(nodes),
        path.stem,
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 19 else 9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def unchecked(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Sequence[Dim]]],
    outputs: Sequence[tuple[str, int, Sequence[Dim]]],
) -> Path:
    """Write a model of `nodes` that ONNX's checker may well refuse."""
    infos = [[helper.make_tensor_value_info(*tensor) for tensor in tensors] for tensors in (inputs, outputs)]
    graph = helper.make_graph(list(nodes), path.stem, *infos)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def classifier(path: Path, batch: Dim = "batch", seed: int = 0) -> Path:
    """FP32 `pixels` [batch,3,8,8] -> FP32 `probabilities` [batch,10]."""
    weights = np.random.default_rng(seed).normal(size=(192, 10)).astype(np.float32)
    return save(
        path,
        [
            helper.make_node("Flatten", ["pixels"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        [("pixels", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [("probabilities", TensorProto.FLOAT, [batch, 10])],
        {"w": weights},
    )


def biased(path: Path, width: int) -> Path:
    """FP32 `row` [batch,width] -> FP32 `sum` [batch,width]: plus weights, which stay as they are in the file."""
    weights = np.random.default_rng(0).normal(size=width).astype(np.float32)
    return save(
        path,
        [helper.make_node("Add", ["row", "w"], ["sum"])],
        [("row", TensorProto.FLOAT, ["batch", width])],
        [("sum", TensorProto.FLOAT, ["batch", width])],
        {"w": weights},
    )


def two_by_two(path: Path) -> Path:
    """FP32 `left` [batch,4] and INT64 `right` [batch,4] -> FP32 `sum` [batch,4] and INT64 `double` [batch,4]."""
    return save(
        path,
        [
            helper.make_node("Cast", ["right"], ["right_f"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["left", "right_f"], ["sum"]),
            helper.make_node("Add", ["right", "right"], ["double"]),
        ],
        [("left", TensorProto.FLOAT, ["batch", 4]), ("right", TensorProto.INT64, ["batch", 4])],
        [("sum", TensorProto.FLOAT, ["batch", 4]), ("double", TensorProto.INT64, ["batch", 4])],
    )


def convolution(path: Path) -> Path:
    """UINT8 `picture` [batch,height,width,3] -> FP32 `map` [batch,4,height,width] and `means` [batch,4]."""
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    return save(
        path,
        [
            helper.make_node("Cast", ["picture"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["float"], ["chw"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["chw", "w"], ["map"], pads=[1, 1, 1, 1]),
            helper.make_node("ReduceMean", ["map"], ["means"], axes=[2, 3], keepdims=0),
        ],
        [("picture", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [
            ("map", TensorProto.FLOAT, ["batch", 4, "height", "width"]),
            ("means", TensorProto.FLOAT, ["batch", 4]),
        ],
        {"w": weights},
    )


def slice_from(path: Path, width: int) -> Path:
    """FP32 `row` [width] and INT64 `start` [1] -> FP32 `rest` [width - start]: the row from there on."""
    return save(
        path,
        [helper.make_node("Slice", ["row", "start", "end", "axis"], ["rest"])],
        [("row", TensorProto.FLOAT, [width]), ("start", TensorProto.INT64, [1])],
        [("rest", TensorProto.FLOAT, ["left"])],
        {"end": np.array([width], np.int64), "axis": np.array([0], np.int64)},
    )


def identity(path: Path) -> Path:
    """One input and output a data type, each [batch,3] and passed through unchanged: `in_FP16` -> `out_FP16`."""
    types = {
        "BOOL": TensorProto.BOOL,
        "UINT8": TensorProto.UINT8,
        "INT32": TensorProto.INT32,
        "INT64": TensorProto.INT64,
        "FP16": TensorProto.FLOAT16,
        "FP32": TensorProto.FLOAT,
        "BYTES": TensorProto.STRING,
    }
    return save(
        path,
        [helper.make_node("Identity", [f"in_{t}"], [f"out_{t}"]) for t in types],
        [(f"in_{t}", element, ["batch", 3]) for t, element in types.items()],
        [(f"out_{t}", element, ["batch", 3]) for t, element in types.items()],
    )


def whole(path: Path) -> Path:
    """No batch dimension: FP32 `a` [n] and FP32 `b` [m] -> FP32 `outer` [n,m]."""
    return save(
        path,
        [
            helper.make_node("Unsqueeze", ["a", "axis1"], ["column"]),
            helper.make_node("Unsqueeze", ["b", "axis0"], ["row"]),
            helper.make_node("Mul", ["column", "row"], ["outer"]),
        ],
        [("a", TensorProto.FLOAT, ["n"]), ("b", TensorProto.FLOAT, ["m"])],
        [("outer", TensorProto.FLOAT, ["n", "m"])],
        {"axis1": np.array([1]), "axis0": np.array([0])},
    )


def dynamic_width(path: Path) -> Path:
    """FP32 `row` [batch,width] -> FP32 `doubled` [batch,width]; fails in the engine where width is 13."""
    return save(
        path,
        [
            helper.make_node("Add", ["row", "row"], ["sum"]),
            helper.make_node("Shape", ["row"], ["shape"], start=1, end=2),
            helper.make_node("Equal", ["shape", "thirteen"], ["is_thirteen"]),
            helper.make_node("Cast", ["is_thirteen"], ["index"], to=TensorProto.INT64),
            # An index of 1 into a tensor of one element is out of bounds.
            helper.make_node("Gather", ["one", "index"], ["factor"]),
            helper.make_node("Mul", ["sum", "factor"], ["doubled"]),
        ],
        [("row", TensorProto.FLOAT, ["batch", "width"])],
        [("doubled", TensorProto.FLOAT, ["batch", "width"])],
        {"thirteen": np.array([13]), "one": np.ones(1, np.float32)},
    )


def slow(path: Path, work: int = 60) -> Path:
    """Static batch 1: FP32 `x` [1,512,512] -> FP32 `y` [1,512,512], tens of milliseconds an item."""
    nodes = []
    for i in range(work):
        source = "x" if i == 0 else f"t{i - 1}"
        nodes.append(helper.make_node("MatMul", [source, "w"], [f"t{i}" if i < work - 1 else "y"]))
    weights = (np.eye(512) * 0.5).astype(np.float32)
    return save(
        path,
        nodes,
        [("x", TensorProto.FLOAT, [1, 512, 512])],
        [("y", TensorProto.FLOAT, [1, 512, 512])],
        {"w": weights},
    )


def heavy(path: Path, size: int, work: int) -> Path:
    """FP32 `x` [batch,1,1] -> FP32 `y` [batch,1,1], 1 of 1: little to send, and `work` products of `size` x `size`.

    Each is by a constant whose columns sum to 1. (Of a matrix by itself only the first is right in TensorRT-RTX 1.4.)
    """
    nodes = [helper.make_node("Expand", ["x", "square"], ["t0"])]
    nodes += [helper.make_node("MatMul", [f"t{i}", "means"], [f"t{i + 1}"]) for i in range(work)]
    nodes.append(helper.make_node("ReduceMax", [f"t{work}"], ["y"], axes=[1, 2], keepdims=1))
    weights = {"square": np.array([1, size, size]), "means": np.full((size, size), 1 / size, np.float32)}
    dims: Sequence[Dim] = ("batch", 1, 1)
    return save(path, nodes, [("x", TensorProto.FLOAT, dims)], [("y", TensorProto.FLOAT, dims)], weights)


def text(path: Path) -> Path:
    """BYTES `in` [batch,3] -> BYTES `out` [batch,3], the same."""
    return save(
        path,
        [helper.make_node("Identity", ["in"], ["out"])],
        [("in", TensorProto.STRING, ["batch", 3])],
        [("out", TensorProto.STRING, ["batch", 3])],
    )


def many_inputs(path: Path, count: int) -> Path:
    """FP32 inputs [batch,2] with long names -> FP32 `sum` [batch,2]."""
    names = [f"{'input' * 20}{i}" for i in range(count)]
    dims: Sequence[Dim] = ("batch", 2)
    inputs = [(name, TensorProto.FLOAT, dims) for name in names]
    return save(path, [helper.make_node("Sum", names, ["sum"])], inputs, [("sum", TensorProto.FLOAT, dims)])


def as_wide_as_the_largest(path: Path) -> Path:
    """INT64 `n` [batch,1] -> INT64 `counted` [batch, largest n of the batch], each row 0, 1, 2, ..."""
    nodes = [
        helper.make_node("ReduceMax", ["n"], ["largest"], keepdims=0),
        helper.make_node("Range", ["zero", "largest", "one"], ["row"]),
        helper.make_node("Shape", ["row"], ["width"]),
        helper.make_node("Shape", ["n"], ["whole"]),
        helper.make_node("Slice", ["whole", "first", "second"], ["items"]),
        helper.make_node("Concat", ["items", "width"], ["shape"], axis=0),
        helper.make_node("Expand", ["row", "shape"], ["counted"]),
    ]
    integers = {name: np.array(value, np.int64) for name, value in (("zero", 0), ("one", 1), ("first", [0]))}
    return save(
        path,
        nodes,
        [("n", TensorProto.INT64, ("batch", 1))],
        [("counted", TensorProto.INT64, ("batch", "width"))],
        {**integers, "second": np.array([1], np.int64)},
    )


def doubling(path: Path, levels: int) -> Path:
    """A model of 2 ** levels nodes, by functions that call one another twice, with the signature of a YOLOX export."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]

    def twice(name: str, inner: str) -> onnx.FunctionProto:
        nodes = [
            helper.make_node(inner, [source], [made], domain="own" if inner != "Relu" else "")
            for source, made in (("a", "b"), ("b", "c"))
        ]
        return helper.make_function("own", name, ["a"], ["c"], nodes, opsets)

    functions = [twice(f"F{level}", f"F{level - 1}" if level > 1 else "Relu") for level in range(1, levels + 1)]
    call = helper.make_node(f"F{levels}", ["images"], ["output"], domain="own")
    return _of_functions(path, functions, [call], opsets)


def calling_down(path: Path, levels: int, times: int) -> Path:
    """The same signature; `times` nodes call a function which calls another one, and so on for `levels` levels."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for level in range(1, levels + 1):
        inner = helper.make_node(f"F{level - 1}" if level > 1 else "Relu", ["a"], ["b"], domain="own" * (level > 1))
        functions.append(helper.make_function("own", f"F{level}", ["a"], ["b"], [inner], opsets))
    names = ["images", *(f"t{index}" for index in range(1, times)), "output"]
    calls = [
        helper.make_node(f"F{levels}", [source], [made], domain="own") for source, made in itertools.pairwise(names)
    ]
    return _of_functions(path, functions, calls, opsets)


def _of_functions(
    path: Path,
    functions: Sequence[onnx.FunctionProto],
    nodes: Sequence[onnx.NodeProto],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> Path:
    image, out = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("images", [1, 3, 64, 64]), ("output", [1, 84, 8]))
    )
    graph = helper.make_graph(nodes, "graph", [image], [out])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8), path)
    return path
