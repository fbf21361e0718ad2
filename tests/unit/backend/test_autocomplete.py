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
