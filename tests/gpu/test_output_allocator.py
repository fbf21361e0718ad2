"""Outputs whose memory TensorRT itself asks for while a batch runs, as it does where only the data tells their shapes.

TensorRT for RTX builds no plan with such an output. Whether an output's shape is known beforehand is for us to ask,
though: here nobody does, and TensorRT has to call the allocator for outputs of an ordinary plan.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from pinstream.batching import Request
from pinstream.engines.profiles import Range
from pinstream.loop import Loop
from pinstream.tensors import Shape
from tests import onnx_models
from tests.gpu.conftest import BuildPlan, OpenPlan

ROOT = Path(__file__).resolve().parents[2]
WANTED = frozenset({"doubled", "largest"})


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    """FP32 `row` [batch,width] -> FP32 `doubled` [batch,width], and FP32 `largest` [batch,1] of each row."""
    return onnx_models.save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Add", ["row", "row"], ["doubled"]),
            helper.make_node("ReduceMax", ["row"], ["largest"], axes=[1], keepdims=1),
        ],
        [("row", TensorProto.FLOAT, ["batch", "width"])],
        [("doubled", TensorProto.FLOAT, ["batch", "width"]), ("largest", TensorProto.FLOAT, ["batch", 1])],
    )


@pytest.fixture
def _nobody_asks(flavour: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets contexts say of every output that only a run tells its shape, and buffers begin with a byte."""
    from pinstream.engines import tensorrt
    from pinstream.engines.trt_context import ProfileContext

    ask = ProfileContext.output_shapes

    def unknown(context: ProfileContext, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        return {name: (-1,) * len(shape) for name, shape in ask(context, shapes).items()}

    monkeypatch.setattr(ProfileContext, "output_shapes", unknown)
    monkeypatch.setattr(tensorrt, "FIRST_BYTES", 1)


@pytest.mark.usefixtures("_nobody_asks")
def test_tensorrt_gets_memory_and_tells_the_shape_of_each_batch(build: BuildPlan, load: OpenPlan, onnx: Path) -> None:
    engine: Any = load(build(onnx, max_batch=4, shapes=(("row", Range((1,), (16,), (128,))),)))
    session = ort.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    # Small, large and small again, several at once: each has to get the shape of its own batch.
    rows = [
        np.random.default_rng(width).normal(size=(items, width)).astype(np.float32)
        for items, width in ((1, 5), (4, 128), (3, 33), (1, 1), (2, 90), (4, 7), (1, 5))
    ]
    answers = Loop(engine).run([Request({"row": row}, len(row), WANTED) for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert answer.error is None, answer.error
        for name in WANTED:
            np.testing.assert_array_equal(np.asarray(answer.outputs[name]), session.run([name], {"row": row})[0])
    # Nobody else could have made these grow, nor known what to copy back.
    used = [slot for slot in engine.slots if slot.outputs["doubled"].nbytes >= 4 * 128 * 4]
    assert used
    told = [allocator.shape for context in engine._contexts for allocator in context._allocators.values()]
    assert len(told) >= 2 * len(used)
    assert all(len(shape) == 2 for shape in told), told


# In a process of its own: what TensorRT does with the address it does not get is for this test to find out.
NO_ROOM = """
import sys
import numpy as np
from pathlib import Path
from pinstream.batching import Request
from pinstream.engines import find_model_file, open_engine, tensorrt
from pinstream.engines.cuda_slot import Staging
from pinstream.engines.trt_context import ProfileContext
from pinstream.errors import EngineError
from pinstream.loop import Loop
from pinstream.options import Options
ask, grow = ProfileContext.output_shapes, Staging.grow
def unknown(context, shapes):
    return {name: (-1,) * len(shape) for name, shape in ask(context, shapes).items()}
def grow_a_little(staging, nbytes):
    if nbytes > 1024:
        raise EngineError("no room")
    return grow(staging, nbytes)
ProfileContext.output_shapes, Staging.grow, tensorrt.FIRST_BYTES = unknown, grow_a_little, 1
options = Options(cache_dir=sys.argv[2])
engine = open_engine(find_model_file(Path(sys.argv[1]), options), options)
for width in (7, 128, 9):
    row = np.ones((4, width), np.float32)
    (answer,) = Loop(engine).run([Request({"row": row}, 4, frozenset({"doubled"}))])
    print(answer.error or bool((answer.outputs["doubled"].copy() == row * 2).all()))
print(engine.failure or "whole")
engine.close()
"""


def test_memory_that_cannot_be_had_fails_its_batch_alone(build: BuildPlan, onnx: Path, cache_dir: Path) -> None:
    plan = build(onnx, max_batch=4, shapes=(("row", Range((1,), (16,), (128,))),))
    command = [sys.executable, "-c", NO_ROOM, str(plan), str(cache_dir)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "backend", timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    first, refused, last, state = done.stdout.splitlines()
    assert (first, last, state) == ("True", "True", "whole"), done.stdout
    assert refused.startswith("the batch could not be enqueued: ")


@pytest.mark.usefixtures("_nobody_asks")
def test_such_outputs_can_stay_on_the_gpu(build: BuildPlan, load: OpenPlan, onnx: Path) -> None:
    engine = load(build(onnx, max_batch=4, shapes=(("row", Range((1,), (16,), (128,))),)), output_memory="gpu")
    for items, width in ((2, 100), (1, 3)):
        row = np.random.default_rng(width).normal(size=(items, width)).astype(np.float32)
        (answer,) = Loop(engine).run([Request({"row": row}, items, WANTED)])
        assert answer.error is None, answer.error
        np.testing.assert_array_equal(answer.outputs["doubled"].copy(), row * 2)
        np.testing.assert_array_equal(answer.outputs["largest"].copy(), row.max(axis=1, keepdims=True))
