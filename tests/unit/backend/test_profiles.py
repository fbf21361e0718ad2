"""What several plans make together: batch sizes, bounds, and what is refused."""

from __future__ import annotations

import re

import pytest

from pinstream.engines.profiles import PlanInfo, PlanTensor, Range, model_spec, why_no_graphs
from pinstream.errors import ConfigError
from pinstream.options import Options
from pinstream.tensors import BatchSizes, Profile


def plan(low: int, high: int, file: str = "model.plan", dtype: str = "FP32", width: int = 4) -> PlanInfo:
    batch = low if low == high else -1
    x = PlanTensor("x", dtype, (batch, width), (Range((low, width), (high, width), (high, width)),))
    return PlanInfo(file, (x,), (PlanTensor("y", "FP32", (batch, 2)),))


def test_a_dynamic_plan_runs_every_size() -> None:
    spec = model_spec([plan(1, 32)], Options())
    assert spec.batch == BatchSizes((32,), exact=True)
    assert spec.inputs[0].shape == (4,)


def test_static_plans_are_buckets() -> None:
    spec = model_spec([plan(1, 1), plan(8, 8, "b"), plan(4, 4, "c")], Options())
    assert spec.batch == BatchSizes((1, 4, 8))


def test_buckets_of_a_dynamic_plan_are_run_in_these_only() -> None:
    assert model_spec([plan(1, 32)], Options(buckets=(1, 16))).batch == BatchSizes((1, 16))


def test_graph_spec_keeps_the_largest_batch() -> None:
    assert model_spec([plan(1, 32)], Options(graph_batch_sizes=(1, 4))).batch == BatchSizes((1, 4, 32))
    assert model_spec([plan(1, 8)], Options(graph_batch_sizes=(1, 8, 16))).batch == BatchSizes((1, 8))
    assert model_spec([plan(1, 8)], Options(graph_batch_sizes=(1,), cuda_graphs="off")).batch == BatchSizes(
        (8,), exact=True
    )


def test_graph_spec_changes_nothing_where_items_are_of_many_shapes() -> None:
    """Graphs are of one shape, so that there are none there, and nothing to narrow the batch sizes for."""
    wide = Range((1, 2), (4, 4), (8, 8))
    of_many = PlanInfo("a", (PlanTensor("x", "FP32", (-1, -1), (wide,)),), (PlanTensor("y", "FP32", (-1, -1)),))
    assert model_spec([of_many], Options(graph_batch_sizes=(1, 4))).batch == BatchSizes((8,), exact=True)


def test_graph_spec_changes_nothing_of_static_plans() -> None:
    assert model_spec([plan(1, 1), plan(8, 8, "b")], Options(graph_batch_sizes=(2,))).batch == BatchSizes((1, 8))


def test_buckets_that_no_plan_has_are_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="batch sizes 2, 64, which no plan has \\(there are 1, 4 to 8\\)"):
        model_spec([plan(1, 1), plan(4, 8, "b")], Options(buckets=(2, 4, 64)))


def test_plans_of_different_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"other\.plan has tensors"):
        model_spec([plan(1, 1), plan(4, 4, "other.plan", dtype="FP16")], Options())


def test_dynamic_dimensions_beyond_the_batch_keep_their_bounds() -> None:
    ranges = (Range((1, 8), (4, 16), (4, 32)), Range((1, 33), (4, 64), (4, 128)))
    x = PlanTensor("x", "FP32", (-1, -1), ranges)
    spec = model_spec([PlanInfo("model.plan", (x,), (PlanTensor("y", "FP32", (-1, -1)),))], Options())
    assert spec.inputs[0].bounds == (((8,), (32,)), ((33,), (128,)))
    assert spec.inputs[0].within_bounds((33,))
    assert not spec.inputs[0].within_bounds((129,))


def test_a_shape_tensor_makes_a_model_without_batching() -> None:
    shape = PlanTensor("shape", "INT64", (2,), (Range((1, 1), (2, 2), (4, 4)),), host=True)
    assert model_spec([PlanInfo("p", (*plan(1, 4).inputs, shape), plan(1, 4).outputs)], Options()).batch is None


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ([("x", (1, 4), False)], [("y", (1, 2))], ""),
        ([("x", (-1, 4), False)], [("y", (-1, 2))], ""),
        ([("x", (-1, 4), False)], [("y", (-1, -1))], ""),  # only its context will tell
        ([("x", (-1, -1), False)], [("y", (-1, 2))], "x.* varies beyond the batch; build the plan with --shape"),
        ([("x", (1, 4), False), ("sizes", (2,), True)], [("y", (-1, -1))], "the values of sizes are shapes"),
        ([("x", (1, 4), False)], [("y", (1, 2)), ("found", (1, -1))], "that of found depends on the data"),
    ],
)
def test_graphs_are_of_one_shape(
    inputs: list[tuple[str, tuple[int, ...], bool]], outputs: list[tuple[str, tuple[int, ...]]], reason: str
) -> None:
    def range_of(shape: tuple[int, ...]) -> Range:
        return Range(*[tuple(abs(size) for size in shape)] * 3)

    of_inputs = (PlanTensor(name, "FP32", shape, (range_of(shape),), host) for name, shape, host in inputs)
    of_outputs = (PlanTensor(name, "FP32", shape) for name, shape in outputs)
    plans = [PlanInfo("p", tuple(of_inputs), tuple(of_outputs))]
    found = why_no_graphs(plans, model_spec(plans, Options()))
    assert re.search(reason, found) if reason else not found


def test_full_configured_dims_turn_batching_off() -> None:
    assert model_spec([plan(1, 1)], Options(unbatched_inputs=(("x", 2),))).batch is None


def test_the_sidecars_form_is_read_back() -> None:
    info = plan(1, 8)
    assert PlanInfo.from_json(info.to_json()) == info


def with_profiles(*batches: tuple[int, int]) -> PlanInfo:
    x = PlanTensor("x", "FP32", (-1, 4), tuple(Range((low, 4), (high, 4), (high, 4)) for low, high in batches))
    return PlanInfo("model.plan", (x,), (PlanTensor("y", "FP32", (-1, 2)),))


def test_only_what_the_configured_profiles_take_is_run() -> None:
    two = with_profiles((1, 4), (8, 32))
    assert model_spec([two], Options(profiles=(0,))).batch == BatchSizes((4,), exact=True)
    with pytest.raises(ConfigError, match=r"batch sizes 32, which no plan has \(there are 1 to 4\)"):
        model_spec([two], Options(profiles=(0,), buckets=(1, 32)))
    with pytest.raises(ConfigError, match=r"profile is 2, and model\.plan has profiles 0 to 1"):
        model_spec([two], Options(profiles=(2,)))


def test_sizes_between_two_profiles_are_padded_to_the_larger() -> None:
    assert model_spec([with_profiles((1, 4), (9, 32))], Options()).batch == BatchSizes((1, 2, 4, 9, 16, 32))
    assert model_spec([with_profiles((1, 4), (5, 32))], Options()).batch == BatchSizes((32,), exact=True)


def by_width(*batches: tuple[int, int]) -> PlanInfo:
    """Each profile takes twice the width of the one before."""
    ranges = [Range((low, 4 << i), (high, 4 << i), (high, (8 << i) - 1)) for i, (low, high) in enumerate(batches)]
    return PlanInfo(
        "model.plan", (PlanTensor("x", "FP32", (-1, -1), tuple(ranges)),), (PlanTensor("y", "FP32", (-1, 2)),)
    )


def sizes_of(plan: PlanInfo, width: int, options: Options | None = None) -> BatchSizes:
    batch = model_spec([plan], options or Options()).batch
    assert batch
    return batch.of_shapes({"x": (width,)})


def test_a_shape_runs_in_the_sizes_of_the_profiles_that_take_it() -> None:
    plan = by_width((1, 32), (1, 8), (3, 6))
    assert sizes_of(plan, 4) == BatchSizes((32,), exact=True)
    assert sizes_of(plan, 15) == BatchSizes((8,), exact=True)
    assert sizes_of(plan, 16) == BatchSizes((3, 4, 6))
    # What no profile takes is the engine's to refuse.
    assert sizes_of(plan, 99) == BatchSizes((32,), exact=True)


def test_a_shape_runs_in_the_configured_sizes_that_its_profiles_take() -> None:
    plan = by_width((1, 32), (1, 8))
    assert sizes_of(plan, 8, Options(buckets=(1, 4, 16))) == BatchSizes((1, 4))
    measured = BatchSizes((1, 4, 16), costs=(1.0, 2.0, 5.0), profiles=(Profile(1, 8, (("x", (8,), (15,)),)),))
    assert measured.of_shapes({"x": (8,)}) == BatchSizes((1, 4), costs=(1.0, 2.0))


def test_profiles_of_equal_batches_change_nothing() -> None:
    batch = model_spec([by_width((1, 8), (1, 8))], Options()).batch
    assert batch == BatchSizes((8,), exact=True)
