"""YOLOX graph surgery: an official export in, the serving graph out. The one place that builds YOLOX graphs.

    images UINT8 [batch, H, W, 3]
      -> Cast, Transpose                  (TensorRT transposes no UINT8, hence the order)
      -> the network of the export, batch made dynamic
      -> objectness x best class, TopK    (the K best anchors only)
      -> decode of those K
      -> candidates FP32 [batch, K, 6]    (x1, y1, x2, y2, score, class), best first

Taking the K best before decoding them spares the class search and the box arithmetic for the thousands of others.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pinstream.plans.graph import FP32_NODES_KEY
from pinstream_cli.apart import apart
from pinstream_cli.build_error import BuildError, NotYoloxError
from pinstream_cli.onnx_files import load_onnx, opset_of
from pinstream_cli.onnx_surgery import drop_dead_nodes, lift_constants, make_batch_dynamic, name_nodes
from pinstream_cli.yolox_recognise import GRAPH_KEY, SERVING_GRAPH, YoloxExport, recognised_shape
from pinstream_cli.yolox_reference import anchor_cells

INPUT = "images"
OUTPUT = "candidates"
# What TensorRT's TopK layer takes at most.
MOST_CANDIDATES = 3840
# The tensor that holds, for every candidate, the row of the head that it was made from: INT64 [batch, K].
PICKED = "pinstream/picked"

_NETWORK = "network/"
_OURS = "pinstream/"
_CAST = _OURS + "cast"
_TO_NCHW = _OURS + "to_nchw"
_OLDEST_IR = 7


def is_serving_graph(path: Path) -> bool:
    """Whether an ONNX file is a serving graph that `fuse` made.

    Raises:
        BuildError: The file is missing, empty, or not ONNX.
    """
    model = load_onnx(path)
    return any(entry.key == GRAPH_KEY and entry.value == SERVING_GRAPH for entry in model.metadata_props)


def is_yolox_export(path: Path) -> bool:
    """Whether `fuse` can make a serving graph of an ONNX file. Runs the model once, where its signature fits; `apart`.

    Raises:
        BuildError: The file is missing, empty, not ONNX, or ONNX Runtime cannot run it.
    """
    try:
        apart(path, recognised_shape, str(path), read=tuple)
    except NotYoloxError:
        return False
    return True


def fuse(export: YoloxExport, candidates: int, labels: Sequence[str]) -> Any:
    """Makes the serving graph.

    Args:
        export: The export, as recognised.
        candidates: K, at most the export's number of anchors and 3840.
        labels: One name for each class.

    Returns:
        The onnx.ModelProto: `images` UINT8 [batch, H, W, 3] to `candidates` FP32 [batch, K, 6].

    Raises:
        BuildError: The result does not pass ONNX's checker.
    """
    model = copy.deepcopy(export.model)
    _cut_at(model.graph, export)
    lift_constants(model.graph)
    make_batch_dynamic(model, export.input_name, export.batch or 1)
    drop_dead_nodes(model.graph, export.head)
    name_nodes(model.graph)
    # The export's names get a prefix, so that ours cannot meet them.
    onnx.compose.add_prefix(model, _NETWORK, inplace=True)
    _put_image_input(model.graph, _NETWORK + export.input_name, export.input_size)
    _put_candidates(model, export, candidates)
    model.ir_version = max(model.ir_version, _OLDEST_IR)
    _put_metadata(model, export, candidates, labels)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # checker and shape inference raise classes of their own, without a common base
        raise BuildError(f"{export.path}: the fused graph does not pass ONNX's checker: {error}") from error
    return model


def exact_nodes(model: Any) -> list[str]:
    """The nodes of a serving graph that stay in FP32 when the rest becomes FP16: ours behind the network.

    FP16 has one number for every half pixel above 512, and its scores tie by the dozen. Those before the network are
    not among them: FP16 holds the 256 values of a pixel exactly.
    """
    return [n.name for n in model.graph.node if n.name.startswith(_OURS) and n.name not in (_CAST, _TO_NCHW)]


def _cut_at(graph: Any, export: YoloxExport) -> None:
    """Makes the head the graph's output, and the image its only input."""
    del graph.value_info[:]
    for value in [*graph.input]:
        if value.name != export.input_name:  # initializers, as old IR versions list them
            graph.input.remove(value)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(export.head, TensorProto.FLOAT, ["batch", None, None]))
    drop_dead_nodes(graph, export.head)


def _put_image_input(graph: Any, network_input: str, input_size: tuple[int, int]) -> None:
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *input_size, 3]))
    pixels = _OURS + "pixels"
    head = [
        helper.make_node("Cast", [INPUT], [pixels], _CAST, to=TensorProto.FLOAT),
        helper.make_node("Transpose", [pixels], [network_input], _TO_NCHW, perm=[0, 3, 1, 2]),
    ]
    nodes = [*head, *(copy.deepcopy(node) for node in graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)


def _put_candidates(model: Any, export: YoloxExport, count: int) -> None:
    """Appends pick, decode and the output `candidates`."""
    graph = model.graph
    anchors, columns = export.num_anchors, 5 + export.num_classes
    tail = _Tail(graph, opset_of(model))
    head = _NETWORK + export.head

    best_class = tail.reduce_max(tail.columns(head, 5, columns))
    score = tail.node("Mul", [tail.columns(head, 4, 5), best_class])
    # Not a number ranks last, as a score of 0: NaN is greater than nothing, and TopK's order would be undefined.
    sound = tail.node("Greater", [score, tail.constant("below_any_score", np.float32(-1))])
    score = tail.node("Where", [sound, score, tail.constant("zero", np.float32(0))])
    flat = tail.node("Reshape", [score, tail.constant("flat", np.array([-1, anchors]))])
    k = tail.constant("k", np.array([count]))
    graph.node.append(helper.make_node("TopK", [flat, k], [_OURS + "best", PICKED], _OURS + "topk", axis=1))

    column = tail.constant("column", np.array([-1, count, 1]))
    index = tail.node("Reshape", [PICKED, column])
    index = tail.node("Expand", [index, tail.constant("row", np.array([1, 1, columns]))])
    rows = tail.node("GatherElements", [head, index], axis=1)
    centre, size = tail.columns(rows, 0, 2), tail.columns(rows, 2, 4)
    if not export.decoded:
        cells = tail.node("Gather", [tail.constant("cells", anchor_cells(export.input_size)), PICKED], axis=0)
        grid, stride = tail.columns(cells, 0, 2), tail.columns(cells, 2, 3)
        centre = tail.node("Mul", [tail.node("Add", [centre, grid]), stride])
        size = tail.node("Mul", [tail.node("Exp", [size]), stride])
    half = tail.node("Mul", [size, tail.constant("half", np.float32(0.5))])
    label = tail.node("ArgMax", [tail.columns(rows, 5, columns)], axis=2, keepdims=1)
    parts = [
        tail.node("Sub", [centre, half]),
        tail.node("Add", [centre, half]),
        tail.node("Reshape", [_OURS + "best", column]),
        tail.node("Cast", [label], to=TensorProto.FLOAT),
    ]
    graph.node.append(helper.make_node("Concat", parts, [OUTPUT], _OURS + OUTPUT, axis=2))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", count, 6]))


class _Tail:
    """Appends nodes to a graph, naming them and their outputs. Every tensor here has three dimensions."""

    def __init__(self, graph: Any, opset: int) -> None:
        self._graph = graph
        self._opset = opset
        self._constants: set[str] = set()

    def node(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{_OURS}{op_type}_{len(self._graph.node)}"
        self._graph.node.append(helper.make_node(op_type, list(inputs), [name], name, **attributes))
        return name

    def constant(self, name: str, value: Any) -> str:
        name = _OURS + name
        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def columns(self, tensor: str, start: int, stop: int) -> str:
        """The last dimension from `start` up to `stop`."""
        bounds = [self.constant(f"column_{bound}", np.array([bound])) for bound in (start, stop)]
        return self.node("Slice", [tensor, *bounds, self.constant("last_axis", np.array([2]))])

    def reduce_max(self, tensor: str) -> str:
        """The largest of the last dimension, which stays as 1."""
        if self._opset < 18:  # the axes moved from an attribute to an input
            return self.node("ReduceMax", [tensor], axes=[2], keepdims=1)
        return self.node("ReduceMax", [tensor, self.constant("last_axis", np.array([2]))], keepdims=1)


def _put_metadata(model: Any, export: YoloxExport, candidates: int, labels: Sequence[str]) -> None:
    entries = {
        GRAPH_KEY: SERVING_GRAPH,
        "pinstream.input_size": json.dumps(list(export.input_size)),
        "pinstream.num_classes": json.dumps(export.num_classes),
        "pinstream.candidates": json.dumps(candidates),
        "pinstream.labels": json.dumps(list(labels)),
        FP32_NODES_KEY: json.dumps(exact_nodes(model)),
    }
    kept = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**kept, **entries})
