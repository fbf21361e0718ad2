"""The proof must fail for a serving graph that is wrong in any one place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from pinstream_cli.build_error import BuildError
from pinstream_cli.yolox_graph import fuse
from pinstream_cli.yolox_recognise import YoloxExport, recognise
from pinstream_cli.yolox_reference import Anchors, anchor_cells, anchor_count, decode, read_anchors
from pinstream_cli.yolox_verify import compare, verify
from tests.yolox_exports import Export

LABELS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> YoloxExport:
    return recognise(Export().save(tmp_path_factory.mktemp("export") / "yolox.onnx"))


def set_constant(model: Any, name: str, value: Any) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    old = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, old.dtype).reshape(old.shape), name))


def node(model: Any, op_type: str) -> Any:
    return next(node for node in model.graph.node if node.op_type == op_type and node.name.startswith("pinstream/"))


def test_a_right_graph_passes_alone_and_in_a_batch(export: YoloxExport) -> None:
    checks = verify(export, fuse(export, 20, LABELS))
    assert [(check.name, check.batch) for check in checks] == [
        ("random", 1),
        ("scene", 1),
        ("mirrored scene", 1),
        ("random + scene + mirrored scene", 3),
    ]
    assert all(check.max_box_error_px < 0.01 and check.max_score_error < 1e-5 for check in checks)


@pytest.mark.parametrize(
    ("constant", "value", "message"),
    [
        ("pinstream/half", 0.51, "boxes differ by"),
        ("pinstream/cells", anchor_cells((64, 64))[:, [1, 0, 2]], "boxes differ by"),
        ("pinstream/cells", anchor_cells((64, 64)) * np.array([1, 1, 1.01]), "boxes differ by"),
        ("pinstream/below_any_score", 0.3, "scores differ by"),
    ],
)
def test_a_wrong_constant_is_found(export: YoloxExport, constant: str, value: Any, message: str) -> None:
    fused = fuse(export, 84, LABELS)
    set_constant(fused, constant, value)
    with pytest.raises(BuildError, match=message):
        verify(export, fused)


def test_a_transposed_image_is_found(export: YoloxExport) -> None:
    fused = fuse(export, 20, LABELS)
    node(fused, "Transpose").attribute[0].ints[:] = [0, 3, 2, 1]
    with pytest.raises(BuildError, match=r"'random' in a batch of 1: scores differ by"):
        verify(export, fused)


def test_a_wrong_class_is_found(export: YoloxExport) -> None:
    fused = fuse(export, 20, LABELS)
    node(fused, "ArgMax").op_type = "ArgMin"
    with pytest.raises(BuildError, match=r"class scores .* below the best class"):
        verify(export, fused)


def test_the_worst_instead_of_the_best_is_found(export: YoloxExport) -> None:
    fused = fuse(export, 20, LABELS)
    attribute = node(fused, "TopK").attribute.add()
    attribute.name, attribute.type, attribute.i = "largest", 2, 0
    with pytest.raises(BuildError, match="best first"):
        verify(export, fused)


def test_items_that_leak_into_each_other_are_found(export: YoloxExport) -> None:
    """Every item reads the grid of boxes of the first one: right alone, wrong in company."""
    fused = fuse(export, 20, LABELS)
    head = node(fused, "GatherElements").input[0]
    at = next(i for i, found in enumerate(fused.graph.node) if found.op_type == "GatherElements")
    first, shape = "pinstream/first", "pinstream/shape"
    fused.graph.initializer.append(numpy_helper.from_array(np.array([0]), "pinstream/none"))
    from onnx import helper

    nodes = [
        helper.make_node("Gather", [head, "pinstream/none"], [first], axis=0),
        helper.make_node("Shape", [head], [shape]),
        helper.make_node("Expand", [first, shape], ["pinstream/of_first"]),
    ]
    for offset, extra in enumerate(nodes):
        fused.graph.node.insert(at + offset, extra)
    node(fused, "GatherElements").input[0] = "pinstream/of_first"
    with pytest.raises(BuildError, match="'scene' in a batch of 3: boxes differ"):
        verify(export, fused)


def test_a_real_image_takes_part(export: YoloxExport, tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.random.default_rng(3).integers(0, 256, (50, 200, 3), dtype=np.uint8))
    checks = verify(export, fuse(export, 20, LABELS), [path])
    assert [check.name for check in checks][3:] == ["photo.png", "random + scene + photo.png"]


def anchors() -> Anchors:
    return Anchors(
        boxes=np.array([[0, 0, 10, 10], [5, 5, 9, 9], [1, 2, 3, 4]], np.float32),
        scores=np.array([0.5, 0.9, 0.9], np.float32),
        class_scores=np.array([[0.5, 0.1], [0.1, 0.9], [0.9, 0.9]], np.float32),
    )


def candidate(anchor: int, label: int) -> list[float]:
    return [*anchors().boxes[anchor], anchors().scores[anchor], label]


def test_candidates_of_equal_score_may_come_in_either_order_and_classes_too() -> None:
    for picked in ([1, 2], [2, 1]):
        rows = np.array([candidate(anchor, 1) for anchor in picked], np.float32)
        assert compare(rows, np.array(picked), anchors(), "here") == (0, 0)
    rows = np.array([candidate(2, 0), candidate(1, 1)], np.float32)
    assert compare(rows, np.array([2, 1]), anchors(), "here") == (0, 0)


@pytest.mark.parametrize(
    ("rows", "picked", "message"),
    [
        ([candidate(1, 1), candidate(1, 1)], [1, 1], "distinct"),
        ([candidate(0, 0), candidate(1, 1)], [0, 1], "best first"),
        ([candidate(1, 1), candidate(0, 0)], [1, 0], "scores differ by 0.4"),
        ([candidate(1, 1), candidate(2, 0)], [2, 1], "boxes differ by 6 px.*candidate 0"),
        ([candidate(1, 0), candidate(2, 0)], [1, 2], "0.8 below the best class"),
        ([candidate(1, 2), candidate(2, 0)], [1, 2], "whole numbers below 2"),
        ([candidate(1, 1), [*candidate(2, 0)[:5], 0.5]], [1, 2], "whole numbers"),
        ([candidate(1, 1), [np.nan, *candidate(2, 0)[1:]]], [1, 2], "NaN"),
    ],
)
def test_a_difference_is_told_with_its_numbers(rows: Any, picked: list[int], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        compare(np.array(rows, np.float32), np.array(picked), anchors(), "here")


def test_the_reference_reads_an_anchor_as_yolox_does() -> None:
    """By hand: column 1, row 2 of stride 16, offsets (0.5, -0.25), sizes e^0 and e^ln2."""
    cells = anchor_cells((64, 96))
    assert len(cells) == anchor_count((64, 96)) == 8 * 12 + 4 * 6 + 2 * 3
    assert cells[[0, 1, 12, 96, 120, 125]].tolist() == [
        *([0, 0, 8], [1, 0, 8], [0, 1, 8], [0, 0, 16], [0, 0, 32], [2, 1, 32]),
    ]
    head = np.zeros((1, 126, 7), np.float32)
    index = 96 + 2 * 6 + 1
    head[0, index] = [0.5, -0.25, 0, np.log(2), 0.5, 0.25, 0.75]
    found = read_anchors(decode(head, cells))
    np.testing.assert_allclose(found.boxes[0, index], [24 - 8, 28 - 16, 24 + 8, 28 + 16], rtol=1e-6)
    assert found.scores[0, index] == pytest.approx(0.375)
    assert head[0, index, 0] == 0.5, "the head itself stays as it is"
