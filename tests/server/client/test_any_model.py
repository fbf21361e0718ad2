"""`Model` and `AsyncModel` against models of every shape and type."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from pinstream_client import AsyncModel, InvalidRequest, Model, ModelNotFound, TensorSpec
from tests.server.client.conftest import TIMEOUT_S, url_of
from tests.server.running import Running


@pytest.fixture
def at(plain: Running, protocol: str) -> str:
    """The server with plain models, for each protocol."""
    return url_of(plain, protocol)


def test_inputs_and_outputs_are_told(at: str) -> None:
    with Model(at, "two_by_two", timeout=TIMEOUT_S) as model:
        assert list(model.inputs) == ["left", "right"]
        assert model.inputs["right"] == TensorSpec("right", "INT64", (-1, 4))
        assert str(model.outputs["sum"]) == "'sum' FP32 [?, 4]"
        assert model.is_ready()
        model.wait_ready(5)


def test_every_type_goes_there_and_comes_back(at: str) -> None:
    values: dict[str, Any] = {
        "in_BOOL": np.array([[True, False, True]]),
        "in_UINT8": np.array([[0, 7, 255]], np.uint8),
        "in_INT32": np.array([[-1, 0, 2**31 - 1]], np.int32),
        "in_INT64": np.array([[-1, 0, 2**63 - 1]], np.int64),
        "in_FP16": np.array([[0.5, -2, 65504]], np.float16),
        "in_FP32": np.array([[0.1, np.inf, -3e38]], np.float32),
        "in_BYTES": np.array([[b"", b"a\0b\0\0", "\N{SNOWMAN}".encode()]], np.object_),
    }
    with Model(at, "identity", timeout=TIMEOUT_S) as model:
        outputs = model(**values)
        assert set(outputs) == {name.replace("in_", "out_") for name in values}
        for name, value in values.items():
            found = outputs[name.replace("in_", "out_")]
            assert found.dtype == value.dtype
            np.testing.assert_array_equal(found, value)
        # What is no array is converted.
        lists = {**values, "in_INT32": [[1, 2, 3]], "in_BYTES": [["a", b"b", "c"]]}
        assert model(**lists)["out_INT32"].tolist() == [[1, 2, 3]]
        assert model(**lists)["out_BYTES"].tolist() == [[b"a", b"b", b"c"]]


def test_wanted_outputs_alone_come_back(at: str) -> None:
    given = {"left": np.ones((3, 4), np.float32), "right": np.full((3, 4), 2)}
    with Model(at, "two_by_two", timeout=TIMEOUT_S) as model:
        assert model.infer(given, outputs=["double"]).keys() == {"double"}
        assert model.infer(given)["sum"].tolist() == [[3.0] * 4] * 3
        with pytest.raises(InvalidRequest, match="has no output 'product': it has 'sum' FP32"):
            model.infer(given, outputs=["product"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, r"was given the inputs none: expected 'left' FP32 \[\?, 4\], 'right' INT64 \[\?, 4\]"),
        ({"left": 1, "wrong": 2}, "was given the inputs 'left', 'wrong'"),
        (
            {"left": np.ones((1, 4)), "right": np.ones((1, 4), int)},
            r"'left' .* float64 .*: expected FP32.*astype",
        ),
        ({"left": np.ones((1, 5), np.float32), "right": np.ones((1, 4), int)}, r"'left' .* float32 \[1, 5\]"),
        ({"left": np.ones(4, np.float32), "right": np.ones((1, 4), int)}, r"float32 \[4\]: expected shape \[\?, 4\]"),
        ({"left": [["x"]], "right": np.ones((1, 4), int)}, "'left' .* could not convert"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_sent(at: str, given: dict[str, Any], words: str) -> None:
    with Model(at, "two_by_two", timeout=TIMEOUT_S) as model, pytest.raises(InvalidRequest, match=words):
        model.infer(given)


def test_server_s_own_refusal_is_told_as_well(at: str) -> None:
    with Model(at, "classifier_4", timeout=TIMEOUT_S) as model:
        with pytest.raises(InvalidRequest, match="batch"):
            model(pixels=np.zeros((5, 3, 8, 8), np.float32))
        assert model(pixels=np.zeros((4, 3, 8, 8), np.float32))["probabilities"].shape == (4, 10)


def test_model_and_version_that_are_not_there(at: str) -> None:
    with Model(at, "no_such", timeout=TIMEOUT_S) as model:
        assert not model.is_ready()
        with pytest.raises(ModelNotFound, match="no model 'no_such'"):
            model(x=1)
    with Model(at, "classifier", version=1, timeout=TIMEOUT_S) as model:
        assert model(pixels=np.zeros((1, 3, 8, 8), np.float32))["probabilities"].shape == (1, 10)


def test_1000_tasks_share_a_model(at: str) -> None:
    async def run() -> None:
        async with AsyncModel(at, "two_by_two", timeout=TIMEOUT_S) as model:
            assert list(await model.inputs()) == ["left", "right"]
            assert list(await model.outputs()) == ["sum", "double"]
            assert await model.is_ready()
            lefts = [np.full((1, 4), number, np.float32) for number in range(1000)]
            right = np.ones((1, 4), np.int64)
            answers = await asyncio.gather(*(model(left=left, right=right) for left in lefts))
            with pytest.raises(InvalidRequest, match="'left'"):
                await model(left=1.5, right=right)
        assert [answer["sum"][0, 0] for answer in answers] == [number + 1 for number in range(1000)]

    asyncio.run(run())
