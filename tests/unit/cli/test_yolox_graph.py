"""The serving graph of every kind of export, against a reading of the export written out anchor by anchor."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pinstream_cli.build_error import BuildError
from pinstream_cli.onnx_surgery import make_batch_dynamic
from pinstream_cli.yolox_graph import fuse, is_serving_graph, is_yolox_export
from pinstream_cli.yolox_recognise import recognise
from pinstream_cli.yolox_reference import letterbox
from tests.shared_files import shared_model
from tests.yolox_exports import STRIDES, Export, save_classifier

EXPORTS = {
    "static": Export(),
    "static, sizes in full": Export(full_shapes=True, resize_by="sizes"),
    "static, constants as nodes": Export(constant_nodes=True, full_shapes=True, resize_by="sizes"),
    "static batch of 2": Export(batch=2),
    "static batch of 3, sizes in full": Export(batch=3, full_shapes=True, resize_by="sizes"),
    "dynamic": Export(batch=None),
    "dynamic, constants as nodes": Export(batch=None, constant_nodes=True),
    "decoded": Export(decode="concat"),
    "decoded, dynamic": Export(decode="concat", batch=None),
    "decoded in place": Export(decode="scatter"),
    "decoded in place, batch of 2": Export(decode="scatter", batch=2),
    "decoded by level": Export(decode="level"),
    "decoded by level, dynamic": Export(decode="level", batch=None),
    "wide": Export(size=(64, 160)),
    "tall": Export(size=(96, 32)),
    "smallest": Export(size=(32, 32), decode="concat"),
    "one class": Export(classes=1),
    "80 classes": Export(classes=80),
    "opset 10": Export(opset=10),
    "opset 13": Export(opset=13, seed=1),
    "opset 18": Export(opset=18, resize_by="sizes", batch=2),
    "our names swapped": Export(input_name="candidates", output_name="images"),
}
# Operators that TensorRT and TensorRT-RTX parse and build; ours must be among these.
TENSORRT_OPERATORS = {
    *("Add", "ArgMax", "Cast", "Concat", "Exp", "Expand", "Gather", "GatherElements", "Greater", "Mul", "ReduceMax"),
    *("Reshape", "Slice", "Sub", "TopK", "Transpose", "Where"),
}


def some_images(size: tuple[int, int], count: int) -> Any:
    return np.random.default_rng(7).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def run(model: Any, feed: Any, output: str = "candidates", source: str = "images") -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([output], {source: feed})[0]


def read_slowly(export: Export, image: Any) -> list[tuple[float, ...]]:
    """Every anchor of one image as (x1, y1, x2, y2, score, class), best first: the contract, one number at a time."""
    feed = np.repeat(image.transpose(2, 0, 1)[None].astype(np.float32), export.batch or 1, axis=0)
    rows = run(export.model(), feed, export.output_name, export.input_name)[0].tolist()
    cells = [(x, y, s) for s in STRIDES for y in range(export.size[0] // s) for x in range(export.size[1] // s)]
    candidates = []
    for (x, y, stride), (centre_x, centre_y, width, height, objectness, *scores) in zip(cells, rows, strict=True):
        if export.decode == "none":
            centre_x, centre_y = (centre_x + x) * stride, (centre_y + y) * stride
            width, height = math.exp(width) * stride, math.exp(height) * stride
        left, top, best = centre_x - width / 2, centre_y - height / 2, max(scores)
        candidates.append((left, top, left + width, top + height, objectness * best, scores.index(best)))
    return sorted(candidates, key=lambda candidate: -candidate[4])


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS.keys())
def test_the_serving_graph_gives_what_the_export_gives(export: Export, tmp_path: Path) -> None:
    found = recognise(export.save(tmp_path / "yolox.onnx"))
    assert (found.input_size, found.num_classes, found.batch) == (export.size, export.classes, export.batch)
    assert found.output_decoded == (export.decode != "none")
    fused = fuse(found, 20, ["thing"] * export.classes)
    images = some_images(export.size, 5)
    candidates = run(fused, images)
    assert candidates.shape == (5, 20, 6)
    assert candidates.dtype == np.float32
    for image, result in zip(images, candidates, strict=True):
        np.testing.assert_allclose(result, read_slowly(export, image)[:20], rtol=1e-4, atol=1e-3)
    # Alone, each image gives what it gives in company.
    np.testing.assert_allclose(run(fused, images[3:4])[0], candidates[3], rtol=1e-5, atol=1e-4)


def test_a_real_export_is_recognised_decoded_and_undecoded(tmp_path: Path) -> None:
    """YOLOX-nano with its trained weights, whose boxes lean towards objects as no random ones do."""
    path = shared_model()
    undecoded = recognise(path)
    assert (undecoded.input_size, undecoded.num_classes, undecoded.batch) == ((416, 416), 80, 1)
    assert not undecoded.output_decoded
    # The same with the decoding of --decode_in_inference put behind it.
    tail = Export(size=(416, 416), classes=80, decode="concat").model().graph
    model = onnx.load(str(path))
    start = next(index for index, node in enumerate(tail.node) if node.op_type == "Transpose") + 1
    raw = tail.node[start - 1].output[0]
    nodes = list(tail.node)[start:]
    for node in nodes:
        node.input[:] = ["output" if name == raw else f"tail/{name}" for name in node.input]
        node.output[:] = [f"tail/{name}" for name in node.output]
    for tensor in tail.initializer:
        tensor.name = f"tail/{tensor.name}"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tail.initializer)
    model.graph.output[0].name = nodes[-1].output[0]
    onnx.save(model, str(tmp_path / "decoded.onnx"))
    decoded = recognise(tmp_path / "decoded.onnx")
    assert decoded.output_decoded
    assert decoded.head == "output"
    fused = [fuse(export, 300, ["thing"] * 80) for export in (undecoded, decoded)]
    image = some_images((416, 416), 1)
    np.testing.assert_array_equal(run(fused[0], image), run(fused[1], image))


def test_the_interface_is_the_one_that_is_served(tmp_path: Path) -> None:
    fused = fuse(recognise(Export(size=(64, 96)).save(tmp_path / "yolox.onnx")), 20, ["cat", "dog", "two words, one"])
    (image,), (candidates,) = fused.graph.input, fused.graph.output
    assert (image.name, image.type.tensor_type.elem_type) == ("images", TensorProto.UINT8)
    assert [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim] == ["batch", 64, 96, 3]
    assert (candidates.name, candidates.type.tensor_type.elem_type) == ("candidates", TensorProto.FLOAT)
    assert [dim.dim_param or dim.dim_value for dim in candidates.type.tensor_type.shape.dim] == ["batch", 20, 6]
    metadata = {entry.key: entry.value for entry in fused.metadata_props}
    assert metadata["pinstream.graph"] == "yolox"
    assert metadata["pinstream.labels"] == '["cat", "dog", "two words, one"]'


def test_our_nodes_are_ones_that_tensorrt_takes(tmp_path: Path) -> None:
    for export in (Export(), Export(opset=18), Export(decode="level")):
        graph = fuse(recognise(export.save(tmp_path / "yolox.onnx")), 20, ["a", "b", "c"]).graph
        ours = {node.op_type for node in graph.node if node.name.startswith("pinstream/")}
        assert ours <= TENSORRT_OPERATORS
        # TensorRT transposes no UINT8.
        assert [node.op_type for node in graph.node if "images" in node.input] == ["Cast"]
        names = [node.name for node in graph.node]
        assert all(names)
        assert len(set(names)) == len(names)


def test_decoding_nodes_and_their_constants_do_not_stay_in_the_graph(tmp_path: Path) -> None:
    plain, decoded = (
        fuse(recognise(export.save(tmp_path / "yolox.onnx")), 20, ["a", "b", "c"])
        for export in (Export(), Export(decode="scatter"))
    )
    assert [node.op_type for node in decoded.graph.node] == [node.op_type for node in plain.graph.node]
    assert len(decoded.graph.initializer) == len(plain.graph.initializer)


def test_equal_scores_come_in_the_order_of_the_anchors(tmp_path: Path) -> None:
    fused = fuse(recognise(Export().save(tmp_path / "yolox.onnx")), 20, ["a", "b", "c"])
    for tensor in fused.graph.initializer:
        if numpy_helper.to_array(tensor).ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(list(tensor.dims), np.float32), tensor.name))
    # Now no image changes anything; within a level all scores are the same.
    candidates = run(fused, some_images((64, 64), 1))[0]
    levels = [candidates[candidates[:, 4] == score] for score in np.unique(candidates[:, 4])]
    assert any(len(level) > 8 for level in levels)
    for level in levels:
        centres = (level[:, :2] + level[:, 2:4]) / 2
        assert [tuple(c) for c in centres[:, ::-1].round(3)] == sorted(tuple(c) for c in centres[:, ::-1].round(3))
    assert len(np.unique(candidates, axis=0)) == 20


def test_an_anchor_that_is_not_a_number_ranks_last_with_a_score_of_0(tmp_path: Path) -> None:
    export = Export()
    fused = fuse(recognise(export.save(tmp_path / "yolox.onnx")), export.anchors, ["a", "b", "c"])
    sound = run(fused, some_images((64, 64), 1))[0]
    # The first bias of one number is that of objectness at stride 8.
    biases = (t for t in fused.graph.initializer if t.data_type == TensorProto.FLOAT and list(t.dims) == [1])
    objectness = next(biases)
    objectness.CopyFrom(numpy_helper.from_array(np.array([np.nan], np.float32), objectness.name))
    broken = run(fused, some_images((64, 64), 1))[0]
    assert np.isfinite(broken[:, 4]).all()
    np.testing.assert_array_equal(broken[20:, 4], 0)  # 8 x 8 of 84 anchors
    assert (broken[:20, 4] > 0).all()
    assert set(broken[:20, 4]) < set(sound[:, 4])


def test_a_constant_that_nodes_share_changes_only_where_it_is_the_batch(tmp_path: Path) -> None:
    """A Reshape of constants (a grid, say) keeps its leading 1, though it shares the shape with one of the image."""
    shape = numpy_helper.from_array(np.array([1, 3, 4]), "shape")
    grid = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "grid")
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("Reshape", ["grid", "shape"], ["cells"]),
        helper.make_node("Add", ["flat", "cells"], ["sum"]),
    ]
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 2, 2])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 3, 4])],
        [shape, grid],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    make_batch_dynamic(model, "image", 1)
    result = run(model, np.zeros((2, 3, 2, 2), np.float32), "sum", "image")
    np.testing.assert_array_equal(result, np.arange(12).reshape(1, 3, 4).repeat(2, axis=0))


def test_the_two_questions_that_serving_asks(tmp_path: Path) -> None:
    export = Export().save(tmp_path / "yolox.onnx")
    classifier = save_classifier(tmp_path / "classifier.onnx")
    serving = tmp_path / "serving.onnx"
    onnx.save(fuse(recognise(export), 20, ["a", "b", "c"]), str(serving))
    assert [is_yolox_export(path) for path in (export, classifier, serving)] == [True, False, False]
    assert [is_serving_graph(path) for path in (export, classifier, serving)] == [False, False, True]
    # What has another signature is not run: it may be made of operators that only its own engine knows.
    foreign = onnx.load(str(classifier))
    foreign.graph.node[0].domain = "elsewhere"
    foreign.opset_import[0].version = 7
    onnx.save(foreign, str(classifier))
    assert not is_yolox_export(classifier)
    for question in (is_yolox_export, is_serving_graph):
        with pytest.raises(BuildError, match="no such file"):
            question(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    ("shape", "inner"),
    [((120, 160), (48, 64)), ((160, 120), (64, 48)), ((1, 500), (1, 64)), ((3, 3), (64, 64)), ((99, 100), (63, 64))],
)
def test_letterboxing_puts_the_image_into_the_top_left_corner(shape: tuple[int, int], inner: tuple[int, int]) -> None:
    boxed = letterbox(np.full((*shape, 3), 200, np.uint8), (64, 64))
    assert boxed.shape == (64, 64, 3)
    assert (boxed[: inner[0], : inner[1]] == 200).all()
    assert (boxed == 200).all(axis=2).sum() == inner[0] * inner[1]
    assert set(np.unique(boxed)) <= {114, 200}
