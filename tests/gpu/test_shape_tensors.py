"""Inputs whose values are shapes: TensorRT reads them on the host, and profiles bound their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from pinstream.batching import Request
from pinstream.dlpack import DeviceArray
from pinstream.engines import find_model_file, inspect
from pinstream.engines.profiles import Range
from pinstream.loop import Loop
from pinstream.options import Options
from pinstream.tensors import Array
from tests import onnx_models
from tests.gpu.conftest import BuildPlan, OpenPlan
from tests.gpu.serving import place
from tests.server.running import running
from tests.server.test_plain_models import infer

SMALL = Range((1, 3, 4, 4), (1, 3, 8, 8), (1, 3, 16, 16))
LARGE = Range((1, 3, 16, 16), (1, 3, 32, 32), (1, 3, 64, 48))


@pytest.fixture(scope="module")
def plan(build: BuildPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP32 `image` [1,3,8,8] and INT64 `sizes` [4], a shape tensor -> FP32 `resized` of those sizes."""
    onnx = onnx_models.save(
        tmp_path_factory.mktemp("resize") / "resize.onnx",
        [
            helper.make_node(
                "Resize",
                ["image", "", "", "sizes"],
                ["resized"],
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        ],
        [("image", TensorProto.FLOAT, [1, 3, 8, 8]), ("sizes", TensorProto.INT64, [4])],
        [("resized", TensorProto.FLOAT, [1, 3, "height", "width"])],
    )
    return build(onnx, shapes=(("sizes", SMALL), ("sizes", LARGE)))


def image(seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(1, 3, 8, 8)).astype(np.float32)


def resized(data: Array, height: int, width: int) -> Array:
    """Nearest neighbours, by NumPy."""
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    return data[:, :, rows][:, :, :, columns]


def sizes(height: int, width: int) -> Array:
    return np.array([1, 3, height, width], np.int64)


def request(data: Any, wished: Any) -> Request:
    return Request({"image": data, "sizes": wished}, 1, frozenset({"resized"}))


def test_their_values_make_the_output_s_shape(load: OpenPlan, plan: Path) -> None:
    engine = load(plan)
    # Small and large again: what was found for one value must not be kept for the next.
    for height, width in [(4, 4), (16, 16), (64, 48), (8, 5), (33, 17), (8, 5), (5, 8)]:
        data = image(height * width)
        (got,) = Loop(engine).run([request(data, sizes(height, width))])
        assert got.error is None, got.error
        np.testing.assert_array_equal(got.outputs["resized"].copy(), resized(data, height, width))


def test_no_value_waits_for_kernels_of_its_own(load: OpenPlan, plan: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are compiled as a shape comes where there is a graph of each, which shape tensors exclude."""
    engine: Any = load(plan, cuda_graphs="on")
    assert engine.captured == 0
    assert not engine._runs_as_graphs
    assert "there are none: a graph is of one shape, and the values of sizes are shapes" in caplog.text


def test_several_at_once_keep_their_own(load: OpenPlan, plan: Path) -> None:
    wishes = [(4 + i, 16 - i) for i in range(9)]
    answers = Loop(load(plan)).run([request(image(i), sizes(*wish)) for i, wish in enumerate(wishes)])
    for i, (wish, answer) in enumerate(zip(wishes, answers, strict=True)):
        assert answer.error is None
        np.testing.assert_array_equal(answer.outputs["resized"].copy(), resized(image(i), *wish))


def test_they_may_come_from_the_gpu(load: OpenPlan, plan: Path) -> None:
    from pinstream import cuda

    engine = load(plan)
    wished = sizes(20, 30)
    memory = cuda.DeviceAllocation(wished.nbytes)
    cuda.copy("placing a test's input", memory.pointer, wished.ctypes.data, wished.nbytes)
    (got,) = Loop(engine).run([request(image(1), DeviceArray(memory.pointer, wished.shape, wished.dtype, 0))])
    assert got.error is None, got.error
    np.testing.assert_array_equal(got.outputs["resized"].copy(), resized(image(1), 20, 30))
    memory.free()


@pytest.mark.parametrize(("height", "width"), [(3, 8), (65, 32), (10, 20)])
def test_values_outside_every_profile_are_refused_and_cost_nothing_else(
    load: OpenPlan, plan: Path, height: int, width: int
) -> None:
    engine = load(plan)
    (refused,) = Loop(engine).run([request(image(0), sizes(height, width))])
    assert f"no optimisation profile takes image [1, 3, 8, 8], sizes = [1, 3, {height}, {width}]" in str(refused.error)
    (got,) = Loop(engine).run([request(image(0), sizes(8, 8))])
    np.testing.assert_array_equal(got.outputs["resized"].copy(), image(0))


def test_the_sidecar_says_so_without_a_gpu(load: OpenPlan, plan: Path) -> None:
    described = inspect(find_model_file(plan, Options()), Options())
    assert described.batch is None
    engine = load(plan)
    assert described.inputs == engine.spec.inputs
    # Of the outputs the engine knows more: its profiles leave no choice of batch and channels.
    assert described.outputs[0].accepts(engine.spec.outputs[0].shape)
    assert engine.spec.outputs[0].shape == (1, 3, -1, -1)


def test_triton_serves_them(plan: Path, tmp_path: Path) -> None:
    place(plan, tmp_path, "resize")
    with running(repositories=[tmp_path]) as server:
        for height, width in [(4, 16), (40, 20)]:
            got = infer(server, "resize", image=image(2), sizes=sizes(height, width)).as_numpy("resized")
            np.testing.assert_array_equal(got, resized(image(2), height, width))


def test_an_output_may_shrink_as_its_input_grows(
    build: BuildPlan, load: OpenPlan, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is left of 65,536 numbers from `start` on, or from the end: the largest input has the smallest output."""
    onnx = onnx_models.slice_from(tmp_path_factory.mktemp("slice") / "slice.onnx", 1 << 16)
    engine = load(build(onnx, shapes=(("start", Range((-100,), (10,), ((1 << 16) - 1,))),)))
    row = np.random.default_rng(5).normal(size=1 << 16).astype(np.float32)
    for start in ((1 << 16) - 1, 100, 0, -100, 60_000, -1, 1):
        request = Request({"row": row, "start": np.array([start], np.int64)}, 1, frozenset({"rest"}))
        (answer,) = Loop(engine).run([request])
        assert answer.error is None
        np.testing.assert_array_equal(np.asarray(answer.outputs["rest"]), row[start:])


def test_values_that_fit_the_profile_and_not_the_data_fail_one_request_alone(
    build: BuildPlan, load: OpenPlan, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A Reshape of 12 numbers: neither the largest values together nor 5 x 5 make sense, and 3 x 4 does."""
    onnx = onnx_models.save(
        tmp_path_factory.mktemp("reshape") / "reshape.onnx",
        [helper.make_node("Reshape", ["row", "sizes"], ["table"])],
        [("row", TensorProto.FLOAT, [12]), ("sizes", TensorProto.INT64, [2])],
        [("table", TensorProto.FLOAT, ["rows", "columns"])],
    )
    engine = load(build(onnx, shapes=(("sizes", Range((1, 1), (3, 4), (12, 12))),)))
    row = np.arange(12, dtype=np.float32)

    def ask(*sizes: int) -> Request:
        return Request({"row": row, "sizes": np.array(sizes, np.int64)}, 1, frozenset({"table"}))

    first, wrong, last = Loop(engine).run([ask(3, 4), ask(5, 5), ask(12, 1)])
    assert "with the values of the shape tensors, make no output shapes" in str(wrong.error)
    np.testing.assert_array_equal(np.asarray(first.outputs["table"]), row.reshape(3, 4))
    np.testing.assert_array_equal(np.asarray(last.outputs["table"]), row.reshape(12, 1))
