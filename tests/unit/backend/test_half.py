"""FP32 graphs in FP16: what changes, what must not, and what the results are worth in ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pinstream.errors import ModelFileError
from pinstream.plans.half import to_half
from tests import onnx_models
from tests.onnx_models import Dim

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def saved(
    path: Path,
    nodes: Sequence[Any],
    weights: dict[str, Any] | None = None,
    inputs: Sequence[tuple[str, int, Sequence[Dim]]] = (("x", FLOAT, ["batch", 4]),),
    outputs: Sequence[tuple[str, int, Sequence[Dim]]] = (("y", FLOAT, ["batch", 4]),),
) -> Any:
    return onnx.load(onnx_models.save(path / "model.onnx", nodes, inputs, outputs, weights))


def floats(values: Any) -> Any:
    return np.array(values, np.float32)


def run(model: Any, **feed: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(None, feed)
    return results


def run_to_the_letter(model: Any, **feed: Any) -> Any:
    """As ONNX defines it: ONNX Runtime leaves out casts to FP16 where that is faster."""
    return ReferenceEvaluator(model).run(None, feed)[0]


def types(model: Any) -> dict[str, int]:
    """Element type of every tensor."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return found | {t.name: t.data_type for t in graph.initializer}


def casts(model: Any) -> list[tuple[str, str]]:
    return [(node.input[0], node.output[0]) for node in model.graph.node if node.op_type == "Cast"]


def node(model: Any, op_type: str) -> Any:
    return next(n for n in model.graph.node if n.op_type == op_type)


def test_the_network_is_fp16_and_its_inputs_and_outputs_stay(tmp_path: Path) -> None:
    model = onnx.load(onnx_models.classifier(tmp_path / "model.onnx"))
    before = model.SerializeToString()
    half = to_half(model)
    assert model.SerializeToString() == before
    found = types(half)
    assert (found["pixels"], found["probabilities"]) == (FLOAT, FLOAT)
    assert {found[name] for name in ("flat", "logits", "w/half")} == {HALF}
    assert len(casts(half)) == 2
    pixels = np.random.default_rng(1).normal(size=(5, 3, 8, 8)).astype(np.float32)
    (expected,), (probabilities,) = run(model, pixels=pixels), run(half, pixels=pixels)
    assert probabilities.dtype == np.float32
    # The logits are sums of 192 products of numbers about 1: errors of some 0.02 are FP16's own.
    np.testing.assert_allclose(probabilities, expected, atol=0.03)
    assert np.abs(probabilities - expected).max() > 0, "nothing was computed in FP16"


def test_named_nodes_compute_in_fp32_without_a_detour(tmp_path: Path) -> None:
    """A chain of kept nodes: a detour through FP16 between any two of them would lose the 0.25."""
    chain = [
        helper.make_node("Relu", ["x"], ["a"], "network/relu"),
        helper.make_node("Add", ["a", "big"], ["b"], "tail/add"),
        helper.make_node("Mul", ["b", "one"], ["c"], "tail/mul"),
        helper.make_node("Sub", ["c", "big"], ["y"], "tail/sub"),
    ]
    weights = {"big": floats([4096.25]), "one": floats([1])}
    model = saved(tmp_path, chain, weights)
    x = floats([[0, 0.5, 1, 2]])
    np.testing.assert_array_equal(run_to_the_letter(to_half(model, ["tail/*"]), x=x), x)
    assert len(casts(to_half(model, ["tail/*"]))) == 2
    assert np.abs(run_to_the_letter(to_half(model), x=x) - x).max() > 0.2


def test_a_tensor_is_cast_once_for_all_its_readers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"], "kept/1"),
        helper.make_node("Neg", ["a"], ["c"], "kept/2"),
        helper.make_node("Add", ["b", "c"], ["y"], "kept/3"),
    ]
    half = to_half(saved(tmp_path, nodes), ["kept/*"])
    assert casts(half) == [("x", "x/half"), ("a", "a/single")]


def test_an_output_that_the_graph_reads_too_keeps_its_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    two: Any = [("y", FLOAT, ["batch", 4]), ("z", FLOAT, ["batch", 4])]
    model = saved(tmp_path, nodes, outputs=two)
    x = floats([[-1, 0.5, 2, 1024]])
    half = to_half(model)
    assert node(half, "Neg").input[0] == "y/half", "no way back through FP32"
    for expected, result in zip(run(model, x=x), run(half, x=x), strict=True):
        np.testing.assert_array_equal(result, expected)


def test_integers_and_sizes_stay_what_they_are(tmp_path: Path) -> None:
    model = onnx.load(onnx_models.two_by_two(tmp_path / "model.onnx"))
    half = to_half(model)
    assert types(half)["right"] == types(half)["double"] == INT64
    feed = {"left": np.ones((2, 4), np.float32), "right": np.full((2, 4), 3, np.int64)}
    for expected, result in zip(run(model, **feed), run(half, **feed), strict=True):
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


def test_arithmetic_on_shapes_stays_exact(tmp_path: Path) -> None:
    """Half of a width of 4098 is 2049, which FP16 does not have."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=1),
        helper.make_node("Cast", ["shape"], ["width"], to=FLOAT),
        helper.make_node("Mul", ["width", "half"], ["middle"]),
        helper.make_node("Cast", ["middle"], ["index"], to=INT64),
        helper.make_node("Gather", ["x", "index"], ["y"], axis=1),
    ]
    io: dict[str, Any] = {"inputs": [("x", FLOAT, ["b", "w"])], "outputs": [("y", FLOAT, ["b", 1])]}
    model = saved(tmp_path, nodes, {"half": floats([0.5])}, **io)
    x = np.zeros((1, 4098), np.float32)
    x[0, 2049] = 1
    assert run(to_half(model), x=x)[0] == 1


def test_operators_and_inputs_that_are_fp32_by_definition_stay_so(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["big"], mode="nearest"),
        helper.make_node("TopK", ["big", "k"], ["y", "places"], axis=3),
    ]
    weights = {"scales": floats([1, 1, 2, 2]), "k": np.array([2])}
    io: dict[str, Any] = {"inputs": [("x", FLOAT, [1, 1, 2, 2])], "outputs": [("y", FLOAT, [1, 1, 4, 2])]}
    half = to_half(saved(tmp_path, nodes, weights, **io))
    assert node(half, "Resize").input[2] == "scales"
    found = types(half)
    assert (found["big"], found["y"]) == (HALF, FLOAT)
    x = floats([[[[1, 2], [3, 4]]]])
    np.testing.assert_array_equal(run(half, x=x)[0], [[[[2, 2], [2, 2], [4, 4], [4, 4]]]])


def test_constants_beyond_fp16_keep_their_node_in_fp32(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "huge"], ["a"]), helper.make_node("Mul", ["a", "tiny"], ["y"])]
    model = saved(tmp_path, nodes, {"huge": floats([1e5]), "tiny": floats([1e-5])})
    half = to_half(model, [node(model, "Mul").name] if node(model, "Mul").name else [])
    assert "huge" in node(half, "Mul").input
    infinite = saved(tmp_path, [helper.make_node("Add", ["x", "mask"], ["y"])], {"mask": floats([-np.inf, 0, 0, 0])})
    assert "mask/half" in node(to_half(infinite), "Add").input


def half_tensors(model: Any) -> set[str]:
    return {name for name, element in types(model).items() if element == HALF}


@pytest.mark.parametrize("exporter", ["initializers", "nodes", "made by a node"])
def test_a_mask_of_the_largest_number_is_no_nan(tmp_path: Path, exporter: str) -> None:
    """-3.4e38 is -inf in FP16: (1 - mask) * -inf is NaN where nothing is masked, the softmax where everything is."""
    weights = {"one": floats(1), "lowest": floats(np.finfo(np.float32).min)}
    nodes = [
        helper.make_node("Sub", ["one", "mask"], ["hidden"]),
        helper.make_node("Mul", ["hidden", "lowest"], ["bias"]),
        helper.make_node("Add", ["x", "bias"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("Mul", ["weights", "x"], ["y"]),
    ]
    if exporter == "nodes":
        lowest = numpy_helper.from_array(weights["lowest"])
        nodes.insert(0, helper.make_node("Constant", [], ["lowest"], value=lowest))
        nodes.insert(0, helper.make_node("Constant", [], ["one"], value_float=1.0))
        weights = {}
    elif exporter == "made by a node":
        value = numpy_helper.from_array(weights.pop("lowest").reshape(1))
        weights["four"] = np.array([4])
        nodes.insert(0, helper.make_node("ConstantOfShape", ["four"], ["lowest"], value=value))
    model = saved(tmp_path, nodes, weights, inputs=[("x", FLOAT, ["batch", 4]), ("mask", FLOAT, ["batch", 4])])
    feed = {"x": floats([[1, 2, 3, 4]] * 2), "mask": floats([[1, 1, 0, 0], [0, 0, 0, 0]])}
    half = to_half(model)
    np.testing.assert_allclose(run_to_the_letter(half, **feed), run(model, **feed)[0], atol=4e-3)
    assert "y/half" in half_tensors(half)


@pytest.mark.parametrize("operator", ["Add", "Max", "Clip"])
def test_what_keeps_a_division_from_zero_is_still_there(tmp_path: Path, operator: str) -> None:
    root = [helper.make_node("Sqrt", ["guarded"], ["norm"])] if operator == "Add" else []
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "axis"], ["sum"]),
        helper.make_node(operator, ["sum", "epsilon"], ["guarded"]),
        *root,
        helper.make_node("Div", ["x", "norm" if root else "guarded"], ["unit"]),
        helper.make_node("Neg", ["unit"], ["y"]),
    ]
    model = saved(tmp_path, nodes, {"axis": np.array([1]), "epsilon": floats(1e-16)})
    half = to_half(model)
    x = floats([[0, 0, 0, 0], [1, 2, 3, 4]])
    np.testing.assert_allclose(run_to_the_letter(half, x=x), run(model, x=x)[0], atol=1e-3)
    assert half_tensors(half) >= {"squares", "sum", "unit/half", "y/half"}


def test_a_divisor_keeps_every_value_and_weights_may_lose_some(tmp_path: Path) -> None:
    weights = {"scale": floats([1, 1e-9, 1, 1]), "w": floats(np.diag([1, 1e-9, 1, 1]))}
    divided = saved(tmp_path, [helper.make_node("Div", ["x", "scale"], ["y"])], weights)
    assert np.isfinite(run_to_the_letter(to_half(divided), x=floats([[0, 0, 1, 1]]))).all()
    assert "y/half" in half_tensors(to_half(saved(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], weights)))


def test_integers_that_become_floats_stay_exact(tmp_path: Path) -> None:
    """Place 2049 is 2048 in FP16, and id 70000 infinite."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["id"], to=FLOAT),
        helper.make_node("Mul", ["id", "half"], ["place"]),
        helper.make_node("Floor", ["place"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["index"], to=INT64),
        helper.make_node("Gather", ["table", "index"], ["found"]),
        helper.make_node("Mul", ["found", "half"], ["y"]),
    ]
    table = np.zeros(40000, np.float32)
    table[[2049, 35000]] = 1, 2
    io: dict[str, Any] = {"inputs": [("ids", INT64, ["b"])], "outputs": [("y", FLOAT, ["b"])]}
    half = to_half(saved(tmp_path, nodes, {"half": floats(0.5), "table": table}, **io))
    np.testing.assert_array_equal(run_to_the_letter(half, ids=np.array([4099, 70000, 0])), [0.5, 1, 0])
    assert half_tensors(half) >= {"found", "table/half"}


def test_sizes_that_scale_do_not_keep_the_network_in_fp32(tmp_path: Path) -> None:
    """Scores divided by the root of a width, as attention has them."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=1),
        helper.make_node("Cast", ["shape"], ["width"], to=FLOAT),
        helper.make_node("Sqrt", ["width"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "w"], ["y"]),
    ]
    assert half_tensors(to_half(saved(tmp_path, nodes, {"w": np.eye(4, dtype=np.float32)}))) >= {"scaled", "y/half"}


@pytest.mark.parametrize("operator", ["Clip", "Min"])
def test_bounds_that_bound_nothing_do_not_keep_the_network_in_fp32(tmp_path: Path, operator: str) -> None:
    bounds = ["zero", "most"] if operator == "Clip" else ["most"]
    nodes = [helper.make_node(operator, ["x", *bounds], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    weights = {"zero": floats(0), "most": floats(np.finfo(np.float32).max), "w": np.eye(4, dtype=np.float32)}
    assert "y/half" in half_tensors(to_half(saved(tmp_path, nodes, weights)))


def test_constants_in_a_graph_of_an_old_version_are_no_inputs(tmp_path: Path) -> None:
    nodes = [helper.make_node("Constant", [], ["two"], value_float=2.0), helper.make_node("Mul", ["x", "two"], ["y"])]
    model = saved(tmp_path, nodes)
    model.ir_version = 3
    np.testing.assert_array_equal(run_to_the_letter(to_half(model), x=floats([[1, 2, 3, 4]])), [[2, 4, 6, 8]])


def test_a_graph_that_is_fp16_already_is_left_alone(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=HALF),
        helper.make_node("Relu", ["a"], ["b"], "kept"),
        helper.make_node("Cast", ["b"], ["y"], to=FLOAT),
    ]
    half = to_half(saved(tmp_path, nodes), ["kept"])
    assert types(half)["b"] == HALF
    np.testing.assert_array_equal(run(half, x=floats([[-1, 0, 1, 2]]))[0], [[0, 0, 1, 2]])


def test_subgraphs_and_quantized_graphs_are_refused_with_what_to_do(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["inner"])], "body", [], [helper.make_tensor_value_info("inner", FLOAT, None)]
    )
    branch = [helper.make_node("If", ["flag"], ["y"], "choice", then_branch=body, else_branch=body)]
    io: dict[str, Any] = {"inputs": [("x", FLOAT, ["b", 4]), ("flag", TensorProto.BOOL, [])]}
    with pytest.raises(ModelFileError, match=r"node choice \(If\) holds a subgraph.*precision fp32"):
        to_half(saved(tmp_path, branch, **io))
    quantized = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    weights = {"scale": np.float32(0.1), "zero": np.int8(0)}
    with pytest.raises(ModelFileError, match=r"QuantizeLinear.*the graph is quantized.*precision fp32"):
        to_half(saved(tmp_path, quantized, weights))
