"""What the ONNX Runtime engine makes of model files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pinstream.engines import find_model_file, open_engine
from pinstream.engines.onnxruntime import batch_sizes, best_batch
from pinstream.errors import ConfigError, ModelFileError, first_line
from pinstream.options import Options
from pinstream.tensors import BatchSizes
from tests import onnx_models


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ([["n", 3]], [["n", 10]], BatchSizes((8,), exact=True)),
        ([["n", 3]], [[None, 10]], BatchSizes((8,), exact=True)),
        ([[4, 3]], [[4, 10]], BatchSizes((4,))),
        ([["n", 3], ["m", 3]], [["n", 3]], None),
        ([["n", 3]], [[1]], None),
        ([[4, 3]], [[2, 10]], None),
        ([[]], [[]], None),
    ],
)
def test_the_batch_dimension_is_the_first_one_that_all_share(
    inputs: list[list[int | str | None]], outputs: list[list[int | str | None]], expected: BatchSizes | None
) -> None:
    assert batch_sizes(inputs, outputs, Options()) == expected


def test_buckets_of_a_static_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match="BUCKETS is 1,8, but the model's batch dimension is fixed at 4"):
        batch_sizes([[4, 3]], [[4, 10]], Options(buckets=(1, 8)))


def test_a_model_configured_with_its_full_dims_is_not_batched(tmp_path: Path) -> None:
    options = Options.from_model_config({"input": [{"name": "pixels", "dims": [1, 3, 8, 8]}]})
    engine = open_engine(onnx_models.classifier(tmp_path / "model.onnx", batch=1), options)
    assert engine.spec.batch is None
    assert engine.spec.inputs[0].shape == (1, 3, 8, 8)
    engine.close()


@pytest.mark.parametrize("content", [b"not a model", b"\xff\xd8\xff\xe0" * 100])
def test_a_file_that_is_no_onnx_model_is_named_with_its_size(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"model.onnx \({len(content)} bytes\) is not an ONNX model"):
        open_engine(path, Options())


@pytest.mark.parametrize("options", [Options(), Options(model_filename="model.onnx")])
def test_what_is_there_and_no_file_is_told(tmp_path: Path, options: Options) -> None:
    model = tmp_path / "model.onnx"
    model.symlink_to("nowhere")
    with pytest.raises(
        ModelFileError, match=f"^{model} cannot be a model: it is a link that leads nowhere; put the model there$"
    ):
        find_model_file(tmp_path, options)
    model.unlink()
    os.mkfifo(model)
    with pytest.raises(
        ModelFileError, match=f"^{model} cannot be a model: it is no regular file; put the model there$"
    ):
        find_model_file(tmp_path, options)


def test_a_missing_and_an_empty_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelFileError, match=r"no model.plan or model.onnx in .* \(there is: weights.bin\)"):
        find_model_file(tmp_path, Options())
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ModelFileError, match=r"model.onnx is empty"):
        find_model_file(tmp_path, Options())


def test_strings_pass_through_as_text(tmp_path: Path) -> None:
    engine = open_engine(onnx_models.identity(tmp_path / "model.onnx"), Options())
    slot = engine.slots[0]
    text = np.array([["ä".encode(), b"", b"c"]], object)
    slot.begin({tensor.name: (1, 3) for tensor in engine.spec.inputs})
    for tensor in engine.spec.inputs:
        slot.put(tensor.name, text if tensor.dtype == "BYTES" else np.ones((1, 3), tensor.numpy_dtype), 0)
    engine.enqueue(slot, frozenset({"out_BYTES"}))
    outputs = engine.wait(slot)
    engine.close()
    assert list(outputs) == ["out_BYTES"]
    assert outputs["out_BYTES"].copy().tolist() == [["ä", "", "c"]]


def test_the_batch_size_worth_running_is_found_at_load_and_leaves_the_limit_alone(tmp_path: Path) -> None:
    engine = open_engine(onnx_models.classifier(tmp_path / "model.onnx"), Options(max_batch_size=8))
    engine.close()
    assert engine.spec.batch is not None
    assert engine.spec.batch.largest == 8
    assert engine.spec.batch.best in (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("per_item", "largest", "best", "tried"),
    [
        ([1.0, 1.1, 1.2, 0.5], 32, 1, [1, 2, 4]),
        ([1.0, 1.1, 0.9, 1.0], 32, 4, [1, 2, 4, 8]),
        ([1.0, 0.8, 0.9, 1.0], 32, 2, [1, 2, 4, 8]),
        ([1.0, 0.98, 0.99, 1.0], 32, 1, [1, 2, 4, 8]),
        ([1.0, 0.5, 0.4, 0.3], 32, 32, [1, 2, 4, 8]),
        ([1.0, 0.5, 0.4, 0.3], 3, 3, [1, 2]),
    ],
)
def test_the_batch_size_with_the_least_time_an_item_is_worth_running(
    per_item: list[float], largest: int, best: int, tried: list[int]
) -> None:
    asked = []

    def seconds(size: int) -> float:
        asked.append(size)
        return size * per_item[[1, 2, 4, 8].index(size)]

    assert best_batch(seconds, largest) == best
    assert asked == tried


def test_what_onnx_runtime_says_comes_without_its_own_source() -> None:
    place = (
        "/onnxruntime_src/onnxruntime/core/framework/session_state_utils.cc:294 onnxruntime::common::Status "
        "onnxruntime::session_state_utils::SaveInitializedTensors(const onnxruntime::Env&, const std::vector<int>&) "
    )
    error = RuntimeError(
        f"[ONNXRuntimeError] : 1 : FAIL : Exception: {place}MaxIdx() > -1 was false. More (of it) here.\nx"
    )
    assert first_line(error) == "[ONNXRuntimeError] : 1 : FAIL : Exception: MaxIdx() > -1 was false. More (of it) here."
    assert first_line(RuntimeError("of no file (but in words) that")) == "of no file (but in words) that"


def test_what_a_library_says_is_one_short_line_even_where_it_says_nothing() -> None:
    assert first_line(RuntimeError("\n a reason\nits details")) == "a reason"
    assert first_line(RuntimeError("x" * 2000)) == "x" * 1000
    assert first_line(RuntimeError(" \n")) == "RuntimeError"
