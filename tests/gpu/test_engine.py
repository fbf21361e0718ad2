"""The TensorRT engine: kinds of models, memory, errors."""

from __future__ import annotations

import functools
import gc
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from pinstream.batching import Request
from pinstream.dlpack import DeviceArray
from pinstream.engines import find_model_file, inspect, open_engine
from pinstream.engines.profiles import Range
from pinstream.errors import ModelFileError, PinstreamError
from pinstream.loop import Loop
from pinstream.options import Options
from pinstream.tensors import Array
from tests import onnx_models
from tests.gpu.conftest import BuildPlan, OpenPlan

MEGABYTE = 1 << 20
# TensorRT for RTX multiplies FP32 in TF32, with 10 bits of mantissa, over sums of 192 products here.
FP32 = 5e-3


def pixels(items: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(items, 3, 8, 8)).astype(np.float32)


def request(wanted: str, **inputs: Any) -> Request:
    first = next(iter(inputs.values()))
    return Request(inputs, first.shape[0], frozenset(wanted.split()))


def answer(engine: Any, wanted: str, **inputs: Any) -> dict[str, Any]:
    (found,) = Loop(engine).run([request(wanted, **inputs)])
    if found.error:
        raise found.error
    return dict(found.outputs)


@pytest.fixture(scope="module")
def classifier(build: BuildPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    onnx = onnx_models.classifier(tmp_path_factory.mktemp("onnx") / "classifier.onnx")
    return build(onnx, batch_sizes=(1, 2, 4))


@functools.cache
def reference_session() -> ort.InferenceSession:
    with tempfile.TemporaryDirectory() as scratch:
        path = onnx_models.classifier(Path(scratch) / "classifier.onnx")
        return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def reference(items: Array) -> Array:
    """What ONNX Runtime says on the CPU."""
    return np.asarray(reference_session().run(None, {"pixels": items})[0])


def test_two_inputs_and_two_outputs(build: BuildPlan, load: OpenPlan, tmp_path: Path) -> None:
    engine = load(build(onnx_models.two_by_two(tmp_path / "m.onnx"), max_batch=4))
    left, right = np.full((3, 4), 0.5, np.float32), np.arange(12).reshape(3, 4)
    got = answer(engine, "sum double", left=left, right=right)
    np.testing.assert_array_equal(got["sum"], left + right)
    np.testing.assert_array_equal(got["double"], right * 2)
    assert list(answer(engine, "double", left=left, right=right)) == ["double"]


def test_a_dynamic_dimension_beyond_the_batch(build: BuildPlan, load: OpenPlan, tmp_path: Path) -> None:
    onnx = onnx_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["row", "row"], ["doubled"])],
        [("row", TensorProto.FLOAT, ["batch", "width"])],
        [("doubled", TensorProto.FLOAT, ["batch", "width"])],
    )
    widths = (("row", Range((1,), (16,), (32,))), ("row", Range((33,), (64,), (128,))))
    engine = load(build(onnx, max_batch=4, shapes=widths))
    for width in (1, 5, 32, 33, 128):
        row = np.random.default_rng(width).normal(size=(3, width)).astype(np.float32)
        np.testing.assert_array_equal(answer(engine, "doubled", row=row)["doubled"], row * 2)
    assert engine.spec.inputs[0].bounds == (((1,), (32,)), ((33,), (128,)))


def test_an_output_whose_shape_depends_on_the_data(build: BuildPlan, load: OpenPlan, tmp_path: Path) -> None:
    onnx = onnx_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("NonZero", ["x"], ["where"])],
        [("x", TensorProto.FLOAT, [6])],
        [("where", TensorProto.INT64, [1, "found"])],
    )
    try:
        directory = build(onnx)
    except ModelFileError as error:
        if "no runners that implement" not in str(error):
            raise
        pytest.skip(f"this TensorRT has no kernel for it: {error}")
    engine = load(directory)
    # Several at once: each has to get the shape of its own batch.
    sent = [np.array(x, np.float32) for x in ([0, 1, 0, 2, 0, 0], [0] * 6, [1] * 6, [1, 0, 0, 0, 0, 0])]
    answers = Loop(engine).run([Request({"x": data}, 1, frozenset({"where"})) for data in sent])
    for data, got in zip(sent, answers, strict=True):
        assert got.error is None
        np.testing.assert_array_equal(got.outputs["where"].copy(), np.array(np.nonzero(data)))


def test_every_data_type_that_tensorrt_has(build: BuildPlan, load: OpenPlan, tmp_path: Path) -> None:
    types = {"BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "INT32": TensorProto.INT32}
    types |= {"INT64": TensorProto.INT64, "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT}
    types |= {"BF16": TensorProto.BFLOAT16}
    nodes: list[Any] = []
    outs: list[Any] = []
    for name in types:
        if name == "UINT8":
            nodes += [helper.make_node("Cast", ["in_UINT8"], ["wide"], to=TensorProto.FLOAT)]
            nodes += [helper.make_node("Cast", ["wide"], ["out_UINT8"], to=TensorProto.UINT8)]
        else:
            nodes.append(helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]))
        outs.append((f"out_{name}", types[name], ["batch", 3]))
    onnx = onnx_models.save(tmp_path / "m.onnx", nodes, [(f"in_{n}", t, ["batch", 3]) for n, t in types.items()], outs)
    engine = load(build(onnx, max_batch=2))
    rng = np.random.default_rng(0)
    codes = {"BOOL": "?", "UINT8": "u1", "INT32": "i4", "INT64": "i8", "FP16": "f2", "FP32": "f4", "BF16": "u2"}
    inputs = {f"in_{name}": rng.integers(0, 2 if name == "BOOL" else 100, (2, 3)).astype(codes[name]) for name in types}
    got = answer(engine, " ".join(f"out_{name}" for name in types), **inputs)
    for name in types:
        np.testing.assert_array_equal(got[f"out_{name}"], inputs[f"in_{name}"])


def test_int8_inputs_and_outputs(build: BuildPlan, load: OpenPlan, tmp_path: Path) -> None:
    tensors: list[Any] = [(name, TensorProto.INT8, ["batch", 256]) for name in "xy"]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    onnx = onnx_models.save(tmp_path / "m.onnx", nodes, tensors[:1], tensors[1:])
    try:
        directory = build(onnx, max_batch=2)
    except ModelFileError as error:
        if "no INT8 inputs and outputs" not in str(error):
            raise
        pytest.skip(f"this TensorRT has none: {error}")
    x = np.arange(-128, 128, dtype=np.int8)[None].repeat(2, 0)
    got = answer(load(directory), "y", x=x)["y"]
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, x)


def test_poisoned_buffers_do_not_show(load: OpenPlan, classifier: Path) -> None:
    from pinstream import cuda

    engine: Any = load(classifier)
    for slot in engine.slots:
        for staging in (*slot.inputs.values(), *slot.outputs.values()):
            staging.pinned.data[:] = 0xFF  # a NaN in every float format
            cuda.copy("poisoning", staging.address, staging.pinned.pointer, staging.nbytes)
    for items in (1, 3, 4, 7):
        got = answer(engine, "probabilities", pixels=pixels(items))["probabilities"]
        np.testing.assert_allclose(got, reference(pixels(items)), atol=FP32)


def test_inputs_on_the_gpu_stay_there(load: OpenPlan, classifier: Path) -> None:
    from pinstream import cuda

    engine: Any = load(classifier)
    data = pixels(3)
    memory = cuda.DeviceAllocation(data.nbytes)
    cuda.copy("placing a test's input", memory.pointer, data.ctypes.data, data.nbytes)
    on_gpu = DeviceArray(memory.pointer, data.shape, data.dtype, 0)
    for slot in engine.slots:
        slot.inputs["pixels"].pinned.data[:] = 0xFF
    alone = Loop(engine).run([request("probabilities", pixels=on_gpu)])
    np.testing.assert_allclose(alone[0].outputs["probabilities"].copy(), reference(data), atol=FP32)
    # It went from one place on the GPU to another: no slot's host memory has seen it.
    assert all((slot.inputs["pixels"].pinned.data == 0xFF).all() for slot in engine.slots)
    mixed = Loop(engine).run([request("probabilities", pixels=on_gpu), request("probabilities", pixels=pixels(2, 1))])
    np.testing.assert_allclose(mixed[0].outputs["probabilities"].copy(), reference(data), atol=FP32)
    np.testing.assert_allclose(mixed[1].outputs["probabilities"].copy(), reference(pixels(2, 1)), atol=FP32)
    memory.free()


def test_outputs_stay_on_the_gpu_where_asked(load: OpenPlan, classifier: Path) -> None:
    engine = load(classifier, output_memory="gpu")
    got = answer(engine, "probabilities", pixels=pixels(3))["probabilities"]
    assert isinstance(got, DeviceArray)
    np.testing.assert_allclose(got.copy(), reference(pixels(3)), atol=FP32)
    # A request that takes several batches is put together on the host.
    np.testing.assert_allclose(
        answer(engine, "probabilities", pixels=pixels(9))["probabilities"], reference(pixels(9)), atol=FP32
    )


def test_outputs_of_more_batches_than_slots_stay_there_as_well(load: OpenPlan, classifier: Path) -> None:
    engine: Any = load(classifier, output_memory="gpu", slots=2)
    sent = [pixels(4, seed) for seed in range(7)]
    for _ in range(3):
        answers = Loop(engine).run([request("probabilities", pixels=data) for data in sent])
        for data, found in zip(sent, answers, strict=True):
            got = found.outputs["probabilities"]
            assert isinstance(got, DeviceArray)
            np.testing.assert_allclose(got.copy(), reference(data), atol=FP32)
        del answers, found, got
    # All but the last two batches; memory that was let go of was used again.
    assert sum(len(slot._kept._made) for slot in engine.slots) == 5


@pytest.mark.parametrize("wishes", [{"max_batch": 8}, {"batch_sizes": (4,)}], ids=["dynamic", "padded"])
def test_only_wanted_outputs_and_the_batch_s_own_bytes_come_back(
    build: BuildPlan, load: OpenPlan, tmp_path: Path, wishes: dict[str, Any]
) -> None:
    engine: Any = load(build(onnx_models.two_by_two(tmp_path / "m.onnx"), **wishes))
    for slot in engine.slots:
        for staging in slot.outputs.values():
            staging.pinned.data[:] = 0xFF
    left, right = np.ones((3, 4), np.float32), np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(answer(engine, "double", left=left, right=right)["double"], right * 2)
    touched = [slot for slot in engine.slots if not (slot.outputs["double"].pinned.data == 0xFF).all()]
    assert len(touched) == 1
    assert (touched[0].outputs["double"].pinned.data[right.nbytes :] == 0xFF).all()
    assert all((slot.outputs["sum"].pinned.data == 0xFF).all() for slot in engine.slots)


def test_pictures_of_any_size_are_convolved(build: BuildPlan, load: OpenPlan, tmp_path: Path) -> None:
    onnx = onnx_models.convolution(tmp_path / "m.onnx")
    side = Range((8, 8, 3), (64, 48, 3), (160, 160, 3))
    engine = load(build(onnx, max_batch=4, shapes=(("picture", side),)))
    session = ort.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(3)
    wishes = [(1, 8, 8), (3, 64, 48), (4, 160, 160), (2, 33, 97), (1, 160, 8), (3, 64, 48)]
    pictures = [random.integers(0, 256, (*shape, 3), np.uint8) for shape in wishes]
    # All of them in one run, so that pictures of one size are under way beside those of another.
    answers = Loop(engine).run([Request({"picture": p}, len(p), frozenset({"means", "map"})) for p in pictures])
    for picture, got in zip(pictures, answers, strict=True):
        assert got.error is None, got.error
        for name, expected in zip(("means", "map"), session.run(["means", "map"], {"picture": picture}), strict=True):
            # TF32 keeps ten bits of the 27 products that are summed up.
            np.testing.assert_allclose(np.asarray(got.outputs[name]), expected, atol=0.01 * np.abs(expected).max())


def test_an_error_in_one_batch_leaves_the_loop_usable(build: BuildPlan, load: OpenPlan, tmp_path: Path) -> None:
    onnx = onnx_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["row", "row"], ["doubled"])],
        [("row", TensorProto.FLOAT, ["batch", "width"])],
        [("doubled", TensorProto.FLOAT, ["batch", "width"])],
    )
    loop = Loop(load(build(onnx, max_batch=4, shapes=(("row", Range((1,), (16,), (32,))),))))
    for _ in range(3):
        wide, fitting = np.ones((1, 99), np.float32), np.ones((2, 7), np.float32)
        (refused,) = loop.run([request("doubled", row=wide)])
        assert "no optimisation profile takes row [1, 99]" in str(refused.error)
        (fine,) = loop.run([request("doubled", row=fitting)])
        np.testing.assert_array_equal(fine.outputs["doubled"].copy(), fitting * 2)


def test_of_an_abandoned_batch_nothing_is_read_any_more(load: OpenPlan, classifier: Path) -> None:
    from cuda.bindings import runtime

    from pinstream import cuda

    engine: Any = load(classifier)
    slot, copies = engine.slots[0], engine._streams.h2d
    data = pixels(4)
    large = cuda.DeviceAllocation(256 * MEGABYTE)
    # Long work on the stream of copies, so that those of the batch have not begun when it is abandoned.
    for _ in range(50):
        cuda.fill_async(large.pointer, 0, large.nbytes, copies)
    slot.begin({"pixels": data.shape})
    slot.put("pixels", data, 0)
    waiting = runtime.cudaStreamQuery(copies.handle)[0]
    engine.abandon(slot)
    assert waiting == runtime.cudaError_t.cudaErrorNotReady
    assert runtime.cudaStreamQuery(copies.handle)[0] == runtime.cudaError_t.cudaSuccess
    large.free()
    got = answer(engine, "probabilities", pixels=data)["probabilities"]
    np.testing.assert_allclose(got, reference(data), atol=FP32)


def test_streams_of_high_priority_and_polling_give_the_same(load: OpenPlan, classifier: Path) -> None:
    from cuda.bindings import runtime

    _, least, greatest = runtime.cudaDeviceGetStreamPriorityRange()
    wishes: list[tuple[dict[str, Any], int]] = [
        ({"priority": "high", "busy_wait": True}, greatest),
        ({"priority": "low"}, least),
        ({"slots": 1}, 0),
    ]
    for options, level in wishes:
        engine: Any = load(classifier, **options)
        got = answer(engine, "probabilities", pixels=pixels(11))["probabilities"]
        np.testing.assert_allclose(got, reference(pixels(11)), atol=FP32)
        streams = engine._streams
        for stream in (streams.h2d, streams.compute, streams.d2h):
            assert runtime.cudaStreamGetPriority(stream.handle)[1] == level


def test_inputs_named_in_another_order_launch_the_same_graph(build: BuildPlan, load: OpenPlan, tmp_path: Path) -> None:
    engine: Any = load(build(onnx_models.two_by_two(tmp_path / "m.onnx"), batch_sizes=(2,)))
    left, right = np.ones((2, 4), np.float32), np.arange(8).reshape(2, 4)
    for inputs in ({"left": left, "right": right}, {"right": right, "left": left}):
        (found,) = Loop(engine).run([request("sum", **inputs)])
        np.testing.assert_array_equal(found.outputs["sum"].copy(), left + right)
        assert found.times is not None
        assert found.times.graph


def test_the_sidecar_says_what_the_engine_does(load: OpenPlan, classifier: Path) -> None:
    engine = load(classifier)
    assert engine.spec.batch is not None
    described = inspect(find_model_file(classifier, Options()), Options())
    assert (described.inputs, described.outputs) == (engine.spec.inputs, engine.spec.outputs)
    assert described.batch is not None
    assert described.batch.buckets == engine.spec.batch.buckets


def test_fifty_loads_and_unloads_in_one_process_keep_next_to_nothing(classifier: Path, cache_dir: Path) -> None:
    from pinstream import cuda

    options = Options(cache_dir=str(cache_dir))
    path = find_model_file(classifier, options)

    def once() -> None:
        engine = open_engine(path, options)
        Loop(engine).run([request("probabilities", pixels=pixels(3))])
        engine.close()
        del engine
        gc.collect()

    # The first loads fill the driver's own pools.
    for _ in range(10):
        once()
    used = [cuda.memory_used()]
    for _ in range(5):
        for _ in range(10):
            once()
        used.append(cuda.memory_used())
    # TensorRT for RTX 1.4 itself keeps about 0.1 MiB of every engine it ran; Triton ends the process with the model.
    assert used[-1] - used[0] <= 50 * 0.25 * MEGABYTE, used


@pytest.mark.parametrize("damage", ["truncated", "foreign", "profile", "missing part"])
def test_a_failed_load_leaks_nothing(classifier: Path, cache_dir: Path, tmp_path: Path, damage: str) -> None:
    """Before there are contexts; test_out_of_memory.py has one that fails afterwards."""
    from pinstream import cuda

    directory = tmp_path / "plan"
    directory.mkdir()
    for file in classifier.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    last = directory / "model.b4.plan"
    options = Options(cache_dir=str(cache_dir), profiles=(7,) if damage == "profile" else ())
    if damage == "truncated":
        last.write_bytes(last.read_bytes()[:-1000])
    elif damage == "foreign":
        last.write_bytes(b"\xff\xd8\xff\xe0" * 1000)
    elif damage == "missing part":
        last.unlink()
    before = None
    for attempt in range(6):
        with pytest.raises(PinstreamError) as caught:
            open_engine(find_model_file(directory, options), options)
        if damage != "profile":
            assert isinstance(caught.value, ModelFileError)
            assert "model.b4.plan" in str(caught.value)
        del caught
        gc.collect()
        if attempt == 1:
            before = cuda.memory_used()
    assert before is not None
    assert cuda.memory_used() - before <= MEGABYTE
