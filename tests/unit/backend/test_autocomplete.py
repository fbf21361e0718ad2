"""A configuration is completed from the engine, and a mismatch shows both sides."""

from __future__ import annotations

from typing import Any

import pytest

from pinstream.autocomplete import complete, max_batch_size
from pinstream.errors import ConfigError
from pinstream.tensors import BatchSizes, ModelSpec, TensorSpec

X, Y = TensorSpec("x", "FP32", (3, -1)), TensorSpec("y", "BYTES", (10,))
BATCHED = ModelSpec((X,), (Y,), BatchSizes((32,), exact=True))
WHOLE = ModelSpec((X,), (Y,), None)


def entry(name: str, data_type: str, dims: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": data_type, "dims": dims}


def test_an_empty_configuration_gets_everything() -> None:
    missing = complete({}, BATCHED)
    assert (missing.inputs, missing.outputs, missing.max_batch_size, missing.dynamic_batching) == ((X,), (Y,), 32, True)


def test_a_configured_smaller_max_batch_size_stays() -> None:
    assert complete({"max_batch_size": 4}, BATCHED).max_batch_size is None
    assert max_batch_size({"max_batch_size": 4}, BATCHED) == 4


def test_a_configured_scheduler_stays() -> None:
    assert not complete({"dynamic_batching": {}}, BATCHED).dynamic_batching
    assert not complete({"sequence_batching": {}}, BATCHED).dynamic_batching


def test_without_a_batch_dimension_nothing_is_batched() -> None:
    missing = complete({}, WHOLE)
    assert missing.max_batch_size is None
    assert not missing.dynamic_batching


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_batch_size": 8}, r"max_batch_size 8, but the model has no batch dimension \(x FP32\[3, -1\]"),
        ({"input": [entry("z", "TYPE_FP32", [3])]}, "input 'z', but the model's inputs are x"),
        ({"input": [entry("x", "TYPE_INT32", [3, 5])]}, r"TYPE_INT32 \[3, 5\], the model has TYPE_FP32 \[3, -1\]"),
        ({"output": [entry("y", "TYPE_STRING", [11])]}, r"TYPE_STRING \[11\], the model has TYPE_STRING \[10\]"),
    ],
)
def test_a_mismatch_shows_both_sides(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        complete(config, WHOLE)


def test_a_narrower_configuration_is_no_mismatch() -> None:
    assert complete({"input": [entry("x", "TYPE_FP32", [3, 640])]}, BATCHED).inputs == ()


def test_a_reshaped_input_is_held_against_what_the_model_will_see() -> None:
    reshaped = {**entry("x", "TYPE_FP32", [1, 3, 640]), "reshape": {"shape": [3, 640]}}
    assert complete({"input": [reshaped]}, BATCHED).inputs == ()
    wrong = {**entry("x", "TYPE_FP32", [3, 640]), "reshape": {"shape": [1920]}}
    with pytest.raises(ConfigError, match=r"TYPE_FP32 \[1920\], the model has TYPE_FP32 \[3, -1\]"):
        complete({"input": [wrong]}, BATCHED)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"input": [{**entry("x", "TYPE_FP32", [3, 5]), "allow_ragged_batch": True}]}, "allow_ragged_batch"),
        ({"output": [{**entry("y", "TYPE_STRING", [10]), "reshape": {"shape": [5, 2]}}]}, "output 'y' has reshape"),
        ({"batch_input": [{"kind": "BATCH_ITEM_SHAPE"}]}, "batch_input"),
        ({"model_transaction_policy": {"decoupled": True}}, "one response a request"),
        ({"instance_group": [{"passive": False}, {"passive": True}]}, "the first request ends tritonserver"),
    ],
)
def test_what_is_not_done_is_refused_and_not_ignored(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"{message}.*leave it out"):
        complete(config, BATCHED)


PICTURE = TensorSpec("picture", "UINT8", (20, 10))
AT = TensorSpec("picture_at", "UINT8", (-1,))
REFERRED = ModelSpec((PICTURE, X), (Y,), BatchSizes((32,), exact=True))


def by_reference(*names: str, **config: Any) -> dict[str, Any]:
    return {**config, "parameters": {"BY_REFERENCE": {"string_value": ";".join(names)}}}


def test_an_input_by_reference_is_one_of_two_that_may_be_left_out() -> None:
    missing = complete(by_reference("picture"), REFERRED)
    assert missing.inputs == (PICTURE, X, AT)
    assert [missing.entry(tensor) for tensor in missing.inputs] == [
        {**entry("picture", "TYPE_UINT8", [20, 10]), "optional": True},
        entry("x", "TYPE_FP32", [3, -1]),
        {**entry("picture_at", "TYPE_UINT8", [-1]), "optional": True},
    ]
    assert [missing.entry(tensor) for tensor in missing.outputs] == [entry("y", "TYPE_STRING", [10])]
    assert complete({}, REFERRED).inputs == (PICTURE, X)


def test_what_was_completed_is_complete() -> None:
    missing = complete(by_reference("picture"), REFERRED)
    config = by_reference("picture", input=[missing.entry(tensor) for tensor in missing.inputs])
    assert complete(config, REFERRED).inputs == ()


def test_an_input_named_twice_is_completed_once() -> None:
    assert complete(by_reference("picture", "picture"), REFERRED).inputs == (PICTURE, X, AT)


@pytest.mark.parametrize("name", ["picture", "picture_at"])
@pytest.mark.parametrize("optional", [{}, {"optional": False}])
def test_one_of_two_has_to_be_optional(name: str, optional: dict[str, bool]) -> None:
    dims = [20, 10] if name == "picture" else [-1]
    named = entry(name, "TYPE_UINT8", dims)
    with pytest.raises(ConfigError, match=rf"input '{name}' .*one of two.*\(BY_REFERENCE\); add optional: true"):
        complete(by_reference("picture", input=[{**named, **optional}]), REFERRED)
    missing = complete(by_reference("picture", input=[{**named, "optional": True}]), REFERRED)
    assert name not in {tensor.name for tensor in missing.inputs}
    assert len(missing.inputs) == 2


def test_without_by_reference_there_is_no_other_input() -> None:
    with pytest.raises(ConfigError, match="input 'picture_at', but the model's inputs are picture, x"):
        complete({"input": [entry("picture_at", "TYPE_UINT8", [-1])]}, REFERRED)


SIZES = BatchSizes((4,))


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("pictures", REFERRED, "BY_REFERENCE has 'pictures', but the model's inputs are picture, x"),
        ("picture_at", REFERRED, "BY_REFERENCE has 'picture_at', but the model's inputs are picture, x"),
        ("x", REFERRED, r"'x', and x FP32\[3, -1\] .*cannot come so: .*fixed dims, no strings.*leave it out"),
        ("y", ModelSpec((Y,), (X,), SIZES), r"'y', and y BYTES\[10\] .*cannot come so"),
        ("picture", ModelSpec((PICTURE,), (Y,), None), ".*cannot come so: it takes a model that batches"),
        ("picture", ModelSpec((PICTURE, AT), (Y,), SIZES), "beside which there is no 'picture_at'"),
        (
            "small",
            ModelSpec((TensorSpec("small", "FP32", (18,)),), (Y,), SIZES),
            "'small', whose items have 72 bytes, and a reference to one has 72; leave it out of BY_REFERENCE",
        ),
    ],
)
def test_what_cannot_come_by_reference_is_refused(name: str, spec: ModelSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        complete(by_reference(name), spec)


def test_an_item_larger_than_a_reference_can() -> None:
    spec = ModelSpec((TensorSpec("small", "FP32", (19,)),), (Y,), SIZES)
    assert len(complete(by_reference("small"), spec).inputs) == 2
