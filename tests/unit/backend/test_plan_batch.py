"""Which first dimension is the batch: by its name, or by what the graph makes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from pinstream.errors import ConfigError
from pinstream.plans import BuildSpec, build_plan, parse_shape
from pinstream.plans.graph import inputs_of, outputs_of, read_graph
from pinstream.plans.jobs import PlanJob, plan_jobs
from tests import onnx_models
from tests.onnx_models import Dim
from tests.rtx import installed_rtx

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def jobs(path: Path, **wishes: Any) -> list[PlanJob]:
    model = read_graph(path)
    return plan_jobs(inputs_of(model), outputs_of(model), BuildSpec(**wishes))


def saved(
    path: Path,
    nodes: list[Any],
    output: tuple[str, int, list[Dim]],
    weights: dict[str, Any] | None = None,
    x: tuple[Dim, ...] = ("batch", 6),
) -> Path:
    return onnx_models.save(path / "m.onnx", nodes, [("x", FLOAT, x)], [output], weights)


def found(path: Path, name: str = "found") -> Path:
    """FP32 `x` [batch,6] -> INT64 `y` [found,2]: where x is not zero."""
    nodes = [helper.make_node("NonZero", ["x"], ["places"]), helper.make_node("Transpose", ["places"], ["y"])]
    return saved(path, nodes, ("y", INT64, [name, 2]))


def rows(path: Path) -> Path:
    """FP32 `x` [batch,2,3] -> FP32 `y` [batch * 2,3]: the rows of all items together."""
    return saved(
        path,
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        ("y", FLOAT, ["Reshapey_dim_0", 3]),
        {"shape": np.array([-1, 3])},
        ("batch", 2, 3),
    )


@pytest.mark.parametrize("name", ["found", "unk__7", ""])
def test_as_many_rows_as_the_data_have_it_are_no_batch(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--shape x:Nx6:Nx6:Nx6"):
        jobs(found(tmp_path, name))
    for wishes in ({"batch_sizes": (1, 4)}, {"max_batch": 4}):
        with pytest.raises(ConfigError, match=r"output 'y' \[.+, 2\] has not one entry for each item of the inputs"):
            jobs(found(tmp_path, name), **wishes)
    (job,) = jobs(found(tmp_path, name), shapes=(parse_shape("x:1x6:4x6:8x6"),))
    assert (job.file, job.batch) == ("model.plan", None)


def test_the_rows_of_all_items_together_are_no_batch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave the batch size out and give the whole shapes: --shape x:Nx2x3:"):
        jobs(rows(tmp_path), batch_sizes=(1, 2))
    spec = BuildSpec(shapes=(parse_shape("x:1x2x3:2x2x3:4x2x3"),))
    (plan,) = build_plan(tmp_path / "m.onnx", tmp_path / "out", spec, installed_rtx()).plans
    assert (plan.file, plan.inputs[0].shape, plan.outputs[0].shape) == ("model.plan", (-1, 2, 3), (-1, 3))


@pytest.mark.parametrize("name", ["batch", "Softmaxy_dim_0", "unk__8", "output_dynamic_axes_1", "N", ""])
def test_a_batch_of_another_name_is_one_where_the_graph_says_so(tmp_path: Path, name: str) -> None:
    """The batch comes through a reshape to sizes that the graph works out, as exporters write `view(x.size(0), -1)`."""
    nodes = [
        helper.make_node("Shape", ["x"], ["all"], end=1),
        helper.make_node("Concat", ["all", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["y"]),
    ]
    path = saved(tmp_path, nodes, ("y", FLOAT, [name, 12]), {"rest": np.array([-1])}, ("batch", 2, 6))
    assert [job.batch for job in jobs(path, batch_sizes=(1, 4))] == [1, 4]
    assert jobs(path, max_batch=8)[0].profiles[0]["x"].max == (8, 2, 6)


def test_operators_that_onnx_does_not_know_get_the_benefit_of_the_doubt(tmp_path: Path) -> None:
    """A plugin's output, say: nothing in the graph makes rows by data."""
    x: Any = ("x", FLOAT, ["batch", 6])
    path = onnx_models.unchecked(
        tmp_path / "m.onnx", [helper.make_node("MyPlugin", ["x"], ["y"])], [x], [("y", FLOAT, ["unk__1", 2])]
    )
    assert [job.batch for job in jobs(path, batch_sizes=(2,))] == [2]
