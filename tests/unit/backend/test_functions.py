"""How large ONNX's local functions make a model, found without expanding them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import inliner

from pinstream.engines import functions
from pinstream.engines.functions import why_file_too_large, why_too_large
from pinstream.errors import ModelFileError
from pinstream.plans.graph import read_graph
from tests import onnx_models


@pytest.mark.parametrize("levels", [1, 3, 10])
def test_nodes_are_those_of_the_expanded_model(tmp_path: Path, levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(onnx_models.doubling(tmp_path / "model.onnx", levels))
    # Those that call are counted as well, and are gone when they are expanded.
    nodes = len(inliner.inline_local_functions(model).graph.node)
    assert nodes == 2**levels
    monkeypatch.setattr(functions, "MOST_NODES", 2 * nodes - 1)
    assert why_too_large(model) == ""
    monkeypatch.setattr(functions, "MOST_NODES", 2 * nodes - 2)
    assert why_too_large(model).startswith("more than ")


def test_constants_that_are_copied_are_counted_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(onnx_models.doubling(tmp_path / "model.onnx", 10))
    constant = onnx.helper.make_node("Constant", [], ["d"], value_floats=[1.0] * 1000)
    model.functions[0].node.append(constant)
    monkeypatch.setattr(functions, "MOST_BYTES", 5000 * 2**9)
    assert why_too_large(model)
    monkeypatch.setattr(functions, "MOST_BYTES", 5500 * 2**9)
    assert not why_too_large(model)


def test_nodes_in_branches_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(onnx_models.doubling(tmp_path / "model.onnx", 4))
    call = onnx.NodeProto()
    call.CopyFrom(model.graph.node[0])
    branch = onnx.helper.make_graph([call], "branch", [], [])
    model.graph.node[0].CopyFrom(onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    monkeypatch.setattr(functions, "MOST_NODES", 2 * 2**4)
    assert why_too_large(model)


def test_a_thousand_levels_are_counted_in_no_time_and_refused_by_who_reads_it(tmp_path: Path) -> None:
    path = onnx_models.doubling(tmp_path / "model.onnx", 1000)
    assert why_file_too_large(path) == "more than 1,000,000 nodes or 2 GiB"
    with pytest.raises(ModelFileError, match="its functions make more than 1,000,000 nodes"):
        read_graph(path)


def test_what_is_not_too_large_or_no_model_is_left_to_others(tmp_path: Path) -> None:
    assert why_file_too_large(onnx_models.classifier(tmp_path / "plain" / "model.onnx")) == ""
    (tmp_path / "model.onnx").write_bytes(b"no model")
    assert why_file_too_large(tmp_path / "model.onnx") == ""
