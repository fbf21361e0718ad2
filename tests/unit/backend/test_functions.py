"""How large ONNX's local functions make a model, found without expanding them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import AttributeProto, inliner

from pinstream.engines import functions
from pinstream.engines.functions import why_file_refused, why_refused
from pinstream.errors import ModelFileError
from pinstream.plans.graph import read_graph
from tests import onnx_models

TOO_MUCH = "has functions that make more than 20,000 nodes or 256 MiB of it when they are expanded"
TOO_LARGE = f"{TOO_MUCH}; export it without functions"


@pytest.mark.parametrize("levels", [1, 3, 10])
def test_nodes_are_those_of_the_expanded_model(tmp_path: Path, levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(onnx_models.doubling(tmp_path / "model.onnx", levels))
    # Those that call are counted as well, and are gone when they are expanded.
    nodes = len(inliner.inline_local_functions(model).graph.node)
    assert nodes == 2**levels
    monkeypatch.setattr(functions, "MOST_NODES", 2 * nodes - 1)
    assert why_refused(model) == ""
    monkeypatch.setattr(functions, "MOST_NODES", 2 * nodes - 2)
    assert "that make more than " in why_refused(model)


def test_what_the_limit_lets_by_is_loaded_in_seconds(tmp_path: Path) -> None:
    # Of 32,767 nodes, which took 8 s.
    assert why_file_refused(onnx_models.doubling(tmp_path / "15" / "model.onnx", 14)) == TOO_LARGE
    assert why_file_refused(onnx_models.doubling(tmp_path / "14" / "model.onnx", 13)) == ""


def test_constants_that_are_copied_are_counted_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(onnx_models.doubling(tmp_path / "model.onnx", 10))
    constant = onnx.helper.make_node("Constant", [], ["d"], value_floats=[1.0] * 1000)
    model.functions[0].node.append(constant)
    monkeypatch.setattr(functions, "MOST_BYTES", 5000 * 2**9)
    assert why_refused(model)
    monkeypatch.setattr(functions, "MOST_BYTES", 5500 * 2**9)
    assert not why_refused(model)


def test_nodes_in_branches_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(onnx_models.doubling(tmp_path / "model.onnx", 4))
    call = onnx.NodeProto()
    call.CopyFrom(model.graph.node[0])
    branch = onnx.helper.make_graph([call], "branch", [], [])
    model.graph.node[0].CopyFrom(onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    monkeypatch.setattr(functions, "MOST_NODES", 2 * 2**4)
    assert why_refused(model)


def refer(node: onnx.NodeProto, name: str, kind: int) -> None:
    """Have a node take an attribute from who calls its function."""
    node.attribute.append(AttributeProto(name=name, ref_attr_name="given", type=kind))


def handing_down(path: Path, levels: int, kind: int) -> onnx.ModelProto:
    """`doubling`, where each node refers to an attribute that the graph, or nobody, hands over."""
    model = onnx.load(onnx_models.doubling(path, levels))
    for function in model.functions:
        function.attribute.append("given")
        for node in function.node:
            refer(node, "given", kind)
    return model


def test_what_is_handed_down_counts_as_often_as_it_is_referred_to(tmp_path: Path) -> None:
    model = handing_down(tmp_path / "model.onnx", 8, AttributeProto.GRAPH)
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])] * 50
    given = onnx.helper.make_attribute("given", onnx.helper.make_graph(nodes, "given", [], []))
    assert why_refused(model) == ""
    model.graph.node[0].attribute.append(given)
    # 511 nodes, of whom 256 have the graph in the end; while they are expanded, those that call have it, too.
    assert why_refused(model) == TOO_LARGE
    del model.graph.node[0].attribute[:]
    model.functions[-1].attribute_proto.append(given)
    assert why_refused(model) == TOO_LARGE


def test_tensors_that_are_handed_down_count_as_well(tmp_path: Path) -> None:
    model = handing_down(tmp_path / "model.onnx", 8, AttributeProto.TENSOR)
    tensor = onnx.helper.make_tensor("given", onnx.TensorProto.FLOAT, [1 << 20], bytes(4 << 20), raw=True)
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("given", tensor))
    assert why_refused(model) == TOO_LARGE


def test_what_is_handed_on_in_a_branch_multiplies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level puts what it is given into a graph twice, and hands that on."""
    model = handing_down(tmp_path / "model.onnx", 10, AttributeProto.GRAPH)
    for function in model.functions[1:]:
        del function.node[1:]
        branches = [onnx.helper.make_node("If", ["c"], ["y"]) for _ in range(2)]
        for branch in branches:
            refer(branch, "then_branch", AttributeProto.GRAPH)
        graph = onnx.helper.make_graph(branches, "twice", [], [])
        function.node[0].attribute[0].CopyFrom(onnx.helper.make_attribute("given", graph))
    body = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "body", [], [])
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("given", body))
    monkeypatch.setattr(functions, "MOST_NODES", 2**10)
    assert "make more than 1,024 nodes" in why_refused(model)


def test_references_that_nobody_answers_are_refused(tmp_path: Path) -> None:
    model = onnx.load(onnx_models.doubling(tmp_path / "model.onnx", 3))
    refer(model.graph.node[0], "given", AttributeProto.INT)
    assert "with attributes that nobody hands over" in why_refused(model)


@pytest.mark.parametrize("domain", ["own", "", "ai.onnx"])
def test_functions_that_call_themselves_hide_nothing_that_grows(tmp_path: Path, domain: str) -> None:
    """ONNX Runtime finds none where ONNX's domain goes by two names, and expands all that stands beside it."""
    path = onnx_models.doubling(tmp_path / "model.onnx", 3)
    model = onnx.load(path)
    elu = onnx.helper.make_node("Elu", ["a"], ["b"], domain="own" if domain == "own" else "")
    model.functions.append(onnx.helper.make_function(domain, "Elu", ["a"], ["b"], [elu], model.opset_import))
    onnx.save(model, path)
    assert why_file_refused(path) == "has functions that call themselves; export it without functions"


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("overload", ["", "another"])
def test_of_functions_of_one_name_the_largest_counts(tmp_path: Path, first: bool, overload: str) -> None:
    model = onnx.load(onnx_models.doubling(tmp_path / "model.onnx", 15))
    relu = onnx.helper.make_node("Relu", ["a"], ["b"])
    small = onnx.helper.make_function("own", "F15", ["a"], ["b"], [relu], model.opset_import, overload=overload)
    model.functions.insert(0 if first else 15, small)
    assert why_refused(model) == TOO_LARGE


def test_names_that_could_be_taken_apart_in_two_ways_are_refused(tmp_path: Path) -> None:
    model = onnx.load(onnx_models.doubling(tmp_path / "model.onnx", 15))
    for function in model.functions:
        function.domain, function.name = "ow", f"n:{function.name}"
    assert "where a name has a colon" in why_refused(model)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = onnx_models.doubling(tmp_path / "model.onnx", 3)
    path.write_bytes(path.read_bytes().replace(b"own", b"o\xffn"))
    assert "is no text" in why_file_refused(path)


def test_a_thousand_levels_are_counted_in_no_time_and_refused_by_who_reads_it(tmp_path: Path) -> None:
    path = onnx_models.doubling(tmp_path / "model.onnx", 1000)
    assert why_file_refused(path) == TOO_LARGE
    with pytest.raises(ModelFileError, match="has functions that make more than 20,000 nodes"):
        read_graph(path)


def test_functions_are_found_however_their_tag_is_written(tmp_path: Path) -> None:
    path = onnx_models.doubling(tmp_path / "model.onnx", 15)
    model = onnx.load(path)
    # Field 25, and a bit more than the 32 that ONNX Runtime's parser keeps.
    parts = [b"\xca\x81\x80\x80\x10" + _length(f) + f for f in (g.SerializeToString() for g in model.functions)]
    del model.functions[:]
    path.write_bytes(model.SerializeToString() + b"".join(parts))
    assert "is not an ONNX model that onnx can read" in why_file_refused(path)


def _length(content: bytes) -> bytes:
    number = len(content)
    return bytes([number & 127 | 128, number >> 7])


@pytest.mark.parametrize("name", ["model.json", "model.onnxtxt", "model.textproto"])
def test_a_file_is_read_as_what_it_holds_whatever_its_name(tmp_path: Path, name: str) -> None:
    assert why_file_refused(onnx_models.doubling(tmp_path / "model.onnx", 15).rename(tmp_path / name)) == TOO_LARGE


@pytest.mark.parametrize("content", [b"no model", b"\x0a" + b"\xff" * 10, b"\x0a" + b"\xff" * 9 + b"\x01", b"\x0a"])
def test_what_cannot_be_read_here_is_left_to_nobody(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert "is not an ONNX model that onnx can read" in why_file_refused(path)


def test_what_is_not_too_large_or_not_there_is_left_to_others(tmp_path: Path) -> None:
    assert why_file_refused(onnx_models.classifier(tmp_path / "plain" / "model.onnx")) == ""
    assert why_file_refused(tmp_path / "model.onnx") == ""
