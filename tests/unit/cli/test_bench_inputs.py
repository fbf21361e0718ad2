"""Inputs of the loads, and what the bare loops run."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from pinstream.tensors import BatchSizes, ModelSpec, TensorSpec
from pinstream_cli.benchmark.bare import runnable
from pinstream_cli.benchmark.inputs import batch_of, encoded_image, random_item, write_json
from pinstream_cli.errors import CommandError

SPEC = ModelSpec(
    (TensorSpec("pixels", "UINT8", (2, 3)), TensorSpec("width", "FP32", (-1,)), TensorSpec("index", "INT64", (4,))),
    (TensorSpec("out", "FP32", (1,)),),
    BatchSizes((8,), exact=True),
)


def test_random_items_repeat() -> None:
    first, second = (random_item(SPEC, {"width": (5,)}) for _ in range(2))
    assert {name: (array.dtype.name, array.shape) for name, array in first.items()} == {
        "pixels": ("uint8", (2, 3)),
        "width": ("float32", (5,)),
        "index": ("int64", (4,)),
    }
    assert set(first["index"]) <= {0, 1}
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


@pytest.mark.parametrize("shapes", [{}, {"width": (2, 2)}, {"width": (3,), "pixels": (3, 2)}])
def test_a_shape_that_is_missing_or_does_not_fit(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(CommandError, match=r"--shape (width:1|pixels:2,3)"):
        random_item(SPEC, shapes)


def test_batches() -> None:
    item = random_item(SPEC, {"width": (5,)})
    assert batch_of(item, 3, SPEC)["pixels"].shape == (3, 2, 3)
    whole = ModelSpec(SPEC.inputs, SPEC.outputs, None)
    assert batch_of(item, 3, whole)["pixels"].shape == (2, 3)


@pytest.mark.parametrize(
    ("batch", "sizes", "runs"),
    [
        (3, BatchSizes((8,), exact=True), 3),
        (9, BatchSizes((8,), exact=True), 8),
        (3, BatchSizes((1, 4, 8)), 4),
        (9, BatchSizes((1, 4, 8)), 8),
        (3, None, 1),
    ],
)
def test_the_batch_that_the_engine_runs(batch: int, sizes: BatchSizes | None, runs: int) -> None:
    assert runnable(batch, ModelSpec(SPEC.inputs, SPEC.outputs, sizes)) == runs


def test_json_of_tensors_and_of_an_encoded_image(tmp_path: Path) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    path = write_json(tmp_path / "in.json", [{"pixels": pixels}, encoded_image(b"\xff\xd8jpeg\n")])
    first, second = json.loads(path.read_text())["data"]
    assert first["pixels"]["shape"] == [2, 3]
    assert base64.b64decode(first["pixels"]["content"]["b64"]) == bytes(range(6))
    # perf_analyzer takes a BYTES tensor as it travels: each element behind its length.
    assert base64.b64decode(second["image"]["content"]["b64"]) == b"\x07\0\0\0\xff\xd8jpeg\n"
